"""Functions run on several ranks, each a real process, over gloo on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from pipelines.train.estimator import EstimatorTask
from pipelines.train.retrieval import RetrievalTask
from pipelines.train.video_qa import VideoQATask


def run_ranks(function: Callable[..., Any], folder: Path, *arguments: Any, world_size: int) -> list[Any]:
    """Returns what ``function(*arguments)`` returned on each rank; tensors and plain values only."""
    # The ranks are copies of one process, without threads, that has loaded what takes long to load.
    set_forkserver_preload([task.__module__ for task in (EstimatorTask, RetrievalTask, VideoQATask)])
    given = (world_size, folder, function, arguments)
    multiprocessing.start_processes(_rank, given, nprocs=world_size, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    # A file as meeting place: no port that another test could take first.
    # Ranks that miss each other in a collective fail, instead of waiting for half an hour.
    patience = timedelta(minutes=3)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=patience)
    try:
        torch.save(function(*arguments), folder / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()
