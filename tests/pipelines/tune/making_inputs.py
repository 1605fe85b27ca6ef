"""``python -m tests.pipelines.tune.making_inputs RECIPE``: makes the inputs of a trial, as ``jobs.tune`` does."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from jobs.settings import run_job
from pipelines.stages.weights_check import WeightsChecks
from pipelines.tracking.mlflow_runs import PipelineTracker
from pipelines.tune.inputs import InputStages
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import read


def main() -> int:
    recipe = read(Path(sys.argv[1]))
    tracker = PipelineTracker(Storage(recipe.workspace), recipe.tracking, recipe)
    try:
        with InputStages("retrieval", tracker, WeightsChecks()) as inputs:
            while not inputs.ready(recipe):
                time.sleep(0.05)
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    return 0


if __name__ == "__main__":
    run_job(main)
