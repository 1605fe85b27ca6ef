"""Annotation files, recipes and records with any content: what is not understood is refused in words."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.settings import read_recipe, recipe_parser
from pipelines.datasets.manifest import Manifest, build_manifest
from pipelines.recipe.data import DataConfig
from pipelines.recipe.recipe import Recipe
from pipelines.stages.plan import Graph
from pipelines.stages.stage import Stage
from pipelines.workspace.artifact import ARTIFACT, plain
from pipelines.workspace.errors import StorageError
from pipelines.workspace.storage import Storage
from tests.dataset_copies import write_activitynet, write_didemo, write_msrvtt, write_msrvtt_qa, write_msvd
from tests.faults.mutations import CLEAR, damaged, damaged_json, fuzz, json_values, refuses_clearly

pytestmark = pytest.mark.fault

QUESTIONS = {split: [(f"video{place}", "who is it", "a dog")] for place, split in enumerate(("train", "val", "test"))}
MOMENT = {"duration": 3.5, "timestamps": [[0, 1.5], [1, 3.5]], "sentences": ["one thing", "another thing"]}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of every published data set, and of the user's own files."""
    folder = tmp_path_factory.mktemp("copies")
    write_msrvtt(folder / "msrvtt", train={"video0": ["one", "two"], "video1": ["three"]}, test={"video2": "four"})
    write_msrvtt_qa(folder / "msrvtt", QUESTIONS)
    write_msrvtt_qa(folder / "msrvtt_qa", QUESTIONS)
    write_msvd(
        folder / "msvd",
        {"train": ["video0"], "val": ["video1"], "test": ["video2"]},
        {f"video{number}": ["one thing", "another"] for number in range(3)},
    )
    write_activitynet(folder / "activitynet", {"train": {"v_video0": MOMENT}, "val_1": {"v_video1": MOMENT}})
    moments = {split: {f"video{place}": ["one", "two"]} for place, split in enumerate(("train", "val", "test"))}
    write_didemo(folder / "didemo", moments)
    (folder / "videos").mkdir()
    for name in ("video0", "video1", "video2", "v_video0", "v_video1"):
        (folder / "videos" / f"{name}.mp4").touch()
    return folder


PUBLISHED = [
    ("msrvtt", "MSRVTT_data.json"),
    ("msrvtt", "MSRVTT_train.9k.csv"),
    ("msrvtt", "MSRVTT_JSFUSION_test.csv"),
    ("msrvtt", "train.jsonl"),
    ("msrvtt_qa", "val.jsonl"),
    ("msvd", "raw-captions.pkl"),
    ("msvd", "test_list.txt"),
    ("activitynet", "train.json"),
    ("activitynet", "val_ids.json"),
    ("didemo", "train_data.json"),
    ("didemo", "val_list.txt"),
]


@contextlib.contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """The file with another content, for the length of the block."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def manifest_of(copies: Path, dataset: Any) -> Any:
    config = DataConfig(
        dataset=dataset,
        annotations=str(copies / dataset),
        videos=str(copies / "videos"),
        max_missing_fraction=1,
        validation_videos=1,
    )
    return checked(build_manifest(config))


def checked(manifest: Manifest) -> Manifest:
    """The manifest, in which no text is empty, or the word for a value that is missing."""
    for row in manifest.table.to_pylist():
        for text in (*row["captions"], *(text for question in row["questions"] for text in question.values())):
            assert text.strip() and text != "None", row
    return manifest


@pytest.mark.parametrize(("dataset", "name"), PUBLISHED)
def test_files_of_published_data_sets(copies: Path, dataset: str, name: str) -> None:
    path = copies / dataset / name
    content = path.read_bytes()
    assert len(manifest_of(copies, dataset).table) > 0, "the copy itself is read"
    strategy = damaged(content)
    if name.endswith(".json"):
        strategy |= damaged_json(json.loads(content))
    elif name.endswith(".jsonl"):
        strategy |= damaged_json(json.loads(content.splitlines()[0]))
    elif name.endswith(".pkl"):
        strategy |= json_values().map(pickle.dumps)

    @fuzz(12)
    @given(strategy)
    def try_to_read(new: bytes) -> None:
        with replaced(path, new):
            refuses_clearly(lambda: manifest_of(copies, dataset), name, dataset)

    try_to_read()


CAPTIONS = {"path": "a.mp4", "caption": "ü, one", "split": "train", "video_id": "a", "start_s": 0.5, "end_s": 2}
OWN_QUESTIONS = {"video": "a.mp4", "question": "who, then?", "answer": "a dog", "type": "who", "split": "train"}


@pytest.mark.parametrize("kind", ["captions", "questions"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_users_own_files(
    tmp_path: Path, kind: str, suffix: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An address may be that of a store, and none answers here.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    (tmp_path / "a.mp4").touch()
    record = CAPTIONS if kind == "captions" else OWN_QUESTIONS
    if suffix == "csv":
        text = ",".join(record) + "\n" + ",".join(f'"{value}"' for value in record.values()) + "\n"
        strategy = damaged(text.encode())
        cells = st.text(max_size=10) | st.sampled_from(['"', ",", "\r", "\n", "\0", "-1", "1e400", "../x", "s3://x/y"])
        rows = st.lists(st.lists(cells, min_size=5, max_size=6).map(",".join), max_size=3)
        strategy |= rows.map(lambda lines: "\n".join([",".join(record), *lines]).encode("utf-8", "surrogatepass"))
    else:
        text = json.dumps(record) + "\n"
        strategy = damaged_json(record)
    path = tmp_path / f"own.{suffix}"
    config = DataConfig(
        dataset="captions_file",
        annotations=str(path) if kind == "captions" else None,
        questions=str(path) if kind == "questions" else None,
        videos=str(tmp_path),
        max_missing_fraction=1,
    )
    path.write_text(text)
    assert len(build_manifest(config).table) == 1, "the file itself is read"

    @fuzz(30)
    @given(strategy)
    def try_to_read(new: bytes) -> None:
        path.write_bytes(new)
        store = "cannot list s3:"
        refuses_clearly(lambda: checked(build_manifest(config)), path.name, store, allowed=(*CLEAR, StorageError))

    try_to_read()


def parse(parser: Any, path: Path) -> str | None:
    """Reads a recipe; the message if it is refused as a mistake of the user."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            recipe, _ = read_recipe(parser, ["--config", str(path)])
        assert isinstance(recipe, Recipe)
    except SystemExit as stopped:
        assert stopped.code == 2
        return said.getvalue()
    return None


