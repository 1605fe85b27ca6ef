"""Commands to try after a finished run, with its own models and one of its videos, ready to paste."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from pipelines.models.folder import MODEL
from pipelines.stages.plan import Graph
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import MANIFEST_FILE

_INDEX = "index"
"""Folder of the workspace that is proposed for an index of the run's own videos."""


def next_steps(graph: Graph, split: str) -> list[str]:
    """Command lines that use the finished models of ``graph``, with a video of ``split`` where one is needed."""
    manifest, retrieval, video_qa = (_finished(graph, name) for name in ("manifest", "retrieval", "video_qa"))
    model = retrieval or video_qa
    # A model of features that another one made knows neither videos nor texts.
    if manifest is None or model is None or "frames" not in graph.fingerprints:
        return []
    commands: list[list[str]] = []
    answerer = [_place(video_qa, MODEL)] if video_qa is not None else []
    if retrieval is not None:
        index = ["--index", _short(graph.workspace.place(_INDEX))]
        videos = ["--videos", _place(manifest, MANIFEST_FILE)]
        commands.append(["index", "--checkpoint", _place(retrieval, MODEL), *videos, *index])
        commands.append(["search", *index, "a red circle moves left"])
        commands.append(["serve", *index, *(["--video_qa", *answerer] if answerer else [])])
    for video in _examples(manifest, split):
        clip = ["--video", _short(video["uri"])]
        for caption in video["captions"][:1]:
            commands.append(["draw", "--checkpoint", _place(model, MODEL), *clip, "--text", caption])
        for question in video["questions"][:1] if answerer else []:
            commands.append(["ask", "--checkpoint", *answerer, *clip, question["question"]])
    return [command(name, *arguments) for name, *arguments in commands]


def command(job: str, *arguments: str) -> str:
    """A line that runs ``jobs.<job>`` with this interpreter, written relative to the current folder."""
    python = "python" if shutil.which("python") == sys.executable else _short(sys.executable)
    return shlex.join([python, "-m", f"jobs.{job}", *arguments])


def _finished(graph: Graph, name: str) -> Artifact | None:
    return graph.artifact(name) if name in graph.fingerprints else None


def _examples(manifest: Artifact, split: str) -> list[dict[str, Any]]:
    """One row of the manifest, or none; the file is read only until it is found."""
    import pyarrow.dataset as ds  # loads pandas, half a second

    path = manifest.storage.path(MANIFEST_FILE)
    rows = ds.dataset(path, format="parquet", filesystem=manifest.storage.filesystem)
    found: list[dict[str, Any]] = rows.head(
        1, columns=["uri", "captions", "questions"], filter=ds.field("split") == split
    ).to_pylist()
    return found


def _place(artifact: Artifact, name: str) -> str:
    return _short(artifact.storage.place(name))


def _short(place: str) -> str:
    """A path below the current folder as a relative path."""
    return place.removeprefix(f"{Path.cwd()}/")
