"""What an epoch decodes, and how fast its samples come: the published loader against stored frames.

The published loader opens the video of every (video, caption) pair, decodes its frames and puts each through
PIL and torchvision: resize (224, bicubic), central square, normalisation. Here it is a PyTorch DataLoader with a
process per core. Ours is the training's own: frames were decoded once, by the stage ``frames`` before the first
epoch; an epoch reads and decodes the stored JPEG images. Both end in normalised float pixels, and are measured
in the second epoch, processes and threads running.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from decord import VideoReader
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from benchmarks.clips import link_videos, real_clips
from benchmarks.rows import ResultsDifferError, Row, Spread, Target, in_turns, ratios
from hbi_models.clip.preprocessing import CLIP_MEAN, CLIP_STD, normalize_pixels
from pipelines.recipe.frames import FramesConfig
from pipelines.train.batches import BatchAddress, load_ahead
from pipelines.video.extraction import make_extract_frames
from pipelines.video.frame_store import FrameStore
from pipelines.video.sampling import sample_frames
from pipelines.workspace.records import FRAMES
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

VIDEOS, CAPTIONS, BATCH, SIZE_PX, TIMES = 8, 20, 32, 224, 3
"""MSR-VTT has 20 captions of every training video."""
CORES = os.cpu_count() or 1
CONFIG = FramesConfig(format="png")
"""Lossless, so that pixels can be compared; what is timed are JPEG images."""


class PublishedLoader(Dataset[Tensor]):
    """Pairs in a fixed order; each decodes its video anew."""

    def __init__(self, files: Sequence[Path], order: Sequence[int]) -> None:
        self._files, self._order = files, order
        self._transform = Compose(
            [
                Resize(SIZE_PX, interpolation=InterpolationMode.BICUBIC),
                CenterCrop(SIZE_PX),
                ToTensor(),
                Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, pair: int) -> Tensor:
        reader = VideoReader(str(self._files[self._order[pair]]), num_threads=1)
        indices = frame_indices(reader)
        frames = reader.get_batch(indices).asnumpy()
        return torch.stack([self._transform(Image.fromarray(frame)) for frame in frames])


class StoredFrames:
    """What a training's source does for the frames of a batch."""

    def __init__(self, store: FrameStore, order: Sequence[int]) -> None:
        self._store, self._order = store, order

    def addresses(self) -> list[BatchAddress]:
        return [(1, step) for step in range(len(self._order) // BATCH)]

    def __getitem__(self, address: BatchAddress) -> Tensor:
        videos = self._order[address[1] * BATCH : (address[1] + 1) * BATCH]
        return self._store.batch(videos, image_size_px=SIZE_PX, max_frames=CONFIG.max_frames).frames


def rows(folder: Path) -> Iterator[Row]:
    torch.set_num_threads(CORES)  # as a training has them; PyTorch gives each of the baseline's processes one
    real = real_clips(folder / "real", seconds=(12, 20, 28))
    _, files = link_videos(folder, real, VIDEOS)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(VIDEOS), CAPTIONS)).tolist()
    published = PublishedLoader(files, order)
    require_equal(published, store_frames(folder / "png", files, CONFIG), order)
    store = store_frames(folder / "jpeg", files, FramesConfig())
    source = StoredFrames(store, order)
    # The processes stay for all runs, and the first run of in_turns is not measured: so all that is timed is a second
    # epoch.
    loader = DataLoader(published, batch_size=BATCH, drop_last=True, num_workers=CORES, persistent_workers=True)

    def theirs() -> None:
        for _ in loader:
            pass

    def ours() -> None:
        for frames in load_ahead(source, source.addresses(), processes=0, pin_memory=False):
            normalize_pixels(frames)

    baseline = f"a video per caption, PIL and torchvision, {CORES} processes"
    decoded_once = sum(len(store.encoded(video)) for video in range(VIDEOS))
    decoded_each = CAPTIONS * decoded_once
    yield Row(
        f"frames decoded from video for an epoch, {CAPTIONS} captions a video",
        baseline,
        Spread((float(decoded_each),)),
        Spread((float(decoded_once),)),
        "frames",
        Spread((decoded_each / decoded_once,)),
        Target("≥", 20),
    )
    slow, fast = in_turns([theirs, ours], TIMES)
    samples = len(order) // BATCH * BATCH
    yield Row(
        "samples into the model in epoch 2",
        baseline,
        Spread(tuple(samples / value for value in slow.values)),
        Spread(tuple(samples / value for value in fast.values)),
        "samples/s",
        ratios(slow, fast),
        Target("≥", 10),
    )


def frame_indices(reader: VideoReader) -> list[int]:
    return sample_frames(
        fps=reader.get_avg_fps(), num_frames=len(reader), max_frames=CONFIG.max_frames, rate=CONFIG.fps
    )


def store_frames(folder: Path, files: Sequence[Path], config: FramesConfig) -> FrameStore:
    """Decodes ``files`` as the stage frames does."""
    extract = make_extract_frames(config)
    pool = ShardPool(Storage(str(folder)), FRAMES)
    pool.commit(
        [
            extract({"video_id": file.stem, "key": file.stem, "uri": str(file), "start_s": None, "end_s": None})
            for file in files
        ]
    )
    index = pool.index(["video_id"]).sort_by("video_id")
    return FrameStore(pool.storage, index, threads=CORES)


def require_equal(published: PublishedLoader, store: FrameStore, order: Sequence[int]) -> None:
    """Compares the pixels of some pairs.

    Raises:
        ResultsDifferError: they differ by more than rounding.
    """
    for pair in range(0, len(order), len(order) // 4):
        expected = published[pair]
        batch = store.batch([order[pair]], image_size_px=SIZE_PX, max_frames=CONFIG.max_frames)
        found = normalize_pixels(batch.frames)[0, : len(expected)]
        if int(batch.mask.sum()) != len(expected) or not torch.allclose(found, expected, atol=1e-5):
            raise ResultsDifferError("the published loader and the stored frames give other pixels")
