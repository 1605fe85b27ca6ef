"""Predicts time, storage, network and bottleneck of a run from a small one on machines of the same kind.

    python -m benchmarks.plan_cluster --calibrate workspace/small --check workspace/larger
    python -m benchmarks.plan_cluster --calibrate workspace/small --cores 256 --actors 8 --workers 8 --network_gbit 80

A finished workspace tells what a unit of a stage's work takes one core, actor or worker: decoding and labelling
from the tasks' own time, training from its curves. What a stage takes besides (starting processes, loading
models, validating) is its fixed cost. A larger run takes

    fixed + max(units × seconds per unit ÷ (cores, actors or workers), bytes ÷ network)

``--check`` predicts a second, larger workspace of the same recipe on the same machines and prints the error. The
rates are those of what was calibrated on: to plan for GPUs, calibrate with a small run on such GPUs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.datasets.video_files import find_files
from pipelines.progress import format_seconds
from pipelines.tables import table
from pipelines.train.files import HISTORY
from pipelines.workspace.artifact import ARTIFACT
from pipelines.workspace.records import MANIFEST_FILE
from pipelines.workspace.runs import read_runs
from pipelines.workspace.storage import Storage

DATA_SETS = {"MSR-VTT": 10_000, "1M videos": 1_000_000, "100M videos": 100_000_000}
DEFAULT_CORES = 2


@dataclass(frozen=True)
class Cluster:
    """What works beside each other, and how fast bytes travel."""

    cores: float
    """For decoding."""
    actors: float
    """For labels."""
    workers: float
    """For training."""
    network_gbit: float = 0.0
    """Between storage and all nodes together; 0 = no limit."""
    driver: float = 1.0
    """There is one."""


@dataclass(frozen=True)
class Rate:
    """What a stage took, and what that means for other sizes."""

    stage: str
    on: str
    """Which of the cluster's numbers divides the work."""
    units: float
    """Units of work per video."""
    seconds: float
    """For one unit, on one core, actor or worker."""
    fixed_s: float
    read_bytes: float = 0.0
    """From storage, per unit."""
    written_bytes: float = 0.0
    """Kept in storage, per video."""

    def predict(self, videos: float, cluster: Cluster) -> Prediction:
        units = self.units * videos
        work_s = units * self.seconds / getattr(cluster, self.on)
        moved = units * self.read_bytes + videos * self.written_bytes
        transfer_s = moved * 8e-9 / cluster.network_gbit if cluster.network_gbit else 0.0
        parts = {self.on: work_s, "network": transfer_s, "start": self.fixed_s}
        return Prediction(
            self.stage,
            self.fixed_s + max(work_s, transfer_s),
            max(parts, key=lambda name: parts[name]),
            moved,
            videos * self.written_bytes,
        )


@dataclass(frozen=True)
class Prediction:
    """A stage of a run that has not been made."""

    stage: str
    seconds: float
    bound: str
    """What most of the time goes to."""
    moved_bytes: float
    kept_bytes: float


