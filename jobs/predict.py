"""Answers a question about a video file: ``python -m jobs.predict --checkpoint FOLDER --video FILE --question TEXT``.

The folder of a question answering model that this project trained (``…/video_qa/<fingerprint>/model``)
needs nothing else. For a file that the published code wrote, ``--config RECIPE`` says model and
frames, and ``--video_qa.answers.file`` the answers. No Ray is started.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from jobs.settings import read_recipe, recipe_parser, run_job, set_up_logging
from pipelines.configs import Recipe
from pipelines.tables import table


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    parser = recipe_parser("Answers a question about a video file.")
    parser.add_argument("--checkpoint", type=str, required=True, help="Folder of ours or file of the published code.")
    parser.add_argument("--video", type=str, required=True, help="Path or URI of a video file.")
    parser.add_argument("--question", type=str, required=True, help="A question about the video.")
    parser.add_argument("--top", type=int, default=5, help="How many answers to show.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    recipe, options = read_recipe(parser, arguments)
    set_up_logging(None, name="predict")
    from pipelines.evaluate.prediction import load_answerer

    # A recipe that says nothing is none.
    answerer = load_answerer(options["checkpoint"], None if recipe == Recipe() else recipe)
    video, question = options["video"], options["question"]
    answers = answerer.answer(video, question, top=options["top"])
    if options["json"]:
        found = [{"answer": answer.answer, "probability": answer.probability} for answer in answers]
        print(json.dumps({"video": video, "question": question, "answers": found}, ensure_ascii=False))
    else:
        print(table(["answer", "probability"], [[answer.answer, f"{answer.probability:.3f}"] for answer in answers]))
    return 0


if __name__ == "__main__":
    run_job(main)
