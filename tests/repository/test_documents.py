"""What the documents say exists: paths, links inside them, commands; the short commands run."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for path in sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/*.md")) if ".venv" not in path.parts]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(?:```(?:bash|sh|console)?\n(.*?)^```|((?:    .*\n)+))", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"python -m ((?:jobs|benchmarks)\.\w+)")
MAKE = re.compile(r"\bmake (\w+)")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_files_of_the_repository(document: Path) -> None:
    for target, _ in LINK.findall(text_of(document)):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which does not exist"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(document: Path) -> None:
    targets = set(re.findall(r"^(\w+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for module in MODULE.findall(text_of(document)):
        assert find_spec(module) is not None, f"{document.name} names {module}, which does not exist"
    for target in MAKE.findall("\n".join(re.findall(r"`[^`]+`|^    .*$", text_of(document), re.MULTILINE))):
        assert target in targets, f"{document.name} names make {target}, which the Makefile lacks"


def commands_in_readme() -> list[str]:
    blocks = ["".join(block) for block in FENCE.findall(text_of(ROOT / "README.md"))]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if "python -m jobs." in line and "ray job submit" not in line]


def test_readme_shows_commands() -> None:
    assert len(commands_in_readme()) >= 5


@pytest.mark.parametrize("command", commands_in_readme())
def test_readme_commands_parse(command: str, tmp_path: Path) -> None:
    """Each job takes its options: ``--print_config`` parses all of them and does nothing."""
    words = shlex.split(command)
    words = words[words.index("python") :]
    if "<" in command:
        pytest.skip("the command has a place for the reader to fill in")
    done = subprocess.run(
        [sys.executable, *words[1:], "--print_config"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_readme_plan_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "jobs.run",
            "--config",
            "jobs/recipes/demo.yaml",
            "--plan",
            "--workspace",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "shapes" in done.stdout