@dataclass(frozen=True)
class Finished:
    """The latest finished run of a workspace."""

    artifacts: Mapping[str, Mapping[str, Any]]
    folders: Mapping[str, Storage]

    @classmethod
    def read(cls, uri: str) -> Finished:
        workspace = Storage(uri)
        for record in read_runs(workspace):
            folders = {name: workspace.folder(name, fingerprint) for name, fingerprint in record.stages.items()}
            if all(folder.exists(ARTIFACT) for folder in folders.values()):
                return cls({name: folder.read_json(ARTIFACT) for name, folder in folders.items()}, folders)
        raise SystemExit(f"{workspace.uri} holds no finished run; run a recipe there first")

    def counts(self, stage: str) -> Mapping[str, float]:
        counts: Mapping[str, float] = self.artifacts[stage]["counts"]
        return counts

    @property
    def recipe(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.artifacts["frames"]["config"]
        return config

    @property
    def videos(self) -> float:
        return self.counts("manifest")["rows"]

    def cluster(self, cores: float | None) -> Cluster:
        """What it ran on, as its recipe says."""
        resources = self.recipe["resources"]
        cores = cores or resources["local_cpus"] or DEFAULT_CORES
        return Cluster(cores, resources["labels"]["max_actors"] or cores, resources["retrieval"]["workers"])

    def rates(self, cluster: Cluster) -> list[Rate]:
        """What each stage took on ``cluster``; what does not grow with the data is fixed."""
        frames, stored = self.counts("frames"), self.counts("frames")["work/bytes"] / self.counts("frames")["work/rows"]
        rates = [
            Rate("manifest", "driver", 1.0, self.seconds("manifest") / self.videos, 0.0),
            self._rate("frames", "cores", frames["work/rows"], frames["work/seconds"], cluster),
        ]
        rates[-1] = replace(rates[-1], read_bytes=self._source_bytes(), written_bytes=stored)
        if "labels" in self.artifacts:
            labels = self.counts("labels")
            rate = self._rate("labels", "actors", labels["work/pairs"], labels["work/seconds"], cluster)
            read, written = stored * labels["work/rows"] / labels["work/pairs"], labels["work/bytes"] / self.videos
            rates.append(replace(rate, read_bytes=read, written_bytes=written))
        for stage in ("estimator", "retrieval", "video_qa"):
            if stage in self.artifacts and (pairs := self._pairs(stage)):
                # Throughput is that of all workers together, and a rate is for one.
                seconds = pairs * _seconds_per_pair(self.folders[stage]) * cluster.workers
                rate = self._rate(stage, "workers", pairs, seconds, cluster)
                # The estimator learns from labels; the others read a video's frames for each of its texts.
                rates.append(rate if stage == "estimator" else replace(rate, read_bytes=stored))
        known = {"shapes", *(rate.stage for rate in rates)}
        return rates + [
            Rate(name, "driver", 0.0, 0.0, self.seconds(name)) for name in self.artifacts if name not in known
        ]

    def seconds(self, stage: str) -> float:
        return float(self.artifacts[stage]["seconds"])

    def _rate(self, stage: str, on: str, units: float, work_s: float, cluster: Cluster) -> Rate:
        # What the stage's time leaves when its work is spread evenly.
        fixed = max(0.0, self.seconds(stage) - work_s / getattr(cluster, on))
        return Rate(stage, on, units / self.videos, work_s / units, fixed)

    def _pairs(self, stage: str) -> float:
        return self.counts(stage).get("steps", 0) * self.recipe[stage]["batch_size"]

    def _source_bytes(self) -> float:
        """Mean size of a video file."""
        manifest = self.folders["manifest"].read_table(MANIFEST_FILE, columns=["uri"])
        found = find_files(manifest.column("uri").to_pylist()).files
        return sum(file.size for file in found.values()) / max(len(found), 1)


def _seconds_per_pair(folder: Storage) -> float:
    """Of all workers together, by the training's curve; without its first point, in which everything starts."""
    points = [json.loads(line) for line in folder.read_bytes(HISTORY).splitlines()]
    seconds = [1 / point["throughput/pairs_per_s"] for point in points if point.get("throughput/pairs_per_s")]
    later = seconds[1:] or seconds
    return sum(later) / len(later)


def prediction_table(predictions: Sequence[Prediction]) -> str:
    rows = [
        [each.stage, format_seconds(each.seconds), each.bound, _size(each.moved_bytes), _size(each.kept_bytes)]
        for each in predictions
    ]
    total = sum(each.seconds for each in predictions)
    moved, kept = (sum(getattr(each, name) for each in predictions) for name in ("moved_bytes", "kept_bytes"))
    rows.append(["all", format_seconds(total), "", _size(moved), _size(kept)])
    return table(["stage", "time", "bound by", "over the network", "kept"], rows)


def check_table(predictions: Sequence[Prediction], real: Finished) -> str:
    """Predicted and real seconds of every stage, and how far the prediction is off."""
    rows = [_error(each.stage, each.seconds, real.seconds(each.stage)) for each in predictions]
    rows.append(_error("all", *(sum(float(row[column]) for row in rows) for column in (1, 2))))
    return table(["stage", "predicted s", "real s", "error %"], rows)


def _error(name: str, predicted: float, real: float) -> list[str]:
    return [name, f"{predicted:.1f}", f"{real:.1f}", f"{100 * (predicted / real - 1):.0f}" if real else "0"]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibrate", required=True, help="a finished workspace")
    parser.add_argument("--calibrated_cores", type=float, help="what it ran on, if its recipe does not say it")
    parser.add_argument("--check", help="a larger finished workspace of the same recipe and machines")
    parser.add_argument("--videos", type=float, help="size of the run to plan; default: three sizes")
    parser.add_argument("--cores", type=float, help="cores for decoding; default: as calibrated, like the next two")
    parser.add_argument("--actors", type=float, help="actors for labels, one per GPU")
    parser.add_argument("--workers", type=float, help="training workers, one per GPU")
    parser.add_argument("--network_gbit", type=float, default=0.0, help="from storage to all nodes together, Gbit/s")
    options = parser.parse_args(arguments)
    small = Finished.read(options.calibrate)
    ran_on = small.cluster(options.calibrated_cores)
    rates = small.rates(ran_on)
    if options.check:
        larger = Finished.read(options.check)
        predictions = [rate.predict(larger.videos, ran_on) for rate in rates]
        print(f"{small.videos:,.0f} videos calibrate, {larger.videos:,.0f} videos check\n")
        print(check_table(predictions, larger))
        return
    chosen = {name: getattr(options, name) or getattr(ran_on, name) for name in ("cores", "actors", "workers")}
    cluster = Cluster(**chosen, network_gbit=options.network_gbit)
    sizes = {f"{options.videos:,.0f} videos": options.videos} if options.videos else DATA_SETS
    for name, videos in sizes.items():
        predictions = [rate.predict(videos, cluster) for rate in rates]
        print(f"{name}: {videos:,.0f} videos on {cluster}\n\n{prediction_table(predictions)}\n")


if __name__ == "__main__":
    main()
