"""Trainings in processes of their own, each with one thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.study.arms import ARMS
from benchmarks.study.features import Split, read_features
from benchmarks.study.heads import Training, train_heads
from hbi_models.retrieval import RetrievalModel
from pipelines.models.weights import load_model
from pipelines.workspace.storage import Storage


@dataclass(frozen=True)
class Cell:
    """One training."""

    data: str
    arm: str
    seed: int


@dataclass(frozen=True)
class Job:
    """A training with what it needs."""

    cell: Cell
    features: Path
    encoder: str
    training: Training
    device: str


def run_jobs(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Cell, dict[str, Any] | Exception]]:
    """Runs the jobs in their order, ``processes`` at a time; yields what was measured, or what went wrong."""
    if not jobs:
        return
    # Spawned, because a process with CUDA or with PyTorch's threads cannot be forked safely.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start) as pool:
        left = iter(jobs)
        running: dict[Future[dict[str, Any]], Cell] = {}
        try:
            while True:
                # A job is submitted only when a process is free, so an interrupted study has no queue to give up.
                while len(running) < processes and (job := next(left, None)) is not None:
                    running[pool.submit(do, job)] = job.cell
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    error = future.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    # An error is handed on, not raised, so that one failed training costs none of the others.
                    yield running.pop(future), error if error is not None else future.result()
        finally:
            # Without waiting, so that an interrupt is not held up by trainings that run; they are made again.
            pool.shutdown(wait=False, cancel_futures=True)


def do(job: Job) -> dict[str, Any]:
    """One training."""
    return train_heads(
        ARMS[job.cell.arm],
        _features(job.features),
        _encoder(job.encoder),
        seed=job.cell.seed,
        training=job.training,
        device=torch.device(job.device),
    )


@cache
def _features(path: Path) -> dict[str, Split]:
    return read_features(path)


@cache
def _encoder(place: str) -> RetrievalModel:
    return load_encoder(place)


def load_encoder(place: str) -> RetrievalModel:
    """The retrieval model in a folder of ours."""
    with TemporaryDirectory() as scratch:
        return load_model(Storage(place), Path(scratch))


def _start() -> None:
    torch.set_num_threads(1)
    # Attention and softmaxes give denormal numbers, which processors handle slowly.
    torch.set_flush_denormal(True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A study that is killed leaves no process behind."""
    parent = parent_process()
    if parent is not None:
        # Becomes ready when the parent ends, however it ends.
        wait_for([parent.sentinel])
        os._exit(1)
