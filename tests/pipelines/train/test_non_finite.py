"""Losses and gradients that are no finite numbers, as the report of them names the step."""

from __future__ import annotations

import pytest
import torch

from pipelines.train.non_finite import NonFiniteLossError, Watch


def test_a_scale_that_fell_too_far_is_reported_by_a_step_that_overflowed() -> None:
    watch = Watch(torch.amp.GradScaler("cpu", init_scale=2.0**-15))
    for step, norm in enumerate((0.5, float("inf"), 0.53)):
        watch.note(step, torch.tensor(norm), {"loss": torch.tensor(1.0)}, [f"video{step}"])
    with pytest.raises(NonFiniteLossError, match="the gradient is inf at step 1, in a batch of video1"):
        watch.look()
