"""Gathering over ranks: the only module that knows that there are several.

Losses see gathered tensors and are computed in full on every rank. The backward pass of the gather sums over ranks
before it takes the rank's own slice. With the mean that DistributedDataParallel takes, W workers with batch B / W then
have the gradients of one worker with batch B. (The published backward keeps the local slice without the sum, which
scales encoder gradients by 1 / W.)

Every rank takes part in the same collectives in the same order, whatever its data is. Work that may fail on one rank
alone goes through ``together``. Numbers that are not finite are gathered like others, so all ranks see them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from hbi_models.axes import R, tensors_of, with_tensors

T = TypeVar("T")


class OtherRankError(ValueError):
    """This rank could continue, but another one cannot; the message names that rank and its error."""


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


_host_groups: dict[Any, Any] = {}


def _hosts() -> Any:
    """The group in which the hosts talk to each other, past their devices; all ranks ask for it at the same time."""
    world = dist.group.WORLD
    if dist.get_backend() == "gloo":
        return world
    # NCCL only moves what lies on GPUs.
    if world not in _host_groups:
        _host_groups.clear()  # of a world that is gone
        _host_groups[world] = dist.new_group(backend="gloo")
    return _host_groups[world]


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = local.shape[0]
        rows = local.new_empty(world_size() * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(rows, local.contiguous())
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy, because autograd may give the same gradient to others.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]


def all_gather_with_gradient(local: Float[Tensor, "local ..."]) -> Float[Tensor, "all ..."]:
    """The rows of all ranks in rank order; every rank must hold equally many."""
    if world_size() == 1:
        return local
    return _AllGather.apply(local)  # type: ignore[no-any-return, no-untyped-call]


def gather_pairs(pairs: R) -> R:
    """The pairs of all ranks, in one message; gradients flow back to each pair's rank."""
    if world_size() == 1:
        return pairs
    leaves = tensors_of(pairs)
    count = leaves[0].shape[0]
    # One message, because each of dozens of small ones would cost the latency. Masks are sent as 0 and 1, labels as
    # whole numbers, which float32 holds exactly up to 2^24.
    message = torch.cat([leaf.reshape(count, -1).float() for leaf in leaves], dim=1)
    columns = torch.split(all_gather_with_gradient(message), [leaf[0].numel() for leaf in leaves], dim=1)
    gathered = (
        column.reshape(-1, *leaf.shape[1:]).to(leaf.dtype) for column, leaf in zip(columns, leaves, strict=True)
    )
    return with_tensors(pairs, gathered)


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over ranks, without gradient."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def together(work: Callable[[], T]) -> T:
    """What ``work`` returns on this rank, once it is done on all; it holds no collective itself.

    If one rank failed alone, the others would wait for it in their next collective.

    Args:
        work: reads, writes or computes something on this rank.

    Raises:
        OtherRankError: it failed on another rank.
        Exception: what ``work`` raised here.
    """
    if world_size() == 1:
        return work()
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - raised below, on all ranks
        failure = error
    # Between the hosts: a flag on the devices would make every rank wait for all that its device has to do.
    failed = torch.tensor([float(failure is not None)])
    dist.all_reduce(failed, group=_hosts())
    if failed:
        words = gather_objects(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        raise OtherRankError("; ".join(f"rank {number}: {text}" for number, text in enumerate(words) if text))
    return result


def gather_objects(value: T) -> list[T]:
    """The values of all ranks in rank order; for results of evaluation, never inside a step."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_hosts())
    return values
