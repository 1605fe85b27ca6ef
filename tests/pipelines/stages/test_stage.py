from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbi_models.optimizer_config import OptimizerConfig
from pipelines.recipe.recipe import Recipe
from pipelines.stages.execution import execute_step
from pipelines.stages.plan import Graph, Step
from pipelines.stages.stage import Stage, StageContext
from pipelines.tracker import StageTracker
from pipelines.workspace.artifact import ARTIFACT, FORCED, digest, plain, versions
from pipelines.workspace.storage import Storage

Settings = dict[str, dict[str, Any]]
NAMES = ("manifest", "frames", "labels", "retrieval")
INPUTS: dict[str, tuple[str, ...]] = {
    "manifest": (),
    "frames": ("manifest",),
    "labels": ("manifest", "frames"),
    "retrieval": ("frames",),
}


class Pipeline:
    """Four small stages; ``ran`` names those that did any work."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.ran: list[str] = []
        self.forced: list[str] = []

    def graph(self, settings: Settings | None = None, versions: Mapping[str, int] | None = None) -> Graph:
        return Graph(
            Storage(str(self.workspace)),
            [
                Stage(
                    name=name,
                    version=(versions or {}).get(name, 1),
                    settings=(settings or {}).get(name, {"rate": 1}),
                    inputs=INPUTS[name],
                    run=self._work(name),
                    partial=lambda inputs, output: "3 of 8 rows" if output.exists("half.json") else None,
                )
                for name in NAMES
            ],
        )

    def _work(self, name: str) -> Callable[[StageContext], Mapping[str, int]]:
        def run(context: StageContext) -> Mapping[str, int]:
            self.ran.append(name)
            if context.forced:
                self.forced.append(name)
            assert set(context.inputs) == set(INPUTS[name])
            assert not context.output.exists(ARTIFACT), "the artifact is committed last"
            context.output.write_bytes("rows", b"8")
            return {"rows": 8, "errors": 0}

        return run

    def run(self, graph: Graph, **options: Any) -> dict[str, str]:
        """Plans and runs; returns what was done with each stage."""
        self.ran, self.forced = [], []
        outcomes = [
            execute_step(graph, step, tracker=StageTracker(), config={"seed": 1}) for step in graph.plan(**options)
        ]
        return {outcome.step.stage.name: outcome.action for outcome in outcomes}


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def states(graph: Graph, **options: Any) -> dict[str, tuple[str, str]]:
    return {step.stage.name: (step.state, step.reason) for step in graph.plan(**options)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), JSON, min_size=1))
def test_a_digest_does_not_depend_on_the_order_of_keys(document: dict[str, Any]) -> None:
    assert digest(dict(reversed(document.items()))) == digest(document)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), JSON), st.dictionaries(st.text(), JSON))
def test_documents_share_a_digest_only_if_their_json_is_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same


def test_a_digest_is_the_same_in_every_process() -> None:
    expected = hashlib.sha256(b'{"a":null,"b":[1,2.5]}').hexdigest()[:16]
    assert digest({"b": (1, 2.5), "a": None}) == digest({"a": None, "b": [1, 2.5]}) == expected


def test_numbers_that_json_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"rate": float("nan")})


def test_configurations_become_json_types() -> None:
    document = plain(Recipe())
    assert json.loads(json.dumps(document)) == document
    assert document["retrieval"]["optimizer"]["lr"] == OptimizerConfig().lr


def test_a_first_run_does_everything_and_a_second_one_nothing(pipeline: Pipeline) -> None:
    assert states(pipeline.graph()) == dict.fromkeys(NAMES, ("missing", "never run"))
    assert set(pipeline.run(pipeline.graph()).values()) == {"done"}
    assert pipeline.ran == list(NAMES)
    assert states(pipeline.graph()) == dict.fromkeys(NAMES, ("done", "finished"))
    assert set(pipeline.run(pipeline.graph()).values()) == {"skipped"}
    assert pipeline.ran == []


@pytest.mark.parametrize(
    ("changed", "runs_again"),
    [
        ("manifest", ["manifest", "frames", "labels", "retrieval"]),
        ("frames", ["frames", "labels", "retrieval"]),
        ("labels", ["labels"]),
        ("retrieval", ["retrieval"]),
    ],
)
def test_a_changed_setting_runs_its_stage_and_what_depends_on_it_and_nothing_else(
    pipeline: Pipeline, changed: str, runs_again: list[str]
) -> None:
    pipeline.run(pipeline.graph())
    graph = pipeline.graph({changed: {"rate": 2}})
    plan = states(graph)
    assert plan[changed] == ("missing", "invalidated by rate 1 → 2")
    pipeline.run(graph)
    assert pipeline.ran == runs_again
    # What was there before is still there: going back costs nothing.
    pipeline.run(pipeline.graph())
    assert pipeline.ran == []


def test_the_plan_says_why(pipeline: Pipeline) -> None:
    settings: Settings = {"frames": {"rate": 1, "size": {"height": 2, "width": 3}, "codec": "jpeg", "quality": 90}}
    pipeline.run(pipeline.graph(settings))
    settings["frames"] |= {"size": {"height": 2, "width": 4}}
    assert states(pipeline.graph(settings))["frames"][1] == "invalidated by size.width 3 → 4"
    assert states(pipeline.graph(settings))["labels"][1] == "invalidated by a new frames"
    settings["frames"] = {"rate": 2, "size": {"height": 1, "width": 1}, "codec": "png", "quality": 1}
    assert states(pipeline.graph(settings))["frames"][1] == (
        "invalidated by codec jpeg → png; quality 90 → 1; rate 1 → 2 and 2 more"
    )
    assert states(pipeline.graph(versions={"labels": 2}))["labels"][1] == "the stage's code changed (version 1 → 2)"


def test_a_stage_is_compared_with_an_earlier_one_of_the_same_inputs(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph())
    manifest, frames, *_ = pipeline.graph().stages
    lonely = Stage(**{**vars(frames), "inputs": (), "settings": {"rate": 5}, "run": lambda context: {"rows": 1}})
    other = Graph(Storage(str(pipeline.workspace)), [manifest, lonely])
    execute_step(other, other.plan()[1], tracker=StageTracker(), config={})
    assert states(pipeline.graph({"frames": {"rate": 2}}))["frames"][1] == "invalidated by rate 1 → 2"


def test_an_interrupted_stage_is_partial_and_keeps_what_it_has(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph(), until_stage="manifest")
    pipeline.graph().output("frames").write_json("half.json", 3)
    plan = states(pipeline.graph())
    assert plan["frames"] == ("partial", "3 of 8 rows")
    assert plan["labels"] == ("missing", "never run")
    pipeline.run(pipeline.graph())
    assert pipeline.graph().output("frames").exists("half.json")
    assert pipeline.forced == []


@pytest.mark.parametrize("force", [["frames"], ["frames", "labels"]])
def test_an_interrupted_stage_begins_anew_where_an_input_runs_again(pipeline: Pipeline, force: list[str]) -> None:
    pipeline.run(pipeline.graph(), until_stage="frames")
    graph = pipeline.graph()
    output = graph.output("labels")
    output.write_json("half.json", 3)
    output.write_json(FORCED, {})
    assert states(graph)["labels"] == ("partial", "3 of 8 rows")
    plan = states(graph, force=force)
    assert (plan["labels"], plan["retrieval"]) == (("outdated", "frames runs again"), ("missing", "never run"))
    # Also where the input itself was interrupted while it was made again, and is not finished.
    graph.output("frames").delete(ARTIFACT)
    assert states(graph, force=force[1:])["labels"] == ("outdated", "frames runs again")
    pipeline.run(graph)
    assert not output.exists("half.json")


def test_an_interrupted_stage_over_a_pool_keeps_its_rows_where_an_input_runs_again(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph(), until_stage="frames")
    graph = pipeline.graph()
    pooled = Stage(**{**vars(graph.stages[2]), "writes": "labels-1"})
    graph = Graph(graph.workspace, [*graph.stages[:2], pooled])
    # Such as the number of the generation that a forced run began.
    graph.output("labels").write_json("half.json", 3)
    assert states(graph, force=["frames"])["labels"] == ("partial", "3 of 8 rows")
    pipeline.run(graph, force=["frames"])
    assert graph.output("labels").exists("half.json")


def test_a_stage_that_fails_is_not_finished_and_runs_again(pipeline: Pipeline) -> None:
    graph = pipeline.graph()
    first, second, *_ = graph.plan()
    execute_step(graph, first, tracker=StageTracker(), config={})

    def fail(context: StageContext) -> Mapping[str, int]:
        context.output.write_bytes("rows", b"1")
        raise RuntimeError("the disk is full")

    broken = Graph(graph.workspace, [graph.stages[0], Stage(**{**vars(second.stage), "run": fail})])
    with pytest.raises(RuntimeError, match="disk is full"):
        execute_step(broken, broken.plan()[1], tracker=StageTracker(), config={})
    assert states(pipeline.graph())["frames"][0] == "missing"
    assert pipeline.run(pipeline.graph())["frames"] == "done"


def test_forcing_a_stage_starts_it_from_nothing_and_runs_what_depends_on_it(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph())
    pipeline.graph().output("frames").write_json("half.json", 3)
    plan = states(pipeline.graph(), force=["frames"])
    assert plan["manifest"] == ("done", "finished")
    assert plan["frames"] == ("forced", "asked for")
    assert plan["labels"] == ("outdated", "frames runs again")
    pipeline.run(pipeline.graph(), force=["frames"])
    assert pipeline.ran == ["frames", "labels", "retrieval"]
    assert pipeline.forced == ["frames"]
    assert not pipeline.graph().output("frames").exists("half.json")


def test_a_forced_stage_that_was_interrupted_goes_on_with_and_without_force(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph())
    graph = pipeline.graph()
    output = graph.output("frames")

    def fail(context: StageContext) -> Mapping[str, int]:
        context.output.write_json("half.json", 3)
        raise RuntimeError("the machine goes away")

    step = graph.plan(force=["frames"])[1]
    broken = Step(Stage(**{**vars(step.stage), "run": fail}), step.fingerprint, step.state, step.reason)
    with pytest.raises(RuntimeError, match="goes away"):
        execute_step(graph, broken, tracker=StageTracker(), config={})
    assert states(graph)["frames"] == ("partial", "3 of 8 rows")
    assert states(graph, force=["frames"])["frames"] == ("forced", "asked for, 3 of 8 rows")
    execute_step(graph, graph.plan(force=["frames"])[1], tracker=StageTracker(), config={})
    assert output.exists("half.json"), "the same command goes on"
    assert states(graph)["frames"] == ("done", "finished")
    execute_step(graph, graph.plan(force=["frames"])[1], tracker=StageTracker(), config={})
    assert not output.exists("half.json"), "a finished one starts anew"


def test_a_forced_stage_that_repeats_errors_keeps_the_rest(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph())
    frames = Stage(**{**vars(pipeline.graph().stages[1]), "repeats_errors": True})
    graph = Graph(Storage(str(pipeline.workspace)), [pipeline.graph().stages[0], frames])
    pipeline.run(graph, force=["frames"])
    assert (pipeline.ran, pipeline.forced) == (["frames"], [])


def test_a_part_of_the_graph_can_be_run(pipeline: Pipeline) -> None:
    assert list(pipeline.run(pipeline.graph(), until_stage="frames")) == ["manifest", "frames"]
    assert pipeline.run(pipeline.graph(), from_stage="labels", until_stage="labels")["labels"] == "done"
    assert pipeline.graph().artifact("retrieval") is None


def test_a_part_leaves_out_what_it_does_not_need(pipeline: Pipeline) -> None:
    """The stage before it need not be finished, nor is it run."""
    assert "labels" not in INPUTS["retrieval"]
    pipeline.run(pipeline.graph(), until_stage="frames")
    assert pipeline.run(pipeline.graph(), from_stage="retrieval") == {
        "manifest": "skipped",
        "frames": "skipped",
        "retrieval": "done",
    }
    assert states(pipeline.graph())["labels"] == ("missing", "never run")


@pytest.mark.parametrize("option", ["from_stage", "until_stage", "force"])
def test_unknown_stages_are_refused_with_the_known_ones(pipeline: Pipeline, option: str) -> None:
    name: Any = ["frame"] if option == "force" else "frame"
    with pytest.raises(ValueError, match=f"{option} is 'frame'; .* manifest, frames, labels, retrieval"):
        pipeline.graph().plan(**{option: name})


@pytest.mark.parametrize("option", [{"until_stage": "frames"}, {"from_stage": "retrieval"}])
def test_forcing_a_stage_that_is_not_run_is_refused(pipeline: Pipeline, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"force is 'labels', which is not among the stages .*: manifest, frames"):
        pipeline.graph().plan(force=["labels"], **option)


def test_starting_behind_an_unfinished_stage_is_refused(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph(), until_stage="manifest")
    with pytest.raises(ValueError, match=r"from_stage is 'labels', but the stage 'frames' before it is missing"):
        pipeline.graph().plan(from_stage="labels")


def test_ending_before_the_start_is_refused(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph())
    with pytest.raises(ValueError, match=r"until_stage is 'manifest'.*before.*from_stage.*'labels'"):
        pipeline.graph().plan(from_stage="labels", until_stage="manifest")


def test_a_stage_without_its_inputs_is_refused(pipeline: Pipeline) -> None:
    graph = pipeline.graph()
    with pytest.raises(RuntimeError, match="'frames' needs 'manifest', which is not finished"):
        execute_step(graph, graph.plan()[1], tracker=StageTracker(), config={})


def test_an_artifact_says_what_made_it(pipeline: Pipeline) -> None:
    pipeline.run(pipeline.graph())
    graph = pipeline.graph()
    artifact = graph.artifact("labels")
    assert artifact is not None
    document = artifact.document
    assert document["inputs"] == {name: graph.fingerprints[name] for name in ("manifest", "frames")}
    assert document["counts"] == artifact.counts == {"rows": 8, "errors": 0}
    assert document["settings"] == {"rate": 1}
    assert document["config"] == {"seed": 1}
    assert document["versions"] == versions()
    assert {"python", "torch", "ray", "pyarrow"} <= versions().keys()
    assert artifact.storage.uri.endswith(f"/labels/{artifact.fingerprint}")
