"""A step whose batch does not fit on the device: computed in parts, with the loss and the gradients of the whole batch.

The losses relate all pairs of a batch to each other, so the sum of the losses of its parts is another loss. The method
is called cached representations (Gao et al., *Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup*,
2021, arXiv 2101.06983). The features that the loss sees of a pair are small. First, the features of all parts are
computed without gradients. From them come the loss of the whole batch and its gradient with respect to the features.
Then each part is computed again, and carries the gradient of its features back to the weights. So only the activations
of one part are in memory at a time, and the forward pass is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from hbi_models.axes import Rows, tensors_of, with_tensors
from hbi_models.config_fields import require
from hbi_models.draws import BatchDraws
from hbi_models.losses import TrainingLoss
from hbi_models.retrieval import RetrievalModel
from pipelines.train.collectives import gather_pairs

Batch = TypeVar("Batch", contravariant=True)


@runtime_checkable
class PartedTask(Protocol[Batch]):
    """A training whose loss depends on the pairs only through features that are computed for each pair alone."""

    def pairs(self, batch: Batch) -> int:
        """Pairs of a batch."""
        ...

    def encoder(self, model: nn.Module) -> RetrievalModel:
        """The model, or the part of it, that encodes pairs, without DistributedDataParallel around it."""
        ...

    def draws(self, *, first: int = 0) -> BatchDraws:
        """The random numbers of this step for the pairs of this rank's batch, from the ``first`` on."""
        ...

    def features(self, model: nn.Module, batch: Batch, rows: slice, device: torch.device, draws: BatchDraws) -> Rows:
        """What the loss sees of the pairs at ``rows``."""
        ...

    def loss_of(self, model: nn.Module, features: Any, logit_scale: Tensor) -> TrainingLoss:
        """The loss of the features of all pairs."""
        ...

    def figures(self, own: Any, features: Any, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Figures to log beside the loss, from the features of this rank and of all ranks."""
        ...


def require_separable(task: PartedTask[Any], model: nn.Module) -> None:
    """Checks that the features of a pair do not depend on the other pairs of the batch.

    Raises:
        ValueError: it does.
    """
    quirks = task.encoder(model).config.quirks
    require(
        not quirks.coupled_clustering,
        "pairs_at_once is set, and so is the quirk coupled_clustering, by which the clusters of a video depend on the "
        "whole batch; unset one of them",
    )
    coupled = next((name for name, module in model.named_modules() if isinstance(module, _BatchNorm)), None)
    require(
        coupled is None,
        f"pairs_at_once is set, and {coupled} normalises over the images of a batch, so parts of a batch give other "
        "features; unset pairs_at_once, or choose a tower without batch normalisation",
    )


def backward_in_parts(
    task: PartedTask[Batch],
    model: nn.Module,
    batch: Batch,
    device: torch.device,
    *,
    pairs_at_once: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    scaled: Callable[[Tensor], Tensor],
    watch: bool = False,
) -> Mapping[str, Tensor]:
    """Adds the gradients of the loss of the whole batch to those of the model, exact to rounding; returns the loss's
    parts.

    Args:
        task: the training.
        model: its model, distributed or not.
        batch: this rank's pairs.
        device: where to compute.
        pairs_at_once: pairs of a part, at most.
        autocast: the arithmetic of the forward passes.
        scaled: returns what is differentiated: the loss, or a multiple of it.
        watch: also return figures beside the loss.
    """
    seed, count = torch.initial_seed(), task.pairs(batch)
    starts = range(0, count, pairs_at_once)

    def features(start: int) -> Rows:
        # The task takes the seed of the step from torch. The part's own seed is for modules that draw by themselves: it
        # makes them draw the same numbers in the second pass.
        torch.manual_seed(seed)
        draws = task.draws(first=start)
        torch.manual_seed(seed + start)
        rows = slice(start, min(start + pairs_at_once, count))
        with autocast():
            return task.features(model, batch, rows, device, draws)

    with torch.no_grad():
        parts = [features(start) for start in starts]
    whole = with_tensors(parts[0], map(torch.cat, zip(*map(tensors_of, parts), strict=True)))
    # The backward pass of the loss ends here and leaves the gradients of the features. Masks and labels have none.
    leaves = [tensor.requires_grad_() for tensor in tensors_of(whole) if tensor.is_floating_point()]
    # The loss sees the temperature directly and not through features. So it gets a leaf, too, whose gradient joins the
    # last part: DistributedDataParallel must see all gradients in one backward pass.
    scale = task.encoder(model).logit_scale
    own_scale = scale.detach().requires_grad_(scale.requires_grad)
    with autocast():
        gathered = gather_pairs(whole)
        loss = task.loss_of(model, gathered, own_scale)
        figures = task.figures(whole, gathered, loss.parts) if watch else {}
    scaled(loss.total).backward()  # type: ignore[no-untyped-call]

    for start in starts:
        is_last = start == starts[-1]
        # Ranks exchange the summed gradients of all parts once, with the last part. The forward pass stands inside,
        # too, because DistributedDataParallel decides there whether to exchange.
        with nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            outputs = [tensor for tensor in tensors_of(features(start)) if tensor.is_floating_point()]
            gradients = [None if leaf.grad is None else leaf.grad[start : start + pairs_at_once] for leaf in leaves]
            # Targets of the game need no gradient, and a feature that the loss does not use gets none.
            roots = [
                (output, gradient)
                for output, gradient in zip(outputs, gradients, strict=True)
                if output.requires_grad and gradient is not None
            ]
            if is_last and own_scale.grad is not None:
                roots.append((scale, own_scale.grad))
            torch.autograd.backward([output for output, _ in roots], [gradient for _, gradient in roots])
    # As after a step in one piece, torch has the seed of the step.
    torch.manual_seed(seed)
    found = {"loss": loss.total, **loss.parts, **figures}
    return {name: part.detach() for name, part in found.items()}
