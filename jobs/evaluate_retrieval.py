"""Evaluates any retrieval checkpoint: ``python -m jobs.evaluate_retrieval --config RECIPE --checkpoint PLACE``.

Without ``--checkpoint`` the model that the recipe trained is evaluated. With it nothing is
trained: the checkpoint is a folder that this project wrote, or a file that the published code
wrote (``pytorch_model.bin.3``), and the recipe says which data and which split. With ``--zero_shot`` the
recipe's pretrained encoder is evaluated as it is: a check of the data and the set-up in minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import evaluate
from jobs.settings import run_job
from pipelines.graph import make_evaluation_graph, make_zero_shot_graph


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    return evaluate(
        "Evaluates a retrieval checkpoint on a split of the recipe's data.",
        arguments,
        job="evaluate_retrieval",
        stage="evaluation",
        make_checkpoint_graph=make_evaluation_graph,
        make_zero_shot_graph=make_zero_shot_graph,
    )


if __name__ == "__main__":
    run_job(main)
