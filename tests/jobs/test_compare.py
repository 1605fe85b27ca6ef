"""``jobs.compare``: sides on the command line, a table, and a folder with numbers and picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.compare import main, named_places
from pipelines.workspace.storage import Storage
from tests.pipelines.compare.evaluations import write_answers, write_retrieval


def test_two_sides_with_seeds_become_a_table_numbers_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, seed: int, rank: float) -> str:
        ranks = {f"v{number}": [1.0, rank + number % 2] for number in range(8)}
        return write_retrieval(Storage(str(tmp_path / name)), ranks, seed=seed)

    none, exact = ([write(f"{rank}{seed}", seed, rank) for seed in (1, 2)] for rank in (2.0, 1.0))
    output = tmp_path / "out"
    sides = [f"none={','.join(none)}", f"exact={','.join(exact)}"]
    assert main([*sides, "--resamples", "50", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "16 captions (2 a video) and 8 videos of the split test of msvd" in printed
    assert printed.splitlines()[0].endswith("; seeds: none 1, 2; exact 1, 2")
    assert printed.startswith((output / "comparison.txt").read_text())
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("text → video R@1 ")]
    assert row[4:7] == ["50.0", "75.0", "+25.0"]
    document = Storage(str(output)).read_json("comparison.json")
    assert [run["seed"] for run in document["sides"]["exact"]] == [1, 2]
    assert document["differences"]["exact"][0]["difference"] == 25
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_answers_are_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [write_answers(Storage(str(tmp_path / name)), {"v": [name == "a", True]}) for name in "ab"]
    assert main([*places, "--task", "question answering", "--resamples", "10"]) == 0
    assert "answers accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (["a=x"], "nothing to compare with"),
        (["a=x", "a=y"], "two sides 'a'"),
        (["a=x", "b="], "'b' has no place"),
    ],
)
def test_sides_that_make_no_comparison_are_refused(sides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_places(sides)


def test_addresses_with_options_are_no_names() -> None:
    assert named_places(["s3://b/x?region=eu", "exact=s3://b/y?region=eu,z"]) == {
        "s3://b/x?region=eu": ["s3://b/x?region=eu"],
        "exact": ["s3://b/y?region=eu", "z"],
    }
