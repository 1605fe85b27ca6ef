"""Edits of code are noticed, file by file; nothing that was made by other code is passed off as today's."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import RetrievalConfig
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.zero_shot_config import ZeroShotConfig
from pipelines.stages import sources
from pipelines.stages.execution import execute_step
from pipelines.stages.plan import SOURCES, Graph
from pipelines.stages.sources import ROOT, Sources, changed_files
from pipelines.stages.stage import Stage
from pipelines.tracker import StageTracker
from pipelines.workspace.artifact import ARTIFACT
from pipelines.workspace.shards import SHARDS
from pipelines.workspace.storage import Storage

FILES = {
    "stage.py": """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from toy.configs import Config
        from toy.kept import write
        from toy.parts import used
        if TYPE_CHECKING:
            from toy.types_alone import Shape

        def first(context, shape: Shape = None):
            from toy.lazy import Work
            write(context, used(Work().run()))
            return {"rows": 1, "errors": 0}

        def second(context):
            from toy.lazy import other
            write(context, other())
            return {"rows": 1, "errors": 0}
        """,
    "parts.py": """
        from toy import far
        TABLE = {"a": far.deep}
        def used(value): return TABLE["a"](value)
        def unused(value): return value - 1
        """,
    "far.py": "def deep(value): return value + 1\n",
    "lazy.py": """
        class Work:
            def run(self): return len(["python", "-m", "toy.child"])
        def other(): return 4
        """,
    "child.py": "def main(): return 1\n",
    "kept.py": "def write(context, value): context.output.write_json('value.json', value)\n",
    "configs.py": "Config = 1\n",
    "types_alone.py": "Shape = int\n",
    "__init__.py": "",
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small project; ``toy.kept`` and ``toy.configs`` do not count."""
    folder = tmp_path / "code/toy"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        lines = text.split("\n")
        (folder / name).write_text("\n".join(line.removeprefix(" " * 8) for line in lines))
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


