"""Processor time to get 12 frames of a video: PyAV as the stage ``frames`` reads, and decord, on files that both read.

``python -m benchmarks.decoders`` prints the table of docs/decoding.md. H.264, 320×240, 25 frames a second, moving
noise; 12 frames evenly over the file; one thread; opening and indexing count. Their pixels are compared first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np

from benchmarks.rows import ResultsDifferError
from pipelines.video.decoders import Decoder, PyAVDecoder, open_decoder

FPS, WIDTH, HEIGHT, WANTED, TIMES = 25, 320, 240, 12, 9


def write(path: Path, seconds: int, gop: int, *, width: int = WIDTH, height: int = HEIGHT) -> None:
    """A picture that moves by two pixels a frame."""
    texture = np.random.default_rng(0).integers(0, 256, (height // 8, 2 * width // 8, 3), dtype=np.uint8)
    scene = texture.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        options = {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0", "preset": "veryfast"}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(FPS * seconds):
            image = np.roll(scene, -2 * number, axis=1)[:, :width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))


def with_pyav(path: str) -> list[np.ndarray]:
    """As the stage does."""
    return images_of(PyAVDecoder(path))


def with_decord(path: str) -> list[np.ndarray]:
    """As the stage does where decord is chosen: after a look at the packets."""
    decoder = open_decoder(path, "decord")
    assert decoder.name == "decord"
    return images_of(decoder)


def with_decord_alone(path: str) -> list[np.ndarray]:
    """Without a look at what the file is."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return [reader[index].asnumpy() for index in _wanted(len(reader))]


def images_of(decoder: Decoder) -> list[np.ndarray]:
    """The frames that are wanted of a video; closes it."""
    images = [frame.image for frame in decoder.frames(_wanted(len(decoder.timeline.times_s)))]
    decoder.close()
    return images


def _wanted(count: int) -> list[int]:
    return [int(place) for place in np.linspace(0, count - 1, WANTED)]


def main() -> None:
    """Prints the table."""
    readers: list[Callable[[str], list[np.ndarray]]] = [with_pyav, with_decord, with_decord_alone]
    print("| key frames every | length | PyAV | decord, checked | decord alone |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for gop in (25, 250):
            for seconds in (10, 30):
                path = Path(folder) / f"{gop}_{seconds}.mp4"
                write(path, seconds, gop)
                expected, *others = [read(str(path)) for read in readers]
                if not all(np.array_equal(expected, other) for other in others):
                    raise ResultsDifferError(f"the decoders differ on {path.name}")
                spent: list[list[float]] = [[] for _ in readers]
                for _ in range(TIMES):
                    for read, seen in zip(readers, spent, strict=True):
                        start = time.process_time()
                        read(str(path))
                        seen.append(1000 * (time.process_time() - start))
                cells = " | ".join(f"{median(seen):.0f} ms" for seen in spent)
                print(f"| {gop} frames | {seconds} s | {cells} |", flush=True)


if __name__ == "__main__":
    main()
