"""What stages take of a cluster with four CPUs and no GPU, and what is refused there."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from pipelines.recipe.resources import ActorResources, ResourcesConfig, TaskResources, TrainResources
from pipelines.resources import allotment, ray_session
from pipelines.resources.allotment import allot, describe, need_ray
from pipelines.resources.ray_session import actors_that_fit, ray_options

STAGES = ("manifest", "frames", "labels", "retrieval", "evaluation")


@pytest.fixture(autouse=True)
def _cluster(ray_local: Any) -> None:
    """Four CPUs."""


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (TaskResources(), "as many tasks as fit, each 1 CPUs"),
        (TaskResources(max_tasks=3, memory_gb_per_task=2), "3 tasks (recipe), each 1 CPUs, 2 GB (recipe)"),
        (TaskResources(gpus_per_task=0.1), "as many tasks as fit, each 1 CPUs, 0.1 GPUs (recipe)"),
        (TaskResources(max_tasks=0), "this process (recipe)"),
        (ActorResources(max_actors=0), "this process (recipe)"),
        (ActorResources(), "1 to 4 actors (derived), each 1 CPUs, 0 GPUs (derived)"),
        (ActorResources(cpus_per_actor=3), "1 to 1 actors (derived), each 3 CPUs, 0 GPUs (derived)"),
        (
            ActorResources(min_actors=2, max_actors=6, gpus_per_actor=1),
            "2 to 6 actors (recipe), each 1 CPUs, 1 GPUs (recipe)",
        ),
        (TrainResources(workers=2), "2 workers (recipe), each 1 CPUs, 0 GPUs (derived)"),
        (
            TrainResources(gpus_per_worker=1, cpus_per_worker=7, memory_gb_per_worker=24),
            "1 workers (recipe), each 7 CPUs, 1 GPUs (recipe), 24 GB (recipe)",
        ),
    ],
)
def test_numbers_come_with_their_source(resources: Any, text: str) -> None:
    assert describe(resources) == text


def test_every_stage_that_takes_something_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipelines.resources.allotment"):
        allot(STAGES, ResourcesConfig())
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("the cluster has 4 CPUs, 0 GPUs")
    assert [line.split()[0] for line in said[1:5]] == ["frames", "labels", "retrieval", "evaluation"]
    assert said[5] == "the cluster has too few GPUs for labels, retrieval, evaluation: the work is done on CPUs"


def test_cpus_are_refused_where_gpus_are_demanded() -> None:
    with pytest.raises(
        ValueError, match=r"resources.require_gpus is true .* 0 GPUs: labels, retrieval, evaluation would"
    ):
        allot(STAGES, ResourcesConfig(require_gpus=True))
    # Nodes that start on demand are not there yet: what is named is waited for.
    named = ActorResources(gpus_per_actor=1)
    allot(
        STAGES,
        ResourcesConfig(require_gpus=True, labels=named, evaluation=named, retrieval=TrainResources(gpus_per_worker=1)),
    )
    allot(("frames",), ResourcesConfig(require_gpus=True))


HERE = {
    "decode": TaskResources(max_tasks=0),
    **{name: ActorResources(max_actors=0) for name in ("labels", "evaluation")},
    "retrieval": TrainResources(workers=0),
}


def test_ray_is_needed_for_tasks_actors_and_workers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ResourcesConfig(**HERE)
    assert not need_ray((*STAGES, "shapes", "zero_shot", "probe", "report"), here)
    for stage, other in (
        ("shapes", {"decode": TaskResources()}),
        ("zero_shot", {"evaluation": ActorResources()}),
        ("retrieval", {"retrieval": TrainResources()}),
    ):
        assert need_ray(("manifest", stage), replace(here, **other))
        assert not need_ray(("manifest", "labels"), replace(here, **other))
    # A cluster that is named is used, and asked for the GPUs that are demanded.
    assert need_ray(("manifest",), replace(here, ray_address="somewhere:6379"))
    assert need_ray(("manifest",), replace(here, require_gpus=True))
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert need_ray(("manifest",), here)


def test_no_gpu_asked_for_is_no_gpu_missed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pipelines.resources.allotment"):
        allot(("retrieval",), ResourcesConfig(retrieval=TrainResources(gpus_per_worker=0)))
    assert not caplog.records


def test_workers_of_which_only_some_would_have_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allotment, "cluster_gpus", lambda: 1.0)
    monkeypatch.setattr(ray_session, "cluster_gpus", lambda: 1.0)
    with pytest.raises(ValueError, match=r"resources.retrieval.workers is 2 and the cluster has 1 GPUs, too few"):
        allot(("retrieval",), ResourcesConfig(retrieval=TrainResources(workers=2)))
    for gpus in (0, 0.5):
        allot(("retrieval",), ResourcesConfig(retrieval=TrainResources(workers=2, gpus_per_worker=gpus)))
    allot(("retrieval",), ResourcesConfig(retrieval=TrainResources(workers=1)))


def test_memory_bounds_the_number_of_actors(ray_local: Any) -> None:
    memory_gb = ray_local.cluster_resources()["memory"] / 1e9
    assert actors_that_fit(ActorResources(cpus_per_actor=0.1, memory_gb_per_actor=memory_gb / 2.5)) == (0, 2)
    assert actors_that_fit(ActorResources(memory_gb_per_actor=2 * memory_gb, min_actors=1)) == (0, 1)


def test_what_is_asked_for_is_what_ray_sets_aside(ray_local: Any) -> None:
    assigned = ray_local.remote(lambda: ray_local.get_runtime_context().get_assigned_resources())
    given = ray_local.get(assigned.options(**ray_options(2, 0, 0.5)).remote())
    assert given == {"CPU": 2, "memory": 0.5e9}


TOO_LARGE = [
    ("retrieval", {"retrieval": TrainResources(workers=5)}, "5 CPUs at once"),
    ("frames", {"decode": TaskResources(cpus_per_task=6)}, "6 CPUs at once"),
    ("frames", {"decode": TaskResources(gpus_per_task=0.5)}, "0.5 GPUs at once"),
    ("labels", {"labels": ActorResources(min_actors=3, cpus_per_actor=2)}, "6 CPUs at once"),
    ("evaluation", {"evaluation": ActorResources(gpus_per_actor=1)}, "1 GPUs at once"),
    ("probe", {"evaluation": ActorResources(gpus_per_actor=1)}, "1 GPUs at once"),
]


@pytest.mark.parametrize(("stage", "resources", "words"), TOO_LARGE)
def test_what_never_fits_is_refused_where_no_node_can_join(
    stage: str, resources: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.resources.ray_session._fixed", True)
    section = {"frames": "decode", "probe": "evaluation"}.get(stage, stage)
    with pytest.raises(
        ValueError, match=rf"{stage} takes {words} .*there are [04]; lower what resources.{section} asks"
    ):
        allot([stage], ResourcesConfig(**resources))


@pytest.mark.parametrize(("stage", "resources", "words"), TOO_LARGE)
def test_what_does_not_fit_yet_is_waited_for_on_a_cluster(
    stage: str, resources: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pipelines.resources.allotment"):
        allot([stage], ResourcesConfig(**resources))
    assert any(words in record.getMessage() and "it waits" in record.getMessage() for record in caplog.records)
