"""What the training stages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import AugmentationConfig, RetrievalTrainingConfig
from pipelines.stages.retrieval import retrieval_stage
from pipelines.stages.stage import StageContext
from pipelines.tracker import StageTracker
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import MAX_FRAMES, frozen_config, write_split_data


@pytest.mark.parametrize("replaced", [True, False])
def test_a_frozen_encoder_that_was_replaced_during_its_training_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    start = Storage(str(tmp_path / "start"))
    start.write_json("model.json", {"kind": "retrieval", "config": {}})
    start.write_bytes("model.safetensors", b"weights")

    def train(*_: Any, **__: Any) -> dict[str, float]:
        if replaced:
            start.write_bytes("model.safetensors", b"others")
        return {"best/score": 1.0}

    monkeypatch.setattr("pipelines.stages.training.train", train)
    data, workspace = write_split_data(tmp_path / "data", {"train": (1, 1)}), Storage(str(tmp_path / "workspace"))
    augmentation = AugmentationConfig(enabled=False)
    recipe = Recipe(
        workspace=workspace.uri,
        model=frozen_config(tmp_path),
        frames=FramesConfig(max_frames=MAX_FRAMES),
        retrieval=RetrievalTrainingConfig(init_checkpoint=start.uri, augmentation=augmentation, batch_size=2),
    )
    inputs = {name: Artifact(name, "f", data.folder(name), {"counts": {}}) for name in ("manifest", "frames")}
    context = StageContext(workspace, workspace.folder("output"), inputs, StageTracker())
    if replaced:
        with pytest.raises(ValueError, match=r"frozen encoder \(.*start\) was replaced in the training"):
            retrieval_stage(recipe).run(context)
    else:
        assert retrieval_stage(recipe).run(context)["rows"] == 2
