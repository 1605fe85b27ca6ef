"""The benchmarks of the pipeline compare like with like, and notice where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ddp, decoding_per_epoch, frames, growing, training_input
from benchmarks.clips import generated_clips, link_videos, real_clips
from benchmarks.memory import Run
from benchmarks.rows import ResultsDifferError
from hbi_models.configs import RetrievalConfig
from pipelines.graph import make_graph
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.stages.frames import frames_pool
from pipelines.stages.plan import Graph
from pipelines.video.extraction import make_extract_frames
from pipelines.video.frame_store import FrameStore
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import INDEX_FILE

CONFIG = FramesConfig(fps=2, max_frames=4, short_side_px=48)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    config = ShapesConfig(train_videos=3, test_videos=1, image_size_px=32, duration_s=1.5)
    return generated_clips(tmp_path_factory.mktemp("clips"), config)


@pytest.mark.slow
def test_a_real_clip_has_the_size_and_the_length_asked_for(tmp_path: Path) -> None:
    (file,) = real_clips(tmp_path / "real", [2], width=64, height=48)
    indices, pictures = frames.decode(file, FramesConfig(fps=1, max_frames=8, short_side_px=24))
    assert indices == [0, 25]
    assert [picture.size for picture in pictures] == [(32, 24)] * 2


class StoredGraph(Graph):
    """A graph whose frames another way has stored."""

    stored: Artifact

    def artifact(self, name: str) -> Artifact | None:
        return self.stored


def stored_frames(folder: Path, files: list[Path], config: FramesConfig) -> tuple[Recipe, Graph]:
    """What the stage frames leaves, without Ray."""
    captions, links = link_videos(folder, files, len(files))
    data = DataConfig(dataset="captions_file", annotations=str(captions), videos=str(folder / "videos"))
    model = RetrievalConfig(max_frames=config.max_frames)
    recipe = Recipe(workspace=str(folder / "workspace"), data=data, frames=config, model=model)
    whole = make_graph(recipe)
    extract = make_extract_frames(config)
    pool = frames_pool(whole.workspace, recipe)
    pool.commit(
        [
            extract({"video_id": link.stem, "key": link.stem, "uri": str(link), "start_s": None, "end_s": None})
            for link in links
        ]
    )
    graph = StoredGraph(whole.workspace, whole.stages)
    output = whole.output("frames")
    output.write_table(INDEX_FILE, pool.index(["video_id"]))
    graph.stored = Artifact("frames", "fingerprint", output, {})
    return recipe, graph


def test_bare_decoding_gives_the_frames_that_the_stage_stores(clips: list[Path], tmp_path: Path) -> None:
    recipe, graph = stored_frames(tmp_path, clips, CONFIG)
    bare = frames.decode_chunk(CONFIG, clips)
    frames.require_equal(recipe, graph, clips, bare)
    with pytest.raises(ResultsDifferError, match="frames, not"):
        frames.require_equal(recipe, graph, clips, [*bare[:-1], bare[-1][:-1]])
    with pytest.raises(ResultsDifferError, match="is not what decord decodes"):
        frames.require_equal(recipe, graph, clips[::-1], bare)


def test_pils_operations_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    training_input.require_equal_operations(noise)
    monkeypatch.setattr(training_input, "apply_operation", lambda frames, operation: frames ^ 2)
    with pytest.raises(ResultsDifferError, match="differs from PIL's by"):
        training_input.require_equal_operations(noise)


@pytest.mark.slow
def test_the_published_loader_gives_the_pixels_of_the_stored_frames(clips: list[Path], tmp_path: Path) -> None:
    order = [2, 0, 1, 0]
    published = decoding_per_epoch.PublishedLoader(clips, order)
    store = decoding_per_epoch.store_frames(tmp_path / "png", clips, decoding_per_epoch.CONFIG)
    decoding_per_epoch.require_equal(published, store, order)
    source = decoding_per_epoch.StoredFrames(store, order * 8)
    assert torch.equal(source[(1, 0)], store.batch(order * 8, image_size_px=224, max_frames=12).frames)
    with pytest.raises(ResultsDifferError):
        decoding_per_epoch.require_equal(published, store, [0, 1, 2, 0])


def test_losses_of_several_workers_are_compared_step_by_step() -> None:
    alone = [{"train/loss": 4.0, "throughput/pairs_per_s": 10.0}] * ddp.WARM_UP
    alone += [{"train/loss": 3.0, "throughput/pairs_per_s": rate} for rate in (10.0, 30.0)]
    ddp.require_equal(alone, alone)
    with pytest.raises(ResultsDifferError):
        ddp.require_equal(alone, [*alone[:-1], {**alone[-1], "train/loss": 3.1}])
    assert ddp.pairs_per_second(alone) == pytest.approx(15), "one second at 10 and a third of one at 30"


def test_a_constant_start_is_no_cost_of_growing() -> None:
    runs = [
        Run(count, 0.0, 20 + count / 10, {"driver": [(0.0, 100.0), (1.0, 100.0 + count)]}) for count in (10, 20, 40)
    ]
    assert growing.slope(runs[:2]) == pytest.approx(0.1)
    assert growing.slope([runs[1], replace(runs[2], stage_seconds=26.0)]) == pytest.approx(0.2)
    assert growing.largest_mb(runs[2]) == 140


def test_input_is_read_in_the_given_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_input, "DISTINCT", 2)
    pool = training_input.write_shards(tmp_path, 3)
    store = FrameStore(pool.storage, pool.index(["video_id"]))
    training_input.require_equal_pixels(store.encoded(0), store.decoded(0))
    with pytest.raises(ResultsDifferError):
        training_input.require_equal_pixels(store.encoded(0), store.decoded(1))
