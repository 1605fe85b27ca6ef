from __future__ import annotations

import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipelines.video.frame_store import FrameStore, as_channels_last, decode_images, stack_frames
from pipelines.workspace.records import FRAMES
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

VIDEOS = 7
SHARD = 3


def images(video: int) -> list[torch.Tensor]:
    """One to three images whose pixels tell video, position and place."""
    generator = torch.Generator().manual_seed(video)
    return [torch.randint(256, (3, 8, 12), generator=generator, dtype=torch.uint8) for _ in range(1 + video % 3)]


def png(image: torch.Tensor) -> bytes:
    """The image as a lossless file, so that pixels come back exactly."""
    buffer = io.BytesIO()
    Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def frames_row(video: int) -> dict[str, Any]:
    """A row of ``records.FRAMES``."""
    encoded = [png(image) for image in images(video)]
    return {
        "video_id": f"video{video}",
        "key": f"key{video}",
        "frames": encoded,
        "frame_index": list(range(len(encoded))),
        "time_s": [float(place) for place in range(len(encoded))],
    }


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    pool = ShardPool(Storage(str(tmp_path)), FRAMES)
    for start in range(0, VIDEOS, SHARD):
        pool.commit([frames_row(video) for video in range(start, min(start + SHARD, VIDEOS))])
    return FrameStore(pool.storage, pool.index(["video_id"]).sort_by("video_id"))


def test_random_access_finds_the_frames_of_sequential_reading(store: FrameStore) -> None:
    assert store.video_ids == [f"video{video}" for video in range(VIDEOS)]
    sequential = [store.decoded(video) for video in range(VIDEOS)]
    for video in (6, 0, 4, 4, 1, 6, 2, 5, 3):
        for found, before, expected in zip(store.decoded(video), sequential[video], images(video), strict=True):
            assert torch.equal(found, before)
            assert torch.equal(found, expected)


def test_a_batch_is_cropped_padded_and_masked(store: FrameStore) -> None:
    batch = store.batch([2, 0], image_size_px=8, max_frames=4)
    assert batch.frames.shape == (2, 4, 3, 8, 8)
    assert batch.mask.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert torch.equal(batch.frames[0, 1], images(2)[1][:, :, 2:10])
    assert not batch.frames[~batch.mask].any()


def test_a_batch_can_be_made_where_no_gradients_are_wanted(store: FrameStore) -> None:
    expected = store.batch([2, 0], image_size_px=8, max_frames=4)
    with torch.inference_mode():
        batch = store.batch([2, 0], image_size_px=8, max_frames=4)
        assert torch.equal(batch.frames, expected.frames)
        assert torch.equal(batch.mask, expected.mask)


def test_memory_of_a_batch_is_used_again_when_nobody_holds_it(store: FrameStore) -> None:
    first = store.batch([3], image_size_px=8, max_frames=4)
    kept, place = first.frames[0, 0].clone(), first.frames.data_ptr()
    view = first.frames[0, 0]
    del first
    second = store.batch([2], image_size_px=8, max_frames=4)
    assert second.frames.data_ptr() != place
    assert torch.equal(view, kept)
    del view
    # What lay there does not show where this video has fewer frames.
    third = store.batch([0], image_size_px=8, max_frames=4)
    assert third.frames.data_ptr() == place
    assert third.mask.tolist() == [[True, False, False, False]]
    assert not third.frames[0, 1:].any()
    assert store.batch([0], image_size_px=8, max_frames=5).frames.shape == (1, 5, 3, 8, 8)


def test_jpeg_images_of_any_sizes_come_out_as_each_alone(tmp_path: Path) -> None:
    rows = []
    for video in range(6):
        sizes = [(12 + 4 * video + place, 20 - 2 * place) for place in range(3)]
        encoded = []
        for width, height in sizes:
            buffer = io.BytesIO()
            pixels = np.random.default_rng(video).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG")
            encoded.append(buffer.getvalue())
        rows.append({**frames_row(video), "frames": encoded, "frame_index": [0, 1, 2], "time_s": [0.0, 1.0, 2.0]})
    pool = ShardPool(Storage(str(tmp_path)), FRAMES)
    pool.commit(rows)
    store = FrameStore(pool.storage, pool.index(["video_id"]).sort_by("video_id"), threads=2)
    batch = store.batch(range(6), image_size_px=8, max_frames=3)
    for video in range(6):
        alone = stack_frames([store.decoded(video)], image_size_px=8, max_frames=3)
        assert torch.equal(batch.frames[video], alone.frames[0])


