"""Answers a question about a video: ``python -m jobs.ask --checkpoint FOLDER --video FILE "what color is it"``.

The folder of a question answering model that this project trained (``…/video_qa/<fingerprint>/model``)
needs nothing else. For a file that the published code wrote, ``--config RECIPE`` says model and
frames, and ``--video_qa.answers.file`` the answers. With ``--index URI`` the video may be named by its id
in an index. No Ray is started.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from jsonargparse import ArgumentParser

from jobs.settings import read_recipe, recipe_parser, run_job, set_up_logging
from pipelines.recipe.recipe import Recipe
from pipelines.tables import table


@cache
def make_parser() -> ArgumentParser:
    """The options of the job."""
    parser = recipe_parser("Answers a question about a video.")
    parser.add_argument("question", type=str, help="A question about the video, in quotes.")
    parser.add_argument("--checkpoint", type=str, required=True, help="Folder of ours or file of the published code.")
    parser.add_argument("--video", type=str, required=True, help="Path or URI of a video file, or an id in the index.")
    parser.add_argument("--index", type=str | None, help="Folder or URI of an index that holds the video.")
    parser.add_argument("--top", type=int, default=5, help="How many answers to show.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    recipe, options = read_recipe(make_parser(), arguments)
    set_up_logging(None, name="ask")
    from pipelines.models.prediction import check_question, load_answerer
    from pipelines.search.index_folder import Segment, find_segment

    video, question, top = options["video"], options["question"], options["top"]
    # Before a model is loaded and a video decoded.
    check_question(question, top)
    segment = Segment(video) if options["index"] is None else find_segment(options["index"], video)
    # If no setting is given there is no recipe, and the model's folder says everything.
    answerer = load_answerer(options["checkpoint"], None if recipe == Recipe() else recipe)
    answers = answerer.answer(segment.uri, question, top=top, start_s=segment.start_s, end_s=segment.end_s)
    if options["json"]:
        found = [{"answer": answer.answer, "probability": answer.probability} for answer in answers]
        print(json.dumps({"video": video, "question": question, "answers": found}, ensure_ascii=False))
    else:
        print(table(["answer", "probability"], [[answer.answer, f"{answer.probability:.3f}"] for answer in answers]))
    return 0


if __name__ == "__main__":
    run_job(main)
