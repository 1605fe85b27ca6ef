from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hbi_models.configs import GameConfig
from pipelines.models.estimator import EstimatorConfig, load_estimator
from pipelines.models.weights import save_model
from pipelines.train.checkpoints import Position
from pipelines.train.estimator import EstimatorTask
from pipelines.train.loop import SCORE
from pipelines.workspace.storage import Storage
from tests.tiny_estimator import MAX_FRAMES, MAX_WORDS, TRAIN_PAIRS, estimator_task, label_rows, write_labels

CPU = torch.device("cpu")


@pytest.fixture
def task(tmp_path: Path) -> EstimatorTask:
    write_labels(tmp_path)
    return estimator_task(tmp_path)


class Constant(nn.Module):
    """Says the same of every cell."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, similarity: Tensor, absent_words: int, word_mask: Tensor) -> Tensor:
        assert word_mask.shape == similarity.shape[:2]
        return torch.full_like(similarity, self.value)


def test_a_batch_holds_whole_pairs_and_zeros_around_them(task: EstimatorTask) -> None:
    by_sum = {round(sum(row["interaction"]), 4): row for row in label_rows()[:TRAIN_PAIRS]}
    seen = set()
    for batch in list(task.batches(Position()))[: task.steps(0)]:
        assert batch.similarity.shape == batch.interaction.shape == batch.mask.shape == (8, MAX_WORDS, MAX_FRAMES)
        for similarity, interaction, mask in zip(batch.similarity, batch.interaction, batch.mask, strict=True):
            row = by_sum[min(by_sum, key=lambda total: abs(total - interaction.sum().item()))]
            words, frames = row["num_words"], row["num_frames"]
            assert mask.sum() == words * frames
            assert mask[:words, :frames].all()
            for values, name in ((similarity, "similarity"), (interaction, "interaction")):
                np.testing.assert_array_equal(values[:words, :frames].flatten(), np.float32(row[name]))
                assert not values[~mask].any()
            seen.add(row["key"])
    assert len(seen) == TRAIN_PAIRS, "an epoch shows every pair"


def test_batches_do_not_depend_on_how_pairs_were_grouped_into_shards(tmp_path: Path) -> None:
    batches = []
    for shards in (1, 2, 7):
        write_labels(tmp_path / str(shards), shards=shards)
        batches.append(list(estimator_task(tmp_path / str(shards)).batches(Position())))
    for other in batches[1:]:
        for one, same in zip(batches[0], other, strict=True):
            assert torch.equal(one.similarity, same.similarity)
            assert torch.equal(one.interaction, same.interaction)


def test_batches_go_on_from_any_position(task: EstimatorTask) -> None:
    every = list(task.batches(Position()))
    left = list(task.batches(Position(epoch=1, step_in_epoch=1)))
    assert len(left) == task.steps(1) - 1
    assert torch.equal(left[0].similarity, every[task.steps(0) + 1].similarity)


def test_the_loss_ignores_what_is_said_of_padding(task: EstimatorTask) -> None:
    batch = next(iter(task.batches(Position())))
    expected = (0.5 - batch.interaction[batch.mask]).square().sum() / batch.mask.numel()
    torch.testing.assert_close(task.loss(Constant(0.5), batch, CPU)["loss"], expected)


def test_the_score_is_the_explained_variance_of_real_cells(task: EstimatorTask) -> None:
    cells = np.concatenate([row["interaction"] for row in label_rows()[TRAIN_PAIRS:]])
    mean = task.validate(Constant(float(cells.mean())), CPU)
    # Labels are stored in float32, and their sums differ in the last places.
    assert mean[SCORE] == pytest.approx(0, abs=1e-6)
    assert mean["validation/mse"] == pytest.approx(cells.var(), rel=1e-6)
    shifted = task.validate(Constant(float(cells.mean() + cells.std())), CPU)
    assert shifted["validation/explained_variance"] == pytest.approx(-1, abs=1e-5)


def test_without_a_validation_split_the_training_pairs_are_scored(tmp_path: Path) -> None:
    write_labels(tmp_path, validation_pairs=0)
    cells = np.concatenate([row["interaction"] for row in label_rows()[:TRAIN_PAIRS]])
    metrics = estimator_task(tmp_path).validate(Constant(0.0), CPU)
    assert metrics["validation/mse"] == pytest.approx(np.square(cells).mean(), rel=1e-6)


def test_an_estimator_comes_back_as_it_was(task: EstimatorTask, tmp_path: Path) -> None:
    model = task.make_model()
    save_model(tmp_path, model, kind="estimator", config=EstimatorConfig(4))
    loaded = load_estimator(Storage(str(tmp_path)), tmp_path)
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    again = estimator_task(tmp_path, init_checkpoint=str(tmp_path)).make_model()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, nn.Linear(1, 1), kind="retrieval", config=GameConfig())
    with pytest.raises(ValueError, match="holds a model of kind 'retrieval'; an estimator is needed"):
        load_estimator(Storage(str(tmp_path)), tmp_path)
