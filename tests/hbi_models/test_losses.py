"""The parts of the retrieval loss against plain formulas, and how they add up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hbi_models.axes import Interaction, PairFeatures, TokenLevel
from hbi_models.configs import LEVELS, LossConfig, Quirks
from hbi_models.losses import contrastive_loss, interaction_loss, kl_divergence, retrieval_loss
from hbi_models.similarity import level_similarity
from tests.hbi_models.tiny_model import length_mask

WORD_LENGTHS, FRAME_LENGTHS = [4, 2, 3], [1, 3, 2]


def random_interaction(words: int = 4, frames: int = 3) -> Interaction:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (3 * torch.randn(3, words, frames, generator=generator) for _ in range(2))
    return Interaction(prediction, target)


def masks(words: int = 4, frames: int = 3) -> tuple[Tensor, Tensor]:
    return length_mask(WORD_LENGTHS, words), length_mask(FRAME_LENGTHS, frames)


def random_features() -> PairFeatures:
    generator = torch.Generator().manual_seed(0)

    def level(lengths: list[int], max_tokens: int) -> TokenLevel:
        mask = length_mask(lengths, max_tokens)
        features = torch.randn(*mask.shape, 8, generator=generator)
        return TokenLevel(features, mask, torch.randn(mask.shape, generator=generator))

    return PairFeatures(
        texts=tuple(level(WORD_LENGTHS, 4) for _ in LEVELS),
        videos=tuple(level(FRAME_LENGTHS, 3) for _ in LEVELS),
        interactions=tuple(random_interaction() for _ in LEVELS),
    )


def test_contrastive_loss_is_cross_entropy_with_the_diagonal() -> None:
    logits = torch.randn(5, 5)
    torch.testing.assert_close(contrastive_loss(logits), F.cross_entropy(logits, torch.arange(5)))


def test_divergence_vanishes_between_equal_distributions_and_is_positive_otherwise() -> None:
    logits = torch.randn(4, 6)
    assert kl_divergence(logits + 3, logits).item() == pytest.approx(0, abs=1e-7)
    assert kl_divergence(torch.randn(4, 6), logits) > 0


def test_interaction_loss_is_the_divergence_among_real_tokens() -> None:
    interaction = random_interaction()
    over_frames, over_words = torch.tensor(0.0), torch.tensor(0.0)
    for pair, (words, frames) in enumerate(zip(WORD_LENGTHS, FRAME_LENGTHS, strict=True)):
        prediction = interaction.prediction[pair, :words, :frames]
        target = interaction.target[pair, :words, :frames]
        for word in range(words):
            over_frames += F.kl_div(prediction[word].log_softmax(0), target[word].softmax(0), reduction="sum")
        for frame in range(frames):
            over_words += F.kl_div(prediction[:, frame].log_softmax(0), target[:, frame].softmax(0), reduction="sum")
    cells = sum(words * frames for words, frames in zip(WORD_LENGTHS, FRAME_LENGTHS, strict=True))
    actual = interaction_loss(interaction, *masks())
    torch.testing.assert_close(actual, (over_frames / cells, over_words / cells))


def test_interaction_loss_ignores_padding_unless_published() -> None:
    padded = random_interaction(6, 5)
    cut = Interaction(padded.prediction[:, :4, :3], padded.target[:, :4, :3])
    for quirk, is_equal in ((False, True), (True, False)):
        with_padding = interaction_loss(padded, *masks(6, 5), batch_axis_kl=quirk)
        without = interaction_loss(cut, *masks(), batch_axis_kl=quirk)
        assert torch.allclose(torch.stack(with_padding), torch.stack(without)) is is_equal


def test_interaction_loss_of_extreme_targets_is_finite_with_finite_gradients() -> None:
    """Targets of the exact teacher reach hundreds; a pair may hold no frame at all."""
    prediction = random_interaction().prediction.requires_grad_()
    word_mask, frame_mask = masks()
    frame_mask[0] = False
    loss = sum(interaction_loss(Interaction(prediction, 1e4 * prediction.detach() - 7), word_mask, frame_mask))
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert prediction.grad.isfinite().all()
    assert prediction.grad[0].abs().max() == 0


def test_a_batch_without_real_cells_has_no_interaction_loss() -> None:
    word_mask, frame_mask = masks()
    assert interaction_loss(random_interaction(), word_mask, torch.zeros_like(frame_mask)) == (0, 0)


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    features = random_features()
    loss = retrieval_loss(features, torch.tensor(2.0), config=LossConfig(kl=3.0, skl=0.5), quirks=Quirks())
    parts = loss.parts
    expected = 3 * parts["distill"] + sum(parts[f"{level}_nce"] + parts[f"{level}_interaction"] / 2 for level in LEVELS)
    torch.testing.assert_close(loss.total, expected)


def test_parts_are_those_of_their_level() -> None:
    features = random_features()
    parts = retrieval_loss(features, torch.tensor(2.0), config=LossConfig(), quirks=Quirks()).parts
    similarities = [level_similarity(*pair) for pair in zip(features.texts, features.videos, strict=True)]
    for level, similarity in zip(LEVELS, similarities, strict=True):
        logits, labels = torch.tensor(2.0).exp() * similarity, torch.arange(3)
        torch.testing.assert_close(parts[f"{level}_nce_t2v"], F.cross_entropy(logits, labels))
        torch.testing.assert_close(parts[f"{level}_nce_v2t"], F.cross_entropy(logits.t(), labels))
    for level, similarity in list(zip(LEVELS, similarities, strict=True))[1:]:
        torch.testing.assert_close(parts[f"distill_t2v_{level}"], kl_divergence(similarity, similarities[0]))
        torch.testing.assert_close(parts[f"distill_v2t_{level}"], kl_divergence(similarity.t(), similarities[0].t()))


def test_without_interactions_there_are_no_interaction_parts() -> None:
    features = random_features()
    features = PairFeatures(features.texts, features.videos, interactions=())
    loss = retrieval_loss(features, torch.tensor(2.0), config=LossConfig(skl=0.0), quirks=Quirks())
    assert not any("interaction" in name for name in loss.parts)
    expected = sum(loss.parts[f"{level}_nce"] for level in LEVELS) + 2 * loss.parts["distill"]
    torch.testing.assert_close(loss.total, expected)
