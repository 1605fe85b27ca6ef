"""Tunes settings of a recipe: ``python -m jobs.tune --config RECIPE --tune FILE``.

The tune file names fields of the recipe and how they are drawn, the metric, the sampler that proposes settings, the
scheduler that ends bad trials early, and baselines; ``--help`` explains each. The same command continues a tuning that
was interrupted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache

from jsonargparse import ArgumentParser

from jobs.next_steps import command
from jobs.pipeline import log_folder, start_log
from jobs.settings import read_recipe, recipe_from_document, recipe_parser, run_job
from pipelines.recipe.tuning import TuningConfig
from pipelines.stages.data_check import foreseen_data
from pipelines.tracking.address import ui_command
from pipelines.tracking.mlflow_runs import record_missed
from pipelines.tune.checks import make_tuning, require_tuning_data
from pipelines.tune.tuning import BEST_RECIPE, RANKING, Tuning, is_done, plan_of
from pipelines.workspace.uris import join_uri

_FORMER_OPTION = re.compile(r"^--search(?=$|[.=])")


@cache
def make_parser() -> ArgumentParser:
    """The options of the job."""
    parser = recipe_parser("Tunes settings of a recipe, and ranks the best ones beside the baselines.")
    parser.add_class_arguments(TuningConfig, "tune")
    parser.add_argument("--plan", action="store_true", help="Print what would be tried; run nothing.")
    return parser


def read_tuning(arguments: Sequence[str] | None = None) -> tuple[Tuning, bool]:
    """The tuning that a command line describes, and whether to print its plan alone."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    renamed = [_FORMER_OPTION.sub("--tune", argument) for argument in given]
    if renamed != given:
        print("--search is --tune now; the old name goes with the next version", file=sys.stderr)
    recipe, options = read_recipe(make_parser(), renamed)
    return make_tuning(recipe, options["tune"], recipe_from_document), options["plan"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    tuning, plan_only = read_tuning(arguments)
    if not plan_only:
        start_log(tuning.recipe, "tune")
    print(f"Workspace {tuning.graph.workspace.uri}\n\n{plan_of(tuning)}\n", flush=True)
    if plan_only:
        if not is_done(tuning):
            stage = tuning.config.stage
            steps = tuning.graph.plan(until_stage=stage)
            require_tuning_data(tuning, foreseen_data(tuning.graph, steps, tuning.recipe, [stage]))
        return 0
    if is_done(tuning):
        print("Nothing to do: the tuning is finished.\n", flush=True)
        record_missed(tuning.graph.workspace)
    else:
        from pipelines.tune.run import run_tuning

        run_tuning(tuning)
    print(_results(tuning))
    return 0


def _results(tuning: Tuning) -> str:
    config, storage = tuning.config, tuning.storage
    ranking = storage.read_bytes(RANKING).decode()
    lines = [
        f"{config.metric} of {config.stage} with other seeds than the trials'; 95% t-intervals of the mean",
        ranking,
        f"Pictures:  {storage.uri}",
        f"Run it:    {command('run', '--config', join_uri(storage.uri, BEST_RECIPE))}",
    ]
    folder = log_folder(tuning.recipe.workspace)
    if folder is not None:
        lines.append(f"Logs:      {folder}")
    return "\n".join([*lines, f"MLflow:    {ui_command(tuning.graph.workspace)}"])


if __name__ == "__main__":
    run_job(main)
