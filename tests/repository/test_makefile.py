"""Pythons that are not promised are refused in one line, and every test of a long suite is in one of its slices."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def write_python(folder: Path, name: str, version: tuple[int, int, int]) -> None:
    """This interpreter, which believes that it has another version."""
    program = f"import sys; sys.version_info = {(*version, 'final', 0)}; exec(sys.argv[1])"
    words = ".".join(map(str, version))
    path = folder / name
    path.write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then echo Python {words}; else exec {sys.executable} -c "{program}" "$2"; fi
""")
    path.chmod(0o755)


def make_demo(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    line = ["make", "demo", f"VENV={folder / 'venv'}", *settings]
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 14, 0), (2, 7, 18)])
def test_other_pythons_are_refused_and_a_fitting_one_is_named(tmp_path: Path, version: tuple[int, int, int]) -> None:
    write_python(tmp_path, "python3", version)
    write_python(tmp_path, "python3.12", (3, 12, 1))
    refused = make_demo(tmp_path, "PYTHONS=python3.12 python3.99")
    words = ".".join(map(str, version))
    assert refused.stderr.splitlines()[0] == (
        f"Python 3.11, 3.12 or 3.13 is needed; python3 is Python {words}."
        " python3.12 is here: PYTHON=python3.12 make demo"
    )
    assert refused.returncode != 0
    assert not (tmp_path / "venv").exists()


def test_without_any_fitting_python_the_line_ends_there(tmp_path: Path) -> None:
    refused = make_demo(tmp_path, "PYTHON=python3.99", "PYTHONS=python3.98")
    assert refused.stderr.splitlines()[0] == "Python 3.11, 3.12 or 3.13 is needed; python3.99 is not found."
    assert refused.returncode != 0


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_promised_pythons_are_taken(tmp_path: Path, minor: int) -> None:
    write_python(tmp_path, "python3", (3, minor, 0))
    # The interpreter can run one line alone, so the environment is not made; but it was asked for.
    taken = make_demo(tmp_path)
    assert "is needed" not in taken.stderr
    assert f"python3 -m venv {tmp_path / 'venv'}" in taken.stdout


@pytest.mark.parametrize(("suite", "mark"), [("faults", "slow_fault"), ("cluster", "cluster")])
def test_every_test_of_a_long_suite_is_in_a_slice(suite: str, mark: str) -> None:
    text = (ROOT / "Makefile").read_text()
    slices = re.findall(rf"^{suite}_\w+ := (.+)$", text, re.MULTILINE)
    tests = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    marked = [path for path, text in tests.items() if re.search(rf"pytest\.mark\.{mark}\b", text)]
    assert len(slices) > 2 and len(marked) > 2
    assert {str(path.relative_to(ROOT)) for path in marked} == {*re.findall(r"tests/\S+\.py", " ".join(slices))}


def test_every_tuning_of_the_long_suite_is_in_one_slice() -> None:
    (slices,) = re.findall(r"^TUNINGS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    names = re.findall(r"@pytest\.mark\.tune\ndef (\w+)", (ROOT / "tests/jobs/test_tune.py").read_text())
    assert len(names) > 2
    assert [sum(word in name for word in slices.split()) for name in names] == [1] * len(names)
