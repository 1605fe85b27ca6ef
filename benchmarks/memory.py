"""Memory of the driver and of each worker against the number of videos, while frames and labels are made.

    python -m benchmarks.memory [--videos 1000 5000 20000] [--plot memory.png] [--folder FOLDER]

Runs the stages up to the labels, each time in a fresh workspace, on that many tiny generated videos (links to
a few files), and looks twice a second at the memory of every process: what it holds alone, and its share of
what it holds with others, such as the object store. Pages of files, mostly libraries, are not counted: a
process's share of them depends on what else runs on the machine. The table gives the largest of any process of a
kind; the plot also shows the course of the longest run. Linux only, for the sizes are those of /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.clips import generated_clips, link_videos
from pipelines.recipe.data import ShapesConfig
from pipelines.tables import table

DISTINCT, FRAMES, IMAGE_PX = 16, 4, 32
EVERY_S = 0.5
KINDS = {
    "MapWorker(": "labelling actor",
    "MapBatches(": "decoding worker",
    "decode_child": "decoding process",
    "raylet/raylet": "raylet",
}
"""What a process is, by a part of its command line; Ray names a worker after what it runs."""

Course = list[tuple[float, float]]
"""(seconds since the start, largest size in MB)."""


@dataclass(frozen=True)
class Run:
    """What one run took."""

    videos: int
    seconds: float
    stage_seconds: float
    """Of the stages frames and labels alone, without the start of Python and Ray."""
    courses: Mapping[str, Course]
    """By kind of process."""

    def peak_mb(self, kind: str) -> float:
        return max((size for _, size in self.courses.get(kind, [])), default=float("nan"))


def write_videos(folder: Path, videos: int) -> Path:
    """Links so many videos into ``folder``; returns the path of a recipe that reads them."""
    config = ShapesConfig(train_videos=DISTINCT, test_videos=1, image_size_px=IMAGE_PX, duration_s=1.0, fps=FRAMES)
    captions, _ = link_videos(folder, generated_clips(folder / "clips", config), videos)
    recipe = {
        "workspace": str(folder / "workspace"),
        "data": {
            "dataset": "captions_file",
            "annotations": str(captions),
            "videos": str(captions.parent / "videos"),
            "validation_videos": 0,
        },
        "frames": {"fps": FRAMES, "max_frames": FRAMES, "short_side_px": 64},
        "model": {
            "clip": {"architecture": "shapes-tiny", "pretrained": None, "freeze_patch_embedding": False},
            "temporal": {"layers": 1},
            "max_words": 24,
            "max_frames": FRAMES,
        },
        "resources": {"local_cpus": 2, "labels": {"max_actors": 1}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def measure(videos: int, folder: Path) -> Run:
    """Runs the stages up to the labels and watches their processes."""
    recipe = write_videos(folder, videos)
    line = [sys.executable, "-m", "jobs.run", "--config", str(recipe), "--until_stage", "labels"]
    started = time.monotonic()
    kinds: dict[int, str] = {}
    courses: dict[str, Course] = {}
    with (folder / "output.txt").open("w") as output, subprocess.Popen(line, stdout=output, stderr=output) as driver:
        kinds[driver.pid] = "driver"
        while driver.poll() is None:
            now, largest = time.monotonic() - started, dict[str, float]()
            for pid in (driver.pid, *_descendants(driver.pid)):
                # Asked until it is known: Ray starts a worker first and names it after its task later.
                kind = kinds.get(pid) or _kind(pid)
                if kind is not None:
                    kinds[pid] = kind
                    largest[kind] = max(largest.get(kind, 0.0), _size_mb(pid))
            for kind, size in largest.items():
                courses.setdefault(kind, []).append((now, size))
            time.sleep(EVERY_S)
    if driver.returncode:
        raise RuntimeError(f"the run failed: {(folder / 'output.txt').read_text()[-2000:]}")
    seconds = time.monotonic() - started
    artifacts = [next(folder.glob(f"workspace/{stage}/*/artifact.json")) for stage in ("frames", "labels")]
    stage_seconds = sum(json.loads(artifact.read_bytes())["seconds"] for artifact in artifacts)
    return Run(videos, seconds, stage_seconds, courses)


def _kind(pid: int) -> str | None:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return next((kind for part, kind in KINDS.items() if part in command), None)
    return None


def _size_mb(pid: int) -> float:
    """Proportional set size of a process without the pages of files; 0 if it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1e3
    return 0.0


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _descendants(child)


def plot(runs: list[Run], path: str) -> None:
    """Peaks against the number of videos, and the course of the longest run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (peaks, course) = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for kind in ("driver", *KINDS.values()):
        peaks.plot([run.videos for run in runs], [run.peak_mb(kind) for run in runs], marker="o", label=kind)
        points = runs[-1].courses.get(kind, [])
        course.plot([seconds for seconds, _ in points], [size for _, size in points])
    peaks.set(xlabel="videos", ylabel="largest process of a kind, MB", ylim=(0, None), xlim=(0, None))
    course.set(xlabel=f"seconds into the run with {runs[-1].videos:,} videos")
    peaks.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--plot", default="memory.png", help="The picture to write.")
    parser.add_argument("--folder", help="Where the videos and workspaces go for a while; by default the system's.")
    options = parser.parse_args()
    runs = []
    for videos in sorted(options.videos):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            run = measure(videos, Path(folder))
        # The next takes longer: what is known is said at once.
        print(
            f"{videos:,} videos:", ", ".join(f"{kind} {run.peak_mb(kind):.0f} MB" for kind in run.courses), flush=True
        )
        runs.append(run)
    kinds = ["driver", *KINDS.values()]
    print("Largest process of a kind, MB")
    rows = [[f"{run.videos:,}", f"{run.seconds:.0f}", *(f"{run.peak_mb(kind):.0f}" for kind in kinds)] for run in runs]
    print(table(["videos", "seconds", *kinds], rows))
    plot(runs, options.plot)
    print(f"\nPlot: {options.plot}")


if __name__ == "__main__":
    main()
