"""What a piece of work takes beyond what its process held before: resident memory, the kernel's own count."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_extra_mb(work: Callable[[], object]) -> float:
    """Megabytes between the resident set before ``work`` and its largest size meanwhile. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to the present size
    # Read after the reset, because the high-water mark starts from here.
    before = _status_mb("VmRSS")
    work()
    return _status_mb("VmHWM") - before


def in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What ``function`` returns in a fresh process, whose allocator no earlier work has filled."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e3
