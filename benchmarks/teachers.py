"""Which teacher does the demo's retrieval model need? Exact, cosine, estimator and none, over several seeds.

    python -m benchmarks.teachers [--workspace workspace/teachers] [--seeds 1 2 3]

Runs the demo's recipe for each teacher and seed (about five minutes each on two cores; what is done is
skipped) and prints R@1 on the held-out test clips. The generated data set is the same in all runs: seeds
change initial weights and the order of the data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines.tables import table
from pipelines.workspace.storage import Storage

TEACHERS = ("exact", "cosine", "estimator", "none")
RECIPE = "jobs/recipes/demo.yaml"


def run(workspace: str, teacher: str, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of one run, which is made first if there is none."""
    command = [sys.executable, "-m", "jobs.run", "--config", RECIPE, "--workspace", workspace]
    command += ["--seed", str(seed), "--model.game.teacher", teacher, "--tracking.log_model", "false"]
    command += ["--estimator.enabled", "true" if teacher == "estimator" else "false"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    artifact = next(line for line in done.stdout.splitlines() if line.startswith("Artifacts:")).split()[-1]
    metrics: dict[str, Any] = json.loads(Storage(artifact).read_bytes("metrics.json"))
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", default=str(Path("workspace") / "teachers"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    rows = []
    for teacher in TEACHERS:
        runs = [run(options.workspace, teacher, seed) for seed in options.seeds]
        cells = [teacher]
        for direction in ("text_to_video", "video_to_text"):
            values = [metrics[direction]["recall_at_1"]["value"] for metrics in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells += [f"{statistics.mean(values):.1f} ± {deviation:.1f}", ", ".join(f"{value:.1f}" for value in values)]
        ranks = [
            metrics[direction]["mean_rank"]["value"] for metrics in runs for direction in metrics if "_to_" in direction
        ]
        rows.append([*cells, f"{statistics.mean(ranks):.2f}"])
    print(table(["teacher", "t2v R@1", "by seed", "v2t R@1", "by seed", "mean rank"], rows))


if __name__ == "__main__":
    main()
