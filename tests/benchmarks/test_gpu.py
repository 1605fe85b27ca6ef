"""The benchmark of a GPU: every path of it on the CPU with tiny sizes, and nothing claimed without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.rows import ResultsDifferError
from hbi_models.configs import ClipConfig, TemporalConfig
from tests.hbi_models.tiny_model import write_architecture

CPU = torch.device("cpu")


@pytest.fixture(name="sizes")
def tiny_sizes(tmp_path: Path) -> gpu.Sizes:
    clip = ClipConfig(architecture=write_architecture(tmp_path), pretrained=None)
    return gpu.Sizes(
        steps=(clip,),
        temporal=TemporalConfig(layers=1),
        batch=3,
        words=12,
        frames=12,
        long_tokens=12,
        long_items=5,
        product=16,
        dim=32,
        times=1,
        compiler="eager",
    )


@pytest.mark.slow
def test_every_part_reports(sizes: gpu.Sizes) -> None:
    shown = "\n".join(gpu.report(CPU, sizes))
    for part in ("image tower", "exact labels", "Measured limits", "eager: step", "compiled: step", "MFU", "all pairs"):
        assert part in shown
    assert "step above the encoders" in shown


def test_another_result_than_the_cpu_s_is_no_result(sizes: gpu.Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.TOLERANCES, torch.bfloat16, 1e-9)
    with pytest.raises(ResultsDifferError, match="bfloat16"):
        list(gpu.report(CPU, sizes))


def test_without_a_gpu_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 0
    assert "nothing is claimed" in capsys.readouterr().out
