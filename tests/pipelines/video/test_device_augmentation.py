"""RandAugment as tensor operations of many clips: PIL's, operation by operation; drawn as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from pipelines.recipe.training import AugmentationConfig
from pipelines.train.pairs import augments_on
from pipelines.video.augmentation import OPERATIONS, Operation, apply_operation, augmentation_rng, draw_operations
from pipelines.video.device_augmentation import NAMES, NONE, apply_to_clips, as_table, augment_clips
from tests.absent_device import ABSENT, CPU, absent_device, values
from tests.pipelines.video.test_augmentation import PIL_OPERATIONS
from tests.tiny_retrieval import retrieval_config, retrieval_task, write_split_data

STRENGTHS = [(strength, sign) for strength in (0.0, 0.33, 0.7, 1.0) for sign in (1.0, -1.0)]


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """A smooth picture, noise, and one of two levels; not square."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:45, :60]
    smooth = np.stack([40 + 2 * x, 200 - 3 * y, 90 + x + y], axis=-1).astype(np.uint8)
    noise = random.integers(256, size=smooth.shape, dtype=np.uint8)
    flat = np.where(random.random((45, 60, 1)) < 0.3, 60, 61).astype(np.uint8).repeat(3, axis=2)
    return np.stack([smooth, noise, flat])


def as_clips(frames: np.ndarray, clips: int) -> torch.Tensor:
    one = rearrange(torch.from_numpy(frames), "frames height width rgb -> 1 frames rgb height width")
    return one.repeat(clips, 1, 1, 1, 1)


def as_frames(clip: torch.Tensor) -> np.ndarray:
    found: np.ndarray = rearrange(clip, "frames rgb height width -> frames height width rgb").numpy()
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_equals_pils_for_every_clip_with_its_own_argument(frames: np.ndarray, name: str) -> None:
    arguments = [OPERATIONS[name].to_argument(strength, sign) for strength, sign in STRENGTHS]
    found = apply_to_clips(as_clips(frames, len(arguments)), name, torch.tensor(arguments, dtype=torch.float64))
    assert found.dtype == torch.uint8
    for clip, argument in zip(found, arguments, strict=True):
        expected = np.stack([np.asarray(PIL_OPERATIONS[name](Image.fromarray(frame), argument)) for frame in frames])
        assert np.abs(as_frames(clip).astype(int) - expected).max() <= 1, argument


def test_every_operation_of_the_policy_is_there() -> None:
    assert tuple(OPERATIONS) == NAMES
    with pytest.raises(ValueError, match="no operation 'Blur'"):
        apply_to_clips(torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), "Blur", torch.zeros(1))


def test_each_clip_goes_through_what_it_drew_in_its_order(frames: np.ndarray) -> None:
    exact = ("Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")
    drawn = [
        [Operation("Invert", 0), Operation("SolarizeAdd", 40)],
        [],
        [Operation("SolarizeAdd", 40), Operation("Invert", 0), Operation("PosterizeIncreasing", 3)],
        [Operation("SolarizeIncreasing", 90)],
    ]
    assert {operation.name for operations in drawn for operation in operations} == set(exact)
    clips = as_clips(frames, len(drawn))
    before = clips.clone()
    found = augment_clips(clips, *as_table(drawn, 3))
    assert torch.equal(clips, before)
    for clip, operations in zip(found, drawn, strict=True):
        expected = frames
        for operation in operations:
            expected = apply_operation(expected, operation)
        assert np.array_equal(as_frames(clip), expected)


def test_a_batch_on_the_device_waits_for_nothing_and_is_that_of_the_cpu(frames: np.ndarray) -> None:
    config = AugmentationConfig(probability=1.0)
    drawn = [draw_operations(config, augmentation_rng(1, 0, 0, str(video))) for video in range(6)]
    assert len({operation.name for operations in drawn for operation in operations}) > 8
    table = as_table(drawn, config.operations)
    clips = as_clips(frames, len(drawn))
    expected = augment_clips(clips, *table)
    with absent_device() as journal:
        there = clips.to(ABSENT)
        journal.clear()
        found = augment_clips(there, *table)
        assert not journal.waits
    assert torch.equal(values(found), expected)


def test_a_training_on_a_gpu_draws_what_one_on_cpus_draws(tmp_path: Path) -> None:
    captions = (3, 1, 2, 2, 3)
    data = write_split_data(tmp_path, {"train": captions})
    config = retrieval_config(tmp_path)

    def batch(device: str, where: torch.device) -> Any:
        augmentation = AugmentationConfig(device=device, probability=1.0)  # type: ignore[arg-type]
        task = retrieval_task(data, config, captions, augmentation=augmentation)
        return task.source(rank=0, world_size=1, device=where)[0, 1], task

    on_gpu, task = batch("auto", ABSENT)
    assert on_gpu.operations.shape == (4, 4)
    assert not (on_gpu.operations == NONE).any()
    for row, pair in enumerate(task.source(rank=0, world_size=1).pairs((0, 1))):
        name = on_gpu.video_ids[row]
        drawn = draw_operations(task.training.augmentation, augmentation_rng(task.seed, 0, pair.pass_index, name))
        assert [NAMES[number] for number in on_gpu.operations[row]] == [operation.name for operation in drawn]
    plain = task.training.augmentation
    assert plain.device == "auto"
    in_loader, _ = batch("cpu", ABSENT)
    also, _ = batch("auto", CPU)
    assert in_loader.operations.shape == also.operations.shape == (4, 0)
    assert torch.equal(in_loader.frames, also.frames)
    assert not torch.equal(in_loader.frames, on_gpu.frames)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augmentation\.device is gpu"):
        augments_on(CPU, AugmentationConfig(device="gpu"))
    assert augments_on(ABSENT, AugmentationConfig(device="gpu"))
    assert not augments_on(CPU, AugmentationConfig(enabled=False, device="gpu"))
