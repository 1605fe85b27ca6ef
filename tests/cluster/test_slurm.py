"""The script for Slurm, with Slurm, Ray and the run in its place."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.jobs.killing import wait_until

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"

COMMANDS = {
    "scontrol": "echo node-1",
    "srun": "exec sleep 1000",
    "ray": "exit 0",
    # The token, the wait for all nodes, and the run, which would end well if nobody stopped it.
    "python": """
case $1 in
    -c) echo token ;;
    -) touch "$FOLDER/waiting"; until [ -e "$FOLDER/go" ]; do sleep 0.02; done ;;
    -m) exec sleep 30 ;;
esac""",
}


def test_a_signal_that_comes_before_the_run_has_started_stops_it(tmp_path: Path) -> None:
    for name, lines in COMMANDS.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{lines}\n")
        command.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").write_text(f'PATH="{tmp_path}:$PATH"\n')
    slurm = {"HBI_VENV": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-1", "FOLDER": str(tmp_path)}
    with subprocess.Popen(["bash", str(SCRIPT), "--config", "recipe.yaml"], env={**os.environ, **slurm}) as script:
        try:
            wait_until((tmp_path / "waiting").exists, alive=lambda: script.poll() is None)
            script.terminate()
            (tmp_path / "go").touch()
            assert script.wait(timeout=120) == 128 + 15
        finally:
            script.kill()
