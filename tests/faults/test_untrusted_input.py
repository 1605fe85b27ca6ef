"""Files that somebody made to do harm: nothing in them is run, and no place outside of the workspace is reached."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from hbi_models.clip.loading import read_checkpoint
from pipelines.datasets.collection import Collection, find_collection
from pipelines.datasets.manifest import Manifest, build_manifest
from pipelines.datasets.msrvtt_qa import read_msrvtt_qa
from pipelines.datasets.record_files import MAX_LINE_CHARS
from pipelines.datasets.video_files import list_videos
from pipelines.models.initial_weights import load_checkpoint
from pipelines.recipe.data import DataConfig
from pipelines.train.checkpoints import TRAINING, load_training
from pipelines.video.frame_store import FrameStore
from pipelines.workspace.storage import Storage
from tests.dataset_copies import write_msrvtt_qa
from tests.tiny_retrieval import retrieval_config

pytestmark = pytest.mark.fault


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._marker,)


def bare_pickle(path: Path, program: Program) -> None:
    path.write_bytes(pickle.dumps({"weight": program}, protocol=2))


def old_checkpoint(path: Path, program: Program) -> None:
    torch.save({"weight": torch.zeros(2), "program": program}, path, _use_new_zipfile_serialization=False)


def new_checkpoint(path: Path, program: Program) -> None:
    torch.save({"weight": torch.zeros(2), "program": program}, path)


def script_archive(path: Path, program: Program) -> None:
    """A TorchScript archive in whose pickle there is a program."""
    torch.jit.script(nn.Linear(1, 1)).save(str(path))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            harmful = pickle.dumps({"weight": program}, protocol=2)
            archive.writestr(name, harmful if name.endswith("/data.pkl") else content)


def resume(path: Path) -> Any:
    path.rename(path.with_name(TRAINING))
    return load_training(path.parent, optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [bare_pickle, old_checkpoint, new_checkpoint, script_archive])
@pytest.mark.parametrize(
    "read",
    [read_checkpoint, lambda path: load_checkpoint(str(path), retrieval_config(path.parent), path.parent), resume],
    ids=["clip", "published", "resume"],
)
@pytest.mark.parametrize("suffix", ["pt", "bin.3"])
def test_a_program_in_a_checkpoint_is_not_run(
    tmp_path: Path, write: Callable[[Path, Program], None], read: Callable[[Path], Any], suffix: str
) -> None:
    path, marker = tmp_path / f"model.{suffix}", tmp_path / "marker"
    write(path, Program(marker))
    with pytest.raises(ValueError, match=str(tmp_path)):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize("shard", ["../outside.parquet", "/etc/passwd", "a/../../outside.parquet"])
def test_a_shard_outside_of_the_pool_is_not_read(tmp_path: Path, shard: str) -> None:
    index = pa.table({"video_id": ["a"], "key": ["a"], "shard": [shard], "row": [0]})
    Storage(str(tmp_path)).write_table("outside.parquet", index)
    store = FrameStore(Storage(str(tmp_path / "pool")), index)
    with pytest.raises(ValueError, match="would leave"):
        store.encoded(0)
    assert (tmp_path / "outside.parquet").exists()


def read_everything(folder: Path) -> tuple[Manifest, Manifest, Collection]:
    """The user's own file, a published data set and the collection in one folder."""
    own = DataConfig(dataset="captions_file", annotations=f"{folder}/own.csv", max_missing_fraction=0.5)
    place = str(folder)
    published = DataConfig(
        dataset="msrvtt_qa", annotations=place, videos=place, max_missing_fraction=0.5, validation_videos=0
    )
    return build_manifest(own), build_manifest(published), find_collection(place)


@pytest.fixture
def half_closed(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of videos that any account sees, but for one folder in it."""
    # Not pytest's own: other accounts do not see into those.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("a.mp4", "video0.mp4", "closed/d.mp4", "closed/video1.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    lines = ["path,caption,split", "a.mp4,x,train", "closed/d.mp4,y,test"]
    (folder / "own.csv").write_text("\n".join(lines) + "\n")
    questions = {split: [(f"video{place}", "who", "a")] for place, split in enumerate(("train", "val", "test"))}
    write_msrvtt_qa(folder, questions)
    (folder / "video2.mp4").touch()
    # What Python loads on first use must be loaded while it may be: this file's encoding, for instance.
    read_everything(folder)
    (folder / "closed").chmod(0)
    request.getfixturevalue("unprivileged")
    yield folder
    os.seteuid(os.getuid())
    (folder / "closed").chmod(0o755)
    shutil.rmtree(folder)


def test_a_closed_folder_costs_the_videos_in_it(half_closed: Path) -> None:
    place = str(half_closed)
    manifest, published, found = read_everything(half_closed)
    assert manifest.table.column("uri").to_pylist() == [f"{half_closed}/a.mp4"]
    (error,) = manifest.errors.to_pylist()
    assert error["message"] == f"test video: cannot use {half_closed}/closed/d.mp4: Permission denied"
    assert published.table.column("video_id").to_pylist() == ["video0", "video2"]
    assert "closed are closed" in published.errors.column("message")[0].as_py()
    assert any(f"1 folders below {place} cannot be listed: closed (Permission denied)" in w for w in published.warnings)
    assert len(found.table) == 3
    assert found.errors.column("message").to_pylist() == [
        f"cannot use {place}/closed: cannot list the folder: Permission denied"
    ]
    assert find_collection(f"{place}/*.mp4").errors.num_rows == 0


def test_a_gigantic_line_of_a_published_file_is_refused(tmp_path: Path) -> None:
    questions = {split: [(f"video{place}", "who", "a")] for place, split in enumerate(("train", "val", "test"))}
    write_msrvtt_qa(tmp_path, questions)
    with (tmp_path / "val.jsonl").open("a") as file:
        file.write(json.dumps({"video_id": "video1", "question": "x" * MAX_LINE_CHARS}) + "\n")
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match=r"val\.jsonl, line 2 has more than 1,000,000 characters"):
        read_msrvtt_qa(Storage(str(tmp_path)), list_videos(str(tmp_path / "videos")))
