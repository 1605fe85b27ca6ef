"""The data set in an object store (moto's S3 server on the loopback interface)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.collection import find_collection
from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.shapes.data_set import write_annotations, write_clips
from pipelines.stages.settings import checkpoint_digest
from pipelines.video.decode_process import DecodeProcess
from pipelines.video.extraction import make_extract_frames
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri, last_name
from tests.dataset_copies import write_didemo

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="data")
    yield Storage("s3://data/set")
    server.stop()


def test_a_data_set_in_a_bucket_gives_the_same_frames_as_on_disk(
    bucket: Storage, tmp_path: Path, process: DecodeProcess
) -> None:
    shapes = ShapesConfig(train_videos=3, test_videos=1, image_size_px=32)
    config = DataConfig(shapes=shapes, validation_videos=1)
    extract = make_extract_frames(FramesConfig(short_side_px=32), process=process)
    frames = []
    for storage in (bucket, Storage(str(tmp_path))):
        write_clips(shapes, range(4), storage)
        write_annotations(shapes, storage)
        rows: list[dict[str, Any]] = build_manifest(
            config, annotations=storage.uri, videos=f"{storage.uri}/videos"
        ).table.to_pylist()
        assert [row["split"] for row in rows].count("val") == 1
        frames.append([extract(row)["frames"] for row in rows])
    assert frames[0] == frames[1]
    assert all(frames[0])


def test_a_captions_file_in_a_bucket_finds_its_videos(bucket: Storage) -> None:
    bucket.write_bytes("videos/a b.mp4", b"x")
    rows = [{"path": "a b.mp4", "caption": "one"}, {"path": "c.mp4", "caption": "two"}]
    bucket.write_bytes("captions.jsonl", "\n".join(map(json.dumps, rows)).encode())
    config = DataConfig(
        dataset="captions_file",
        annotations="s3://data/set/captions.jsonl",
        videos="s3://data/set/videos",
        max_missing_fraction=0.5,
    )
    manifest = build_manifest(config)
    assert manifest.table.column("uri").to_pylist() == ["s3://data/set/videos/a%20b.mp4"]
    assert manifest.errors.column("uri").to_pylist() == ["s3://data/set/videos/c.mp4"]
    digest = manifest_digest(config)
    bucket.write_bytes("videos/a b.mp4", b"longer")
    assert manifest_digest(config) != digest


@pytest.mark.parametrize("name", ["a#1", "what?", "50%20", "a b&c=d"])
def test_names_with_any_letters_find_their_video_in_a_bucket(
    bucket: Storage, write_video: Any, process: DecodeProcess, name: str
) -> None:
    place = Storage(join_uri(bucket.uri, name))
    place.write_bytes(f"{name}.mp4", write_video("a.mp4").read_bytes())
    place.write_bytes("own.jsonl", json.dumps({"path": f"{name}.mp4", "caption": "one", "split": "test"}).encode())
    assert name in bucket.folders()
    config = DataConfig(dataset="captions_file", annotations=join_uri(place.uri, "own.jsonl"))
    (row,) = build_manifest(config).table.to_pylist()
    assert last_name(row["uri"]) == f"{name}.mp4"
    assert make_extract_frames(FramesConfig(short_side_px=32), process=process)(row)["frame_index"] == [0, 10]
    (listed,) = find_collection(place.uri).table.to_pylist()
    assert listed["uri"] == row["uri"]


def test_ids_that_an_address_must_escape_find_their_video_in_a_bucket(
    bucket: Storage, tmp_path: Path, write_video: Any, process: DecodeProcess
) -> None:
    video = "12345678@N00_1234567890_abcdef1234"
    write_didemo(tmp_path / "set", {"test": {f"{video}.mov": ["a dog jumps"]}})
    bucket.upload(tmp_path / "set", "annotations")
    bucket.write_bytes(f"videos/{video}.mov.mp4", write_video("a.mp4").read_bytes())
    config = DataConfig(dataset="didemo", annotations="s3://data/set/annotations", videos="s3://data/set/videos")
    (row,) = build_manifest(config).table.to_pylist()
    assert (row["video_id"], row["uri"]) == (video, f"s3://data/set/videos/{video.replace('@', '%40')}.mov.mp4")
    assert make_extract_frames(FramesConfig(short_side_px=32), process=process)(row)["frame_index"] == [0, 10]


def test_a_checkpoint_in_a_bucket_is_known_by_its_contents_as_on_disk(bucket: Storage, tmp_path: Path) -> None:
    found = set()
    for storage in (bucket, Storage(str(tmp_path))):
        storage.write_json("model/model.json", {"kind": "retrieval", "config": {}})
        storage.write_bytes("model/model.safetensors", b"weights")
        found.add(checkpoint_digest(storage.folder("model").uri))
    assert len(found) == 1
    bucket.write_bytes("model/model.safetensors", b"WEIGHTS")
    assert checkpoint_digest(bucket.folder("model").uri) not in found
