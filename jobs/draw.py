"""Draws the interaction of a text and a video: ``python -m jobs.draw --checkpoint FOLDER --video FILE --text TEXT``.

The interaction of words and frames at three levels is written to a folder: as lines and as heat maps (PNG and SVG), and
as numbers (JSON). The folder of a model that this project trained (``…/retrieval/<fingerprint>/model``, or
``…/video_qa/…``) needs nothing else; for a file that the published code wrote, ``--config RECIPE`` says model and
frames. No Ray is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jsonargparse import ArgumentParser

from jobs.settings import read_recipe, recipe_parser, run_job, set_up_logging
from pipelines.recipe.recipe import Recipe
from pipelines.workspace.storage import Storage


@cache
def make_parser() -> ArgumentParser:
    """The options of the job."""
    parser = recipe_parser("Draws the interaction of the words of a text and the frames of a video.")
    parser.add_argument("--checkpoint", type=str, required=True, help="Folder of ours or file of the published code.")
    parser.add_argument("--video", type=str, required=True, help="Path or URI of a video file.")
    parser.add_argument("--text", type=str, required=True, help="What is said about the video.")
    parser.add_argument("--output", type=str, default="figures", help="Folder or URI of the pictures.")
    parser.add_argument(
        "--show", type=list[str], default=["exact"], help="Any of exact, estimator, difference: [exact,estimator]."
    )
    parser.add_argument(
        "--estimator_checkpoint",
        type=str | None,
        help="Folder or file of an estimator; null = the one that taught the model.",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    recipe, options = read_recipe(make_parser(), arguments)
    set_up_logging(None, name="draw")
    from pipelines.figures.drawing import checked_kinds, write_figures
    from pipelines.figures.reading import load_pair_reader

    kinds = checked_kinds(options["show"])
    # If no setting is given there is no recipe, and the model's folder says everything.
    reader = load_pair_reader(
        options["checkpoint"], None if recipe == Recipe() else recipe, options["estimator_checkpoint"]
    )
    maps = reader.read(options["video"], options["text"], kinds)
    output = Storage(options["output"])
    for name in write_figures(maps, output):
        print(output.place(name))
    return 0


if __name__ == "__main__":
    run_job(main)
