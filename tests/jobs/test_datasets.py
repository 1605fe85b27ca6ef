"""Small copies of the published data sets, with real videos, from their files to the evaluation.

Each lacks one video. Its videos are longer than their segments, in the containers in which the field
passes them on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipelines.models.encoding import encode_texts, encode_videos
from pipelines.models.folder import MODEL
from pipelines.models.weights import load_model
from pipelines.recipe.recipe import Recipe
from pipelines.splits import SplitView
from pipelines.stages.execution import Outcome
from pipelines.stages.frames import frames_pool
from pipelines.stages.labels import labels_pool
from pipelines.tables import outcome_table
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import ERRORS_FILE, INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.storage import Storage
from tests.dataset_copies import write_activitynet, write_didemo, write_msrvtt, write_msvd
from tests.jobs.recipes import read, run, write_recipe
from tests.tiny_retrieval import IMAGE_PX, MAX_FRAMES

pytestmark = pytest.mark.slow

BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What a copy holds, as its manifest must say it."""

    captions: Mapping[str, Mapping[str, Sequence[str]]]
    """By split and video."""

    missing: Mapping[str, str]
    """Video to split: listed, but without a file."""

    files: Mapping[str, str]
    """Video to the name of its file."""

    times_s: Sequence[float]
    """Times of each video's frames: one per second of the segment, thinned to the most that the model takes."""

    segment: tuple[float | None, float | None] = (None, None)

    data: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the section ``data``."""

    def count(self, split: str) -> int:
        return sum(map(len, self.captions[split].values()))


def write_clip(path: Path, *, seconds: float, fps: int, codec: str, container: str, shade: int) -> None:
    """A grey clip that grows brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = IMAGE_PX + 16, IMAGE_PX, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(round(seconds * fps)):
            image = np.full((IMAGE_PX, IMAGE_PX + 16, 3), (20 * shade + number) % 256, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))


def write_msrvtt_copy(folder: Path) -> Copy:
    """The 7k list."""
    videos = [f"video{number}" for number in range(10)]
    train = {video: [f"{video} shows something", f"someone does something in {video}"] for video in videos[:7]}
    test = {video: f"the one caption of {video}" for video in videos[7:]}
    write_msrvtt(folder / "annotations", train=train, test=test, train_list="7k")
    files = {video: f"{video}.mp4" for video in videos if video != "video9"}
    for shade, name in enumerate(files.values()):
        write_clip(folder / "videos" / name, seconds=12, fps=4, codec="libx264", container="mp4", shade=shade)
    return Copy(
        captions={"train": train, "test": {video: [text] for video, text in test.items() if video in files}},
        missing={"video9": "test"},
        files=files,
        times_s=[0, 2, 4, 6, 8, 11],
        data={"msrvtt_train_list": "7k", "validation_videos": 1},
    )


def write_msvd_copy(folder: Path) -> Copy:
    """Different numbers of captions per video, one of them in another script, and AVI files."""
    lists = {
        "train": [f"-tra{n}_0_12" for n in range(6)],
        "val": ["_val0_1_13"],
        "test": [f"tes-{n}_5_17" for n in range(4)],
    }
    captions = {
        video: [f"caption {number} of {video}" for number in range(1 + place % 4)] + ["同じ動画 🎬"] * (place % 2)
        for place, video in enumerate(video for videos in lists.values() for video in videos)
    }
    write_msvd(folder / "annotations", lists, captions)
    files = {video: f"{video}.avi" for video in captions if video != "-tra2_0_12"}
    for shade, name in enumerate(files.values()):
        write_clip(folder / "videos" / name, seconds=12, fps=5, codec="mpeg4", container="avi", shade=shade)
    return Copy(
        captions={split: {v: captions[v] for v in videos if v in files} for split, videos in lists.items()},
        missing={"-tra2_0_12": "train"},
        files=files,
        times_s=[0, 2, 4, 6, 8, 11],
    )


