"""Many trials on one GPU: what Tune is told that each takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.recipe.resources import TrainResources
from pipelines.tune.ray_tune import _trial_resources, concurrent_trials
from tests.pipelines.tune.tunings import tuning_of


@pytest.mark.parametrize("share", [0.125, 0.5, 1.0])
def test_a_trial_takes_its_share_of_a_gpu(tmp_path: Path, share: float) -> None:
    resources = TrainResources(workers=1, cpus_per_worker=2, gpus_per_worker=share)
    assert _trial_resources(resources) == {"CPU": 2, "GPU": share}
    tuning = tuning_of(tmp_path, {"resources.retrieval.gpus_per_worker": share})
    assert tuning.resources.gpus_per_worker == share
    assert concurrent_trials(tuning) is None, "Tune counts how many fit"
