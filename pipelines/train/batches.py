"""Loading batches ahead of the training step, in a thread or in processes of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

Batch = TypeVar("Batch", covariant=True)

BatchAddress = tuple[int, int]
"""Epoch, and step in the epoch."""

_AHEAD = 3


class BatchSource(Protocol[Batch]):
    """Makes the batch of any step, as a function of its address alone."""

    def __getitem__(self, address: BatchAddress) -> Batch: ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that can begin to read what a later batch needs."""

    def read_ahead(self, address: BatchAddress) -> None:
        """Begins to read for the batch at ``address``; returns at once."""
        ...


def _made(source: BatchSource[Batch], address: BatchAddress, following: BatchAddress | None) -> Batch:
    """The batch at ``address``, while the storage works on the ``following`` one."""
    if following is not None and isinstance(source, ReadsAhead):
        # This batch, too: before the first one nothing is begun, and a video that the last batch also had was given out
        # with it. What is begun is not begun again.
        source.read_ahead(address)
        source.read_ahead(following)
    return source[address]


class _SourceDataset(Dataset[Any]):
    """A batch source as PyTorch's loader wants it."""

    def __init__(self, source: BatchSource[Any]) -> None:
        self._source = source

    def __getitem__(self, addresses: tuple[BatchAddress, BatchAddress | None]) -> Any:
        return _made(self._source, *addresses)


def load_ahead(
    source: BatchSource[Batch], addresses: Sequence[BatchAddress], *, processes: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    """The batches at ``addresses`` in order, made ahead of their use; closing the generator ends the thread or the
    processes.

    Args:
        source: makes a batch; it is sent to the processes.
        addresses: which batches.
        processes: loader processes; 0 = a thread, which is enough for small batches.
        pin_memory: put batches into page-locked memory, for copies that overlap with the GPU's work.
    """
    if processes == 0:
        return _in_thread(source, addresses, pin_memory=pin_memory)
    return _in_processes(source, addresses, processes=processes, pin_memory=pin_memory)


def _with_following(
    addresses: Sequence[BatchAddress], makers: int
) -> Iterator[tuple[BatchAddress, BatchAddress | None]]:
    """Each address with the next one that the same maker gets, where so many makers take turns."""
    # PyTorch's loader gives its items to its processes in turn, so each process makes every ``makers``-th batch.
    return zip_longest(addresses, addresses[makers:]) if len(addresses) > makers else ((one, None) for one in addresses)


def _in_processes(
    source: BatchSource[Batch], addresses: Sequence[BatchAddress], *, processes: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    loader = DataLoader(
        _SourceDataset(source),
        # An item of the data set is a whole batch.
        batch_size=None,
        sampler=list(_with_following(addresses, processes)),
        num_workers=processes,
        prefetch_factor=_AHEAD,
        pin_memory=pin_memory,
        # Spawned, because a forked child would inherit Ray's and gRPC's threads in an unknown state. A fork server
        # would leave its socket in the node's temporary folder, because Ray kills a training's workers at the end.
        multiprocessing_context="spawn",
    )
    # The processes end with the loader's iterator, which only this frame holds.
    yield from loader


def _in_thread(
    source: BatchSource[Batch], addresses: Sequence[BatchAddress], *, pin_memory: bool
) -> Generator[Batch, None, None]:
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def offer(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                # With a timeout, so that the thread notices when nobody takes batches any more.
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for address, following in _with_following(addresses, 1):
                batch = _made(source, address, following)
                if not offer(tree_map_only(Tensor, Tensor.pin_memory, batch) if pin_memory else batch):
                    return
            offer(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            offer(error)

    thread = threading.Thread(target=work, name="batch-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
