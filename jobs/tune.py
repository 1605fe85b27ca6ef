"""Searches settings of a recipe: ``python -m jobs.tune --config RECIPE --search SEARCH``.

The search file names fields of the recipe and how they are drawn, the metric, who proposes settings
and who ends bad trials early, and baselines; ``--help`` explains each. The same command goes on with
a search that was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import log_folder, start_log
from jobs.settings import read_recipe, recipe_from_document, recipe_parser, run_job
from pipelines.tracking.address import ui_command
from pipelines.tracking.mlflow_runs import record_missed
from pipelines.tune.checks import make_search
from pipelines.tune.configs import SearchConfig
from pipelines.tune.plan import BEST_RECIPE, RANKING, is_done, plan_of
from pipelines.tune.search import Search


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    parser = recipe_parser("Searches settings of a recipe, and ranks the best ones beside the baselines.")
    parser.add_class_arguments(SearchConfig, "search")
    parser.add_argument("--plan", action="store_true", help="Print what would be searched; run nothing.")
    recipe, options = read_recipe(parser, arguments)
    search = make_search(recipe, options["search"], recipe_from_document)
    if not options["plan"]:
        start_log(search.recipe, "tune")
    print(f"Workspace {search.graph.workspace.uri}\n\n{plan_of(search)}\n", flush=True)
    if options["plan"]:
        return 0
    if is_done(search):
        print("Nothing to do: the search is finished.\n", flush=True)
        record_missed(search.graph.workspace)
    else:
        from pipelines.tune.run import run_search

        run_search(search)
    print(_results(search))
    return 0


def _results(search: Search) -> str:
    config, storage = search.config, search.storage
    ranking = storage.read_bytes(RANKING).decode()
    lines = [
        f"{config.metric} of {config.stage} with other seeds than the search's; 95% t-intervals of the mean",
        ranking,
        f"Pictures:  {storage.uri}",
        f"Run it:    python -m jobs.run --config {storage.uri}/{BEST_RECIPE}",
    ]
    folder = log_folder(search.recipe.workspace)
    if folder is not None:
        lines.append(f"Logs:      {folder}")
    return "\n".join([*lines, f"MLflow:    {ui_command(search.graph.workspace)}"])


if __name__ == "__main__":
    run_job(main)
