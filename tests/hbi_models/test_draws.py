"""What a step draws belongs to the rows of its batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hbi_models.draws import BatchDraws


def test_the_parts_of_a_batch_draw_what_the_whole_batch_draws() -> None:
    values = torch.randn(6, 5)
    whole, first, second = (
        BatchDraws(3, batch_size=6),
        BatchDraws(3, batch_size=6),
        BatchDraws(3, batch_size=6, first=4),
    )
    # Twice, because a step draws for one level after the other.
    for tokens in (4, 3):
        parts = first.uniform((4, tokens)), second.uniform((2, tokens))
        assert torch.equal(whole.uniform((6, tokens)), torch.cat(parts))
        dropped = first.dropout(values[:4], 0.4), second.dropout(values[4:], 0.4)
        assert torch.equal(whole.dropout(values, 0.4), torch.cat(dropped))


def test_dropout_of_a_whole_batch_is_that_of_pytorch_on_the_cpu() -> None:
    values = torch.randn(8, 40)
    torch.manual_seed(11)
    expected = [F.dropout(values, 0.3) for _ in range(2)]
    draws = BatchDraws(11, batch_size=8)
    assert all(torch.equal(draws.dropout(values, 0.3), one) for one in expected)


def test_noise_and_dropout_do_not_move_each_other() -> None:
    alone, beside = BatchDraws(0, batch_size=2), BatchDraws(0, batch_size=2)
    beside.dropout(torch.ones(2, 9), 0.5)
    assert torch.equal(alone.uniform((2, 3)), beside.uniform((2, 3)))


def test_more_rows_than_the_batch_has_are_refused() -> None:
    with pytest.raises(ValueError, match="rows 2 to 5, but the batch is said to have 4 rows"):
        BatchDraws(0, batch_size=4, first=2).uniform((3, 2))
