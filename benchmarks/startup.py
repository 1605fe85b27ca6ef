"""Seconds that a command takes before it works: ``--help``, ``--plan``, and a rerun with nothing to do.

Whole processes, from their start to their end, in a workspace that the same command has finished: the
demo's recipe, with fewer videos and steps. Neither Ray nor PyTorch is started by any of the three.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import ResultsDifferError, Row, Target, in_turns

TIMES = 5
RECIPE = Path(__file__).parents[1] / "jobs/recipes/demo.yaml"
SMALL = {
    "tasks": "[retrieval]",
    "data.validation_videos": "8",
    "data.shapes.train_videos": "40",
    "data.shapes.test_videos": "8",
    # No estimator has to be trained.
    "model.game.teacher": "exact",
    "retrieval.epochs": "1",
    "retrieval.batch_size": "8",
    "resources.retrieval.workers": "1",
}


def rows(folder: Path) -> Iterator[Row]:
    command = ["--config", str(RECIPE), "--workspace", str(folder / "workspace")]
    command += [word for name, value in SMALL.items() for word in (f"--{name}", value)]
    run(*command)
    # The first run finishes the workspace; this one shows that nothing is left to do.
    said = run(*command)
    if "Nothing to do" not in said or "Ray:" in said:
        raise ResultsDifferError(f"a rerun of a finished run was to do nothing, and said: {said[-2000:]}")
    rerun, plan, usage = in_turns(
        [lambda: run(*command), lambda: run(*command, "--plan"), lambda: run("--help")], TIMES
    )
    for what, seconds, bound in (
        ("a run with nothing to do, Ray not started", rerun, 5.0),
        ("`jobs.run --plan`", plan, 3.0),
        ("`jobs.run --help`", usage, 1.5),
    ):
        yield Row(what, "", None, seconds, "s", seconds, Target("≤", bound, "s"))


def run(*arguments: str) -> str:
    """What the command printed.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "jobs.run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"jobs.run {' '.join(arguments)} failed: {done.stdout[-2000:]}")
    return done.stdout
