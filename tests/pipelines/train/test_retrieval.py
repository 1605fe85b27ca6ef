from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.configs import MergingConfig
from hbi_models.metrics import RetrievalMetrics, text_to_video_ranks, video_to_text_ranks
from hbi_models.retrieval import RetrievalModel
from pipelines.models.encoding import encode_texts, encode_videos
from pipelines.models.weights import save_model
from pipelines.recipe.training import AugmentationConfig
from pipelines.splits import positions_of_half
from pipelines.train.checkpoints import Position
from pipelines.train.loop import SCORE, LoopSettings, TrainingLoop
from pipelines.train.pairs import PairBatch, PairSource
from pipelines.train.retrieval import RetrievalTask
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import retrieval_config, retrieval_task, write_split_data

CAPTIONS = (3, 1, 2, 2, 3, 1, 2, 1, 2)
CPU = torch.device("cpu")


class Silent:
    """Hears nothing."""

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def checkpoint(self, folder: Path | None, score: float) -> None:
        pass


@pytest.fixture
def data(tmp_path: Path) -> Storage:
    return write_split_data(tmp_path, {"train": CAPTIONS, "val": (1, 2, 1)})


@pytest.fixture
def task(data: Storage, tmp_path: Path) -> RetrievalTask:
    return retrieval_task(data, retrieval_config(tmp_path), CAPTIONS)


def assert_same(one: PairBatch, other: PairBatch) -> None:
    assert one.video_ids == other.video_ids
    for found, expected in zip(one[:-1], other[:-1], strict=True):
        assert torch.equal(found, expected)


def test_the_parts_of_the_ranks_make_the_batch_with_its_augmentation(task: RetrievalTask) -> None:
    whole = task.source(rank=0, world_size=1)
    parts = [task.source(rank=rank, world_size=2) for rank in range(2)]
    for address in ((0, 0), (0, 1), (1, 1)):
        joined = [part[address] for part in parts]
        tensors = [torch.cat(pair) for pair in zip(*(batch[:-1] for batch in joined), strict=True)]
        assert_same(PairBatch(*tensors, joined[0].video_ids + joined[1].video_ids), whole[address])


@pytest.mark.long
def test_loader_processes_make_the_batches_of_the_thread(task: RetrievalTask) -> None:
    in_thread = list(task.batches(Position()))
    in_process = list(replace(task, loader_processes=1).batches(Position()))
    assert len(in_thread) == len(in_process) == sum(task.steps_per_epoch)
    for one, other in zip(in_thread, in_process, strict=True):
        assert_same(one, other)


@pytest.mark.slow
def test_batches_go_on_from_any_position(task: RetrievalTask) -> None:
    every = list(task.batches(Position()))
    for position, done in ((Position(epoch=0, step_in_epoch=2), 2), (Position(epoch=1), task.steps(0))):
        left = list(task.batches(position))
        assert len(left) == len(every) - done
        for one, other in zip(left, every[done:], strict=True):
            assert_same(one, other)


def test_augmentation_changes_pixels_and_differs_between_epochs(data: Storage, tmp_path: Path) -> None:
    strong = AugmentationConfig(operations=4, probability=1.0)
    config = retrieval_config(tmp_path)
    augmented, plain = (
        retrieval_task(data, config, CAPTIONS, augmentation=augmentation).source(rank=0, world_size=1)
        for augmentation in (strong, AugmentationConfig(enabled=False))
    )

    def pictures(batches: PairSource, epoch: int) -> dict[str, torch.Tensor]:
        batch = batches[epoch, 0]
        return dict(zip(batch.video_ids, batch.frames, strict=True))

    first, second, untouched = pictures(augmented, 0), pictures(augmented, 1), pictures(plain, 0)
    assert first.keys() == untouched.keys()
    assert any(not torch.equal(first[name], untouched[name]) for name in first)
    common = first.keys() & second.keys()
    assert common
    assert any(not torch.equal(first[name], second[name]) for name in common)
    again = pictures(retrieval_task(data, config, CAPTIONS, augmentation=strong).source(rank=0, world_size=1), 0)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_epochs_may_differ_in_their_number_of_steps(tmp_path: Path) -> None:
    captions = (2, 2, 1, 1)
    data = write_split_data(tmp_path, {"train": captions})
    task = retrieval_task(data, retrieval_config(tmp_path), captions, batch_size=3, epochs=6)
    assert set(task.steps_per_epoch) == {1, 2}
    loop = TrainingLoop(task, device=CPU, reporter=Silent(), settings=LoopSettings())
    loop.run()
    assert loop.position.step == sum(task.steps_per_epoch)
    assert loop.schedule.get_last_lr()[-1] == pytest.approx(0, abs=1e-9), "the schedule ends with the training"


