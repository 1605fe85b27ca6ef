"""What all jobs over the stage graph share: plan, run, print."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from hbi_models.config_fields import require
from hbi_models.zero_shot_config import ZERO_SHOT_POOLINGS
from jobs.next_steps import next_steps
from jobs.settings import read_recipe, recipe_parser, set_up_logging
from pipelines.evaluate.documents import METRICS_FILE, describe_protocol
from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.run import results, run_plan
from pipelines.stages.data_check import foreseen_data, pending
from pipelines.stages.plan import CODE_CHANGED, Graph
from pipelines.stages.report import PAGE, REPORT
from pipelines.stages.zero_shot import ZERO_SHOT
from pipelines.tables import answers_table, metrics_table, outcome_table, plan_table
from pipelines.tracking.address import ui_command
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import absolute_uri


def run_stages(
    description: str,
    arguments: Sequence[str] | None = None,
    *,
    only: str | None = None,
    make: Callable[[Recipe], Graph] = make_graph,
) -> int:
    """Parses the command line and runs the recipe's stages, or the stage ``only`` from finished ones."""
    recipe, options = read_recipe(_stages_parser(description, only is None), arguments)
    if not options["plan"]:
        start_log(recipe, only or "run")
    return execute(
        make(recipe),
        recipe,
        plan_only=options["plan"],
        from_stage=options.get("from_stage") or only,
        until_stage=options.get("until_stage") or only,
        force=([only] if options["force"] else []) if only else options["force"],
        rerun_changed=options["rerun_changed"],
    )


@cache
def _stages_parser(description: str, all_stages: bool) -> ArgumentParser:
    parser = recipe_parser(description)
    parser.add_argument("--plan", action="store_true", help="Print what would run, and why; run nothing.")
    if all_stages:
        parser.add_argument("--from_stage", type=str | None, help="First stage to run; earlier ones must be done.")
        parser.add_argument("--until_stage", type=str | None, help="Last stage to run.")
        parser.add_argument("--force", type=list[str], default=[], help="Stages to run again although they are done.")
    else:
        parser.add_argument("--force", action="store_true", help="Run the stage again although it is done.")
    add_rerun_changed(parser)
    return parser


def add_rerun_changed(parser: ArgumentParser) -> None:
    """Adds the option ``--rerun_changed``."""
    parser.add_argument("--rerun_changed", action="store_true", help="Run stages again whose code has changed since.")


def evaluate(
    description: str,
    arguments: Sequence[str] | None,
    *,
    job: str,
    stage: str,
    make_checkpoint_graph: Callable[[Recipe, str], Graph],
    make_zero_shot_graph: Callable[[Recipe], Graph] | None = None,
) -> int:
    """Parses the command line and runs ``stage`` on the recipe's model, or on the checkpoint that is given.

    With ``make_zero_shot_graph`` there is the option to evaluate the pretrained encoder alone.
    """
    recipe, options = read_recipe(_evaluation_parser(description, make_zero_shot_graph is not None), arguments)
    checkpoint = options["checkpoint"]
    alone = make_zero_shot_graph is not None and options["zero_shot"]
    require(not (alone and checkpoint), "--zero_shot evaluates the recipe's encoder alone; leave out --checkpoint")
    if not options["plan"]:
        start_log(recipe, job)
    if alone and make_zero_shot_graph is not None:
        graph, stage = make_zero_shot_graph(recipe), ZERO_SHOT
    else:
        graph = make_graph(recipe) if checkpoint is None else make_checkpoint_graph(recipe, checkpoint)
    return execute(
        graph,
        recipe,
        plan_only=options["plan"],
        # The recipe's own model must be trained already. The graphs of a checkpoint and of an encoder alone have no
        # training, so they run what they lack.
        from_stage=stage if checkpoint is None and not alone else None,
        until_stage=stage,
        force=[stage] if options["force"] else [],
        rerun_changed=options["rerun_changed"],
    )


