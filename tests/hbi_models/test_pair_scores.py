"""One score per pair, against the matrices of the model and against loops over single words and frames."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F

from hbi_models.axes import TextBatch, TokenLevel
from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.clip.backbone import TEXT_POOLS, ClipBackbone
from hbi_models.metric_names import PAIR_SCORES
from hbi_models.pair_scores import clip_cosines, pair_scores, pair_similarity
from hbi_models.similarity import level_similarity, token_cosines
from tests.hbi_models.tiny_model import MAX_WORDS, TINY_CLIP, length_mask

DIM = 8


def level(lengths: list[int], tokens: int, seed: int) -> TokenLevel:
    generator = torch.Generator().manual_seed(seed)
    mask = length_mask(lengths, tokens)
    features = torch.randn(*mask.shape, DIM, generator=generator)
    return TokenLevel(features, mask, torch.randn(mask.shape, generator=generator))


TEXTS = tuple(level([5, 2, 4], 5, seed) for seed in (0, 1, 2))
VIDEOS = tuple(level([3, 1, 4], 4, seed) for seed in (3, 4, 5))


@pytest.mark.parametrize("settings", [{}, {"zero_floor": True}, {"coalitions": 0.5}, {"coalitions": 0.9}])
def test_similarities_of_pairs_are_the_diagonal_of_those_of_all(settings: dict[str, Any]) -> None:
    for text, video in zip(TEXTS, VIDEOS, strict=True):
        expected = level_similarity(text, video, **settings).diagonal()
        found = pair_similarity(text, video, **settings)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_models_score_mixes_its_levels() -> None:
    scores = pair_scores(TEXTS, VIDEOS, (0.5, 0.0, 2.0))
    assert {*scores, "CLIP cosine"} == set(PAIR_SCORES)
    torch.testing.assert_close(scores["model"], 0.5 * scores["entity"] + 2 * scores["event"])


def test_coalitions_are_those_of_the_entity_level() -> None:
    plain, scores = (pair_scores(TEXTS, VIDEOS, (1.0, 0.0, 1.0), coalitions=value) for value in (None, 0.5))
    expected = pair_similarity(TEXTS[0], VIDEOS[0], coalitions=0.5)
    torch.testing.assert_close(scores["entity"], expected)
    torch.testing.assert_close(scores["model"], expected + plain["event"])
    assert not torch.allclose(scores["entity"], plain["entity"], atol=1e-3)


def test_pooling_and_interaction_are_those_of_single_words_and_frames() -> None:
    scores = pair_scores(TEXTS, VIDEOS, (1.0, 0.0, 0.0))
    words, frames = TEXTS[0], VIDEOS[0]
    for pair in range(3):
        text = F.normalize(words.features[pair, words.mask[pair]], dim=-1)
        video = F.normalize(frames.features[pair, frames.mask[pair]], dim=-1)
        pooled = F.cosine_similarity(text.mean(dim=0), video.mean(dim=0), dim=0)
        assert scores["mean pooling"][pair].item() == pytest.approx(pooled.item(), abs=1e-6)
    interaction = exact_interaction(token_cosines(words, frames), words.logits, frames.logits, words.mask, frames.mask)
    real = words.mask[:, :, None] & frames.mask[:, None, :]
    expected = [interaction[pair][real[pair]].sum().item() for pair in range(3)]
    assert scores["exact interaction"].tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("pool", TEXT_POOLS)
@pytest.mark.parametrize("no_causal_mask", [False, True])
def test_clips_cosine_is_of_what_the_text_tower_itself_has_for_a_whole_text(pool: str, no_causal_mask: bool) -> None:
    text = {**TINY_CLIP["text_cfg"], "pool_type": pool, "no_causal_mask": no_causal_mask, "eos_id": 49}
    torch.manual_seed(0)
    model = open_clip.CLIP(**{**TINY_CLIP, "text_cfg": text}).eval()
    mask = length_mask([5, 2, 4], MAX_WORDS)
    token_ids = torch.randint(1, 49, mask.shape).masked_fill(~mask, 0)
    token_ids[torch.arange(3), mask.sum(dim=1) - 1] = 49
    images = torch.randn(3, TINY_CLIP["embed_dim"])
    found = clip_cosines(ClipBackbone(model, embedding_dim=TINY_CLIP["embed_dim"]), TextBatch(token_ids, mask), images)
    whole = F.pad(token_ids, (0, model.context_length - MAX_WORDS))
    torch.testing.assert_close(found, F.cosine_similarity(model.encode_text(whole), images))
