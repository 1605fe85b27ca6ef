"""Corrections for hubs against loops that follow the published formulas cell by cell in float64."""

from __future__ import annotations

import math

import pytest
import torch

from hbi_models.metrics import text_to_video_ranks
from hbi_models.post_processing import (
    Querybank,
    dual_softmax,
    nearest_neighbour_norm,
    neighbour_bias,
    querybank_norm,
)

Rows = list[list[float]]


def scores(queries: int, items: int, seed: int) -> torch.Tensor:
    return torch.rand(queries, items, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def dual_softmax_by_hand(rows: Rows, temperature: float) -> Rows:
    norms = [sum(math.exp(temperature * row[item]) for row in rows) for item in range(len(rows[0]))]
    return [
        [value * math.exp(temperature * value) / norm for value, norm in zip(row, norms, strict=True)] for row in rows
    ]


def inverted_softmax_by_hand(rows: Rows, bank: Rows, beta: float, activations: int) -> Rows:
    """QB-Norm as published: exponentials, not logarithms."""
    activated = set()
    for row in bank:
        activated.update(sorted(range(len(row)), key=lambda item: -row[item])[:activations])
    norms = [sum(math.exp(beta * row[item]) for row in bank) for item in range(len(rows[0]))]
    return [
        [math.exp(beta * value) / norm for value, norm in zip(row, norms, strict=True)]
        if row.index(max(row)) in activated
        else row
        for row in rows
    ]


def bias_by_hand(bank: Rows, neighbours: int, weight: float) -> list[float]:
    columns = [sorted((row[item] for row in bank), reverse=True)[:neighbours] for item in range(len(bank[0]))]
    return [weight * sum(column) / len(column) for column in columns]


@pytest.mark.parametrize("temperature", [0.5, 20.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_dual_softmax_is_the_published_product(temperature: float, seed: int) -> None:
    similarity = scores(9, 6, seed)
    expected = torch.tensor(dual_softmax_by_hand(similarity.double().tolist(), temperature), dtype=torch.float64)
    torch.testing.assert_close(dual_softmax(similarity, temperature), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activations", [1, 2])
@pytest.mark.parametrize("beta", [1.0, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_querybank_norm_orders_items_as_the_published_formula(seed: int, beta: float, activations: int) -> None:
    similarity, bank = scores(15, 7, seed), scores(4, 7, 100 + seed)
    found = querybank_norm(similarity, Querybank.of(bank, beta=beta, activations=activations))
    expected = torch.tensor(
        inverted_softmax_by_hand(similarity.double().tolist(), bank.double().tolist(), beta, activations),
        dtype=torch.float64,
    )
    changed = [row for row in range(15) if not torch.equal(found[row], similarity[row].double())]
    assert 0 < len(changed) < 15, "some queries are corrected and some are not"
    for row in range(15):
        assert found[row].argsort().tolist() == expected[row].argsort().tolist()
    torch.testing.assert_close(found[changed].exp(), expected[changed], rtol=1e-9, atol=0)


@pytest.mark.parametrize(("neighbours", "weight"), [(1, 0.5), (3, 1.25), (99, 0.75)])
def test_nearest_neighbour_norm_takes_off_the_mean_of_the_nearest_queries(neighbours: int, weight: float) -> None:
    similarity, bank = scores(5, 7, 0), scores(11, 7, 1)
    bias = neighbour_bias(bank, neighbours=neighbours, weight=weight)
    assert bias.tolist() == pytest.approx(bias_by_hand(bank.double().tolist(), neighbours, weight), abs=1e-12)
    expected = similarity.double() - bias
    torch.testing.assert_close(nearest_neighbour_norm(similarity, bias), expected, rtol=0, atol=1e-12)


def test_large_temperatures_overflow_nowhere() -> None:
    similarity, bank = scores(5, 4, 0) + 1, scores(3, 4, 1) + 1
    for found in (dual_softmax(similarity, 1e5), querybank_norm(similarity, Querybank.of(bank, beta=1e5))):
        assert found.isfinite().all()


def test_a_hub_that_is_near_to_every_query_is_corrected_by_all_three() -> None:
    """Item 0 beats every right item by a little, for the queries of the bank as well."""
    right = torch.eye(6)[:, 1:] * 0.5
    hub = torch.full((6, 1), 0.55)
    similarity = torch.cat([hub, right], dim=1)[1:]
    bank = torch.cat([hub, right * 0.9], dim=1)
    owners = similarity[:, 1:].argmax(dim=1) + 1

    def first(scores: torch.Tensor) -> int:
        return int((text_to_video_ranks(scores, owners) <= 1).sum())

    hit = [row for row in range(len(similarity)) if similarity[row, 1:].max() > 0]
    assert first(similarity) == 0
    assert first(dual_softmax(similarity)) == len(hit)
    assert first(querybank_norm(similarity, Querybank.of(bank))) == len(hit)
    assert first(nearest_neighbour_norm(similarity, neighbour_bias(bank, neighbours=2))) == len(hit)


def test_what_cannot_be_computed_is_refused() -> None:
    empty = torch.zeros(0, 4)
    with pytest.raises(ValueError, match="temperature is 0"):
        dual_softmax(scores(2, 2, 0), 0.0)
    with pytest.raises(ValueError, match="the bank holds no query"):
        Querybank.of(empty)
    with pytest.raises(ValueError, match="the bank holds no query"):
        neighbour_bias(empty)
    with pytest.raises(ValueError, match="neighbours is 0"):
        neighbour_bias(scores(2, 2, 0), neighbours=0)
    with pytest.raises(ValueError, match="beta is -1"):
        Querybank.of(scores(2, 2, 0), beta=-1.0)