def test_without_a_validation_split_there_is_nothing_to_choose_by(tmp_path: Path) -> None:
    data = write_split_data(tmp_path, {"train": CAPTIONS})
    task = retrieval_task(data, retrieval_config(tmp_path), CAPTIONS)
    assert task.validate(task.make_model(), CPU) == {SCORE: 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("half", [None, "choosing", "ranking"])
def test_validation_may_be_with_one_half_of_the_videos(tmp_path: Path, half: Any) -> None:
    data = write_split_data(tmp_path, {"train": CAPTIONS, "val": (1, 2, 1, 3, 2)})
    task = retrieval_task(data, retrieval_config(tmp_path), CAPTIONS, validation_half=half)
    model = task.make_model().eval()
    with torch.inference_mode():
        found = task.validate(model, CPU)
        view = task.data.captions("val")
        videos = positions_of_half(view.store.video_ids, half)
        texts, owners, _ = view.texts_of(videos)
        similarity = model.similarity(
            encode_texts(model, texts, device=CPU, batch_size=3),
            encode_videos(model, view.store, videos, device=CPU, batch_size=3),
        )
    assert len(videos) == {None: 5, "choosing": 3, "ranking": 2}[half]
    columns = torch.tensor([videos.index(owner) for owner in owners])
    expected = {
        "text_to_video": RetrievalMetrics.from_ranks(text_to_video_ranks(similarity, columns)),
        "video_to_text": RetrievalMetrics.from_ranks(video_to_text_ranks(similarity, columns)),
    }
    for direction, metrics in expected.items():
        for name, value in metrics.as_dict().items():
            assert found[f"validation/{direction}/{name}"] == pytest.approx(value)


@pytest.mark.slow
def test_training_starts_from_a_checkpoint(data: Storage, tmp_path: Path) -> None:
    config = retrieval_config(tmp_path)
    torch.manual_seed(99)
    start = RetrievalModel(config)
    (tmp_path / "checkpoint").mkdir()
    save_model(tmp_path / "checkpoint", start, kind="retrieval", config=config)
    task = retrieval_task(data, config, CAPTIONS, init_checkpoint=str(tmp_path / "checkpoint"))
    torch.manual_seed(0)
    model = task.make_model()
    for name, value in start.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.slow
def test_tie_break_noise_is_drawn_in_training(data: Storage, tmp_path: Path) -> None:
    merging = MergingConfig(text_rates=(0.5, 0.5), video_rates=(0.5, 0.5), heads=4, tie_break_noise=1e-6)
    task = retrieval_task(data, retrieval_config(tmp_path, merging=merging), CAPTIONS, epochs=1)
    TrainingLoop(task, device=CPU, reporter=Silent(), settings=LoopSettings()).run()


def test_figures_of_the_game_come_beside_the_parts_of_the_loss(task: RetrievalTask) -> None:
    model, batch = task.make_model(), next(task.batches(Position()))
    plain = task.loss(model, batch, CPU)
    watched = task.loss(model, batch, CPU, watch=True)
    assert {name: value.item() for name, value in plain.items()} == {
        name: value.item() for name, value in watched.items() if "/" not in name
    }
    names = {name.removeprefix("game/") for name in watched if "/" in name}
    assert {"entity_words_entropy", "entity_frames_largest", "action_words_entropy", "event_gradient"} <= names
    assert all(0 <= watched[f"game/{name}"] <= 1 for name in names if not name.endswith("gradient"))
