"""A batch taken in parts has the loss and the gradients of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hbi_models.configs import MergingConfig, Quirks
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ResourcesConfig, TrainResources
from pipelines.train.checkpoints import Position
from pipelines.train.loop import LoopSettings, Task, TrainingLoop
from pipelines.train.parts import require_separable
from tests.pipelines.train.test_loop import LineTask
from tests.pipelines.train.test_retrieval import CAPTIONS, Silent
from tests.tiny_retrieval import retrieval_config, retrieval_task, write_split_data
from tests.tiny_video_qa import video_qa_config, video_qa_task, write_question_data

CPU = torch.device("cpu")
NOISY = MergingConfig(text_rates=(0.5, 0.5), video_rates=(0.5, 0.5), heads=4, tie_break_noise=1e-3)


def make_task(folder: Path, kind: str) -> Task[Any]:
    """A training whose steps draw noise, and dropout too in question answering; batches of four."""
    splits: Any = {"train": CAPTIONS, "val": (1, 2)}
    if kind == "retrieval":
        return retrieval_task(write_split_data(folder, splits), retrieval_config(folder, merging=NOISY), CAPTIONS)
    return video_qa_task(write_question_data(folder, splits), video_qa_config(folder, dropout=0.3, merging=NOISY))


def gradients(task: Task[Any], pairs_at_once: int | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parts of the loss of the first batch, and the gradients of the weights."""
    settings = LoopSettings(pairs_at_once=pairs_at_once)
    loop = TrainingLoop(task, device=CPU, reporter=Silent(), settings=settings)
    torch.manual_seed(11)
    batches = task.batches(Position(), CPU)
    parts = loop._backward(next(batches))
    batches.close()
    assert torch.initial_seed() == 11, "what is drawn after it is what would be drawn without it"
    found = {name: weight.grad for name, weight in loop.core.named_parameters() if weight.grad is not None}
    return dict(parts), found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retrieval", "video_qa"])
def test_loss_and_gradients_are_those_of_the_whole_batch(tmp_path: Path, kind: str) -> None:
    task = make_task(tmp_path, kind)
    expected, whole = gradients(task, None)
    assert "clip.logit_scale" in "".join(whole)
    for size in (1, 3, 4):
        found, parted = gradients(task, size)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert parted.keys() == whole.keys()
        for name, gradient in whole.items():
            tolerance = 5e-5 * gradient.abs().max().item() + 2e-7
            torch.testing.assert_close(parted[name], gradient, rtol=0, atol=tolerance, msg=f"{name}, parts of {size}")


@pytest.mark.slow
def test_a_loss_of_parts_alone_would_be_another(tmp_path: Path) -> None:
    """What the cache is for: pairs of other parts are wrong answers, too."""
    task = make_task(tmp_path, "retrieval")
    expected, _ = gradients(task, None)
    torch.manual_seed(11)
    model = TrainingLoop(task, device=CPU, reporter=Silent(), settings=LoopSettings()).core
    batch = next(task.batches(Position(), CPU))
    torch.manual_seed(11)
    rows = slice(0, 2)
    half = task.loss_of(model, task.features(model, batch, rows, CPU, task.draws()), model.clip.logit_scale)  # type: ignore[attr-defined]
    assert abs(float(half.total) - float(expected["loss"])) > 0.1


def test_what_couples_the_pairs_of_a_batch_is_refused(tmp_path: Path) -> None:
    data = write_split_data(tmp_path, {"train": CAPTIONS})
    coupled = retrieval_config(tmp_path, quirks=Quirks(coupled_clustering=True))
    settings = LoopSettings(pairs_at_once=2)
    with pytest.raises(ValueError, match="coupled_clustering"):
        TrainingLoop(retrieval_task(data, coupled, CAPTIONS), device=CPU, reporter=Silent(), settings=settings)
    task = retrieval_task(data, retrieval_config(tmp_path), CAPTIONS)
    model = task.make_model()
    require_separable(task, model)
    model.add_module("normalised", nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="normalised normalises over the images"):
        require_separable(task, model)


def test_a_loss_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="kind 'line'"):
        TrainingLoop(LineTask(), device=CPU, reporter=Silent(), settings=LoopSettings(pairs_at_once=2))
    with pytest.raises(ValueError, match=r"resources\.estimator.pairs_at_once"):
        Recipe(resources=ResourcesConfig(estimator=TrainResources(pairs_at_once=2)))
