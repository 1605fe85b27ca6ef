from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.stages.execution import Outcome
from pipelines.stages.plan import Step
from pipelines.stages.stage import Stage
from pipelines.tables import answers_table, metrics_table, outcome_table, plan_table, table
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.storage import Storage

STAGE = Stage(name="frames", version=1, settings={}, inputs=(), run=lambda context: {})


def test_columns_are_aligned_and_numbers_stand_on_the_right() -> None:
    assert table(["stage", "rows"], [["frames", "1,234"], ["labels", "7"]]) == (
        "stage    rows\n"
        "──────  ─────\n"
        "frames  1,234\n"
        "labels      7"
    )  # fmt: skip


def test_numbers_may_have_signs_and_intervals_and_be_missing() -> None:
    rows = [["a", "45.1 (43.0–47.2)", "+1.2"], ["b", "5.1 (-3.0–7.2)", "-11.2"], ["c", "", "–"]]
    assert table(["", "top-1", "difference"], rows) == (
        "              top-1  difference\n"
        "─  ────────────────  ──────────\n"
        "a  45.1 (43.0–47.2)        +1.2\n"
        "b    5.1 (-3.0–7.2)       -11.2\n"
        "c                             –"
    )  # fmt: skip


def test_a_table_may_be_empty() -> None:
    assert table(["stage", "rows"], []) == "stage  rows\n─────  ────"


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(["stage", "rows"], [["frames", "1", "2"]])


def test_a_plan_names_stage_fingerprint_state_and_reason() -> None:
    text = plan_table([Step(STAGE, "0123456789abcdef", "partial", "3 of 8 videos are done")])
    assert text.splitlines()[-1].split("  ") == ["frames", "0123456789abcdef", "partial", "3 of 8 videos are done"]


def test_outcomes_tell_time_rows_and_errors(tmp_path: Path) -> None:
    artifact = Artifact("frames", "0123", Storage(str(tmp_path)), {"counts": {"rows": 1234, "errors": 5}})
    step = Step(STAGE, "0123", "missing", "never run")
    text = outcome_table([Outcome(step, "done", 65.0, artifact), Outcome(step, "skipped", 0.0, artifact)])
    done, skipped = (line.split() for line in text.splitlines()[2:])
    assert done == ["frames", "done", "1", "min", "05", "s", "1,234", "5", "0123"]
    assert skipped == ["frames", "skipped", "1,234", "5", "0123"]


def test_metrics_show_both_directions_with_their_intervals() -> None:
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50", "median_rank", "mean_rank")

    def values(first: float) -> dict[str, dict[str, float]]:
        return {
            name: {"value": first + place, "low": first + place - 1, "high": first + place + 1.25}
            for place, name in enumerate(names)
        }

    text = metrics_table({"text_to_video": values(10), "video_to_text": values(40)})
    header, _, forward, backward = text.splitlines()
    assert header.split() == ["R@1", "R@5", "R@10", "R@50", "MdR", "MnR"]
    assert forward.startswith("text → video")
    assert "10.0 (9.0–11.2)" in forward
    assert "45.0 (44.0–46.2)" in backward


def test_accuracies_are_shown_by_type_with_the_baselines_below() -> None:
    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 1, "high": value + 1}

    def values(questions: int, accuracy: float) -> dict[str, Any]:
        return {"questions": questions, "accuracy": interval(accuracy), "top_5_accuracy": interval(accuracy + 20)}

    text = answers_table(
        {
            "all": {"how": values(300, 30), "overall": values(1300, 40), "what": values(1000, 45)},
            "answerable": {"overall": values(1200, 44), "what": values(1000, 46)},
            "baselines": {"most_frequent_answer": {"answer": "man", "all": interval(9), "answerable": interval(10)}},
        }
    )
    _, _, overall, what, how, baseline = (
        [cell.strip() for cell in line.split("  ") if cell] for line in text.splitlines()
    )
    assert overall == [
        "overall",
        "1,300",
        "40.0 (39.0–41.0)",
        "60.0 (59.0–61.0)",
        "44.0 (43.0–45.0)",
        "64.0 (63.0–65.0)",
    ]
    assert [what[0], how[0]] == ["what", "how"]
    assert how == ["how", "300", "30.0 (29.0–31.0)", "50.0 (49.0–51.0)"]
    assert baseline == ["most frequent answer", "9.0 (8.0–10.0)", "10.0 (9.0–11.0)"]
