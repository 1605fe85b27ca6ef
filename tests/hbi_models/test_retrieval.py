"""The retrieval model as a whole: independence of pairs, gradients, teachers, odd inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hbi_models.axes import PairFeatures, TextBatch, TokenFeatures, VideoBatch
from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import LEVELS, GameConfig, LossConfig, MergingConfig, Quirks, RetrievalConfig, TemporalConfig
from hbi_models.losses import contrastive_loss, retrieval_loss
from hbi_models.retrieval import RetrievalModel, counted_levels
from hbi_models.similarity import level_similarity, token_cosines
from tests.hbi_models.tiny_model import DIM, MAX_WORDS, TINY_CLIP, random_batches, tiny_config, write_architecture

# Other sums of matrix products in other batches.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def make_model(folder: Path, **settings: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return RetrievalModel(tiny_config(folder, **settings))


def leaves(features: PairFeatures) -> list[Tensor]:
    """Returns every tensor, with 0 at padding, where nothing is specified."""
    result = []
    for level in (*features.texts, *features.videos):
        padding = ~level.mask
        result += [level.mask, level.logits.masked_fill(padding, 0), level.features.masked_fill(padding[..., None], 0)]
    for index, interaction in enumerate(features.interactions):
        real = features.texts[index].mask[:, :, None] & features.videos[index].mask[:, None, :]
        result += [tensor.masked_fill(~real, 0) for tensor in (interaction.prediction, interaction.target)]
    return result


def rows(texts: TextBatch, videos: VideoBatch, part: slice) -> tuple[TextBatch, VideoBatch]:
    return (
        TextBatch(texts.token_ids[part], texts.mask[part]),
        VideoBatch(videos.pixels[part], videos.mask[part]),
    )


def loss_of(model: RetrievalModel, features: PairFeatures) -> Tensor:
    config = model.config
    return retrieval_loss(
        features, model.clip.logit_scale, config=config.loss, quirks=config.quirks, game=config.game
    ).total


@pytest.mark.parametrize("teacher", ["exact", "estimator", "cosine", "none"])
@torch.no_grad()
def test_halves_of_a_batch_give_the_halves_of_its_features(tmp_path: Path, teacher: str) -> None:
    model = make_model(tmp_path, game=GameConfig(teacher=teacher, estimator_channels=4))
    texts, videos = random_batches([12, 5, 3, 9], [6, 2, 1, 4])
    whole = leaves(model(texts, videos))
    halves = [leaves(model(*rows(texts, videos, part))) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close([torch.cat(parts) for parts in zip(*halves, strict=True)], whole, **ROUNDING)


@torch.no_grad()
def test_the_amount_of_padding_does_not_matter(tmp_path: Path) -> None:
    model = make_model(tmp_path).eval()
    texts, videos = random_batches([5, 4], [3, 2])
    similarity = model.similarity(model.encode_text(texts), model.encode_video(videos), (1.0, 1.0, 1.0))
    cut_texts = model.encode_text(TextBatch(texts.token_ids[:, :5], texts.mask[:, :5]))
    cut_videos = model.encode_video(VideoBatch(videos.pixels[:, :3], videos.mask[:, :3]))
    torch.testing.assert_close(model.similarity(cut_texts, cut_videos, (1.0, 1.0, 1.0)), similarity, **ROUNDING)


@torch.no_grad()
def test_only_real_frames_are_encoded_unless_published(tmp_path: Path) -> None:
    _, videos = random_batches([5, 4], [3, 2])
    for quirks, num_encoded in ((Quirks(), 5), (Quirks(encode_padding=True), 12)):
        model = make_model(tmp_path, quirks=quirks)
        seen: list[int] = []
        model.clip.visual.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        model.encode_video(videos)
        assert seen == [num_encoded]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"game": GameConfig(teacher="estimator", estimator_channels=4)},
        {"game": GameConfig(teacher="none", estimator_channels=4)},
        {"game": GameConfig(teacher="cosine", estimator_channels=4)},
        {"game": GameConfig(teacher="exact", coalitions=0.5, estimator_channels=4)},
        {"loss": LossConfig(skl=0.0)},
        {"loss": LossConfig(kl=0.0)},
        {"quirks": Quirks.published(), "game": GameConfig(teacher="estimator", estimator_channels=4)},
    ],
)
def test_exactly_the_trainable_parameters_get_a_gradient(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = make_model(tmp_path, **settings)
    loss_of(model, model(*random_batches([12, 5, 9], [6, 4, 5]))).backward()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable
    frozen = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    learns = model.config.loss.skl > 0 and model.config.game.teacher != "none"
    expected = {"clip"} | (set() if learns else {"predictors"}) | ({"teacher"} if model.teacher is not None else set())
    assert frozen == expected


@pytest.mark.parametrize("frame_lengths", [[0, 4], [0, 0]])
def test_videos_without_frames_keep_everything_finite(tmp_path: Path, frame_lengths: list[int]) -> None:
    model = make_model(tmp_path)
    texts, videos = random_batches([12, 5], frame_lengths)
    features = model(texts, videos)
    similarity = model.similarity(features.texts, features.videos, (0.5, 0.3, 0.2))
    assert similarity[:, 0].tolist() == [0, 0]
    loss = loss_of(model, features)
    loss.backward()
    assert loss.isfinite()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


def test_mixed_precision_keeps_scores_and_losses_in_float32(tmp_path: Path) -> None:
    batches = random_batches([12, 5, 9], [6, 4, 5])
    losses = []
    for enabled in (False, True):
        model = make_model(tmp_path)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = model(*batches)
            losses.append(loss_of(model, features))
        tensors = [tensor for level in (*features.texts, *features.videos) for tensor in (level.features, level.logits)]
        tensors += [tensor for item in features.interactions for tensor in (item.prediction, item.target)]
        assert {tensor.dtype for tensor in (*tensors, losses[-1])} == {torch.float32}
        losses[-1].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    # Eight bits of mantissa in the towers; clusters may change hands.
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)


@torch.no_grad()
def test_few_frames_and_words_pass_the_hierarchy(tmp_path: Path) -> None:
    merging = MergingConfig(text_rates=(0.25, 0.5), video_rates=(0.25, 0.5), heads=4)
    model = make_model(tmp_path, merging=merging, max_frames=2)
    texts, videos = random_batches([2, 3], [1, 2])
    videos = VideoBatch(videos.pixels[:, :2], videos.mask[:, :2])
    text_levels, video_levels = model.encode_text(texts), model.encode_video(videos)
    assert [level.mask.shape[1] for level in text_levels] == [MAX_WORDS, 3, 2]
    assert [level.mask.shape[1] for level in video_levels] == [2, 1, 1]
    assert model.similarity(text_levels, video_levels, (1.0, 1.0, 1.0)).isfinite().all()


@torch.no_grad()
def test_the_exact_teacher_plays_the_game_of_the_pairs_own_tokens(tmp_path: Path) -> None:
    model = make_model(tmp_path, game=GameConfig(teacher="exact", similarity_scale=10.0, estimator_channels=4))
    features = model(*random_batches([12, 5], [6, 2]))
    for text, video, interaction in zip(features.texts, features.videos, features.interactions, strict=True):
        cosines = token_cosines(text, video)
        expected = exact_interaction(10 * cosines, text.logits, video.logits, text.mask, video.mask)
        torch.testing.assert_close(interaction.target, expected)
        assert not interaction.target.requires_grad


@torch.no_grad()
def test_the_estimator_teaches_from_masked_cosines(tmp_path: Path) -> None:
    model = make_model(tmp_path, game=GameConfig(teacher="estimator", estimator_channels=4))
    features = model(*random_batches([12, 5], [6, 2]))
    for name, text, video, interaction in zip(
        LEVELS, features.texts, features.videos, features.interactions, strict=True
    ):
        cosines = token_cosines(text, video)
        torch.testing.assert_close(interaction.target, model.teacher(cosines))
        torch.testing.assert_close(interaction.prediction, model.predictors[name](cosines))


@torch.no_grad()
def test_the_cosine_teacher_gives_the_scaled_cosines_and_has_no_network(tmp_path: Path) -> None:
    model = make_model(tmp_path, game=GameConfig(teacher="cosine", similarity_scale=10.0, estimator_channels=4))
    assert model.teacher is None
    features = model(*random_batches([12, 5], [6, 2]))
    for text, video, interaction in zip(features.texts, features.videos, features.interactions, strict=True):
        torch.testing.assert_close(interaction.target, 10 * token_cosines(text, video))


def test_coalitions_count_at_the_entity_level_in_score_and_loss(tmp_path: Path) -> None:
    plain = make_model(tmp_path)
    model = make_model(tmp_path, game=GameConfig(teacher="exact", coalitions=0.5, estimator_channels=4))
    features = model(*random_batches([12, 5, 7], [6, 2, 3]))
    texts, videos = features.texts, features.videos
    entity = level_similarity(texts[0], videos[0], coalitions=0.5)
    torch.testing.assert_close(model.similarity(texts, videos, (1.0, 0.0, 0.0)), entity)
    assert not torch.allclose(entity, plain.similarity(texts, videos, (1.0, 0.0, 0.0)), atol=1e-3)
    for rates in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        torch.testing.assert_close(model.similarity(texts, videos, rates), plain.similarity(texts, videos, rates))
    parts = {}
    for name, one in (("plain", plain), ("coalitions", model)):
        config = one.config
        parts[name] = retrieval_loss(
            features, model.clip.logit_scale, config=config.loss, quirks=config.quirks, game=config.game
        ).parts
    expected = contrastive_loss(model.clip.logit_scale.exp() * entity)
    torch.testing.assert_close(parts["coalitions"]["entity_nce_t2v"], expected)
    assert not torch.isclose(parts["plain"]["entity_nce_t2v"], expected, atol=1e-4)
    torch.testing.assert_close(parts["coalitions"]["event_nce"], parts["plain"]["event_nce"])


def test_coalitions_without_a_probability_and_with_padding_in_the_maxima_are_refused() -> None:
    for value in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match=r"game\.coalitions"):
            GameConfig(coalitions=value)
    with pytest.raises(ValueError, match="zero_floor"):
        RetrievalConfig(game=GameConfig(coalitions=0.5), quirks=Quirks(zero_floor=True))


def test_eight_frames_make_eight_four_and_two(tmp_path: Path) -> None:
    model = make_model(tmp_path, merging=MergingConfig(video_rates=(0.5, 0.5), heads=4), max_frames=8)
    frames = TokenFeatures(torch.randn(2, 8, DIM), torch.ones(2, 8, dtype=torch.bool))
    assert [level.mask.sum(dim=1).tolist() for level in model.video_hierarchy(frames)] == [[8, 8], [4, 4], [2, 2]]


def test_levels_are_gathered_leaf_by_leaf_in_a_fixed_order(tmp_path: Path) -> None:
    features = make_model(tmp_path)(*random_batches([12, 5], [6, 2]))
    visited: list[Tensor] = []

    def visit(tensor: Tensor) -> Tensor:
        visited.append(tensor)
        return torch.cat([tensor, tensor])

    doubled = features.map(visit)
    assert len(visited) == 3 * 3 + 3 * 3 + 3 * 2
    assert all(len(tensor) == 2 for tensor in visited)
    torch.testing.assert_close(leaves(doubled), [torch.cat([leaf, leaf]) for leaf in leaves(features)])


def test_the_seed_determines_the_initial_weights(tmp_path: Path) -> None:
    first, second = make_model(tmp_path).state_dict(), make_model(tmp_path).state_dict()
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0)


def test_initial_weights_are_the_published_ones(tmp_path: Path) -> None:
    model = make_model(tmp_path, temporal=TemporalConfig(layers=2))
    block, text_block = model.temporal.transformer.resblocks[1], model.clip.text_blocks[1]
    assert torch.equal(block.mlp.c_fc.weight, text_block.mlp.c_fc.weight)
    for module in (model.text_importance["event"][0], model.video_importance["entity"][0]):
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert module.bias.abs().max() == 0
    assert model.text_merges["action"].conv.weight.std() > 0.03


def test_settings_that_contradict_the_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_words is 17.*16 text positions"):
        make_model(tmp_path, max_words=17)
    with pytest.raises(ValueError, match="init_from_clip_text"):
        make_model(tmp_path, temporal=TemporalConfig(layers=3))
    with pytest.raises(ValueError, match=r"merging\.heads is 5"):
        make_model(tmp_path, merging=MergingConfig(heads=5))


def test_more_frames_than_clip_has_positions_are_allowed(tmp_path: Path) -> None:
    model = make_model(tmp_path, max_frames=20)
    assert model.temporal.positions.num_embeddings == 20


def test_the_shipped_tiny_architecture_trains_with_short_settings() -> None:
    model = RetrievalModel(
        RetrievalConfig(
            clip=ClipConfig(architecture="shapes-tiny", pretrained=None, freeze_patch_embedding=False),
            temporal=TemporalConfig(layers=2),
            game=GameConfig(teacher="exact"),
            max_frames=8,
        )
    )
    token_ids = torch.tensor([[49406, 320, 1929, 49407], [49406, 2368, 49407, 0]])
    frames = torch.randn(2, 8, 3, 64, 64)
    features = model(TextBatch(token_ids, token_ids > 0), VideoBatch(frames, torch.ones(2, 8, dtype=torch.bool)))
    loss = loss_of(model, features)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_levels_that_do_not_count_may_be_left_out(tmp_path: Path) -> None:
    model = make_model(tmp_path).eval()
    texts, videos = random_batches([5, 3], [4, 2])
    whole = model.encode_text(texts), model.encode_video(videos)
    for rates, levels in (((1.0, 0.0, 0.0), 1), ((0.5, 0.5, 0.0), 2), ((0.0, 0.0, 1.0), 3)):
        assert counted_levels(rates) == levels
        few = model.encode_text(texts, levels=levels), model.encode_video(videos, levels=levels)
        assert len(few[0]) == len(few[1]) == levels
        torch.testing.assert_close(model.similarity(*few, rates), model.similarity(*whole, rates), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"got 1 levels, but their rates are \(0\.4, 0\.4, 0\.2\)"):
        model.similarity(whole[0][:1], whole[1][:1], (0.4, 0.4, 0.2))


def test_a_pair_whose_logits_are_no_numbers_has_no_target_and_leaves_the_others_theirs(tmp_path: Path) -> None:
    model = make_model(tmp_path, game=GameConfig(teacher="exact", estimator_channels=4))
    texts, videos = random_batches([5, 3, 4], [4, 2, 6])
    levels = model.encode_text(texts), model.encode_video(videos)
    expected = model.relate(*levels).interactions[0].target
    logits = levels[0][0].logits.clone()
    logits[1, 2] = torch.nan
    # What stands at padding counts for nothing.
    logits[2, 4] = torch.nan
    broken = replace(levels[0][0], logits=logits)
    found = model.relate((broken, *levels[0][1:]), levels[1]).interactions[0].target
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=0, atol=0)


def test_a_frozen_encoder_stays_as_it_is_in_training(tmp_path: Path) -> None:
    tower = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    (tmp_path / "convolutional").mkdir()
    clip = ClipConfig(
        architecture=write_architecture(tmp_path / "convolutional", {**TINY_CLIP, "vision_cfg": tower}),
        pretrained=None,
        train="none",
    )
    model = make_model(tmp_path, clip=clip).train()
    assert {name for name, value in model.clip.named_parameters() if value.requires_grad} == {"logit_scale"}
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    texts, videos = random_batches([5, 3], [2, 4])
    videos = VideoBatch(torch.randn(*videos.mask.shape, 3, 32, 32), videos.mask)
    loss_of(model, model(texts, videos)).backward()
    # A convolutional tower in training mode would move its running statistics, and use the batch's.
    for name, value in model.clip.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.temporal.positions.weight.grad is not None
