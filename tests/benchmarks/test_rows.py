"""The table of the benchmarks: rows, the file of results, and the status when results differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import bench
from benchmarks.rows import ResultsDifferError, Row, Spread, Target, ratios

OURS, THEIRS = Spread((1.0, 2.0, 4.0)), Spread((3000.0, 4000.0, 4000.0))


def row(target: Target | None) -> Row:
    return Row("adding", "by hand", THEIRS, OURS, "s", ratios(THEIRS, OURS), target)


def test_a_row_shows_medians_spread_and_target() -> None:
    cells = row(Target("≥", 1500)).cells()
    assert cells == [
        "adding",
        "by hand",
        "4,000 (3,000–4,000) s",
        "2 (1–4) s",
        "2,000 (1,000–3,000) ×",
        "≥ 1,500 ×",
        "yes",
    ]
    assert row(Target("≥", 2500)).cells()[-1] == "no"
    assert row(Target("≤", 2500)).cells()[-1] == "yes"
    assert row(None).cells()[-3:] == ["2,000 (1,000–3,000) ×", "–", "–"]


@pytest.fixture(name="group")
def made_up_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A group of rows, run without a process of its own; results would go to ``tmp_path``."""
    module = ModuleType("benchmarks.made_up")
    monkeypatch.setitem(sys.modules, "benchmarks.made_up", module)
    monkeypatch.setattr(bench, "GROUPS", {"made_up": 1})
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "RESULTS.md")

    class Sender(list[object]):
        send = list.append

    def run_here(name: str) -> Iterator[object]:
        sender = Sender()
        bench.send_rows(name, tmp_path, sender)  # type: ignore[arg-type]
        yield from sender

    monkeypatch.setattr(bench, "run_group", run_here)
    return module


def test_a_missed_target_is_a_result(group: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group.rows = lambda _: iter([row(Target("≥", 2500))])
    assert bench.main([]) == 0
    written = (tmp_path / "RESULTS.md").read_text()
    assert "| adding | by hand | 4,000 (3,000–4,000) s |" in written
    for fact in ("Machine: ", "Versions: Python ", "Commit: ", "make bench"):
        assert fact in written
    assert "adding" in capsys.readouterr().out


def test_some_groups_write_no_results_unless_asked(group: ModuleType, tmp_path: Path) -> None:
    group.rows = lambda _: iter([row(Target("≥", 1))])
    assert bench.main(["--only", "made_up"]) == 0
    assert not (tmp_path / "RESULTS.md").exists()
    assert bench.main(["--only", "made_up", "--write"]) == 0
    assert (tmp_path / "RESULTS.md").exists()


@pytest.mark.parametrize("error", [ResultsDifferError("1 is not 2"), RuntimeError("1 is not 2")])
def test_different_results_and_crashes_end_with_status_1_and_no_file(
    group: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    def broken(_: Path) -> Iterator[Row]:
        yield row(Target("≥", 1))
        raise error

    group.rows = broken
    assert bench.main([]) == 1
    assert not (tmp_path / "RESULTS.md").exists()
    shown = capfd.readouterr()
    assert "1 is not 2" in shown.out + shown.err
    assert "adding" in shown.out, "rows that came before are shown"
