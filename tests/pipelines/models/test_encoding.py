from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hbi_models.axes import TokenLevel
from hbi_models.configs import Quirks
from hbi_models.retrieval import RetrievalModel
from pipelines.models.encoding import concatenate, encode_texts
from tests.tiny_retrieval import retrieval_config

CAPTIONS = ["a red circle", "a dog runs and a blue square grows", "go", "a small cat is on the left"]


def level(items: int, tokens: int, seed: int) -> TokenLevel:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(items, tokens, dtype=torch.bool)
    return TokenLevel(
        torch.randn(items, tokens, 3, generator=generator), mask, torch.randn(items, tokens, generator=generator)
    )


def test_parts_of_other_lengths_become_one_padded_batch() -> None:
    short, long = level(2, 3, seed=0), level(1, 5, seed=1)
    (joined,) = concatenate([(short,), (long,)])
    assert joined.features.shape == (3, 5, 3)
    assert joined.mask.tolist() == [[True] * 3 + [False] * 2] * 2 + [[True] * 5]
    assert torch.equal(joined.features[:2, :3], short.features)
    assert torch.equal(joined.logits[:2, :3], short.logits)
    assert torch.equal(joined.features[2:], long.features)
    assert not joined.features[:2, 3:].any()


def test_one_part_stays_as_it_is() -> None:
    only = (level(2, 3, seed=0), level(2, 2, seed=1))
    for found, expected in zip(concatenate([only]), only, strict=True):
        assert torch.equal(found.features, expected.features)
        assert torch.equal(found.mask, expected.mask)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("quirks", [Quirks(), Quirks(encode_padding=True)], ids=["corrected", "padding is read"])
def test_a_caption_does_not_depend_on_the_batch_it_is_encoded_in(
    tmp_path: Path, batch_size: int, quirks: Quirks
) -> None:
    torch.manual_seed(0)
    model = RetrievalModel(retrieval_config(tmp_path, quirks=quirks)).eval()
    with torch.inference_mode():
        together = encode_texts(model, CAPTIONS, device=torch.device("cpu"), batch_size=len(CAPTIONS))
        apart = encode_texts(model, CAPTIONS, device=torch.device("cpu"), batch_size=batch_size)
        videos = tuple(level(5, tokens, seed=tokens) for tokens in (6, 3, 2))
        videos = tuple(TokenLevel(v.features @ torch.ones(3, 32), v.mask, v.logits) for v in videos)
        scores = [model.similarity(texts, videos, (0.5, 0.3, 0.2)) for texts in (together, apart)]
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one.mask.sum(dim=1), other.mask.sum(dim=1))
    # Matrix products of other sizes round differently: a few units in the last place of float32.
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)
