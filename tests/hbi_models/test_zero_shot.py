"""A pretrained encoder alone: its scores against open_clip's own forward and against the spelled-out pooling."""

from __future__ import annotations

import math
from pathlib import Path

import open_clip
import pytest
import torch

from hbi_models.axes import TokenLevel
from hbi_models.clip.configs import ClipConfig
from hbi_models.zero_shot import ZeroShotModel, zero_shot_similarity
from hbi_models.zero_shot_config import ZeroShotConfig
from tests.hbi_models.tiny_model import IMAGE_PX, TINY_CLIP, length_mask, write_architecture

LENGTHS = [3, 1, 4, 0]


def levels() -> tuple[TokenLevel, TokenLevel]:
    generator = torch.Generator().manual_seed(0)
    texts, frames = torch.randn(5, 1, 8, generator=generator), torch.randn(4, 4, 8, generator=generator)
    mask = length_mask(LENGTHS, 4)
    return (
        TokenLevel(texts, torch.ones(5, 1, dtype=torch.bool), torch.zeros(5, 1)),
        TokenLevel(frames, mask, torch.zeros(4, 4)),
    )


def test_both_ways_of_pooling_are_what_their_formulas_say() -> None:
    texts, videos = levels()
    mean = zero_shot_similarity(texts, videos, "mean", temperature=0.1)
    softmax = zero_shot_similarity(texts, videos, "softmax", temperature=0.25)
    for row, text in enumerate(texts.features[:, 0].double()):
        text = text / text.norm()
        for column, count in enumerate(LENGTHS):
            frames = [frame / frame.norm() for frame in videos.features[column, :count].double()]
            if not frames:
                assert mean[row, column] == softmax[row, column] == 0
                continue
            middle = sum(frames) / count
            assert mean[row, column].item() == pytest.approx(float(text @ middle / middle.norm()), abs=1e-6)
            cosines = [float(text @ frame) for frame in frames]
            weights = [math.exp(cosine / 0.25) for cosine in cosines]
            expected = sum(weight * cosine for weight, cosine in zip(weights, cosines, strict=True)) / sum(weights)
            assert softmax[row, column].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_of_single_frames_the_scores_are_the_cosines_of_the_pretrained_model(tmp_path: Path) -> None:
    architecture = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "vocab_size": 49408}}
    torch.manual_seed(0)
    reference = open_clip.CLIP(**architecture).eval()
    weights = {name: value for name, value in reference.state_dict().items() if name != "attn_mask"}
    torch.save(weights, tmp_path / "weights.pt")
    clip = ClipConfig(architecture=write_architecture(tmp_path, architecture), pretrained=str(tmp_path / "weights.pt"))
    model = ZeroShotModel(ZeroShotConfig(clip=clip, max_frames=3)).eval()
    assert not any(value.requires_grad for value in model.parameters())

    captions = ["a red circle", "a dog chases a ball and then a cat and a second dog and a third", ""]
    frames = torch.randint(256, (4, 1, 3, IMAGE_PX, IMAGE_PX), generator=torch.Generator().manual_seed(1)).byte()
    tokens = open_clip.SimpleTokenizer(context_length=16)(captions)
    texts = reference.encode_text(tokens, normalize=True)
    images = reference.encode_image(model.clip.normalize(frames[:, 0]), normalize=True)
    batch = model.text_batch(captions)
    assert torch.equal(batch.token_ids, tokens)
    for pooling in ("mean", "softmax"):
        one = ZeroShotModel(ZeroShotConfig(clip=clip, pooling=pooling)).eval()
        found = one.similarity(one.encode_text(batch), one.encode_video(one.video_batch(frames)))
        torch.testing.assert_close(found, texts @ images.mT, rtol=1e-5, atol=1e-6)
