"""Runs a recipe over several seeds beside the published figures: ``python -m jobs.reproduce --table msrvtt``.

Each table is a recipe, whose ``report.published`` holds the published row. Options of ``jobs.run`` that name the data
(``--data.annotations``, ``--data.videos``) and the machines go along; ``--config`` takes another recipe. Seeds share
the workspace, so that videos are decoded once. The same command again goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from hbi_models.config_fields import require
from hbi_models.metric_names import ANSWER_METRICS, DIRECTIONS, RANK_METRICS
from jobs.pipeline import execute, start_log
from jobs.settings import read_recipe, recipe_parser, run_job
from pipelines.evaluate.documents import METRICS_FILE, describe_protocol
from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.stages.plan import Graph
from pipelines.tables import reproduction_table
from pipelines.workspace.storage import Storage

TABLES = {
    "msrvtt": "msrvtt_retrieval",
    "msrvtt_7k": "msrvtt_retrieval_7k",
    "msvd": "msvd_retrieval",
    "activitynet": "activitynet_retrieval",
    "didemo": "didemo_retrieval",
    "msrvtt_qa": "msrvtt_qa",
    "demo": "demo",
}
"""The recipe of each table."""

SEEDS = (42, 43, 44)

_PARTS = {
    "evaluation": [f"{direction}/{metric}" for direction in DIRECTIONS for metric in RANK_METRICS],
    "qa_evaluation": [f"{part}/{metric}" for part in ("all", "answerable") for metric in ANSWER_METRICS],
}
"""The figures of each evaluation."""


@cache
def make_parser() -> ArgumentParser:
    """The options of the job."""
    parser = recipe_parser("Runs a recipe over several seeds and prints its figures beside the published ones.")
    parser.add_argument("--table", type=str | None, help=f"Which recipe: {', '.join(TABLES)}; or give --config.")
    parser.add_argument("--seeds", type=list[int], default=list(SEEDS), help="Of the trainings: [42,43,44].")
    parser.add_argument("--plan", action="store_true", help="Print what would run for each seed; run nothing.")
    parser.add_argument("--output", type=str | None, help="Folder or URI for reproduction.json.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    recipe, options = read_recipe(make_parser(), _with_recipe(arguments))
    seeds: list[int] = options["seeds"]
    require(bool(seeds) and len(set(seeds)) == len(seeds), f"--seeds is {seeds}; give different seeds, one or more")
    if not options["plan"]:
        start_log(recipe, "reproduce")
    graphs = {seed: make_graph(_of_seed(recipe, seed)) for seed in seeds}
    for seed, graph in graphs.items():
        print(f"Seed {seed}\n", flush=True)
        execute(graph, _of_seed(recipe, seed), plan_only=options["plan"])
    if options["plan"]:
        return 0
    documents = [_documents(graph) for graph in graphs.values()]
    measured = _measured(documents)
    print(f"\n{reproduction_table(recipe.report.published, measured)}\n")
    protocols = {stage: document["protocol"] for stage, document in documents[0].items()}
    for protocol in protocols.values():
        print(f"Ours: {describe_protocol(protocol)}; seeds of the trainings {', '.join(map(str, seeds))}.")
    print("Published: one run, whose checkpoint was chosen on the test videos unless its source says otherwise.")
    if options["output"] is not None:
        output = Storage(options["output"])
        output.write_json(
            "reproduction.json",
            {"seeds": seeds, "published": recipe.report.published, "measured": measured, "protocols": protocols},
        )
        print(output.place("reproduction.json"))
    return 0


def _with_recipe(arguments: Sequence[str] | None) -> list[str]:
    """The arguments, with the recipe of ``--table`` before all others.

    Raises:
        ValueError: there is no such table.
    """
    import sys

    # Searched by hand: the recipe has to be the first of the arguments before they are parsed, so that all others
    # override it.
    given = list(sys.argv[1:] if arguments is None else arguments)
    for place, word in enumerate(given):
        name = word.removeprefix("--table=") if word.startswith("--table=") else None
        if word == "--table" and place + 1 < len(given):
            name = given[place + 1]
        if name is not None:
            require(name in TABLES, f"--table is {name!r}; there are: {', '.join(TABLES)}")
            return ["--config", str(Path(__file__).parent / "recipes" / f"{TABLES[name]}.yaml"), *given]
    return given


def _of_seed(recipe: Recipe, seed: int) -> Recipe:
    # The page about a run tells of one training.
    return replace(recipe, seed=seed, report=replace(recipe.report, enabled=False))


def _documents(graph: Graph) -> dict[str, Mapping[str, Any]]:
    stages = {stage.name for stage in graph.stages}
    return {stage: graph.output(stage).read_json(METRICS_FILE) for stage in _PARTS if stage in stages}


def _measured(documents: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Every figure of every seed, by ``part/metric``."""
    measured = {}
    for stage in documents[0]:
        for name in _PARTS[stage]:
            part, metric = name.split("/")
            parts = [document[stage][part] for document in documents]
            if stage == "qa_evaluation":
                parts = [part.get("overall") for part in parts]
            if all(part is not None for part in parts):
                measured[name] = [part[metric]["value"] for part in parts]
    return measured


if __name__ == "__main__":
    run_job(main)