RECIPE = {
    "workspace": "w",
    "seed": 1,
    "data": {"dataset": "msrvtt", "shapes": {"train_videos": 5}},
    "model": {"clip": {"architecture": "ViT-B-32", "pretrained": None}, "level_rates": [0.4, 0.4, 0.2]},
    "retrieval": {"optimizer": {"lr": 1e-4}, "epochs": 2},
}


def test_recipes(tmp_path: Path) -> None:
    parser, path = recipe_parser("A test."), tmp_path / "recipe.yaml"
    text = yaml.safe_dump(RECIPE).encode()
    strategy = (
        damaged(text)
        | damaged_json(RECIPE)
        | st.binary(max_size=60)
        | st.text(max_size=60).map(lambda value: value.encode("utf-8", "surrogatepass"))
    )

    @fuzz(8)
    @given(strategy)
    def try_to_read(new: bytes) -> None:
        path.write_bytes(new)
        message = parse(parser, path)
        assert message is None or "error" in message, "the message is the parser's"
        assert message is None or "Traceback" not in message

    try_to_read()


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.mkdir [{marker}]",
        "!!python/object/apply:os.mkdir [{marker}]",
        "data: !!python/name:os.system",
        "data: !!python/object/new:os.mkdir [{marker}]",
        "workspace: !!binary aGFjaw==",
        "seed: !include /etc/hostname",
        "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a]\nseed: [*b, *b, *b]",
    ],
)
def test_tags_of_yaml_do_nothing(tmp_path: Path, text: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "recipe.yaml"
    path.write_text(text.replace("{marker}", str(marker)))
    message = parse(recipe_parser("A test."), path)
    assert message and "error" in message
    assert not marker.exists()


def test_documents_of_artifacts(tmp_path: Path) -> None:
    """A plan is made whatever lies in the workspace."""
    graph = Graph(
        Storage(str(tmp_path)),
        [Stage(name="frames", version=1, settings={"fps": {"low": 1}}, inputs=(), run=lambda context: {"rows": 1})],
    )
    document = {
        "stage": "frames",
        "version": 1,
        "settings": plain(graph.stages[0].settings),
        "inputs": {"manifest": "0123"},
        "counts": {"rows": 3},
        "finished_at": "2020-01-01T00:00:00+00:00",
    }

    @fuzz(75)
    @given(damaged_json(document), st.booleans())
    def try_to_plan(new: bytes, own: bool) -> None:
        output = graph.output("frames") if own else tmp_path_storage.folder("frames", "other")
        for folder in (graph.output("frames"), tmp_path_storage.folder("frames", "other")):
            folder.delete("")
        output.write_bytes(ARTIFACT, new)
        (step,) = graph.plan()
        assert step.state in (("done", "damaged") if own else ("missing",))
        assert step.reason

    tmp_path_storage = Storage(str(tmp_path))
    try_to_plan()


def test_texts_of_a_manifest_are_nothing_but_texts(tmp_path: Path) -> None:
    """Ids from files never become paths that leave the workspace."""
    (tmp_path / "a.mp4").touch()
    path = tmp_path / "captions.jsonl"
    config = DataConfig(dataset="captions_file", annotations=str(path), max_missing_fraction=1)

    @fuzz(30)
    @given(st.text(max_size=12) | st.sampled_from(["..", ".", "a/b", "../a", "/etc", "a\\b", "a\nb", "~", "$HOME"]))
    def try_to_read(video_id: str) -> None:
        path.write_text(json.dumps({"path": "a.mp4", "caption": "x", "video_id": video_id}))
        if refuses_clearly(lambda: build_manifest(config), path.name):
            return
        (found,) = build_manifest(config).table.column("video_id").to_pylist()
        assert Path(found).name == found
        assert found not in ("", ".", "..")
        assert found.isprintable()

    try_to_read()
