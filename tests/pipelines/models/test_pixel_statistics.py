"""A model's pixels are normalised the same way wherever it is used, and stay so when it is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.pixels import CLIP_MEAN, CLIP_STD
from hbi_models.configs import RetrievalConfig
from hbi_models.retrieval import RetrievalModel
from pipelines.graph import make_graph
from pipelines.models.folder import DESCRIPTION
from pipelines.models.weights import load_model, save_model, without_pretraining
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.search.search_model import read_search_model
from pipelines.train.checkpoints import Position
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage
from tests.hbi_models.tiny_model import tiny_config
from tests.tiny_retrieval import retrieval_config, retrieval_task, write_split_data

HALF = (0.5, 0.5, 0.5)
CAPTIONS = (1, 2, 1, 1)


def of_halves(config: RetrievalConfig) -> RetrievalConfig:
    return replace(config, clip=replace(config.clip, pixel_mean=HALF, pixel_std=HALF))


def saved(folder: Path, config: RetrievalConfig) -> Storage:
    torch.manual_seed(0)
    folder.mkdir()
    save_model(folder, RetrievalModel(config), kind="retrieval", config=config)
    (folder / "frames.json").write_text("{}")
    return Storage(str(folder))


def test_a_stored_model_keeps_them_and_an_older_one_has_openais(tmp_path: Path) -> None:
    plain_folder = saved(tmp_path / "openai", tiny_config(tmp_path))
    folder = saved(tmp_path / "halves", of_halves(tiny_config(tmp_path)))
    assert load_model(folder, tmp_path).clip.pixel_mean == load_model(folder, tmp_path).clip.pixel_std == HALF
    # As it was written before there were such settings.
    assert "pixel_mean" not in plain_folder.read_json(DESCRIPTION)["config"]["clip"]
    older = load_model(plain_folder, tmp_path).clip
    assert (older.pixel_mean, older.pixel_std) == (CLIP_MEAN, CLIP_STD)
    black = torch.zeros(1, 1, 3, older.image_size_px, older.image_size_px, dtype=torch.uint8)
    assert load_model(folder, tmp_path).video_batch(black).pixels.unique().tolist() == [-1.0]
    # An index made with either is another one.
    recipe = Recipe(workspace=str(tmp_path))
    digests = {read_search_model(place.uri, recipe).digest for place in (plain_folder, folder)}
    assert len(digests) == 2


def test_a_checkpoint_has_those_of_the_tag_that_it_was_trained_from() -> None:
    config = RetrievalConfig(clip=ClipConfig(architecture="ViT-L-14", pretrained="laion2b_s32b_b82k"))
    clip = without_pretraining(config).clip
    assert (clip.pretrained, clip.pixel_mean, clip.pixel_std) == (None, HALF, HALF)


def test_training_sees_them(tmp_path: Path) -> None:
    data = write_split_data(tmp_path, {"train": CAPTIONS, "val": (1,)})
    task = retrieval_task(data, of_halves(retrieval_config(tmp_path)), CAPTIONS)
    batch = next(iter(task.batches(Position())))
    _, videos = batch.model_input(RetrievalModel(task.model_config))
    torch.testing.assert_close(videos.pixels, batch.frames / 127.5 - 1, rtol=0, atol=1e-6)
    assert videos.mask.equal(batch.frame_mask)


@pytest.mark.parametrize("stage", ["labels", "estimator", "retrieval", "evaluation"])
def test_only_a_model_with_others_than_openais_gets_another_fingerprint(tmp_path: Path, stage: str) -> None:
    def fingerprint(**clip: object) -> str:
        model = RetrievalConfig(clip=ClipConfig(**clip))  # type: ignore[arg-type]
        recipe = Recipe(workspace=str(tmp_path), data=DataConfig(shapes=ShapesConfig()), model=model)
        return make_graph(recipe).fingerprints[stage]

    laion = {"architecture": "ViT-L-14", "pretrained": "laion2b_s32b_b82k"}
    # Results that were made with OpenAI's mean are another model's.
    assert fingerprint(**laion) != fingerprint(**laion, pixel_mean=CLIP_MEAN, pixel_std=CLIP_STD)
    assert fingerprint(**laion) == fingerprint(**laion, pixel_mean=HALF, pixel_std=HALF)
    assert fingerprint() == fingerprint(pixel_mean=CLIP_MEAN, pixel_std=CLIP_STD)


def test_documents_leave_them_out_where_they_are_openais(tmp_path: Path) -> None:
    assert "pixel" not in json.dumps(plain(Recipe(workspace=str(tmp_path))))
    laion = ClipConfig(architecture="ViT-L-14", pretrained="laion2b_s32b_b82k")
    document = plain(Recipe(workspace=str(tmp_path), model=RetrievalConfig(clip=laion)))
    assert document["model"]["clip"]["pixel_mean"] == list(HALF)
