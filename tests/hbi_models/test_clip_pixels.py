"""Pixels are normalised as the model at hand was trained, against open_clip's own transforms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.loading import read_architecture
from hbi_models.clip.pixels import CLIP_MEAN, CLIP_STD, with_pixel_statistics
from hbi_models.clip.preprocessing import square_frames
from hbi_models.retrieval import RetrievalModel
from tests.hbi_models.tiny_model import IMAGE_PX, TINY_CLIP, tiny_config, write_architecture

HALF, ZERO, ONE = (0.5,) * 3, (0.0,) * 3, (1.0,) * 3


def statistics(architecture: str, pretrained: str | None, **settings: object) -> tuple[object, object]:
    found = with_pixel_statistics(ClipConfig(architecture=architecture, pretrained=pretrained, **settings))  # type: ignore[arg-type]
    return found.pixel_mean, found.pixel_std


@pytest.mark.parametrize(
    ("architecture", "tag", "expected"),
    [
        ("ViT-B-32-quickgelu", "openai", (None, None)),
        ("ViT-L-14", "datacomp_xl_s13b_b90k", (None, None)),
        ("ViT-L-14", "laion2b_s32b_b82k", (HALF, HALF)),
        ("PE-Core-B-16", "meta", (HALF, HALF)),
        ("MobileCLIP-S1", "datacompdr", (ZERO, ONE)),
        ("ViT-L-14", "no_such_tag", (None, None)),
        ("no such architecture", "no_such_tag", (None, None)),
    ],
)
def test_tags_have_what_open_clip_says(architecture: str, tag: str, expected: tuple[object, object]) -> None:
    assert statistics(architecture, tag) == expected


def test_every_model_that_is_accepted_has_the_statistics_of_its_tag() -> None:
    seen = 0
    for name, tag in open_clip.list_pretrained():
        try:
            read_architecture(name)
        except ValueError:
            continue
        entry = open_clip.get_pretrained_cfg(name, tag)
        mean, std = statistics(name, tag)
        assert (mean or CLIP_MEAN, std or CLIP_STD) == (tuple(entry["mean"]), tuple(entry["std"])), (name, tag)
        seen += 1
    assert seen > 100


def test_weights_in_a_file_have_what_all_tags_of_their_architecture_agree_on(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    assert statistics("MobileCLIP-S1", str(file)) == (ZERO, ONE)
    assert statistics("ViT-L-14", str(file)) == (None, None)
    assert statistics("ViT-L-14", str(file), pixel_mean=HALF, pixel_std=HALF) == (HALF, HALF)


def test_what_is_set_goes_first_and_openais_is_null(tmp_path: Path) -> None:
    assert statistics("ViT-L-14", "laion2b_s32b_b82k", pixel_mean=CLIP_MEAN) == (None, HALF)
    with pytest.raises(ValueError, match=r"clip\.pixel_std is .*every deviation must be positive"):
        ClipConfig(pixel_std=(0.1, 0.0, 0.1))


def test_an_architectures_file_may_say_it_also_as_the_hub_keeps_it(tmp_path: Path) -> None:
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    for document in (
        {**TINY_CLIP, "preprocess_cfg": preprocessing},
        {"model_cfg": TINY_CLIP, "preprocess_cfg": preprocessing},
    ):
        path = str(tmp_path / "said.json")
        Path(path).write_text(json.dumps(document))
        assert statistics(path, None) == ((0.1, 0.2, 0.3), (1, 2, 3))
        clip = RetrievalModel(tiny_config(tmp_path, clip=ClipConfig(architecture=path, pretrained=None))).clip
        assert (clip.pixel_mean, clip.pixel_std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    for mean in (0.5, [0.5, 0.5], ["a", "b", "c"]):
        Path(path).write_text(json.dumps({**TINY_CLIP, "preprocess_cfg": {"mean": mean}}))
        with pytest.raises(ValueError, match="there must be one number each for red, green and blue"):
            statistics(path, None)
    (tmp_path / "broken.json").write_text("{")
    assert statistics(str(tmp_path / "broken.json"), None) == (None, None)


@pytest.mark.parametrize(("mean", "std"), [(None, None), (HALF, HALF), (ZERO, ONE)])
def test_a_model_sees_images_as_open_clip_prepares_them(tmp_path: Path, mean: object, std: object) -> None:
    architecture = write_architecture(tmp_path)
    clip = ClipConfig(architecture=architecture, pretrained=None, pixel_mean=mean, pixel_std=std)  # type: ignore[arg-type]
    model = RetrievalModel(tiny_config(tmp_path, clip=clip))
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 26, 3), dtype=np.uint8)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=IMAGE_PX, mean=mean or CLIP_MEAN, std=std or CLIP_STD),  # type: ignore[arg-type]
        is_train=False,
    )
    expected = torch.stack([transform(Image.fromarray(image)) for image in images])
    batch = model.video_batch(square_frames(images, IMAGE_PX)[None])
    # Float32 rounding of (x - 255 mean) / (255 std) against (x / 255 - mean) / std.
    torch.testing.assert_close(batch.pixels[0], expected, rtol=1e-5, atol=1e-5)
    assert batch.mask.tolist() == [[True] * 3]
    # What a stored model needs to go on with: its tag is not kept.
    assert (model.config.clip.pixel_mean, model.config.clip.pixel_std) == (mean, std)
    assert json.dumps(model.config.clip.pixel_mean)