def look(toy: Path) -> Sources:
    """The sources as another process finds them."""
    sources._read.cache_clear()
    sources._digests.cache_clear()
    return Sources(toy.parent, ("toy",), ("toy.kept", "toy.configs"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def digests(toy: Path) -> dict[str, str]:
    return look(toy).follow([("toy.stage", "first")])


def test_what_the_work_is_made_of_is_found_through_every_import(toy: Path) -> None:
    assert set(digests(toy)) == {f"toy/{name}.py" for name in ("stage", "parts", "far", "lazy", "child")}


@pytest.mark.parametrize(
    ("file", "old", "new", "noticed"),
    [
        ("far.py", "value + 1", "value + 2", True),
        ("parts.py", '["a"](value)', '["a"](value) * 2', True),
        ("lazy.py", "len(", "2 * len(", True),
        ("child.py", "return 1", "return 2", True),
        ("stage.py", "def first(context,", "def first(context, more=1,", True),
        # Nothing of this has part in the first stage's work.
        ("parts.py", "value - 1", "value - 2", False),
        ("lazy.py", "return 4", "return 5", False),
        ("kept.py", "value.json", "values.json", False),
        ("configs.py", "Config = 1", "Config = 2", False),
        ("types_alone.py", "int", "str", False),
        (
            "far.py",
            "def deep(value): return value + 1",
            'def deep(value):\n    """A sum."""\n    return (value+1)  # one',
            False,
        ),
    ],
)
def test_an_edit_is_noticed_where_it_can_change_the_work(
    toy: Path, file: str, old: str, new: str, noticed: bool
) -> None:
    before = digests(toy)
    edit(toy / file, old, new)
    assert changed_files(before, digests(toy)) == (f"toy/{file}" if noticed else None)


def test_what_a_module_does_when_it_is_imported_counts(toy: Path) -> None:
    before = digests(toy)
    with (toy / "far.py").open("a") as file:
        file.write("print.precision = 1\n")
    assert changed_files(before, digests(toy)) == "toy/far.py"


def test_many_files_are_counted() -> None:
    assert (
        changed_files({"a": "1", "b": "1", "e": "1"}, {"a": "2", "c": "1", "d": "1", "e": "1"}) == "a, b, c and 1 more"
    )
    assert changed_files({}, {}) is None
    assert changed_files(None, {"a": "2"}) is None, "nothing is known of what older versions made"


# --- what a plan says and a run does ---


def graph(toy: Path, workspace: Path, *, partial: bool = False, pool: str | None = None) -> Graph:
    """Two stages of the toy project; the second needs the first."""
    module = importlib.import_module("toy.stage")
    left = (lambda inputs, output: "1 of 2 rows are done") if partial else (lambda inputs, output: None)
    return Graph(
        Storage(str(workspace)),
        [
            Stage(name="first", version=1, settings={}, inputs=(), run=module.first, partial=left, writes=pool),
            Stage(name="second", version=1, settings={}, inputs=("first",), run=module.second),
        ],
        sources=look(toy),
    )


def states(made: Graph, **options: Any) -> dict[str, tuple[str, str]]:
    return {step.stage.name: (step.state, step.reason) for step in made.plan(**options)}


def run(made: Graph, **options: Any) -> list[str]:
    """Plans and runs; returns what was done."""
    outcomes = [execute_step(made, step, tracker=StageTracker(), config={}) for step in made.plan(**options)]
    return [outcome.step.stage.name for outcome in outcomes if outcome.action == "done"]


CHANGED = "code changed since (toy/far.py)"


def test_the_plan_says_which_code_changed_and_nothing_runs_by_itself(toy: Path, tmp_path: Path) -> None:
    assert run(graph(toy, tmp_path / "w")) == ["first", "second"]
    assert states(graph(toy, tmp_path / "w"))["first"] == ("done", "finished")
    edit(toy / "far.py", "value + 1", "value + 2")
    made = graph(toy, tmp_path / "w")
    assert states(made) == {"first": ("done", CHANGED), "second": ("done", "finished")}
    assert run(made) == []
    assert states(made, rerun_changed=True) == {
        "first": ("changed", CHANGED),
        "second": ("outdated", "first runs again"),
    }
    assert run(made, rerun_changed=True) == ["first", "second"]
    assert states(graph(toy, tmp_path / "w"))["first"] == ("done", "finished")
    assert run(graph(toy, tmp_path / "w"), rerun_changed=True) == []


def test_an_artifact_of_an_older_version_says_nothing(toy: Path, tmp_path: Path) -> None:
    made = graph(toy, tmp_path / "w")
    run(made)
    output = made.output("first")
    for nothing in ({}, {"sources": None}, {"sources": 3}):
        document = {name: value for name, value in output.read_json(ARTIFACT).items() if name != "sources"}
        output.write_json(ARTIFACT, document | nothing)
        assert states(made, rerun_changed=True)["first"] == ("done", "finished")


def test_an_interrupted_stage_whose_code_changed_says_so_and_is_made_anew_where_asked(
    toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        made = graph(toy, tmp_path / "w")
        run(made, until_stage="first", force=["first"])
        made.output("first").delete(ARTIFACT)

    interrupt()
    assert states(graph(toy, tmp_path / "w", partial=True))["first"] == ("partial", "1 of 2 rows are done")
    edit(toy / "far.py", "value + 1", "value + 2")
    made = graph(toy, tmp_path / "w", partial=True)
    assert states(made)["first"] == ("partial", f"1 of 2 rows are done; {CHANGED}")
    # It goes on where it is asked to, and what it makes is not passed off as made by today's code.
    with caplog.at_level(logging.WARNING):
        run(made, until_stage="first")
    assert "first: goes on with what was made before the code changed (toy/far.py)" in caplog.text
    assert states(graph(toy, tmp_path / "w"))["first"] == ("done", CHANGED)
    made.output("first").delete(ARTIFACT)
    made = graph(toy, tmp_path / "w", partial=True)
    assert states(made, rerun_changed=True)["first"][0] == "changed"
    made.output("first").write_json("half.json", 1)
    run(made, until_stage="first", rerun_changed=True)
    assert not made.output("first").exists("half.json")
    assert states(graph(toy, tmp_path / "w"))["first"] == ("done", "finished")


def test_rows_of_a_pool_are_not_passed_off_as_made_by_other_code(toy: Path, tmp_path: Path) -> None:
    run(graph(toy, tmp_path / "w", pool="rows"), until_stage="first")
    pool = Storage(str(tmp_path / "w")).folder(SHARDS, "rows")
    edit(toy / "far.py", "value + 1", "value + 2")
    # Another manifest takes rows from the same pool.
    made = graph(toy, tmp_path / "w", pool="rows")
    made.output("first").delete("")
    run(made, until_stage="first")
    assert states(graph(toy, tmp_path / "w", pool="rows"), until_stage="first")["first"] == ("done", CHANGED)
    run(graph(toy, tmp_path / "w", pool="rows"), until_stage="first", rerun_changed=True)
    made = graph(toy, tmp_path / "w", pool="rows")
    assert states(made, until_stage="first")["first"] == ("done", "finished")
    assert pool.read_json(SOURCES) == made.sources.digests(made.stages[0].run)


def test_a_forced_stage_that_repeats_errors_says_which_code_made_the_good_rows(toy: Path, tmp_path: Path) -> None:
    def repeating() -> Graph:
        made = graph(toy, tmp_path / "w", pool="rows")
        return replace(made, stages=[replace(made.stages[0], repeats_errors=True), made.stages[1]])

    run(repeating())
    edit(toy / "far.py", "value + 1", "value + 2")
    assert run(repeating(), force=["first"]) == ["first", "second"]
    assert states(repeating())["first"] == ("done", CHANGED)
    run(repeating(), rerun_changed=True)
    assert states(repeating())["first"] == ("done", "finished")


# --- this project's own code ---

SCRIPT = """
import json, sys
from pipelines.graph import make_graph
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.recipe import Recipe
recipe = Recipe(workspace=sys.argv[1], tasks=("retrieval", "video_qa"), data=DataConfig(shapes=ShapesConfig()))
graph = make_graph(recipe)
found = {stage.name: graph.sources.digests(stage.run) for stage in graph.stages}
heavy = [name for name in ("torch", "ray", "mlflow") if name in sys.modules]
print(json.dumps([found, heavy]))
"""


def own_digests(tree: Path) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-c", SCRIPT, str(tree / "workspace")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tree)
    found, heavy = json.loads(done.stdout)
    assert not heavy, "a plan loads nothing heavy"
    return dict(found)


@pytest.mark.long
def test_an_edit_of_the_loss_is_noticed_by_the_trainings_alone(tmp_path: Path) -> None:
    for package in sources.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = own_digests(tmp_path)
    edit(tmp_path / "hbi_models/losses.py", "if batch_axis_kl:", "if not batch_axis_kl:")
    after = own_digests(tmp_path)
    changed = {name: changed_files(before[name], found) for name, found in after.items()}
    assert {name: files for name, files in changed.items() if files} == dict.fromkeys(
        ("retrieval", "video_qa"), "hbi_models/losses.py"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("manifest", ["pipelines/datasets/msrvtt.py", "pipelines/datasets/didemo.py"]),
        ("frames", ["pipelines/video/decoders.py", "pipelines/video/sampling.py", "pipelines/video/decode_child.py"]),
        ("labels", ["hbi_models/banzhaf/exact.py", "hbi_models/clip/backbone.py", "hbi_models/temporal_encoder.py"]),
        ("retrieval", ["hbi_models/losses.py", "hbi_models/optimizer.py", "pipelines/video/augmentation.py"]),
        ("evaluation", ["hbi_models/metrics.py", "hbi_models/similarity.py"]),
        ("qa_evaluation", ["hbi_models/video_qa.py"]),
        ("report", ["pipelines/report/charts.py"]),
    ],
)
def test_the_work_of_a_stage_leads_to_the_files_that_do_it(tmp_path: Path, stage: str, files: list[str]) -> None:
    from pipelines.graph import make_graph
    from pipelines.recipe.data import DataConfig, ShapesConfig
    from pipelines.recipe.recipe import Recipe

    data = DataConfig(shapes=ShapesConfig())
    made = make_graph(Recipe(workspace=str(tmp_path), tasks=("retrieval", "video_qa"), data=data))
    (work,) = (found.run for found in made.stages if found.name == stage)
    assert set(files) <= set(made.sources.digests(work))


def test_who_reads_frames_and_labels_has_no_part_in_how_they_are_made(tmp_path: Path) -> None:
    from pipelines.graph import make_graph
    from pipelines.recipe.data import DataConfig, ShapesConfig
    from pipelines.recipe.recipe import Recipe

    made = make_graph(Recipe(workspace=str(tmp_path), data=DataConfig(shapes=ShapesConfig())))
    files = {stage.name: set(made.sources.digests(stage.run)) for stage in made.stages}
    assert {name for name, found in files.items() if "pipelines/video/decoders.py" in found} == {"frames", "report"}
    assert {name for name, found in files.items() if "pipelines/labels.py" in found} == {"labels"}


def test_settings_have_no_part_in_the_code_of_a_stage(tmp_path: Path) -> None:
    from pipelines.graph import make_graph
    from pipelines.recipe.data import DataConfig, ShapesConfig
    from pipelines.recipe.evaluation import EvaluationConfig
    from pipelines.recipe.recipe import Recipe

    data, evaluation = DataConfig(shapes=ShapesConfig()), EvaluationConfig(zero_shot=True)
    tasks = ("retrieval", "video_qa")
    made = make_graph(Recipe(workspace=str(tmp_path), tasks=tasks, data=data, evaluation=evaluation))
    kinds = (ClipConfig, RetrievalConfig, ZeroShotConfig, OptimizerConfig, Recipe)
    settings = {f"{name.replace('.', '/')}.py" for name in ("hbi_models.config_fields", *(k.__module__ for k in kinds))}
    for stage in made.stages:
        assert settings.isdisjoint(made.sources.digests(stage.run)), stage.name
