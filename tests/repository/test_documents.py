"""What the documents say exists: paths, links inside them, commands; the short commands run."""

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for path in sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*/*.md")) if ".venv" not in path.parts]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(?:```(?:bash|sh|console)?\n(.*?)^```|((?:    .*\n)+))", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"python -m ((?:jobs|benchmarks)\.\w+)")
MAKE = re.compile(r"\bmake ([\w-]+)")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_files_and_headings_of_the_repository(document: Path) -> None:
    for target, anchor in LINK.findall(text_of(document)):
        if "://" not in target:
            place = document.parent / target if target else document
            assert place.exists(), f"{document.name} links to {target}, which does not exist"
            assert not anchor or anchor in anchors_of(place), (
                f"{document.name} links to {target}{anchor}: no such heading"
            )


def anchors_of(document: Path) -> set[str]:
    """Links to the headings, as GitHub and others form them."""
    headings = re.findall(r"^#+ (.+)$", text_of(document), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for module in MODULE.findall(text_of(document)):
        assert find_spec(module) is not None, f"{document.name} names {module}, which does not exist"
    for target in MAKE.findall("\n".join(re.findall(r"`[^`]+`|^    .*$", text_of(document), re.MULTILINE))):
        assert target in targets, f"{document.name} names make {target}, which the Makefile lacks"


def commands_in(document: Path) -> list[str]:
    blocks = ["".join(block) for block in FENCE.findall(text_of(document))]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if "python -m jobs." in line and "ray job submit" not in line]


README = ROOT / "README.md"
LOOKING_AT_A_WORKSPACE = ("jobs.status", "jobs.gc")
"""Jobs without a recipe, which have no settings to print: they run, on an empty workspace."""

GUIDES = sorted((ROOT / "docs").glob("*.md"))


def test_documents_show_commands() -> None:
    assert len(commands_in(README)) >= 5
    assert len(commands_in(ROOT / "docs/datasets.md")) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("command", {command: None for guide in (README, *GUIDES) for command in commands_in(guide)})
def test_commands_parse(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each job takes its options: ``--print_config`` parses all of them and does nothing."""
    words = shlex.split(command)
    words = words[words.index("python") :]
    if "<" in command:
        pytest.skip("the command has a place for the reader to fill in")
    monkeypatch.chdir(ROOT)
    main = import_module(words[2]).main
    if words[2] in LOOKING_AT_A_WORKSPACE:
        try:
            assert main([*words[3:], "--workspace", str(tmp_path)]) == 0
        except ValueError as error:
            assert "holds no run" in str(error)
        return
    with pytest.raises(SystemExit) as ended:
        main([*words[3:], "--print_config"])
    assert not ended.value.code, capsys.readouterr().err
    assert capsys.readouterr().out.strip(), "the configuration was printed"


@pytest.mark.slow
def test_readme_plan_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    options = ["--config", "jobs/recipes/demo.yaml", "--plan", "--workspace", str(tmp_path)]
    assert import_module("jobs.run").main(options) == 0
    assert "shapes" in capsys.readouterr().out


def test_the_map_of_the_rooms_names_every_room() -> None:
    text = text_of(ROOT / "docs/architecture.md")
    rooms = [path for path in (ROOT / "pipelines").iterdir() if path.is_dir() and (path / "__init__.py").exists()]
    assert len(rooms) > 10
    assert [path.name for path in rooms if f"`{path.name}/`" not in text] == []
    modules = [path.stem for path in (ROOT / "pipelines").glob("*.py") if path.stem != "__init__"]
    assert [name for name in modules if f"`{name}`" not in text] == []


def test_the_tree_of_the_readme_is_the_tree() -> None:
    listed = re.findall(r"^    (\w+)/ ", text_of(README), re.MULTILINE)
    present = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {"pipelines", "hbi_models", "jobs"} <= set(listed) <= present
