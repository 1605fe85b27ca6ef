"""The vectors of the first pass."""

from __future__ import annotations

import torch

from hbi_models.similarity import token_weights, unit_tokens
from pipelines.search.first_pass import text_vectors, video_vectors
from tests.hbi_models.test_coalitions import random_level


def test_vectors_weigh_the_tokens_of_the_first_level_as_the_model_does() -> None:
    levels = random_level([4, 2], 4, seed=0), random_level([2, 2], 2, seed=1)
    vectors = video_vectors(levels, (1.0, 0.5), 0.5)
    for number, coalitions in enumerate((0.5, None)):
        weights = token_weights(levels[number], coalitions)
        expected = (weights[:, :, None] * unit_tokens(levels[number])).sum(dim=1)
        torch.testing.assert_close(vectors[:, 8 * number : 8 * (number + 1)], expected)
    torch.testing.assert_close(
        text_vectors(levels, (1.0, 0.5), 0.5), vectors * torch.tensor([1.0, 0.5]).repeat_interleave(8)
    )
    # A level that does not count leaves the others where they are.
    torch.testing.assert_close(video_vectors(levels, (0.0, 1.0), 0.5), vectors[:, 8:])
