"""The question answering model as a whole: its heads and its loss, independence of pairs, gradients, odd inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hbi_models.axes import AnsweredPairs, TextBatch, TokenLevel, VideoBatch, tensors_of, with_tensors
from hbi_models.configs import (
    LEVELS,
    AnswerHeadConfig,
    GameConfig,
    LossConfig,
    Quirks,
    VideoQAConfig,
)
from hbi_models.losses import TrainingLoss, answer_loss, kl_divergence, retrieval_loss, video_qa_loss
from hbi_models.metrics import AnswerMetrics, answer_ranks
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import AnswerHead, VideoQAModel
from tests.hbi_models.tiny_model import (
    DIM,
    NUM_ANSWERS,
    length_mask,
    random_batches,
    tiny_config,
    tiny_video_qa_config,
)

# Other sums of matrix products in other batches.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}

ESTIMATOR = GameConfig(teacher="estimator", estimator_channels=4)


def make_model(folder: Path, **settings: Any) -> VideoQAModel:
    torch.manual_seed(0)
    return VideoQAModel(tiny_video_qa_config(folder, **settings))


def questions(
    word_lengths: tuple[int, ...] = (12, 5, 3, 9), frame_lengths: tuple[int, ...] = (6, 2, 1, 4)
) -> tuple[TextBatch, VideoBatch, Tensor]:
    """Returns questions, their videos and the labels of their answers."""
    return (*random_batches([*word_lengths], [*frame_lengths]), torch.arange(len(word_lengths)))


def rows(batch: tuple[TextBatch, VideoBatch, Tensor], part: slice) -> tuple[TextBatch, VideoBatch, Tensor]:
    texts, videos, labels = batch
    return (
        TextBatch(texts.token_ids[part], texts.mask[part]),
        VideoBatch(videos.pixels[part], videos.mask[part]),
        labels[part],
    )


def loss_of(model: VideoQAModel, answered: AnsweredPairs) -> TrainingLoss:
    return video_qa_loss(answered, model.encoder.clip.logit_scale, config=model.config)


@torch.no_grad()
def answers(model: VideoQAModel, texts: TextBatch, videos: VideoBatch) -> Tensor:
    return model.answer_logits(model.encoder.encode_text(texts), model.encoder.encode_video(videos))


def gathered(parts: list[AnsweredPairs]) -> AnsweredPairs:
    """Returns one batch of several, as the ranks of a distributed step see it."""
    return with_tensors(parts[0], map(torch.cat, zip(*map(tensors_of, parts), strict=True)))


@pytest.mark.parametrize("padded_weights", [False, True])
@torch.no_grad()
def test_a_head_classifies_the_weighted_means_of_real_tokens(padded_weights: bool) -> None:
    torch.manual_seed(0)
    config = AnswerHeadConfig(projection=5, hidden=6)
    head = AnswerHead(DIM, NUM_ANSWERS, config=config, padded_weights=padded_weights).eval()
    levels = []
    for lengths, num_tokens in (([4, 2, 1], 4), ([1, 3, 2], 3)):
        features = torch.randn(3, num_tokens, DIM)
        levels.append(TokenLevel(features, length_mask(lengths, num_tokens), torch.zeros(3, num_tokens)))
    expected = []
    for pair in range(3):
        pooled = []
        for level, importance in zip(levels, (head.text_importance, head.video_importance), strict=True):
            seen = level.features[pair] if padded_weights else level.features[pair, level.mask[pair]]
            weights = torch.softmax(importance(seen)[:, 0], dim=0)
            real = int(level.mask[pair].sum())
            pooled.append(sum(weights[token] * seen[token] for token in range(real)))
        both = torch.cat([head.video_projection(pooled[1]), head.text_projection(pooled[0])])
        expected.append(head.classifier(both))
    torch.testing.assert_close(head(*levels), torch.stack(expected))


@torch.no_grad()
def test_an_answer_is_the_weighted_sum_of_the_levels_answers(tmp_path: Path) -> None:
    model = make_model(tmp_path, level_rates=(0.5, 0.0, 2.0))
    batch = questions()
    entity, action, event = model(*batch).logits
    texts, videos = model.encoder.encode_text(batch[0]), model.encoder.encode_video(batch[1])
    torch.testing.assert_close(model.answer_logits(texts, videos), 0.5 * entity + 2 * event)
    torch.testing.assert_close(model.answer_logits(texts, videos, (0.0, 3.0, 0.0)), 3 * action)
    for rates in ((0.0, 0.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match=r"rates of the levels are \("):
            model.answer_logits(texts, videos, rates)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["exact", "estimator", "cosine", "none"])
def test_parts_of_a_batch_gather_to_the_loss_and_answers_of_the_whole(tmp_path: Path, teacher: str) -> None:
    model = make_model(tmp_path, encoder={"game": GameConfig(teacher=teacher, estimator_channels=4)})
    batch = questions()
    whole = model(*batch)
    parts = gathered([model(*rows(batch, part)) for part in (slice(0, 1), slice(1, 4))])
    assert torch.equal(parts.labels, batch[2])
    torch.testing.assert_close(parts.logits, whole.logits, **ROUNDING)
    losses = [loss_of(model, answered) for answered in (parts, whole)]
    torch.testing.assert_close(losses[0].parts, losses[1].parts, **ROUNDING)
    gradients = [torch.autograd.grad(loss.total, list(model.answer_heads.parameters())) for loss in losses]
    torch.testing.assert_close(*gradients, **ROUNDING)


def test_answered_pairs_are_gathered_leaf_by_leaf(tmp_path: Path) -> None:
    answered = make_model(tmp_path)(*questions())
    visited: list[Tensor] = []
    doubled = answered.map(lambda leaf: (visited.append(leaf), torch.cat([leaf, leaf]))[1])
    assert len(visited) == 3 * 3 + 3 * 3 + 3 * 2 + 3 + 1
    assert all(len(leaf) == 4 for leaf in visited)
    assert doubled.labels.tolist() == [0, 1, 2, 3] * 2
    assert [logits.shape for logits in doubled.logits] == [(8, NUM_ANSWERS)] * 3


def test_the_amount_of_padding_does_not_matter_unless_published(tmp_path: Path) -> None:
    texts, videos, _ = questions((5, 4), (3, 2))
    cut = TextBatch(texts.token_ids[:, :5], texts.mask[:, :5]), VideoBatch(videos.pixels[:, :3], videos.mask[:, :3])
    for quirks, is_invariant in ((Quirks(), True), (Quirks(padded_answer_weights=True), False)):
        model = make_model(tmp_path, encoder={"quirks": quirks}).eval()
        assert torch.allclose(answers(model, texts, videos), answers(model, *cut), **ROUNDING) is is_invariant


def test_padding_enters_the_interaction_loss_only_where_published(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    answered = model(*questions())
    interactions = tuple(
        interaction.map(lambda values, real=real: values.masked_fill(~real, 5.0))
        for interaction, real in zip(
            answered.pairs.interactions,
            (
                text.mask[:, :, None] & video.mask[:, None, :]
                for text, video in zip(answered.pairs.texts, answered.pairs.videos, strict=True)
            ),
            strict=True,
        )
    )
    altered = replace(answered, pairs=replace(answered.pairs, interactions=interactions))
    for quirks, ignores_padding in ((Quirks(), True), (Quirks(padded_interaction=True), False)):
        config = replace(model.config, encoder=replace(model.config.encoder, quirks=quirks))
        losses = [
            video_qa_loss(pairs, model.encoder.clip.logit_scale, config=config).parts["entity_interaction"]
            for pairs in (answered, altered)
        ]
        assert torch.allclose(*losses, **ROUNDING) is ignores_padding


def test_dropout_is_for_training(tmp_path: Path) -> None:
    head = AnswerHeadConfig(projection=16, hidden=24, dropout=0.5)
    model, without = make_model(tmp_path, head=head), make_model(tmp_path)
    batch = questions()
    first, second = model(*batch).logits[0], model(*batch).logits[0]
    assert not torch.allclose(first, second)
    expected = without(*batch).logits
    torch.testing.assert_close(model.eval()(*batch).logits, expected)
    # What is left is scaled, so that the mean over many draws is that of evaluation.
    classifier_input = torch.ones(4000, 32)
    dropped = model.train().answer_heads["entity"].dropout(classifier_input)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_answer_loss_is_the_mean_cross_entropy_of_answerable_questions() -> None:
    logits = torch.randn(6, NUM_ANSWERS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([3, -1, 0, 6, -1, 3])
    loss = answer_loss(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits[labels >= 0], labels[labels >= 0]))
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(dim=1) > 0).tolist() == (labels >= 0).tolist()


def test_without_answerable_questions_there_is_nothing_to_learn_from_answers(tmp_path: Path) -> None:
    model = make_model(tmp_path, encoder={"loss": LossConfig(kl=0.0)})
    texts, videos, labels = questions()
    loss = loss_of(model, model(texts, videos, torch.full_like(labels, -1)))
    assert [loss.parts[f"{level}_ce"].item() for level in LEVELS] == [0, 0, 0]
    loss.total.backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in model.answer_heads.parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts(tmp_path: Path) -> None:
    model = make_model(tmp_path, encoder={"loss": LossConfig(kl=3.0, skl=0.25)}, pair_loss_weight=0.1)
    answered = model(*questions())
    loss = loss_of(model, answered)
    parts = loss.parts
    entity = answered.logits[0]
    for level, logits in zip(LEVELS, answered.logits, strict=True):
        torch.testing.assert_close(parts[f"{level}_ce"], F.cross_entropy(logits, answered.labels))
        pairs = parts[f"{level}_nce"] + 0.25 * parts[f"{level}_interaction"]
        torch.testing.assert_close(parts[level], 0.1 * pairs + parts[f"{level}_ce"])
        if level != "entity":
            torch.testing.assert_close(parts[f"distill_{level}"], kl_divergence(logits, entity))
    torch.testing.assert_close(parts["distill"], parts["distill_action"] + parts["distill_event"])
    torch.testing.assert_close(loss.total, sum(parts[level] for level in LEVELS) + 3 * parts["distill"])


def test_pairs_teach_what_they_teach_in_retrieval(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    answered = model(*questions())
    encoder = model.encoder.config
    expected = retrieval_loss(
        answered.pairs, model.encoder.clip.logit_scale, config=encoder.loss, quirks=encoder.quirks
    ).parts
    actual = loss_of(model, answered).parts
    shared = [name for name in actual if "_nce" in name or "_interaction" in name]
    assert len(shared) == 3 * 6
    torch.testing.assert_close({name: actual[name] for name in shared}, {name: expected[name] for name in shared})


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pair_loss_weight": 0.0},
        {"encoder": {"game": ESTIMATOR}},
        {"encoder": {"game": GameConfig(teacher="none", estimator_channels=4)}},
        {"encoder": {"loss": LossConfig(skl=0.0, kl=0.0)}},
        {"encoder": {"quirks": Quirks.published(), "game": ESTIMATOR}},
    ],
)
def test_exactly_the_trainable_parameters_get_a_gradient(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = make_model(tmp_path, **settings)
    loss_of(model, model(*questions())).total.backward()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    frozen = {name.split(".")[1] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    encoder = model.encoder
    expected = {"clip"} | (set() if encoder.learns_interaction else {"predictors"})
    assert frozen == expected | ({"teacher"} if encoder.teacher is not None else set())


def test_published_training_freezes_what_lies_below_clips_blocks(tmp_path: Path) -> None:
    published = VideoQAConfig().encoder.clip
    clip = replace(tiny_config(tmp_path).clip, freeze_embeddings=published.freeze_embeddings)
    model = make_model(tmp_path, encoder={"clip": clip})
    loss_of(model, model(*questions())).total.backward()
    untrained = {
        name.removeprefix("encoder.clip.") for name, parameter in model.named_parameters() if parameter.grad is None
    }
    assert untrained == {
        "token_embedding.weight",
        "positional_embedding",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.conv1.weight",
        "visual.ln_pre.weight",
        "visual.ln_pre.bias",
    }


def test_an_answer_depends_on_its_own_question_and_video_alone(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    texts, videos, labels = questions()
    pixels = videos.pixels.requires_grad_()
    model(texts, VideoBatch(pixels, videos.mask), labels).logits[2][1].sum().backward()
    assert pixels.grad is not None
    reached = pixels.grad.flatten(2).abs().amax(dim=2) > 0
    assert reached.nonzero().tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(("word_lengths", "frame_lengths"), [((12, 5), (0, 4)), ((0, 5), (6, 4)), ((0, 0), (0, 0))])
def test_items_without_tokens_keep_everything_finite(
    tmp_path: Path, word_lengths: tuple[int, ...], frame_lengths: tuple[int, ...]
) -> None:
    model = make_model(tmp_path)
    texts, videos, labels = questions(word_lengths, frame_lengths)
    assert answers(model, texts, videos).isfinite().all()
    loss = loss_of(model, model(texts, videos, labels))
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_mixed_precision_keeps_answers_and_losses_in_float32(tmp_path: Path) -> None:
    batch = questions()
    losses = []
    for enabled in (False, True):
        model = make_model(tmp_path)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answered = model(*batch)
            loss = loss_of(model, answered)
        assert {tensor.dtype for tensor in (*answered.logits, *loss.parts.values(), loss.total)} == {torch.float32}
        loss.total.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        losses.append(loss.total.item())
    # Eight bits of mantissa in the towers; clusters may change hands.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.long
def test_a_few_answers_can_be_learnt_by_heart(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    batch = questions()
    before = AnswerMetrics.from_ranks(answer_ranks(answers(model, *batch[:2]), batch[2]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model, model(*batch))
        loss.total.backward()
        optimizer.step()
    assert before.accuracy < 100
    assert AnswerMetrics.from_ranks(answer_ranks(answers(model, *batch[:2]), batch[2])).accuracy == 100
    assert all(loss.parts[f"{level}_ce"] < 0.1 for level in LEVELS)


def test_the_encoder_starts_as_a_retrieval_model_and_the_heads_as_published(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    torch.manual_seed(0)
    retrieval = RetrievalModel(tiny_config(tmp_path))
    torch.testing.assert_close(dict(model.encoder.state_dict()), dict(retrieval.state_dict()), rtol=0, atol=0)
    for name, parameter in model.answer_heads.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif parameter.numel() > 100:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2), name


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for settings, message in (
        ({"num_answers": 1}, "num_answers is 1; there must be 2"),
        ({"pair_loss_weight": -1.0}, "pair_loss_weight is -1.0"),
        ({"level_rates": (0.0, 0.0, 0.0)}, "at least one must be positive"),
        ({"level_rates": (1.0, -0.5, 0.5)}, "no rate may be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_video_qa_config(tmp_path, **settings)
    for settings, message in (
        ({"projection": 0}, r"head\.projection is 0"),
        ({"hidden": 0}, r"head\.hidden is 0"),
        ({"dropout": 1.0}, r"head\.dropout is 1.0; it must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            AnswerHeadConfig(**settings)
    with pytest.raises(ValueError, match="max_words is 17"):
        make_model(tmp_path, encoder={"max_words": 17})
