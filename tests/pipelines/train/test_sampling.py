from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.train.sampling import Pair, epoch_batches, rank_slice


@st.composite
def epochs(draw: st.DrawFn) -> dict[str, Any]:
    """Captions of some videos, a batch size that they can fill, and a seed."""
    captions = draw(st.lists(st.integers(0, 6), min_size=1, max_size=20).filter(any))
    usable = sum(count > 0 for count in captions)
    return {
        "texts_per_video": captions,
        "batch_size": draw(st.integers(1, usable)),
        "seed": draw(st.integers(0, 2**32)),
        "epoch": draw(st.integers(0, 100)),
    }


@given(epochs())
def test_batches_are_full_and_hold_no_video_twice(epoch: dict[str, Any]) -> None:
    batches = epoch_batches(**epoch)
    assert batches
    for batch in batches:
        assert len(batch) == len({pair.video for pair in batch}) == epoch["batch_size"]


@given(epochs())
def test_every_caption_is_shown_once_but_for_what_makes_no_other_batch(epoch: dict[str, Any]) -> None:
    shown = Counter((pair.video, pair.text) for batch in epoch_batches(**epoch) for pair in batch)
    every = {(video, caption) for video, count in enumerate(epoch["texts_per_video"]) for caption in range(count)}
    assert set(shown.values()) == {1}
    assert shown.keys() <= every
    assert len({video for video, _ in every - shown.keys()}) < epoch["batch_size"]


@given(captions=st.integers(1, 5), size=st.integers(2, 8), factor=st.integers(1, 3), seed=st.integers(0, 1000))
def test_nothing_is_left_out_where_the_batch_divides_the_videos(
    captions: int, size: int, factor: int, seed: int
) -> None:
    batches = epoch_batches([captions] * size * factor, batch_size=size, seed=seed, epoch=0)
    assert sum(map(len, batches)) == captions * size * factor


@pytest.mark.slow
@given(epochs())
def test_an_epoch_is_a_function_of_seed_and_number(epoch: dict[str, Any]) -> None:
    assert epoch_batches(**epoch) == epoch_batches(**epoch)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [epoch_batches([3] * 40, batch_size=8, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@given(epochs())
def test_passes_follow_each_other(epoch: dict[str, Any]) -> None:
    by_video: dict[int, list[int]] = {}
    for batch in epoch_batches(**epoch):
        for pair in batch:
            by_video.setdefault(pair.video, []).append(pair.pass_index)
    for passes in by_video.values():
        assert passes == list(range(len(passes)))


@pytest.mark.slow
@given(epochs(), st.integers(1, 4))
def test_captions_of_a_video_can_be_limited(epoch: dict[str, Any], most: int) -> None:
    shown = Counter(pair.video for batch in epoch_batches(**epoch, max_texts=most) for pair in batch)
    assert max(shown.values()) <= most


def test_limited_captions_are_drawn_anew_in_each_epoch() -> None:
    shown = {
        pair.text
        for epoch in range(30)
        for batch in epoch_batches([5] * 4, batch_size=4, seed=0, epoch=epoch, max_texts=1)
        for pair in batch
    }
    assert shown == set(range(5))


@given(world_size=st.integers(1, 4), per_rank=st.integers(1, 5))
def test_the_parts_of_the_ranks_make_the_batch(world_size: int, per_rank: int) -> None:
    batch = [Pair(video, 0, 0) for video in range(world_size * per_rank)]
    parts = [rank_slice(batch, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(part) for part in parts] == [per_rank] * world_size
    assert [pair for part in parts for pair in part] == batch


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch of 4 pairs needs 4 different videos .* has 3"):
        epoch_batches([5, 5, 5, 0], batch_size=4, seed=0, epoch=0)
