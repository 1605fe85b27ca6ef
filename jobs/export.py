"""Exports a trained model for the Hugging Face hub: ``python -m jobs.export --checkpoint FOLDER --output FOLDER``.

The folder holds weights, settings, all that is needed to load them on another machine, and a model card about the run.
Instead of ``--checkpoint``, ``--config RECIPE`` exports the model that the recipe has trained. ``--onnx`` adds ONNX
graphs of the towers and the head, compared with PyTorch (extra ``onnx``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from jsonargparse import ArgumentParser

from jobs.settings import read_recipe, recipe_parser, run_job, set_up_logging
from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import absolute_uri


@cache
def make_parser() -> ArgumentParser:
    """The options of the job."""
    parser = recipe_parser("Exports a trained model for the Hugging Face hub.")
    parser.add_argument("--checkpoint", type=str | None, help="Folder of ours; without it, the recipe's model.")
    parser.add_argument(
        "--task", type=Literal["retrieval", "video_qa"] | None, help="Which of a recipe's two models; its first task's."
    )
    parser.add_argument("--output", type=str, required=True, help="Empty folder or URI to write to.")
    parser.add_argument("--license", type=str, default="unknown", help="Of the card, as the hub names it: apache-2.0.")
    parser.add_argument("--onnx", action="store_true", help="Write ONNX graphs, too.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    recipe, options = read_recipe(make_parser(), arguments)
    set_up_logging(None, name="export")
    from pipelines.report.hub_folder import export_model

    output = Storage(absolute_uri(options["output"]))
    checkpoint = options["checkpoint"] or _trained(recipe, options["task"] or recipe.tasks[0])
    names = export_model(checkpoint, output, licence=options["license"], onnx=options["onnx"])
    print("\n".join(output.place(name) for name in names))
    return 0


def _trained(recipe: Recipe, task: Any) -> str:
    """The model that the recipe has trained for ``task``.

    Raises:
        FileNotFoundError: it is not trained yet.
    """
    artifact = make_graph(recipe).artifact(task) if task in recipe.tasks else None
    if artifact is None:
        raise FileNotFoundError(
            f"{recipe.workspace} holds no model of the task {task} that this recipe has trained; train it with "
            "jobs.run, or give a folder with --checkpoint"
        )
    return artifact.storage.folder(MODEL).uri


if __name__ == "__main__":
    run_job(main)
