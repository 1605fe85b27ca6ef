"""The benchmark of a GPU: every path of it on the CPU with tiny sizes, and nothing claimed without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.rows import ResultsDifferError

CPU = torch.device("cpu")


@pytest.fixture(name="sizes")
def toy_sizes(tmp_path: Path) -> gpu.Sizes:
    return gpu.toy_sizes(tmp_path)


PARTS = ("image tower", "Measured limits", "eager: step", "MFU", "compiled: step", "exact labels, ", "all pairs, ")


@pytest.mark.long
def test_every_part_runs_at_toy_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--toy"]) == 0
    shown = capsys.readouterr().out
    assert "measure nothing" in shown
    inputs = ("RandAugment of 3 clips", "JPEG decoding", "video decoding")
    places = [shown.index(part) for part in (*PARTS, "step above the encoders", *inputs)]
    assert places == sorted(places), "in the order of their worth"
    assert shown.count("eager: step") == 2


def test_no_part_begins_when_the_time_is_up(sizes: gpu.Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "check_modules", lambda device, sizes: [])
    shown = list(gpu.report(CPU, sizes, deadline=0.0))
    assert "training step: not measured, the time is up" in shown
    assert sum("not measured" in part for part in shown) == len(shown) - 2


def test_another_result_than_the_cpu_s_is_no_result(sizes: gpu.Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.TOLERANCES, torch.bfloat16, 1e-9)
    with pytest.raises(ResultsDifferError, match="bfloat16"):
        list(gpu.report(CPU, sizes))


def test_without_a_gpu_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "nothing is claimed" in capsys.readouterr().out
