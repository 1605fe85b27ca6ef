"""Evaluates any question answering checkpoint: ``python -m jobs.evaluate_video_qa --config RECIPE --checkpoint PLACE``.

Without ``--checkpoint`` the model that the recipe trained is evaluated. With it nothing is
trained: the checkpoint is a folder that this project wrote, or a file that the published code
wrote (``pytorch_model.bin.3``), and the recipe says which data and which split. A folder holds its model and its
answers; for a published file both come from the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import evaluate
from jobs.settings import run_job
from pipelines.graph import make_qa_evaluation_graph


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    return evaluate(
        "Evaluates a question answering checkpoint on a split of the recipe's data.",
        arguments,
        job="evaluate_video_qa",
        stage="qa_evaluation",
        make_checkpoint_graph=make_qa_evaluation_graph,
    )


if __name__ == "__main__":
    run_job(main)
