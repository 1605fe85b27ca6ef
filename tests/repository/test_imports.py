"""What a command imports decides how fast it answers."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "mlflow", "open_clip")


@pytest.mark.parametrize(
    "module",
    [
        "jobs.run",
        "jobs.ask",
        "jobs.index",
        "jobs.search",
        "jobs.serve",
        "jobs.settings",
        "jobs.tune",
        "pipelines.configs",
        "hbi_models.configs",
    ],
)
def test_help_and_plan_load_nothing_heavy(module: str) -> None:
    program = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
