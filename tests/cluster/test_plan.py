"""The planner, on workspaces whose rates are known because they were written with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.plan_cluster import Cluster, Finished, main
from pipelines.train.files import HISTORY
from pipelines.workspace.artifact import ARTIFACT
from pipelines.workspace.records import MANIFEST, MANIFEST_FILE
from pipelines.workspace.storage import Storage

CORES, ACTORS, WORKERS = 4, 2, 2
CAPTIONS, EPOCHS, BATCH = 3, 2, 6

# What the written workspaces take: seconds of one core, actor or worker for a unit, and fixed seconds.
DECODE_S, LABEL_S, PAIR_S = 0.5, 0.2, 0.04
FRAMES_FIXED_S, LABELS_FIXED_S, TRAIN_FIXED_S, EVALUATION_S = 7.0, 20.0, 30.0, 11.0
VIDEO_BYTES, FRAME_BYTES, LABEL_BYTES = 1000, 200, 50


def write_workspace(folder: Path, videos: int) -> str:
    """A finished run of ``videos`` videos as the pipeline leaves it, with the rates above."""
    storage = Storage(str(folder))
    source = folder / "videos"
    source.mkdir(parents=True)
    rows = []
    for number in range(videos):
        (source / f"{number}.mp4").write_bytes(b"v" * VIDEO_BYTES)
        name = f"video{number}"
        place = {"uri": str(source / f"{number}.mp4"), "split": "train", "captions": [], "questions": []}
        rows.append({"video_id": name, "key": name, **place})
    pairs = videos * CAPTIONS
    steps = pairs * EPOCHS // BATCH
    work = {
        "frames": {"work/rows": videos, "work/bytes": videos * FRAME_BYTES, "work/seconds": videos * DECODE_S},
        "labels": {
            "work/rows": videos,
            "work/pairs": pairs,
            "work/bytes": pairs * LABEL_BYTES,
            "work/seconds": pairs * LABEL_S,
        },
        "retrieval": {"steps": steps},
        "manifest": {"rows": videos},
        "evaluation": {},
    }
    seconds = {
        "manifest": videos * 0.01,
        "frames": FRAMES_FIXED_S + videos * DECODE_S / CORES,
        "labels": LABELS_FIXED_S + pairs * LABEL_S / ACTORS,
        "retrieval": TRAIN_FIXED_S + steps * BATCH * PAIR_S / WORKERS,
        "evaluation": EVALUATION_S,
    }
    config = {
        "resources": {"local_cpus": CORES, "labels": {"max_actors": ACTORS}, "retrieval": {"workers": WORKERS}},
        "retrieval": {"batch_size": BATCH},
    }
    for stage, counts in work.items():
        storage.write_json(f"{stage}/0/{ARTIFACT}", {"counts": counts, "seconds": seconds[stage], "config": config})
    storage.write_table(f"manifest/0/{MANIFEST_FILE}", pa.Table.from_pylist(rows, schema=MANIFEST))
    # The first point is slow: workers start in it.
    points: list[dict[str, Any]] = [{"step": 1, "throughput/pairs_per_s": 0.5}]
    points += [{"step": step, "throughput/pairs_per_s": WORKERS / PAIR_S} for step in range(2, steps + 1)]
    points.append({"step": steps, "validation/score": 50.0})
    storage.write_bytes(f"retrieval/0/{HISTORY}", "\n".join(map(json.dumps, points)).encode())
    storage.write_json(
        "runs/1.json",
        {
            "started_at": "2026-01-01T00:00:00+00:00",
            "stages": [[stage, "0"] for stage in work],
            "locks": [[stage, stage] for stage in work],
            "folders": [],
            "settings": config,
        },
    )
    return str(folder)


@pytest.fixture
def small(tmp_path: Path) -> Finished:
    return Finished.read(write_workspace(tmp_path / "small", 20))


def predicted(finished: Finished, videos: float, cluster: Cluster) -> dict[str, Any]:
    return {rate.stage: rate.predict(videos, cluster) for rate in finished.rates(finished.cluster(None))}


def test_a_larger_run_takes_the_fixed_time_once_and_the_work_divided(small: Finished) -> None:
    cluster = Cluster(cores=10, actors=5, workers=4)
    found = predicted(small, 1000, cluster)
    assert found["manifest"].seconds == pytest.approx(10.0)
    assert found["frames"].seconds == pytest.approx(FRAMES_FIXED_S + 1000 * DECODE_S / 10)
    assert found["labels"].seconds == pytest.approx(LABELS_FIXED_S + 3000 * LABEL_S / 5)
    assert found["retrieval"].seconds == pytest.approx(TRAIN_FIXED_S + 6000 * PAIR_S / 4)
    assert found["evaluation"].seconds == pytest.approx(EVALUATION_S), "the split that is evaluated stays"
    assert {name: prediction.bound for name, prediction in found.items()} == {
        "manifest": "driver",
        "frames": "cores",
        "labels": "actors",
        "retrieval": "workers",
        "evaluation": "start",
    }


def test_bytes_are_counted_where_they_move_and_where_they_stay(small: Finished) -> None:
    found = predicted(small, 1000, small.cluster(None))
    assert found["frames"].moved_bytes == pytest.approx(1000 * (VIDEO_BYTES + FRAME_BYTES))
    assert found["frames"].kept_bytes == pytest.approx(1000 * FRAME_BYTES)
    assert found["labels"].moved_bytes == pytest.approx(1000 * FRAME_BYTES + 3000 * LABEL_BYTES)
    assert found["labels"].kept_bytes == pytest.approx(3000 * LABEL_BYTES)
    # The frames of a video are read for each of its captions in every epoch.
    assert found["retrieval"].moved_bytes == pytest.approx(6000 * FRAME_BYTES)
    assert found["retrieval"].kept_bytes == 0


def test_a_narrow_network_is_the_bottleneck(small: Finished) -> None:
    bits = 1000 * (VIDEO_BYTES + FRAME_BYTES) * 8
    found = predicted(small, 1000, Cluster(cores=1e6, actors=1e6, workers=1e6, network_gbit=bits / 1e9 / 500))
    assert found["frames"].bound == "network"
    assert found["frames"].seconds == pytest.approx(FRAMES_FIXED_S + 500)


def test_a_check_prints_the_error_of_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = (write_workspace(tmp_path / name, videos) for name, videos in (("small", 20), ("large", 80)))
    main(["--calibrate", small, "--check", large])
    rows = {row[0]: row[1:] for line in capsys.readouterr().out.splitlines() if len(row := line.split()) == 4}
    assert {rows[stage][2] for stage in ("manifest", "frames", "labels", "retrieval", "evaluation", "all")} <= {
        "0",
        "-0",
    }
    # A stage that took twice as long as predicted.
    path = tmp_path / "large/frames/0" / ARTIFACT
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "seconds": 2 * document["seconds"]}))
    main(["--calibrate", small, "--check", large])
    rows = {row[0]: row[1:] for line in capsys.readouterr().out.splitlines() if len(row := line.split()) == 4}
    assert rows["frames"][2] == "-50"


def test_the_three_sizes_are_planned_without_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--calibrate", write_workspace(tmp_path / "small", 20)])
    printed = capsys.readouterr().out
    for name in ("MSR-VTT", "1M videos", "100M videos"):
        assert name in printed


def test_a_workspace_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no finished run"):
        Finished.read(str(tmp_path))
