"""Settings of the machines: what each stage takes of the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from hbi_models.config_fields import require
from pipelines.recipe.checks import require_counts


@dataclass(frozen=True, kw_only=True)
class TaskResources:
    """Machines for one stage of independent tasks without a model."""

    max_tasks: int | None = None
    """Most tasks at once; null = as many as fit on the cluster; 0 = none: the process of the command itself does the
    work, one shard after another, where a debugger reaches it."""

    cpus_per_task: float = 1.0
    gpus_per_task: float = 0.0
    """Part of a GPU set aside for one task, for ``frames.decoder`` nvdec: 0.1 = ten tasks share a GPU."""

    memory_gb_per_task: float | None = None
    """GB (10⁹ bytes) set aside for one task, so that no more start on a node than it has room for; null = none."""

    def __post_init__(self) -> None:
        require_counts(self, "resources", "max_tasks", least=0)


@dataclass(frozen=True, kw_only=True)
class TrainResources:
    """Machines for one training stage."""

    workers: int = 1
    """Processes that train together (DDP). 0 = train in the process of the command itself: a debugger works there, but
    nothing is restarted after a crash."""

    cpus_per_worker: float = 1.0
    """Cores set aside for one worker, which computes in as many threads, unless ``OMP_NUM_THREADS`` says otherwise."""

    gpus_per_worker: float | None = None
    """Null = 1 if the cluster has at least one GPU per worker, else 0. Set it where GPU nodes are started on demand:
    the stage then waits for them."""

    memory_gb_per_worker: float | None = None
    """GB (10⁹ bytes) set aside for one worker; null = none."""

    loader_processes: int = 0
    """Processes per worker that read, decode and augment; 0 = a thread inside the worker."""

    pairs_at_once: int | None = None
    """Pairs of a worker that pass through the model at once, so that a batch fits a small GPU; null = all of the
    worker's. Loss and gradients are those of the whole batch, every product is computed twice. Only for
    trainings on pairs of videos and texts."""

    max_failures: int = 3
    """Restarts of the worker group after a worker or node died."""

    def __post_init__(self) -> None:
        require_counts(self, "resources", "workers", "loader_processes", "max_failures", least=0)
        require_counts(self, "resources", "pairs_at_once")


@dataclass(frozen=True, kw_only=True)
class ActorResources:
    """Machines for one stage that maps over data with a model in each actor."""

    min_actors: int = 1
    """Actors that the stage begins with, if there is work for that many."""

    max_actors: int | None = None
    """Null = as many as fit on the nodes that are there when the stage begins, at least one. Set it where nodes are
    started on demand. 0 = none: the process of the command itself does the work, where a debugger reaches it."""

    cpus_per_actor: float = 1.0
    gpus_per_actor: float | None = None
    """Null = 1 if the cluster has a GPU, else 0. Set it where GPU nodes are started on demand: the stage then waits for
    them."""

    memory_gb_per_actor: float | None = None
    """GB (10⁹ bytes) set aside for one actor; null = none."""

    def __post_init__(self) -> None:
        require_counts(self, "resources", "min_actors")
        require_counts(self, "resources", "max_actors", least=0)
        require(
            not self.max_actors or self.min_actors <= self.max_actors,
            f"resources: min_actors is {self.min_actors} and max_actors is {self.max_actors}; the least must not be "
            "above the most",
        )


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """How much of the cluster each stage takes. Nothing here changes a result."""

    ray_address: str | None = None
    """Address of a running cluster; null = RAY_ADDRESS, else a local Ray is started if a stage has tasks, actors or
    workers."""

    local_cpus: int | None = None
    """CPUs of a local Ray; null = all of the machine."""

    local_object_store_gb: float = 0.5
    """Shared memory of a local Ray, in GB (10⁹ bytes). Frames never pass through it, so it can be small."""

    require_gpus: bool = False
    """Refuse to run stages with a model on a cluster without GPUs, unless their number of GPUs is set. False: such a
    stage runs on CPUs, and the log says so."""

    decode: TaskResources = field(default_factory=TaskResources)
    """Of the stages that write and decode videos."""

    features: ActorResources = field(default_factory=ActorResources)
    labels: ActorResources = field(default_factory=ActorResources)
    estimator: TrainResources = field(default_factory=TrainResources)
    retrieval: TrainResources = field(default_factory=TrainResources)
    evaluation: ActorResources = field(default_factory=ActorResources)
    video_qa: TrainResources = field(default_factory=TrainResources)
    qa_evaluation: ActorResources = field(default_factory=ActorResources)
    index: ActorResources = field(default_factory=ActorResources)
    """Of the index for search (``jobs.index``)."""
