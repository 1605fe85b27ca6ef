"""The retrieval step above the encoders, forward and backward, against a straightforward implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.heads import DIM, Shape, make_model, random_features
from benchmarks.peak_memory import in_own_process, peak_extra_mb
from benchmarks.rows import ResultsDifferError, Row, Spread, Target, in_turns, ratios
from benchmarks.straightforward import training_loss
from hbi_models.axes import TokenFeatures
from hbi_models.losses import retrieval_loss
from hbi_models.retrieval import RetrievalModel

SHAPES: dict[Shape, tuple[int, Target | None, float]] = {
    Shape(128, 128, 24, 12): (7, None, 1.0),
    Shape(32, 32, 64, 64): (2, Target("≥", 2), 3.0),
}
"""MSR-VTT's and ActivityNet's: how often each is timed, how many times faster ours is to be, and how many times less
memory it is to take."""
BASELINE = "straightforward implementation, whole tensors"
TOLERANCE = 1e-4
"""Of a gradient, relative to the largest element of its tensor, or to a hundredth of the largest of all."""

Step = Callable[[RetrievalModel, TokenFeatures, TokenFeatures], Tensor]


def our_loss(model: RetrievalModel, words: TokenFeatures, frames: TokenFeatures) -> Tensor:
    pairs = model.relate(model.text_hierarchy(words), model.video_hierarchy(frames))
    config = model.config
    return retrieval_loss(pairs, model.clip.logit_scale, config=config.loss, quirks=config.quirks).total


STEPS: dict[str, Step] = {"ours": our_loss, "theirs": training_loss}


class Contender:
    """One implementation with its model and batch: the same for both."""

    def __init__(self, name: str, shape: Shape, folder: Path, *, dim: int = DIM) -> None:
        self.loss = STEPS[name]
        self.model = make_model(folder, shape, dim=dim)
        self.words = random_features(shape.texts, shape.words, dim=dim, shortest=shape.words // 3, seed=1)
        self.frames = random_features(shape.videos, shape.frames, dim=dim, shortest=shape.frames // 2, seed=2)
        # As behind trained towers, to which the gradients would go on.
        self.words.features.requires_grad_()
        self.frames.features.requires_grad_()

    def step(self) -> Tensor:
        self.model.zero_grad()
        self.words.features.grad = self.frames.features.grad = None
        loss = self.loss(self.model, self.words, self.frames)
        loss.backward()
        return loss.detach()

    def results(self) -> dict[str, Tensor]:
        """The loss, and every gradient by name."""
        found = {"loss": self.step()}
        inputs = {"words": self.words.features, "frames": self.frames.features}
        for name, tensor in [*self.model.named_parameters(), *inputs.items()]:
            if tensor.grad is not None:
                found[name] = tensor.grad
        return found


def step_alone(name: str, shape: Shape, folder: Path) -> float:
    """Peak memory of one step in a process of its own, which writes its results to ``folder``; MB."""
    Contender(name, Shape(4, 4, 12, 12), folder).step()  # loads libraries
    contender = Contender(name, shape, folder)
    results: dict[str, Tensor] = {}
    peak = peak_extra_mb(lambda: results.update(contender.results()))
    torch.save(results, folder / f"{name}.pt")
    return peak


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Loss and all gradients.

    Raises:
        ResultsDifferError: they differ by more than rounding.
    """
    if ours.keys() != theirs.keys():
        raise ResultsDifferError(f"only one of them has gradients of {sorted(ours.keys() ^ theirs.keys())}")
    # Some gradients are 0 but for rounding, such as those of biases in front of a softmax: sums of thousands of terms
    # that cancel. A hundredth of the largest gradient, times the tolerance, is eight roundings of it.
    floor = 1e-2 * max(float(tensor.abs().max()) for name, tensor in theirs.items() if name != "loss")
    for name, tensor in theirs.items():
        allowed = TOLERANCE * max(float(tensor.abs().max()), floor)
        difference = float((ours[name] - tensor).abs().max())
        if not difference <= allowed:
            raise ResultsDifferError(f"{name}: {difference:.2e} apart, allowed are {allowed:.2e}")


def rows(folder: Path) -> Iterator[Row]:
    for shape, (times, faster, less_memory) in SHAPES.items():
        # In processes of their own, because an allocator keeps what a step has taken.
        peaks = {name: in_own_process(step_alone, name, shape, folder) for name in STEPS}
        compare(*(torch.load(folder / f"{name}.pt", weights_only=True) for name in STEPS))
        ours, theirs = (Contender(name, shape, folder) for name in STEPS)
        our_seconds, their_seconds = in_turns([ours.step, theirs.step], times)
        what = f"retrieval step without encoders, batch {shape}"
        yield Row(
            f"{what}: time",
            BASELINE,
            their_seconds,
            our_seconds,
            "s",
            ratios(their_seconds, our_seconds),
            faster,
        )
        peak, their_peak = Spread((peaks["ours"],)), Spread((peaks["theirs"],))
        yield Row(
            f"{what}: peak memory", BASELINE, their_peak, peak, "MB", ratios(their_peak, peak), Target("≥", less_memory)
        )
