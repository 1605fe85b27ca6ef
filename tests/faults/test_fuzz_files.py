"""Shards, checkpoints and videos with any bytes changed: good content, a clear error or a row that says why not."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from torch import nn

from hbi_models.clip.loading import read_checkpoint
from hbi_models.config_reading import config_from_plain
from hbi_models.configs import RetrievalConfig
from pipelines.models.folder import DESCRIPTION
from pipelines.models.weights import WEIGHTS, load_weights, read_description, save_model
from pipelines.recipe.frames import FramesConfig
from pipelines.train.checkpoints import (
    CURVE,
    POSITION,
    TRAINING,
    Position,
    load_curve,
    load_training,
    save_curve,
    save_training,
)
from pipelines.video.decode_process import DecodeProcess, Reason
from pipelines.video.extraction import make_extract_frames
from pipelines.video.frame_store import FrameStore, decode_images
from pipelines.workspace.artifact import plain
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.records import FRAMES
from pipelines.workspace.shard_rows import LostRowsError
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.faults.mutations import damaged, damaged_json, fuzz, refuses_clearly
from tests.faults.test_damaged_files import rows
from tests.pipelines.video.test_extraction import manifest_row

pytestmark = [pytest.mark.fault, pytest.mark.filterwarnings("ignore")]


def test_shards(tmp_path: Path) -> None:
    pool = ShardPool(Storage(str(tmp_path)), FRAMES)
    pool.commit(rows("a", "b", "c"))
    (name,) = pool.storage.files()
    whole, index = (tmp_path / name).read_bytes(), pool.index(["video_id"])
    images = {key: rows(key)[0]["frames"] for key in "abc"}
    # Most of the bytes are frames, whose checksums find every change; what describes them is more interesting.
    footer = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8

    def put(content: bytes) -> None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        (tmp_path / name).write_bytes(content)

    @fuzz(30)
    @given(damaged(whole[footer:]).map(lambda tail: whole[:footer] + tail) | damaged(whole))
    def try_to_read(new: bytes) -> None:
        put(new)
        found = pool.index(["error_reason", "error_message", "decoder"])
        assert len(found) == len(found.drop_null().column("key")) or set(found.column("shard").to_pylist()) == {name}
        put(new)
        store = FrameStore(pool.storage, index)
        for video, key in enumerate("abc"):
            try:
                stored = store.encoded(video)
            except LostRowsError as error:
                assert name in str(error)
            else:
                assert stored == images[key] or new != whole

    logging.disable(logging.WARNING)  # one for each of thousands of files that are set aside
    try:
        try_to_read()
    finally:
        logging.disable(logging.NOTSET)


def test_frames_of_a_shard_are_never_changed_unnoticed(tmp_path: Path) -> None:
    """Whatever changes in the bytes of the frames themselves, their checksums tell."""
    pool = ShardPool(Storage(str(tmp_path)), FRAMES)
    pool.commit(rows("a"))
    (name,) = pool.storage.files()
    whole, index, frames = (tmp_path / name).read_bytes(), pool.index(["video_id"]), rows("a")[0]["frames"]
    start = whole.index(frames[0])

    @fuzz(20)
    @given(damaged(frames[0]).filter(lambda new: len(new) == len(frames[0]) and new != frames[0]))
    def try_to_read(new: bytes) -> None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        (tmp_path / name).write_bytes(whole[:start] + new + whole[start + len(new) :])
        with pytest.raises(LostRowsError, match=name):
            FrameStore(pool.storage, index).encoded(0)

    logging.disable(logging.WARNING)
    try:
        try_to_read()
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    save_model(tmp_path, model, kind="any", config=plain(RetrievalConfig()))
    save_training(tmp_path, optimizer=optimizer, schedule={"last": 1}, position=Position(step=7))
    save_curve(tmp_path, [(5, {"train/loss": 0.5, "epoch": 0.5}), (7, {"train/loss": 0.25, "epoch": 0.7})])
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    torch.save(model.state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.jit.script(model).save(str(tmp_path / "script.pt"))
    return tmp_path


def resume(folder: Path) -> None:
    load_training(folder, optimizer=torch.optim.AdamW(nn.Linear(3, 2).parameters()))


def describe(folder: Path) -> None:
    _, document = read_description(folder)
    config_from_plain(RetrievalConfig, document, place=str(folder))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (WEIGHTS, lambda folder: load_weights(folder, nn.Linear(3, 2))),
        (TRAINING, resume),
        (POSITION, resume),
        (CURVE, load_curve),
        (DESCRIPTION, describe),
        ("plain.pt", lambda folder: read_checkpoint(folder / "plain.pt")),
        ("old.bin", lambda folder: read_checkpoint(folder / "old.bin")),
        ("script.pt", lambda folder: read_checkpoint(folder / "script.pt")),
    ],
)
def test_checkpoints(checkpoint: Path, name: str, read: Callable[[Path], Any]) -> None:
    path = checkpoint / name
    content = path.read_bytes()
    read(checkpoint)
    strategy = damaged(content)
    if name.endswith(".json"):
        import json

        strategy |= damaged_json(json.loads(content))

    @fuzz(20)
    @given(strategy)
    def try_to_read(new: bytes) -> None:
        path.write_bytes(new)
        refuses_clearly(lambda: read(checkpoint), str(checkpoint), allowed=(ValueError, DamagedFileError))

    try_to_read()


VIDEOS = {
    "a.mp4": {"codec": "libx264", "options": {"g": "8"}},
    "a.mkv": {"codec": "libx264", "options": {"g": "8"}},
    "a.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "a.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "a.ts": {"codec": "libx264", "options": {"g": "8"}},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8", "options": {}},
}


def write(path: Path, codec: str, options: dict[str, str], pix_fmt: str = "yuv420p") -> None:
    blocks = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
    image = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, pix_fmt, options
        stream.codec_context.thread_count = 1
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.roll(image, 3 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, **VIDEOS[name])  # type: ignore[arg-type]
    content = path.read_bytes()
    process = DecodeProcess(timeout_s=20, max_memory_gb=1)
    config = FramesConfig(short_side_px=32, fps=2, max_frames=6)
    extract = make_extract_frames(config, process=process)
    assert len(extract(manifest_row(path))["frames"]) >= 3, "the video itself is read"
    header = min(len(content), 1500)

    @fuzz(6)
    @given(damaged(content[:header]).map(lambda head: head + content[header:]) | damaged(content))
    def try_to_decode(new: bytes) -> None:
        path.write_bytes(new)
        row = extract(manifest_row(path))
        pa.Table.from_pylist([row], schema=FRAMES).validate(full=True)
        if row["error_reason"] is not None:
            assert row["error_reason"] in get_args(Reason)
            assert row["error_message"] and "\n" not in row["error_message"]
            assert row["frames"] == []
            return
        images = decode_images(row["frames"])
        assert 1 <= len(images) <= config.max_frames
        assert {image.shape for image in images} == {(3, row["height_px"], row["width_px"])}
        assert min(row["height_px"], row["width_px"]) == config.short_side_px
        assert row["frame_index"] == sorted(set(row["frame_index"]))
        assert len(row["time_s"]) == len(images)

    try_to_decode()
    process.close()
