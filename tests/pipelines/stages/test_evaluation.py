"""What the stage ``evaluation`` makes of a split, beside what the functions below it compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from hbi_models.retrieval import RetrievalModel
from pipelines.evaluate.documents import BANK_FILE, METRICS_FILE
from pipelines.models.weights import save_model
from pipelines.recipe.evaluation import EvaluationConfig, PostProcessing
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ActorResources, ResourcesConfig
from pipelines.stages.evaluation import evaluate_checkpoint
from pipelines.stages.frames import frames_pool
from pipelines.stages.stage import StageContext
from pipelines.tracker import StageTracker
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import MAX_FRAMES, retrieval_config, write_split_data


def test_a_bank_is_made_where_a_method_needs_one(tmp_path: Path) -> None:
    data, workspace = write_split_data(tmp_path / "data", {"train": [2, 1], "test": [1, 1]}), tmp_path / "workspace"
    config = retrieval_config(tmp_path)
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", RetrievalModel(config), kind="retrieval", config=config)
    inputs = {name: Artifact(name, "", data.folder(name), {"counts": {}}) for name in ("manifest", "frames")}

    def evaluate(*methods: PostProcessing) -> Storage:
        recipe = Recipe(
            workspace=str(workspace),
            model=config,
            frames=FramesConfig(max_frames=MAX_FRAMES),
            evaluation=EvaluationConfig(batch_size=2, bootstrap_samples=10, post_processing=methods),
            resources=ResourcesConfig(evaluation=ActorResources(max_actors=0)),
        )
        pool = frames_pool(Storage(recipe.workspace), recipe).storage
        shutil.copytree(tmp_path / "data" / "pool", pool.uri, dirs_exist_ok=True)
        output = Storage(str(tmp_path / "-".join(methods)))
        context = StageContext(Storage(recipe.workspace), output, inputs, StageTracker())
        evaluate_checkpoint(recipe, context, str(tmp_path / "model"))
        return output

    alone, banked = evaluate("dual_softmax"), evaluate("dual_softmax", "nnn")
    assert not alone.exists(BANK_FILE)
    assert len(banked.read_bytes(BANK_FILE).splitlines()) == 3
    first, second = (output.read_json(METRICS_FILE)["variants"] for output in (alone, banked))
    assert first["dual_softmax"] == second["dual_softmax"]
    assert (list(first), second["nnn"]["bank"]) == (["dual_softmax"], 3)
