"""The transformer over frames: masks, positions, and where its first weights come from."""

from __future__ import annotations

import pytest
import torch

from hbi_models.axes import TokenFeatures
from hbi_models.clip.loading import build_clip
from hbi_models.configs import TemporalConfig
from hbi_models.temporal_encoder import TemporalEncoder
from tests.hbi_models.tiny_model import DIM, TINY_CLIP, length_mask


def encoder(layers: int = 2, num_positions: int = 8, dim: int = DIM) -> TemporalEncoder:
    torch.manual_seed(0)
    return TemporalEncoder(dim, TemporalConfig(layers=layers), num_positions=num_positions, quick_gelu=True)


def frames(lengths: list[int], max_frames: int) -> TokenFeatures:
    mask = length_mask(lengths, max_frames)
    return TokenFeatures(torch.randn(*mask.shape, DIM, generator=torch.Generator().manual_seed(1)), mask)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model, videos = encoder(), frames([3, 6], 6)
    encoded = model(videos).features
    other = torch.where(videos.mask[:, :, None], videos.features, 9.0)
    torch.testing.assert_close(model(TokenFeatures(other, videos.mask)).features[videos.mask], encoded[videos.mask])
    short = TokenFeatures(videos.features[:1, :3], videos.mask[:1, :3])
    torch.testing.assert_close(model(short).features[0], encoded[0, :3])


@torch.no_grad()
def test_frames_see_later_frames_and_their_order() -> None:
    model, videos = encoder(), frames([4], 4)
    encoded = model(videos).features
    swapped = model(TokenFeatures(videos.features[:, [0, 1, 3, 2]], videos.mask)).features
    assert (swapped[:, 0] - encoded[:, 0]).abs().max() > 1e-4


@torch.no_grad()
def test_the_original_features_are_added() -> None:
    model, videos = encoder(layers=0), frames([4], 4)
    expected = 2 * videos.features + model.positions.weight[:4]
    torch.testing.assert_close(model(videos).features, expected)


def test_a_video_without_frames_is_finite_and_has_finite_gradients() -> None:
    model, videos = encoder(), frames([0, 2], 4)
    encoded = model(videos).features
    assert encoded.isfinite().all()
    encoded.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_clips_text_blocks_and_positions_are_copied() -> None:
    clip, model = build_clip(TINY_CLIP), encoder(layers=2, num_positions=20)
    untouched = model.positions.weight[16:].clone()
    model.copy_clip_text(clip)
    for block, text_block in zip(model.transformer.resblocks, clip.text_blocks, strict=True):
        torch.testing.assert_close(dict(block.state_dict()), dict(text_block.state_dict()), rtol=0, atol=0)
        assert block.mlp.c_fc.weight.data_ptr() != text_block.mlp.c_fc.weight.data_ptr()
    torch.testing.assert_close(model.positions.weight[:16], clip.positional_embedding, rtol=0, atol=0)
    torch.testing.assert_close(model.positions.weight[16:], untouched, rtol=0, atol=0)


def test_text_towers_that_do_not_fit_are_refused() -> None:
    clip = build_clip(TINY_CLIP)
    for model in (encoder(layers=3), encoder(dim=64)):
        with pytest.raises(ValueError, match="init_from_clip_text"):
            model.copy_clip_text(clip)
    # As SigLIP's SO400M has them.
    narrow = build_clip({**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "mlp_ratio": 3.7362}})
    with pytest.raises(ValueError, match="set it to false for this one"):
        encoder(layers=2).copy_clip_text(narrow)


def test_more_frames_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="9 frames, but the temporal encoder has 8"):
        encoder()(frames([9], 9))