def write_activitynet_copy(folder: Path) -> Copy:
    """Files of 26 seconds, annotated up to second 20.4: the segment ends at 21."""
    sentences = ["A man climbs a wall.\n", "", " He reaches the top. "]
    spans = [[0, 12.5], [7, 7], [20.4, 3]]
    record = {"duration": 20.4, "timestamps": spans, "sentences": sentences}
    train, test = [f"v_train-{number}" for number in range(7)], [f"v_--val_{number}" for number in range(4)]
    write_activitynet(
        folder / "annotations", {"train": dict.fromkeys(train, record), "val_1": dict.fromkeys(test, record)}
    )
    kinds = [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx")]
    files = {}
    for shade, video in enumerate(video for video in (*train, *test) if video != "v_--val_1"):
        container, codec = kinds[shade % len(kinds)]
        files[video] = f"{'train' if video in train else 'val'}/{video}.{container.replace('matroska', 'mkv')}"
        write_clip(folder / "videos" / files[video], seconds=26, fps=2, codec=codec, container=container, shade=shade)
    paragraph = ["A man climbs a wall. He reaches the top."]
    return Copy(
        captions={
            "train": dict.fromkeys(train, paragraph),
            "test": {video: paragraph for video in test if video in files},
        },
        missing={"v_--val_1": "test"},
        files=files,
        times_s=[0, 4, 8, 12, 16, 20],
        segment=(0, 21),
        data={"validation_videos": 1},
    )


def write_didemo_copy(folder: Path) -> Copy:
    """Files of 35 seconds under names without a suffix, or with another one than the list has."""
    names = {"train": [f"1000000{n}@N00_200000000{n}_abcdef000{n}" for n in range(6)]}
    names["val"] = ["20000000@N01_3000000000_abcdef1000"]
    names["test"] = [f"3000000{n}@N02_400000000{n}_abcdef200{n}" for n in range(3)]
    texts = {
        video: [f"first moment of {video[:8]}", "then it moves on"] for videos in names.values() for video in videos
    }
    suffixes = (".mov", ".avi", "", ".3gp")
    listed = {
        split: {f"{video}{suffixes[place % 4]}": texts[video] for place, video in enumerate(videos)}
        for split, videos in names.items()
    }
    write_didemo(folder / "annotations", listed)
    files = {}
    for shade, video in enumerate(video for video in texts if video != names["train"][3]):
        files[video] = f"{video}{('', '', '.mov.mp4')[shade % 3]}"
        write_clip(folder / "videos" / files[video], seconds=35, fps=2, codec="libx264", container="mp4", shade=shade)
    return Copy(
        captions={
            split: {video: [" ".join(texts[video])] for video in videos if video in files}
            for split, videos in names.items()
        },
        missing={names["train"][3]: "train"},
        files=files,
        times_s=[0, 6, 12, 18, 24, 30],
        segment=(0, 31),
    )


WRITERS: Mapping[str, Callable[[Path], Copy]] = {
    "msrvtt": write_msrvtt_copy,
    "msvd": write_msvd_copy,
    "activitynet": write_activitynet_copy,
    "didemo": write_didemo_copy,
}


@dataclass(frozen=True)
class Run:
    """A copy, and what the pipeline made of it."""

    copy: Copy
    recipe: Recipe
    outcomes: Mapping[str, Outcome]

    def artifact(self, stage: str) -> Artifact:
        return self.outcomes[stage].artifact

    @cached_property
    def manifest(self) -> dict[str, dict[str, Any]]:
        rows = self.artifact("manifest").storage.read_table(MANIFEST_FILE).to_pylist()
        return {row["video_id"]: row for row in rows}

    @property
    def pool(self) -> Storage:
        return frames_pool(Storage(self.recipe.workspace), self.recipe).storage

    def view(self, split: Any) -> SplitView:
        return SplitView(self.artifact("manifest").storage, self.artifact("frames").storage, self.pool, split)


@pytest.fixture(scope="module", params=WRITERS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    copy = WRITERS[request.param](folder)
    path = write_recipe(
        folder,
        data={
            "dataset": request.param,
            "annotations": str(folder / "annotations"),
            "videos": str(folder / "videos"),
            "max_missing_fraction": 0.15,
            **copy.data,
        },
        frames={"fps": 1, "max_frames": MAX_FRAMES, "short_side_px": IMAGE_PX, "videos_per_shard": 6},
        tracking={"log_model": False},
    )
    outcomes = run(read(path), until_stage="labels")
    # Training the estimator on them differs in nothing from data set to data set: test_pipeline does it.
    recipe = read(path, "--model.game.teacher", "exact", "--retrieval.batch_size", str(BATCH))
    return Run(copy, recipe, outcomes | run(recipe))


def test_the_manifest_holds_every_video_with_its_captions_in_its_split(finished: Run) -> None:
    copy, rows = finished.copy, finished.manifest
    given = {video: (split, texts) for split, videos in copy.captions.items() for video, texts in videos.items()}
    assert set(rows) == set(given) == set(copy.files)
    for video, row in rows.items():
        split, texts = given[video]
        # A validation split that is carved comes from the training videos.
        assert row["split"] == split or (row["split"], split, "val" in copy.captions) == ("val", "train", False)
        assert row["captions"] == list(texts)
        assert (row["start_s"], row["end_s"]) == copy.segment
        assert row["uri"] == f"{finished.recipe.data.videos}/{copy.files[video]}"
    assert sum(row["split"] == "val" for row in rows.values()) == 1


def test_the_missing_video_is_an_error_that_every_place_shows(finished: Run) -> None:
    ((video, split),) = finished.copy.missing.items()
    manifest = finished.artifact("manifest")
    (error,) = manifest.storage.read_table(ERRORS_FILE).to_pylist()
    assert (error["video_id"], error["stage"], error["reason"]) == (video, "manifest", "missing")
    assert error["message"].startswith(f"{split} video: no file at")
    counts = {"rows": len(finished.copy.files), "errors": 1, f"missing_{split}": 1}
    assert {name: manifest.counts.get(name) for name in counts} == counts
    header, _, row, *_ = outcome_table(list(finished.outcomes.values())).splitlines()
    assert header.split()[-3:-1] == ["rows", "errors"]
    assert row.split()[0] == "manifest"
    assert row.split()[-3:-1] == [str(len(finished.copy.files)), "1"]
    logged = manifest_run(finished).data.metrics
    assert {name: logged.get(f"count/{name}") for name in counts} == counts


def test_every_video_gives_the_frames_of_its_segment(finished: Run) -> None:
    assert finished.artifact("frames").counts["errors"] == 0
    index = finished.artifact("frames").storage.read_table(INDEX_FILE).to_pylist()
    assert {row["video_id"] for row in index} == set(finished.manifest)
    for row in index:
        (stored,) = finished.pool.read_table(row["shard"]).slice(row["row"], 1).to_pylist()
        # Containers count time in ticks of a millisecond and coarser.
        assert stored["time_s"] == pytest.approx(finished.copy.times_s, abs=2e-3)
        assert (stored["height_px"], stored["width_px"]) == (IMAGE_PX, IMAGE_PX + 16)


def test_labels_and_training_cover_the_videos_that_are_there(finished: Run) -> None:
    view = finished.view("train")
    pairs = sum(view.texts_per_video)
    carved = [row for row in finished.manifest.values() if row["split"] == "val"]
    pool = labels_pool(Storage(finished.recipe.workspace), finished.recipe).storage
    labels = [row for shard in pool.files() for row in pool.read_table(shard).to_pylist()]
    expected = [row for row in finished.manifest.values() if row["split"] != "test"]
    assert sorted((row["video_id"], row["caption_index"]) for row in labels) == sorted(
        (row["video_id"], number) for row in expected for number in range(len(row["captions"]))
    )
    assert pairs + sum(len(row["captions"]) for row in carved) == len(labels)
    assert 1 <= finished.artifact("retrieval").counts["steps"] <= pairs // BATCH


def test_the_evaluation_counts_every_caption_and_every_video(finished: Run) -> None:
    artifact = finished.artifact("evaluation")
    document = artifact.storage.read_json("metrics.json")
    texts, videos = finished.copy.count("test"), len(finished.copy.captions["test"])
    assert (document["texts"], document["videos"], document["split"]) == (texts, videos, "test")
    directions = artifact.storage.read_table("ranks.parquet").column("direction").to_pylist()
    assert (directions.count("text_to_video"), directions.count("video_to_text")) == (texts, videos)
    for direction in ("text_to_video", "video_to_text"):
        assert 0 <= document[direction]["recall_at_1"]["value"] <= 100
        assert document[direction]["mean_rank"]["value"] >= 1


def test_ranks_are_those_of_sorted_scores(finished: Run) -> None:
    """A caption's rank: places up to its video; a video's: places up to the first of its captions."""
    view = finished.view("test")
    model = load_model(finished.artifact("retrieval").storage.folder(MODEL), Path())
    texts = [(video, number, text) for video in range(len(view)) for number, text in enumerate(view.texts(video))]
    with torch.inference_mode():
        words = encode_texts(model, [text for _, _, text in texts], device=torch.device("cpu"), batch_size=99)
        clips = encode_videos(model, view.store, range(len(view)), device=torch.device("cpu"), batch_size=99)
        scores = model.similarity(words, clips)
    rows = finished.artifact("evaluation").storage.read_table("ranks.parquet").to_pylist()
    ranks = {(row["direction"], row["video_id"], row["caption_index"]): row["rank"] for row in rows}
    for place, (video, number, _) in enumerate(texts):
        rank = ranks["text_to_video", view.store.video_ids[video], number]
        assert_rank(rank, right=[scores[place, video].item()], all_scores=scores[place].tolist())
    for video, name in enumerate(view.store.video_ids):
        own = [scores[place, video].item() for place, (owner, _, _) in enumerate(texts) if owner == video]
        assert_rank(ranks["video_to_text", name, None], right=own, all_scores=scores[:, video].tolist())


def assert_rank(rank: float, *, right: Sequence[float], all_scores: Sequence[float]) -> None:
    """Other batches round differently: what is closer than that may stand on either side."""
    wrong = sorted(all_scores)
    for score in right:
        wrong.remove(score)
    surely, possibly = (sum(score > max(right) + margin for score in wrong) for margin in (1e-5, -1e-5))
    assert 1 + surely <= rank <= 1 + possibly


def manifest_run(finished: Run) -> Any:
    """The MLflow run of the stage."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{finished.recipe.workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("hbi")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], filter_string="tags.stage = 'manifest'")
    return found