@cache
def _evaluation_parser(description: str, zero_shot: bool) -> ArgumentParser:
    parser = recipe_parser(description)
    parser.add_argument("--checkpoint", type=str | None, help="Folder of ours or file of the published code.")
    if zero_shot:
        parser.add_argument("--zero_shot", action="store_true", help="Evaluate the pretrained encoder alone.")
    parser.add_argument("--plan", action="store_true", help="Print what would run, and why; run nothing.")
    parser.add_argument("--force", action="store_true", help="Evaluate again although it is done.")
    add_rerun_changed(parser)
    return parser


def execute(
    graph: Graph,
    recipe: Recipe,
    *,
    plan_only: bool = False,
    from_stage: str | None = None,
    until_stage: str | None = None,
    force: Sequence[str] = (),
    rerun_changed: bool = False,
) -> int:
    """Plans, runs and prints; returns the exit code."""
    steps = graph.plan(from_stage=from_stage, until_stage=until_stage, force=force, rerun_changed=rerun_changed)
    print(f"Workspace {graph.workspace.uri}\n\n{plan_table(steps)}\n", flush=True)
    if any(step.state in ("done", "partial") and CODE_CHANGED in step.reason for step in steps):
        print(
            "Their results are kept. --rerun_changed runs the stages whose code has changed again; --force runs one "
            "stage again.\n",
            flush=True,
        )
    if plan_only:
        to_come = pending(steps)
        foreseen_data(graph, steps, recipe, to_come).require(recipe, to_come)
        return 0
    if all(step.state == "done" for step in steps):
        print("Nothing to do: every stage is finished.\n", flush=True)
    # Also if all is done: the run is put on record, and MLflow gets what it has missed.
    outcomes = run_plan(graph, steps, recipe)
    print(f"\n{outcome_table(outcomes)}\n")
    for outcome in results(outcomes):
        artifact = outcome.artifact
        if outcome.step.stage.name == "evaluation":
            _print_retrieval(artifact.storage.read_json(METRICS_FILE))
        if outcome.step.stage.name == ZERO_SHOT:
            _print_zero_shot(artifact.storage.read_json(METRICS_FILE))
        if outcome.step.stage.name == "qa_evaluation":
            _print_answers(artifact.storage.read_json(METRICS_FILE))
        if outcome.step.stage.name == REPORT:
            print(f"Report:    {artifact.storage.place(PAGE)}")
        else:
            print(f"Artifacts: {artifact.storage.uri}")
    folder = log_folder(recipe.workspace)
    if folder is not None:
        print(f"Logs:      {folder}")
    print(f"MLflow:    {ui_command(graph.workspace)}")
    commands = next_steps(graph, recipe.evaluation.split)
    if commands:
        print("\nNext, for example:\n" + "".join(f"\n  {command}" for command in commands))
    return 0


def _print_retrieval(document: Mapping[str, Any]) -> None:
    print(f"{describe_protocol(document['protocol'])}; 95% bootstrap intervals over videos")
    print(f"{metrics_table(document)}\n")


def _print_zero_shot(document: Mapping[str, Any]) -> None:
    print(
        f"{document['architecture']}, pretrained {document['pretrained']}, without training: {document['texts']:,} "
        f"texts, {document['videos']:,} videos, split {document['split']}, seed {document['seed']}; 95% bootstrap "
        "intervals over videos"
    )
    for pooling in ZERO_SHOT_POOLINGS:
        print(f"\n{pooling} over frames\n{metrics_table(document[pooling])}")
    print()


def _print_answers(document: Mapping[str, Any]) -> None:
    print(f"{describe_protocol(document['protocol'])}; 95% bootstrap intervals over videos")
    print(f"{answers_table(document)}\n")


def log_folder(workspace: str) -> Path | None:
    """Where log files go: the workspace, if it is a folder of this machine."""
    storage = Storage(absolute_uri(workspace))
    return Path(storage.path("logs")) if storage.is_local else None


def start_log(recipe: Recipe, name: str) -> None:
    """Logs to standard error, and to a file of this run in the workspace."""
    set_up_logging(log_folder(recipe.workspace), name=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
