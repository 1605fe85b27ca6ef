from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.tune.journal import Journal, Report
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage
from tests.pipelines.tune.tunings import KL, record_of, tuning_of


def test_records_are_found_again_in_the_order_of_their_starts(tmp_path: Path) -> None:
    journal = Journal(Storage(str(tmp_path)))
    first, second = record_of(0, {KL: 0.1, "model.level_rates": [1, 0, 0]}, [3.0, 4.0]), record_of(1, {}, [])
    final = record_of(2, {KL: 0.1}, [5.0], phase="final", label="published", seed=43)
    for record in (first, second, final):
        journal.put(record)
    stopped = journal.put(replace(first, state="stopped", reason="too slow"))
    again = Journal(Storage(str(tmp_path)))
    assert again.of("trial") == [stopped, second]
    assert again.of("final") == [final]
    assert again["trial-000"] == stopped
    assert again.get("trial-007") is None


def test_a_report_that_is_made_again_replaces_what_followed_from_the_old_one() -> None:
    record = record_of(0, {}, [1.0, 2.0, 3.0])
    again = record.reported(Report(progress=2, epoch=2.0, step=20, value=2.5))
    assert [(report.progress, report.value) for report in again.reports] == [(1, 1.0), (2, 2.5)]
    assert again.value == 2.5


def test_values_are_those_of_the_last_report_up_to_then() -> None:
    record = record_of(0, {}, [1.0, 2.0, 3.0])
    assert [record.value_at(progress) for progress in range(5)] == [None, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.slow
def test_a_journal_of_an_earlier_version_is_read_and_gone_on_with(tmp_path: Path) -> None:
    former = tuning_of(tmp_path)
    record, final = record_of(0, {KL: 0.1}, [3.0]), record_of(1, {KL: 0.1}, [5.0], phase="final")
    lines = [json.dumps({**plain(record), "phase": "search"}), json.dumps(plain(final))]
    folder = Storage(str(tmp_path)).folder("search", former.fingerprint)
    folder.write_bytes("trials.jsonl", "".join(f"{line}\n" for line in lines).encode())

    tuning = tuning_of(tmp_path)
    assert (tuning.folder, tuning.storage.uri) == (f"search/{tuning.fingerprint}", folder.uri)
    journal = Journal(tuning.storage)
    assert (journal.of("trial"), journal.of("final")) == ([record], [final])
    assert tuning_of(tmp_path, {"retrieval.batch_size": 64}).folder.startswith("tune/")
