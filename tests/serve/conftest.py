"""A server as a user starts it, over a small index, with small models; and a browser that looks at it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.video_qa import VideoQAModel
from pipelines.models.folder import FRAMES_JSON
from pipelines.models.weights import save_model
from pipelines.recipe.frames import FramesConfig
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage
from tests.search_index import build_index, write_model, write_videos
from tests.tiny_retrieval import IMAGE_PX, MAX_FRAMES
from tests.tiny_video_qa import VOCABULARY, video_qa_config

MAX_UPLOAD_MB = 1.0
VIDEOS = 8


@dataclass(frozen=True)
class Server:
    """A running server, and what it serves."""

    address: str
    index: Path
    video_qa: Path
    videos: Path


def write_video_qa(folder: Path) -> Path:
    """Returns the folder of a question answering model with random weights."""
    torch.manual_seed(1)
    config = video_qa_config(folder)
    model = folder / "video_qa"
    model.mkdir()
    save_model(model, VideoQAModel(config), kind="video_qa", config=config)
    storage = Storage(str(model))
    VOCABULARY.write(storage)
    storage.write_json(FRAMES_JSON, plain(FramesConfig(fps=4, max_frames=MAX_FRAMES, short_side_px=IMAGE_PX)))
    return model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, ray_local: Any) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    videos = write_videos(folder / "shapes", VIDEOS)
    model, video_qa, index = write_model(folder), write_video_qa(folder), folder / "made"
    assert build_index(model, videos, index) == 0
    port = free_port()
    command = [sys.executable, "-m", "jobs.serve", "--index", str(index), "--video_qa", str(video_qa)]
    command += ["--port", str(port), "--max_upload_mb", str(MAX_UPLOAD_MB), "--timeout_s", "120"]
    # On a Ray that is there, as on a cluster.
    command += ["--resources.ray_address", ray_local.get_runtime_context().gcs_address]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Serving "), (folder / "log").read_text()[-5000:]
            yield Server(f"http://127.0.0.1:{port}", index, video_qa, videos)
        finally:
            process.terminate()
            code = process.wait(timeout=120)
    assert code == 0, (folder / "log").read_text()[-5000:]
