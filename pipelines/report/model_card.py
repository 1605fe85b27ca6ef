"""The card of an exported model: what it was trained on and how, and what was measured, from the run that made it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hbi_models.metric_names import ANSWER_METRICS, DIRECTIONS, RANK_METRICS
from pipelines.evaluate.documents import METRICS_FILE
from pipelines.models.folder import FRAMES_JSON
from pipelines.report.content import MetricTable
from pipelines.report.data_set import splits
from pipelines.report.metric_tables import answers_table, retrieval_table
from pipelines.workspace.artifact import ARTIFACT, Artifact, read_document
from pipelines.workspace.records import MANIFEST_FILE
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import is_absolute, last_name, parent_uri

CARD = "README.md"

UNKNOWN_LICENCE = "unknown"
"""What the hub calls a licence that nobody has named."""

_EVALUATED_BY = {"retrieval": "evaluation", "video_qa": "qa_evaluation"}
_TITLES = {"retrieval": "text-video retrieval", "video_qa": "video question answering"}
_TAGS = {"retrieval": ("video", "text-video-retrieval"), "video_qa": ("video", "visual-question-answering")}
_CLASSES = {"retrieval": "retrieval import RetrievalModel", "video_qa": "video_qa import VideoQAModel"}
_NOT_OF_RESULTS = ("workspace", "resources", "tracking", "report", "indexing", "probe", "evaluation", "qa_evaluation")
"""Sections of a recipe that say nothing of how a model was trained."""


@dataclass(frozen=True)
class TrainedRun:
    """The training that made a model, and what was measured of it in the same workspace."""

    training: Artifact
    evaluations: Sequence[Artifact]
    """The earliest first."""
    manifest: Storage

    @classmethod
    def around(cls, model: Storage) -> Self | None:
        """The run whose training wrote ``model``; None where the folder lies elsewhere."""
        output = Storage(parent_uri(model.uri))
        if not output.exists(ARTIFACT):
            return None
        document = read_document(output)
        stage, fingerprint = str(document["stage"]), last_name(output.uri)
        if stage not in _EVALUATED_BY:
            return None
        workspace, evaluation = Storage(parent_uri(parent_uri(output.uri))), _EVALUATED_BY[stage]
        found = []
        for name in workspace.folders(evaluation):
            folder = workspace.folder(evaluation, name)
            if folder.exists(ARTIFACT) and read_document(folder)["inputs"].get(stage) == fingerprint:
                found.append(Artifact(evaluation, name, folder, read_document(folder)))
        found.sort(key=lambda artifact: str(artifact.document["finished_at"]))
        manifest = workspace.folder("manifest", document["inputs"]["manifest"])
        return cls(Artifact(stage, fingerprint, output, document), found, manifest)


def without_places(value: Any) -> Any:
    """``value`` with the last part of every absolute path and URI in its place."""
    if isinstance(value, Mapping):
        return {name: without_places(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if isinstance(value, str) and is_absolute(value):
        return last_name(value)
    return value


def model_card(name: str, kind: str, *, files: Sequence[str], run: TrainedRun | None, licence: str) -> str:
    """The card as Markdown, with the YAML in front of it that the hub reads.

    Args:
        name: of the model.
        kind: ``retrieval`` or ``video_qa``.
        files: names of the files beside the card.
        run: what made the model; without it the card says that data and figures are not recorded.
        licence: as the hub names it.
    """
    measured = [] if run is None else [artifact.storage.read_json(METRICS_FILE) for artifact in run.evaluations]
    data = ModelCardData(
        license=licence,
        library_name="hbi-on-ray",
        tags=[*_TAGS[kind], "hbi", *(["onnx"] if _graphs(files) else [])],
        model_name=name,
        eval_results=[result for metrics in measured for result in _results(kind, metrics)] or None,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A model of {_TITLES[kind]} with Hierarchical Banzhaf Interaction (Jin et al., CVPR 2023, arXiv 2303.14369), "
        "trained and exported by HBI on Ray.",
        _usage(kind, files),
        *_origin(run),
        *_figures(kind, run, measured),
        f"## Licence\n\n{'Not stated' if licence == UNKNOWN_LICENCE else licence}. The licences of the encoder's "
        "weights and of the data hold beside it.",
    ]
    return "\n\n".join(sections) + "\n"


def _graphs(files: Sequence[str]) -> list[str]:
    return [name for name in files if name.endswith(".onnx")]


def _usage(kind: str, files: Sequence[str]) -> str:
    module = _CLASSES[kind]
    load = f'from hbi_models.{module}\n\nmodel = {module.rpartition(" ")[2]}.from_pretrained("FOLDER or OWNER/NAME")'
    text = f"## Use\n\nFrom Python, by this folder or by its id on the hub:\n\n```python\n{load}\n```"
    if FRAMES_JSON in files:
        job = (
            "index --checkpoint FOLDER --videos VIDEOS --index INDEX"
            if kind == "retrieval"
            else 'ask --checkpoint FOLDER --video FILE "what is shown"'
        )
        text += f"\n\nOn video files:\n\n```\npython -m jobs.{job}\n```"
    if graphs := _graphs(files):
        text += f"\n\nWithout PyTorch: {', '.join(f'`{name}`' for name in graphs)}, for any number of items."
    return text


def _origin(run: TrainedRun | None) -> Iterator[str]:
    if run is None:
        yield "## Training\n\nNot recorded: the model was exported from a folder outside of the run that made it."
        return
    document = run.training.document
    # The other task's settings had no influence on this model, either.
    left_out = {*_NOT_OF_RESULTS, *(_EVALUATED_BY.keys() - {run.training.stage})}
    recipe = {name: value for name, value in document["config"].items() if name not in left_out}
    data = recipe["data"]
    names = {"generated clips of moving shapes": "shapes", "features that another model made": "features"}
    of = next((name for name, key in names.items() if data.get(key)), f"`{data['dataset']}`")
    text = f"## Data\n\nTrained on the split `train` of {of}."
    if run.manifest.exists(MANIFEST_FILE):
        table = run.manifest.read_table(MANIFEST_FILE, columns=["split", "captions", "questions"])
        rows = [
            (split.name, [f"{count:,}" for count in (split.videos, split.captions, split.questions)])
            for split in splits(table)
        ]
        text += f"\n\n{_markdown(['videos', 'captions', 'questions'], rows, first='split')}"
    yield text
    versions = ", ".join(f"{package} {version}" for package, version in document["versions"].items())
    settings = yaml.safe_dump(without_places(recipe), sort_keys=False, allow_unicode=True)
    yield (
        f"## Training\n\nFinished {document['finished_at']}, with {versions}. Fingerprint `{run.training.fingerprint}`."
        f"\n\n<details><summary>Recipe</summary>\n\n```yaml\n{settings}```\n\n</details>"
    )


def _figures(kind: str, run: TrainedRun | None, measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not measured:
        yield "## Figures\n\nNone: no evaluation of this model was found beside its training."
        return
    assert run is not None, "figures come from a run"
    published = (run.training.document["config"].get("report") or {}).get("published") or {}
    make = retrieval_table if kind == "retrieval" else answers_table
    for metrics in measured:
        table: MetricTable = make(metrics, published)
        yield f"## Figures on the split {metrics['split']}\n\n{_markdown(table.header, table.rows)}\n\n{table.note}"


def _markdown(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, first: str = "") -> str:
    lines = [[first, *header], ["---"] * (len(header) + 1), *([name, *cells] for name, cells in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _results(kind: str, metrics: Mapping[str, Any]) -> Iterator[EvalResult]:
    """The raw figures as the hub lists them, each with its interval."""
    protocol = metrics["protocol"]
    if kind == "retrieval":
        parts = {direction: (metrics[direction], RANK_METRICS) for direction in DIRECTIONS}
    else:
        parts = {"all questions": (metrics["all"]["overall"], ANSWER_METRICS)}
    for part, (values, names) in parts.items():
        for name in names:
            yield EvalResult(
                task_type="retrieval" if kind == "retrieval" else "visual-question-answering",
                # The hub asks for an identifier here.
                dataset_type=re.sub(r"\W+", "-", str(protocol["dataset"])).strip("-").lower(),
                dataset_name=str(protocol["dataset"]),
                dataset_split=str(protocol["split"]),
                metric_type=name,
                metric_name=f"{name} {part}".replace("_", " "),
                metric_value=values[name]["value"],
                # The hub has no field of its own for an interval.
                metric_args={"low": values[name]["low"], "high": values[name]["high"], "interval": 0.95},
            )
