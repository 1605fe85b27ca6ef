"""Evaluates any retrieval checkpoint: ``python -m jobs.evaluate_retrieval --config RECIPE --checkpoint PLACE``.

Without ``--checkpoint`` the model that the recipe trained is evaluated. With it nothing is
trained: the checkpoint is a folder that this project wrote, or a file that the published code
wrote (``pytorch_model.bin.3``), and the recipe says which data and which split.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import execute, start_log
from jobs.settings import read_recipe, recipe_parser, run_job
from pipelines.graph import make_evaluation_graph, make_graph


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    parser = recipe_parser("Evaluates a retrieval checkpoint on a split of the recipe's data.")
    parser.add_argument("--checkpoint", type=str | None, help="Folder of ours or file of the published code.")
    parser.add_argument("--plan", action="store_true", help="Print what would run, and why; run nothing.")
    parser.add_argument("--force", action="store_true", help="Evaluate again although it is done.")
    recipe, options = read_recipe(parser, arguments)
    checkpoint = options["checkpoint"]
    if not options["plan"]:
        start_log(recipe, "evaluate_retrieval")
    return execute(
        make_graph(recipe) if checkpoint is None else make_evaluation_graph(recipe, checkpoint),
        recipe,
        plan_only=options["plan"],
        from_stage="evaluation" if checkpoint is None else None,
        until_stage="evaluation",
        force=["evaluation"] if options["force"] else [],
    )


if __name__ == "__main__":
    run_job(main)
