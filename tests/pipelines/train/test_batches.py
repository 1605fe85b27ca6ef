from __future__ import annotations

import multiprocessing
import threading
import time

import pytest
import torch

from pipelines.train.batches import BatchAddress, _with_following, load_ahead

ADDRESSES = [(epoch, step) for epoch in range(2) for step in range(6)]


class Source:
    """A batch that tells its address."""

    def __getitem__(self, address: BatchAddress) -> torch.Tensor:
        epoch, step = address
        return torch.full((2, 3), 10.0 * epoch + step)


class BrokenSource(Source):
    def __getitem__(self, address: BatchAddress) -> torch.Tensor:
        if address == (0, 3):
            raise OSError("shard 17 cannot be read")
        return super().__getitem__(address)


class CountingSource(Source):
    def __init__(self) -> None:
        self.made: list[BatchAddress] = []

    def __getitem__(self, address: BatchAddress) -> torch.Tensor:
        self.made.append(address)
        return super().__getitem__(address)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batch-loader"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.long)])
def test_batches_come_in_order(processes: int) -> None:
    batches = list(load_ahead(Source(), ADDRESSES, processes=processes, pin_memory=False))
    assert len(batches) == len(ADDRESSES)
    for batch, address in zip(batches, ADDRESSES, strict=True):
        assert torch.equal(batch, Source()[address])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_reaches_the_consumer_after_the_batches_before_it(processes: int) -> None:
    batches = load_ahead(BrokenSource(), ADDRESSES, processes=processes, pin_memory=False)
    assert [next(batches)[0, 0].item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="shard 17 cannot be read"):
        next(batches)
    assert loader_threads() == []


@pytest.mark.slow
def test_batches_are_made_ahead_but_not_without_bound() -> None:
    source = CountingSource()
    batches = load_ahead(source, ADDRESSES, processes=0, pin_memory=False)
    next(batches)
    deadline = time.monotonic() + 5
    while len(source.made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    # The one taken, three ready, and one in the hand of the thread.
    assert source.made == ADDRESSES[:5]
    batches.close()


def test_closing_early_stops_the_thread() -> None:
    batches = load_ahead(Source(), ADDRESSES, processes=0, pin_memory=False)
    next(batches)
    assert len(loader_threads()) == 1
    batches.close()
    assert loader_threads() == []


@pytest.mark.slow
def test_closing_early_ends_the_process() -> None:
    # Another test's may still be ending.
    others = {*multiprocessing.active_children()}
    batches = load_ahead(Source(), ADDRESSES, processes=1, pin_memory=False)
    next(batches)
    started = {*multiprocessing.active_children()} - others
    assert len(started) == 1
    batches.close()
    assert started.isdisjoint(multiprocessing.active_children())


def test_no_addresses_give_no_batches() -> None:
    assert list(load_ahead(Source(), [], processes=0, pin_memory=False)) == []


class ReadingSource(Source):
    """Notes what it begins to read, and what it makes."""

    def __init__(self) -> None:
        self.said: list[tuple[str, BatchAddress]] = []

    def read_ahead(self, address: BatchAddress) -> None:
        self.said.append(("reads", address))

    def __getitem__(self, address: BatchAddress) -> torch.Tensor:
        self.said.append(("makes", address))
        return super().__getitem__(address)


def test_the_next_batch_is_read_while_one_is_made() -> None:
    source = ReadingSource()
    for _ in load_ahead(source, ADDRESSES[:3], processes=0, pin_memory=False):
        pass
    first, second, third = ADDRESSES[:3]
    assert source.said == [
        *(("reads", first), ("reads", second), ("makes", first)),
        *(("reads", second), ("reads", third), ("makes", second)),
        ("makes", third),
    ]


def test_each_of_several_makers_reads_ahead_its_own_next_batch() -> None:
    assert list(_with_following(ADDRESSES[:5], 2)) == [
        (ADDRESSES[0], ADDRESSES[2]),
        (ADDRESSES[1], ADDRESSES[3]),
        (ADDRESSES[2], ADDRESSES[4]),
        (ADDRESSES[3], None),
        (ADDRESSES[4], None),
    ]
    assert list(_with_following(ADDRESSES[:1], 2)) == [(ADDRESSES[0], None)]
