"""Images that the model's device decodes: the pixels of the loader, in the same places."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import AugmentationConfig, RetrievalTrainingConfig, VideoQATrainingConfig
from pipelines.train.pairs import PairBatch, PairSource
from pipelines.video.device_decoding import EncodedClips, decoded_on, joined
from pipelines.video.frame_store import decode_images
from pipelines.video.torchcodec_decoder import torchcodec_problem
from pipelines.workspace.shard_rows import LostRowsError
from pipelines.workspace.storage import Storage
from tests.absent_device import ABSENT, CPU
from tests.tiny_retrieval import IMAGE_PX, retrieval_config, retrieval_task, write_split_data

CAPTIONS = (3, 1, 2, 2, 3)
torchcodec = pytest.mark.skipif(torchcodec_problem() is not None, reason=f"{torchcodec_problem()}")
ON_GPU = AugmentationConfig(device="gpu")


def image(seed: int, *, height: int, width: int, form: str = "JPEG") -> bytes:
    """A smooth picture, as films are."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(256, size=(6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, form, quality=90)
    return buffer.getvalue()


def source(data: Storage, folder: Path, decoding: str, device: torch.device) -> PairSource:
    settings = {"image_decoding": decoding, "augmentation": ON_GPU}
    task = retrieval_task(data, retrieval_config(folder), CAPTIONS, **settings)
    return task.source(rank=0, world_size=1, device=device)


@torchcodec
def test_pixels_and_padding_are_those_that_the_loader_decodes(tmp_path: Path) -> None:
    data = write_split_data(tmp_path, {"train": CAPTIONS})
    here, there = (source(data, tmp_path, decoding, ABSENT)[0, 0] for decoding in ("cpu", "gpu"))
    assert isinstance(here, PairBatch) and isinstance(there, PairBatch)
    assert isinstance(here.frames, torch.Tensor) and isinstance(there.frames, EncodedClips)
    assert there.frames.data.dtype == torch.uint8 and there.frames.data.ndim == 1
    assert torch.equal(there.frame_mask, here.frame_mask) and not here.frame_mask.all()
    assert torch.equal(there.operations, here.operations) and there.operations.shape[1] == 4
    for rows in (slice(None), slice(0, 2), slice(1, 3), slice(3, 4)):
        found = decoded_on(CPU, there.frames, rows, side_px=IMAGE_PX)
        assert torch.equal(found, here.frames[rows])


@torchcodec
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_decodes_them_to_within_a_few_grey_levels() -> None:
    clips = joined([[image(seed, height=224, width=298) for seed in range(12)]], max_frames=12)
    expected, found = (
        decoded_on(device, clips, slice(None), side_px=224).cpu().int() for device in (CPU, torch.device("cuda"))
    )
    apart = (found - expected).abs()
    assert float(apart.float().mean()) < 1 and int(apart.max()) <= 8


@torchcodec
def test_images_of_other_sizes_are_cropped_and_too_small_ones_refused() -> None:
    images = [image(0, height=24, width=40), image(1, height=31, width=24)]
    found = decoded_on(CPU, joined([images, images[:1]], max_frames=3), slice(None), side_px=24)
    assert found.shape == (2, 3, 3, 24, 24)
    assert torch.equal(found[0, 0], decode_images(images)[0][:, :, 8:32])
    assert torch.equal(found[0, 1], decode_images(images)[1][:, 4:28])
    assert not found[0, 2].any() and not found[1, 1:].any()
    with pytest.raises(ValueError, match="hold no square of 25"):
        decoded_on(CPU, joined([images], max_frames=2), slice(None), side_px=25)


@torchcodec
def test_what_cannot_be_decoded_says_how_to_find_the_video() -> None:
    whole = image(0, height=24, width=24)
    with pytest.raises(ValueError, match="with image_decoding cpu the message names the video"):
        decoded_on(CPU, joined([[whole, whole[:200]]], max_frames=2), slice(None), side_px=24)


def test_the_loader_refuses_what_is_no_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = image(0, height=IMAGE_PX, width=IMAGE_PX, form="PNG")
    monkeypatch.setattr("tests.tiny_retrieval._jpeg", lambda random: png)
    monkeypatch.setattr("pipelines.video.torchcodec_decoder.torchcodec_problem", lambda: None)
    with pytest.raises(LostRowsError, match="only JPEG images are decoded on a GPU"):
        source(write_split_data(tmp_path, {"train": CAPTIONS}), tmp_path, "gpu", ABSENT)[0, 0]


def test_without_torchcodec_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pipelines.video.torchcodec_decoder.torchcodec_problem", lambda: "torchcodec is not installed: pip …"
    )
    with pytest.raises(ValueError, match="image_decoding is gpu, and torchcodec is not installed: pip"):
        source(write_split_data(tmp_path, {"train": CAPTIONS}), tmp_path, "gpu", ABSENT)


def test_settings_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this training runs on CPUs"):
        source(write_split_data(tmp_path, {"train": CAPTIONS}), tmp_path, "gpu", CPU)
    for kind in (RetrievalTrainingConfig, VideoQATrainingConfig):
        with pytest.raises(ValueError, match="where no pixels are; set the latter to gpu"):
            kind(image_decoding="gpu", augmentation=AugmentationConfig())
        kind(image_decoding="gpu", augmentation=AugmentationConfig(enabled=False))
    recipe = Recipe(retrieval=RetrievalTrainingConfig(image_decoding="gpu", augmentation=ON_GPU))
    with pytest.raises(ValueError, match=r"frames\.format is png; a GPU decodes JPEG images only"):
        replace(recipe, frames=FramesConfig(format="png"))