def test_whole_frames_are_changed_before_the_crop(store: FrameStore) -> None:
    def mark(row: int, frames: np.ndarray) -> np.ndarray:
        assert frames.shape == (1 + (2 - row) % 3, 8, 12, 3)
        return np.full_like(frames, 100 + row)

    batch = store.batch([2, 1], image_size_px=8, max_frames=4, change=mark)
    assert [batch.frames[row][batch.mask[row]].unique().tolist() for row in (0, 1)] == [[100], [101]]


def test_more_frames_than_asked_for_are_cut(store: FrameStore) -> None:
    assert store.batch([2], image_size_px=8, max_frames=2).mask.tolist() == [[True, True]]


def test_images_smaller_than_the_model_are_refused(store: FrameStore) -> None:
    with pytest.raises(ValueError, match="8 x 12 pixels hold no square of 16"):
        store.batch([0], image_size_px=16, max_frames=2)


def test_a_store_travels_to_another_process_after_use(store: FrameStore) -> None:
    before = store.batch([1, 5], image_size_px=8, max_frames=3)
    copy = pickle.loads(pickle.dumps(store))
    after = copy.batch([1, 5], image_size_px=8, max_frames=3)
    assert torch.equal(before.frames, after.frames)
    assert len(copy) == VIDEOS


def test_many_shards_do_not_keep_many_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.workspace.shard_rows._OPEN_SHARDS", 2)
    pool = ShardPool(Storage(str(tmp_path)), FRAMES)
    for video in range(5):
        pool.commit([frames_row(video)])
    store = FrameStore(pool.storage, pool.index(["video_id"]).sort_by("video_id"))
    for video in (0, 1, 2, 3, 4, 0):
        assert len(store.encoded(video)) == len(images(video))
        assert len(store._stored._files) <= 2


def test_an_empty_split_is_an_empty_store(tmp_path: Path) -> None:
    nothing = pa.array([], pa.string())
    index = pa.table({"video_id": nothing, "key": nothing, "shard": nothing, "row": []})
    assert len(FrameStore(Storage(str(tmp_path)), index)) == 0


def test_grey_images_get_three_channels() -> None:
    grey = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    (image,) = decode_images([png(grey)])
    assert torch.equal(image, grey.expand(3, 8, 8))


def test_layouts_hold_the_same_pixels() -> None:
    array = as_channels_last(images(2))
    assert array.shape == (3, 8, 12, 3)
    assert array[1, 2, 3].tolist() == images(2)[1][:, 2, 3].tolist()


def test_no_videos_make_an_empty_batch() -> None:
    assert stack_frames([], image_size_px=8, max_frames=2).frames.shape == (0, 2, 3, 8, 8)


def test_the_videos_of_a_batch_are_read_beside_each_other(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4)
    encoded = store._read

    def meeting(video: int) -> list[bytes]:
        together.wait(timeout=60)  # raises where the others only come after this one
        return encoded(video)

    monkeypatch.setattr(store, "_read", meeting)
    batch = store.batch([3, 4, 5, 2], image_size_px=8, max_frames=3)
    assert torch.equal(batch.frames[0, 0], images(3)[0][:, :, 2:10])


def test_what_is_read_ahead_is_read_once(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encoded = store._read
    monkeypatch.setattr(store, "_read", lambda video: read.append(video) or encoded(video))
    expected = store.batch([1, 5, 1], image_size_px=8, max_frames=3)
    assert sorted(read) == [1, 5]
    read.clear()
    store.read_ahead([1, 5])
    store.read_ahead([5])
    found = store.batch([1, 5, 1], image_size_px=8, max_frames=3)
    assert sorted(read) == [1, 5]
    assert torch.equal(found.frames, expected.frames)


def test_many_threads_read_one_shard(store: FrameStore) -> None:
    videos = [video for _ in range(30) for video in range(VIDEOS)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(store.encoded, videos))
    assert found == [frames_row(video)["frames"] for video in videos]


def test_while_one_batch_is_used_the_next_is_made_and_the_one_after_it_is_read(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [[1, 5], [2], [3, 0]]
    expected = [store.batch(block, image_size_px=8, max_frames=3) for block in blocks]
    read = {video: threading.Event() for block in blocks for video in block}
    encoded = store._read

    def noted(video: int) -> list[bytes]:
        found = encoded(video)
        read[video].set()
        return found

    monkeypatch.setattr(store, "_read", noted)
    for number, batch in enumerate(store.batches(blocks, image_size_px=8, max_frames=3)):
        assert torch.equal(batch.frames, expected[number].frames)
        if number == 0:
            assert all(event.wait(timeout=60) for event in read.values()), "nothing more was asked for"
    assert list(store.batches([], image_size_px=8, max_frames=3)) == []
