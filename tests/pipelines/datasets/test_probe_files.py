"""Files of negatives and of moments: the published layouts, and what of a file cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.moment_files import MomentQuery, read_moments
from pipelines.datasets.negatives_file import Negative, read_negatives


def highlights(**changes: Any) -> str:
    """A line as QVHighlights publishes it."""
    record = {
        "qid": 2579,
        "query": "A girl and her mother cooked  while talking.",
        "vid": "NUsG9BgSes0_210.0_360.0",
        "duration": 150,
        "relevant_windows": [[82, 96], [106, 122]],
        "relevant_clip_ids": [41, 42],
        "saliency_scores": [[1, 3, 4], [2, 2, 3]],
    }
    return json.dumps({**record, **changes})


def write(folder: Path, name: str, *lines: str) -> str:
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def test_qvhighlights_are_read_in_their_published_layout(tmp_path: Path) -> None:
    file = write(tmp_path, "val.jsonl", highlights(), highlights(vid="x", relevant_windows=[[0, 2]]))
    query = "A girl and her mother cooked while talking."
    assert read_moments(file, "qvhighlights") == (
        [MomentQuery("NUsG9BgSes0_210.0_360.0", query, [(82, 96), (106, 122)]), MomentQuery("x", query, [(0, 2)])],
        [],
    )


def test_lines_end_at_line_ends_alone(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_bytes(
        "\r\n".join(
            json.dumps({"query": query, "vid": "x", "relevant_windows": [[0, 2]]}, ensure_ascii=False)
            for query in ("a\u2028b", "c\u0085d")
        ).encode()
    )
    queries, _ = read_moments(str(tmp_path / "val.jsonl"), "qvhighlights")
    assert [query.query for query in queries] == ["a b", "c d"]


def test_charades_sta_is_read_in_its_published_layout(tmp_path: Path) -> None:
    file = write(tmp_path, "test.txt", "3MSZA 24.3 30.4##person turn a light on.", "", "AO8RW 0.0 6.9##a # b")
    assert read_moments(file, "charades_sta") == (
        [MomentQuery("3MSZA", "person turn a light on.", [(24.3, 30.4)]), MomentQuery("AO8RW", "a # b", [(0.0, 6.9)])],
        [],
    )


def test_spans_that_do_not_end_after_their_start_are_left_out_and_counted(tmp_path: Path) -> None:
    file = write(tmp_path, "test.txt", "A 9.0 3.0##x", "B 1.0 2.0##y")
    queries, (warning,) = read_moments(file, "charades_sta")
    assert [query.video_id for query in queries] == ["B"]
    assert "1 spans do not end after their start" in warning


@pytest.mark.parametrize(
    ("form", "line", "message"),
    [
        ("qvhighlights", "{", "line 1: "),
        ("qvhighlights", "[1]", "line 1: it is no JSON object"),
        ("qvhighlights", highlights(relevant_windows=[]), "line 1: there is no span"),
        ("qvhighlights", highlights(query=" "), "line 1: the query is empty"),
        ("qvhighlights", highlights(relevant_windows=[[1]]), "line 1: "),
        ("qvhighlights", "{}", "line 1: it lacks 'relevant_windows'"),
        ("charades_sta", "A 1.0##x", "line 1: it is not of the form VIDEO START END##SENTENCE"),
        ("charades_sta", "", "holds no query with a span"),
    ],
)
def test_lines_of_another_form_are_named(tmp_path: Path, form: Any, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_moments(write(tmp_path, "file.txt", line), form)


def test_negatives_come_from_csv_and_json_lines(tmp_path: Path) -> None:
    expected = [Negative("a red car", "a blue car", "colour")]
    assert (
        read_negatives(write(tmp_path, "n.csv", "caption,negative,class", "a red  car,a blue car,colour")) == expected
    )
    line = json.dumps({"caption": "a red car", "negative": "a blue car", "class": "colour"})
    assert read_negatives(write(tmp_path, "n.jsonl", line)) == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["caption,negative,class", "a,,colour", "b,b,shape"], r"line 2: it lacks negative\n  line 3: the negative is"),
        (["caption,negative,class"], "holds no negative"),
        (["caption,negative", "a,b"], "class"),
    ],
)
def test_negatives_that_are_none_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_negatives(write(tmp_path, "n.csv", *lines))
