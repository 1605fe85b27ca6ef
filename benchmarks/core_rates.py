"""What one core does, on this machine: videos decoded, stored frames read for training, with augmentation and without.

    python -m benchmarks.core_rates --videos FOLDER [--count 20]

Time is the processor's own, so that other work on the machine does not count. The last column sizes a node:
a GPU that trains on P clips a second needs P divided by it in cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.training import AugmentationConfig
from pipelines.tables import table
from pipelines.video.augmentation import augmentation_rng, rand_augment
from pipelines.video.decode_child import ExtractedVideo, ExtractSettings, extract
from pipelines.video.frame_store import as_channels_last, decode_images


def frames_of(video: Path) -> ExtractedVideo:
    """Sampled, decoded, resized and encoded as the stage ``frames`` does it, with its defaults."""
    config = FramesConfig()
    settings = ExtractSettings(
        rate=config.fps,
        max_frames=config.max_frames,
        short_side_px=config.short_side_px,
        decoder=config.decoder,
        format=config.format,
        jpeg_quality=config.jpeg_quality,
    )
    return extract(str(video), settings)


def processor_ms(work: Callable[[int], object], count: int) -> list[float]:
    """Milliseconds of the processor for each of ``work(0)`` to ``work(count - 1)``."""
    found = []
    for number in range(count):
        started = time.process_time()
        work(number)
        found.append(1000 * (time.process_time() - started))
    return found


def row(name: str, ms: Sequence[float], frames: float) -> list[str]:
    median = statistics.median(ms)
    mean = statistics.fmean(ms)
    return [
        name,
        f"{frames:.1f}",
        f"{median:.0f}",
        f"{max(ms):.0f}",
        f"{1000 * frames / mean:.0f}",
        f"{1000 / mean:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, help="a folder of video files")
    parser.add_argument("--count", type=int, default=20, help="how many of them, the first by name")
    options = parser.parse_args()
    files = sorted(path for path in options.videos.rglob("*") if path.is_file())[: options.count]
    frames_of(files[0])  # loads the decoder
    clips: list[ExtractedVideo] = []
    decoding = processor_ms(lambda number: clips.append(frames_of(files[number])), len(files))
    stored = [clip.images for clip in clips]
    # Decoding alone, without reading Parquet.
    reading = processor_ms(lambda number: decode_images(stored[number]), len(stored))
    images = [as_channels_last(decode_images(frames)) for frames in stored]
    repeats = 5  # operations are drawn at random
    augmenting = processor_ms(
        lambda number: rand_augment(
            images[number % len(images)], AugmentationConfig(), augmentation_rng(0, 0, number, "clip")
        ),
        repeats * len(images),
    )
    # A video's operations vary much, so each reading is added to the mean of many.
    augmented = [value + statistics.fmean(augmenting) for value in reading]
    mean = statistics.fmean(len(frames) for frames in stored)
    rows = [row("video to stored frames", decoding, mean), row("stored frames to pixels", reading, mean)]
    rows.append(row("the same, augmented", augmented, mean))
    size = statistics.fmean(len(image) for clip in clips for image in clip.images)
    print(f"{len(files)} videos, {size / 1000:.1f} kB a frame\n")
    print(table(["one core", "frames each", "median ms", "max ms", "frames/s", "clips/s"], rows))


if __name__ == "__main__":
    main()
