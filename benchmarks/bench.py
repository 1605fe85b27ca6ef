"""One table of what is fast and by how much: ours against honest baselines, side by side in one run.

    python -m benchmarks.bench [--only GROUP ...] [--write]

Each group of rows runs in a process of its own with a fixed number of threads. Results are compared before time is:
the status is 1 when they differ, and 0 whether or not targets are met. A whole run writes benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.rows import ResultsDifferError, Row
from pipelines.tables import table

GROUPS = {
    "labels": 2,
    "retrieval_step": 2,
    "evaluation": 2,
    "frames": 1,
    "decoding_per_epoch": 1,
    "training_input": 1,
    "slow_store": 1,
    "ddp": 1,
    "growing": 1,
    "startup": 1,
}
"""Modules of this folder, and threads of each of their processes: 1 where a group starts as many as there are cores."""

RESULTS = Path(__file__).parent / "RESULTS.md"
HEADER = ["what", "baseline", "baseline takes", "ours takes", "ratio", "target", "met"]
LIBRARIES = ("torch", "numpy", "ray", "decord", "av", "pyarrow", "open_clip_torch")


@dataclass(frozen=True)
class Failure:
    """Why a group ended early."""

    message: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="GROUP", choices=list(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} although only some groups run")
    options = parser.parse_args(arguments)
    names = options.only or list(GROUPS)
    started = time.monotonic()
    rows: list[Row] = []
    failures: list[Failure] = []
    for name in names:
        for result in run_group(name):
            elapsed = time.monotonic() - started
            if isinstance(result, Failure):
                failures.append(result)
                print(f"[{elapsed:4.0f} s] {name}: {result.message}", flush=True)
            else:
                rows.append(result)
                print(f"[{elapsed:4.0f} s] {' | '.join(result.cells())}", flush=True)
    print("\n" + table(HEADER, [row.cells() for row in rows]))
    if failures:
        print("\n" + "\n".join(failure.message for failure in failures))
        return 1
    if options.write or options.only is None:
        RESULTS.write_text(results_document(rows, names, time.monotonic() - started), encoding="utf-8")
        print(f"\nWritten: {RESULTS}")
    return 0


def run_group(name: str) -> Iterator[Row | Failure]:
    """Rows of a group as they come from its process, and the reason where it ends early."""
    # Before the process starts, because libraries read it when they are loaded.
    os.environ["OMP_NUM_THREADS"] = str(GROUPS[name])
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
        process = context.Process(target=send_rows, args=(name, Path(folder), sender))
        process.start()
        # The process holds the only sender now, so that its end, also by a crash, ends the loop.
        sender.close()
        with suppress(EOFError):
            while True:
                yield receiver.recv()
        process.join()
    if process.exitcode:
        yield Failure(f"{name}: its process ended with status {process.exitcode}")


def send_rows(name: str, folder: Path, sender: Connection) -> None:
    """What the process of a group does."""
    try:
        for row in import_module(f"benchmarks.{name}").rows(folder):
            sender.send(row)
    except ResultsDifferError as error:
        sender.send(Failure(f"{name}: results differ from the baseline's: {error}"))
    except Exception:  # noqa: BLE001 - whatever it is, the other groups still run
        traceback.print_exc()
        sender.send(Failure(f"{name}: failed, see above"))


def results_document(rows: Sequence[Row], names: Sequence[str], seconds: float) -> str:
    """``RESULTS.md``: the machine, the versions, and the table."""
    command = (
        "make bench" if list(names) == list(GROUPS) else f"python -m benchmarks.bench --only {' '.join(names)} --write"
    )
    lines = [
        "# Results of the benchmarks",
        "",
        f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}, in {seconds / 60:.0f} minutes. Times are "
        "medians (smallest–largest) of runs made in turns with the baseline's; a ratio is that of each pair of runs, "
        "and its median decides whether the target is met. What was tried, and why a row falls short, is in "
        "[LOG.md](LOG.md).",
        "",
        f"- Machine: {machine()}",
        f"- Versions: {', '.join(versions())}",
        f"- Commit: {commit()}",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def machine() -> str:
    model = platform.processor() or platform.machine()
    memory = ""
    with suppress(OSError):
        names = [line.split(":")[1].strip() for line in read_lines("/proc/cpuinfo") if line.startswith("model name")]
        model = names[0] if names else model
        kilobytes = next(int(line.split()[1]) for line in read_lines("/proc/meminfo") if line.startswith("MemTotal"))
        memory = f", {kilobytes / 2**20:.0f} GiB of memory"
    return f"{model}, {os.cpu_count()} cores{memory}, {platform.system()}"


def versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            yield f"{library} {version(library)}"


def commit() -> str:
    """The commit of the working tree, and whether there are changes."""
    try:
        name = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return f"{name} with uncommitted changes" if changed else name


def git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def read_lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


if __name__ == "__main__":
    sys.exit(main())
