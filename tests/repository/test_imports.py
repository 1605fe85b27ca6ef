"""What a command imports decides how fast it answers."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

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
        "pipelines.recipe.recipe",
        "hbi_models.configs",
        "hbi_models.zero_shot_config",
        "hbi_models.optimizer_config",
    ],
)
def test_help_and_plan_load_nothing_heavy(module: str) -> None:
    program = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("options", [["--help"], ["--config", "jobs/recipes/demo.yaml", "--plan"]])
def test_showing_options_or_a_plan_loads_nothing_heavy(options: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from jobs.run import main\n"
        f"try: main({[*options, '--workspace', str(tmp_path)]!r})\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "retrieval" in done.stdout, "it showed something"
    assert done.stdout.splitlines()[-1] == "[]"
