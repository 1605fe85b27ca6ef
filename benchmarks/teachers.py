"""What do teachers and coalitions make of the demo's retrieval model, trained from scratch? Over paired seeds.

    python -m benchmarks.teachers [--workspace workspace/teachers] [--arms none coalitions exact] [--seeds 1 2 3 4 5]

Runs the demo's recipe for each arm and seed (about five minutes each on two cores; what is done is skipped) and prints
R@1 on the held-out test clips, and each arm's difference to the first one with the same seeds. The generated data set
is the same in all runs: seeds change initial weights and the order of the data. Seeds of one arm range over 20 points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.study.results import Values, difference
from pipelines.tables import table
from pipelines.workspace.storage import Storage

ARMS = {
    "none": ("--model.game.teacher", "none"),
    "coalitions": ("--model.game.teacher", "none", "--model.game.coalitions", "0.5"),
    "exact": ("--model.game.teacher", "exact"),
    "exact, scale auto": ("--model.game.teacher", "exact", "--model.game.similarity_scale", "auto"),
    "cosine": ("--model.game.teacher", "cosine"),
    "estimator": ("--model.game.teacher", "estimator"),
}
RECIPE = "jobs/recipes/demo.yaml"


def run(workspace: str, arm: str, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of one run, which is made first if there is none."""
    command = [sys.executable, "-m", "jobs.run", "--config", RECIPE, "--workspace", workspace]
    command += ["--tasks", "[retrieval]", "--seed", str(seed), *ARMS[arm], "--tracking.log_model", "false"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    # A run names what no other stage needs: here the evaluation alone, beside the report.
    artifact = next(line for line in done.stdout.splitlines() if line.startswith("Artifacts:")).split()[-1]
    metrics: dict[str, Any] = json.loads(Storage(artifact).read_bytes("metrics.json"))
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", default=str(Path("workspace") / "teachers"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    scores: Values = {arm: {} for arm in options.arms}
    directions: dict[str, list[tuple[float, float]]] = {arm: [] for arm in options.arms}
    # Seed by seed: what is there after an interruption can be compared.
    for seed in options.seeds:
        for arm in options.arms:
            metrics = run(options.workspace, arm, seed)
            found = tuple(metrics[name]["recall_at_1"]["value"] for name in ("text_to_video", "video_to_text"))
            directions[arm].append((found[0], found[1]))
            scores[arm][seed] = sum(found) / 2
    rows = []
    for arm in options.arms:
        cells = [arm]
        for values in zip(*directions[arm], strict=True):
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            cells += [f"{statistics.mean(values):.1f} ± {deviation:.1f}", ", ".join(f"{value:.1f}" for value in values)]
        part = None if arm == options.arms[0] else difference(scores, arm, options.arms[0])
        cells.append("–" if part is None else f"{part.mean:+.1f} ({part.low:+.1f} to {part.high:+.1f})")
        rows.append(cells)
    header = ["arm", "t2v R@1", "by seed", "v2t R@1", "by seed", f"mean of both, against {options.arms[0]}"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
