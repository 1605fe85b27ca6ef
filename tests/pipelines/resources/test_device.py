"""Where a process computes: what Ray gave it, and no GPU of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipelines.resources import device
from pipelines.resources.device import CPU, arithmetic, compute_device, require_precision, with_gpus


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which PyTorch sees GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


def given(monkeypatch: pytest.MonkeyPatch, ids: list[str] | None, visible: str | None = None) -> None:
    monkeypatch.setattr(device, "_given_by_ray", lambda: ids)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_outside_of_ray_it_is_the_first_gpu_or_the_cpu(gpus: pytest.MonkeyPatch) -> None:
    given(gpus, None)
    assert compute_device() == torch.device("cuda", 0)
    gpus.setattr(torch.cuda, "is_available", lambda: False)
    assert compute_device() == CPU


def test_a_worker_without_a_gpu_takes_none_that_it_sees(gpus: pytest.MonkeyPatch) -> None:
    given(gpus, [], visible="0,1")
    assert compute_device() == CPU


@pytest.mark.parametrize(
    ("ids", "visible", "place"),
    [(["3"], "3", 0), (["3"], "0,1,2,3", 3), (["2"], None, 2), (["GPU-a"], "GPU-b, GPU-a", 1)],
)
def test_a_worker_takes_the_gpu_that_it_was_given(
    gpus: pytest.MonkeyPatch, ids: list[str], visible: str | None, place: int
) -> None:
    given(gpus, ids, visible)
    assert compute_device() == torch.device("cuda", place)


def test_the_process_of_the_command_takes_no_gpu_where_the_recipe_says_so(gpus: pytest.MonkeyPatch) -> None:
    given(gpus, None)
    with with_gpus(0):
        assert compute_device() == CPU
    for some in (None, 0.5, 1):
        with with_gpus(some):
            assert compute_device() == torch.device("cuda", 0)


def test_a_gpu_that_cannot_be_used_is_said(gpus: pytest.MonkeyPatch) -> None:
    given(gpus, ["5"], visible="0,1")
    with pytest.raises(RuntimeError, match="shows it 0,1"):
        compute_device()
    gpus.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"gave this process GPU 5, and PyTorch .* cannot use it"):
        compute_device()


def test_ray_is_asked_in_its_workers_and_not_in_the_driver(ray_local: Any) -> None:
    assert device._given_by_ray() is None
    worker = ray_local.remote(num_cpus=1)(lambda: (device._given_by_ray(), str(compute_device())))
    assert ray_local.get(worker.remote()) == ([], "cpu")


def test_imitated_bfloat16_is_refused(gpus: pytest.MonkeyPatch) -> None:
    asked = {}

    def is_supported(including_emulation: bool = True) -> bool:
        asked["emulated"] = including_emulation
        return including_emulation

    gpus.setattr(torch.cuda, "is_bf16_supported", is_supported)
    gpus.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    cuda = torch.device("cuda", 0)
    with pytest.raises(ValueError, match=r"bfloat16, and Tesla T4 can only imitate it.*float16"):
        require_precision("bfloat16", cuda)
    assert asked == {"emulated": False}
    for precision in ("float16", "float32"):
        require_precision(precision, cuda)  # type: ignore[arg-type]
    require_precision("bfloat16", CPU)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_products_are_computed_in_the_stated_precision(precision: Any) -> None:
    with arithmetic(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, precision)
