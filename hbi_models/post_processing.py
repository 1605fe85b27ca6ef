"""Corrections of finished similarities for hubs, which are items close to too many queries.

Each takes similarities with a query per row and returns scores of the same shape, to be compared within a row
only. All is computed in float64. ``dual_softmax`` needs all other test queries, so its figures are transductive and a
search cannot use it. The two methods with a query bank need only training captions, of which one or two numbers per
item are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hbi_models.config_fields import require

DUAL_SOFTMAX_TEMPERATURE = 100.0
"""Usual in evaluations with CLIP's cosines; the loss of the paper uses 1000."""

QUERYBANK_BETA = 20.0
"""Inverse temperature of the querybank (published)."""
QUERYBANK_ACTIVATIONS = 1
"""How many items each query of the bank activates (published)."""

NEIGHBOURS = 256
"""Queries of the bank whose similarities are averaged (the released code's default)."""
NEIGHBOUR_WEIGHT = 0.5
"""Weight of that average (the released code's default)."""


def dual_softmax(
    similarity: Float[Tensor, "queries items"], temperature: float = DUAL_SOFTMAX_TEMPERATURE
) -> Float[Tensor, "queries items"]:
    """Returns each similarity times its share among all queries, a softmax over the rows.

    Cheng et al., *Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss*
    (arXiv 2109.04290), equations 3 and 4, applied at the test.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    require(temperature > 0, f"temperature is {temperature}; it must be positive")
    similarity = similarity.double()
    return similarity * (temperature * similarity).softmax(dim=0)


@dataclass(frozen=True)
class Querybank:
    """What is kept of a bank of queries: numbers per item, whatever the size of the bank."""

    log_norm: Float[Tensor, " items"]
    """Logarithm of the sum over the bank of exp(beta · similarity)."""
    activated: Bool[Tensor, " items"]
    """Whether the item is among the best of some query of the bank."""
    beta: float

    @classmethod
    def of(
        cls,
        bank: Float[Tensor, "bank items"],
        *,
        beta: float = QUERYBANK_BETA,
        activations: int = QUERYBANK_ACTIVATIONS,
    ) -> Querybank:
        """What to keep of the similarities of a bank's queries with all items.

        Raises:
            ValueError: the bank is empty, or a number is not positive.
        """
        require(len(bank) > 0, "the bank holds no query; QB-Norm needs training captions")
        require(beta > 0, f"beta is {beta}; it must be positive")
        require(activations >= 1, f"activations is {activations}; it must be 1 or more")
        bank = bank.double()
        best = bank.topk(min(activations, bank.shape[1]), dim=1).indices
        activated = torch.zeros(bank.shape[1], dtype=torch.bool, device=bank.device)
        activated[best.flatten()] = True
        return cls((beta * bank).logsumexp(dim=0), activated, beta)


def querybank_norm(similarity: Float[Tensor, "queries items"], bank: Querybank) -> Float[Tensor, "queries items"]:
    """Returns the dynamic inverted softmax of QB-Norm, as logarithms, for queries whose best item is activated.

    Other queries keep their similarities. Bogolin et al., *Cross Modal Retrieval with Querybank Normalisation*,
    CVPR 2022 (arXiv 2112.12777), equations 4 and 5. The logarithm keeps every order within a query.
    """
    similarity = similarity.double()
    inverted = bank.beta * similarity - bank.log_norm
    return torch.where(bank.activated[similarity.argmax(dim=1)][:, None], inverted, similarity)


def neighbour_bias(
    bank: Float[Tensor, "bank items"], *, neighbours: int = NEIGHBOURS, weight: float = NEIGHBOUR_WEIGHT
) -> Float[Tensor, " items"]:
    """Returns what nearest-neighbour normalisation (NNN) subtracts from the similarity of every item.

    ``weight`` times the mean similarity with the ``neighbours`` queries of the bank that are nearest to the item;
    a smaller bank is used whole. Chowdhury et al., *Nearest Neighbor Normalization Improves Multimodal Retrieval*,
    EMNLP 2024 (arXiv 2410.24114), equations 2 and 3.

    Raises:
        ValueError: the bank is empty, or ``neighbours`` is not positive.
    """
    require(len(bank) > 0, "the bank holds no query; NNN needs training captions")
    require(neighbours >= 1, f"neighbours is {neighbours}; it must be 1 or more")
    return weight * bank.double().topk(min(neighbours, len(bank)), dim=0).values.mean(dim=0)


def nearest_neighbour_norm(
    similarity: Float[Tensor, "queries items"], bias: Float[Tensor, " items"]
) -> Float[Tensor, "queries items"]:
    """Returns the similarities minus the items' ``neighbour_bias``."""
    return similarity.double() - bias
