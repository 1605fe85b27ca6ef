"""Training on stored features of a frozen encoder is training on frames with that encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from hbi_models.clip.loading import load_clip
from hbi_models.optimizer_config import OptimizerConfig
from pipelines.models.folder import MODEL, WEIGHTS
from pipelines.models.weights import load_model
from pipelines.recipe.features import FeaturesConfig, FeatureType
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import TrainResources
from pipelines.recipe.training import AugmentationConfig, RetrievalTrainingConfig
from pipelines.tracker import StageTracker
from pipelines.train.checkpoint_folder import CheckpointFolder
from pipelines.train.checkpoints import TRAINING
from pipelines.train.files import CHECKPOINTS
from pipelines.train.history import History
from pipelines.train.loop import LoopSettings, TrainingLoop
from pipelines.train.pairs import TokenPairBatch
from pipelines.train.retrieval import RetrievalTask
from pipelines.train.trainer import train_task
from pipelines.video.token_store import TokenStore
from pipelines.workspace.records import INDEX_FILE, tokens_schema
from pipelines.workspace.shard_rows import LostRowsError
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import (
    MAX_FRAMES,
    MAX_WORDS,
    feature_data,
    frozen_config,
    retrieval_task,
    write_features,
    write_split_data,
)

CAPTIONS = (3, 1, 2, 2, 3, 1, 2, 1, 2)
CPU = torch.device("cpu")
SEED = 3
PLAIN = AugmentationConfig(enabled=False)


class Recorder:
    """Keeps the curves."""

    def __init__(self) -> None:
        self.points: list[tuple[int, Mapping[str, float]]] = []

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append((step, metrics))

    def checkpoint(self, folder: Path | None, score: float) -> None:
        pass

    def curve(self, *names: str) -> torch.Tensor:
        return torch.tensor([[point[name] for name in names] for _, point in self.points if names[0] in point])


@pytest.fixture
def data(tmp_path: Path) -> Storage:
    return write_split_data(tmp_path, {"train": CAPTIONS, "val": (1, 2, 1)})


def make_recipe(folder: Path, *, views: int = 0, dtype: FeatureType = "float16", memory_gb: float = 1.0) -> Recipe:
    return Recipe(
        workspace=str(folder / "workspace"),
        seed=SEED,
        model=frozen_config(folder),
        frames=FramesConfig(max_frames=MAX_FRAMES),
        features=FeaturesConfig(views=views, dtype=dtype, max_memory_gb=memory_gb, batch_size=3),
        retrieval=RetrievalTrainingConfig(augmentation=AugmentationConfig(enabled=views > 0, probability=1.0)),
    )


def task_on_features(data: Storage, recipe: Recipe, *, epochs: int = 2) -> RetrievalTask:
    augmentation = recipe.retrieval.augmentation
    task = retrieval_task(data, recipe.model, CAPTIONS, seed=SEED, epochs=epochs, augmentation=augmentation)
    return replace(task, data=feature_data(data, recipe))


def trained(task: RetrievalTask) -> tuple[Recorder, dict[str, torch.Tensor]]:
    recorder = Recorder()
    loop = TrainingLoop(task, device=CPU, reporter=recorder, settings=LoopSettings(log_every_steps=1))
    return recorder, loop.run().state_dict()


@pytest.mark.slow
def test_the_losses_are_those_of_frames_with_the_same_frozen_encoder(data: Storage, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, dtype="float32")
    write_features(data, recipe)
    on_frames = retrieval_task(data, recipe.model, CAPTIONS, seed=SEED, epochs=6, augmentation=PLAIN)
    (expected, weights), (found, others) = trained(on_frames), trained(task_on_features(data, recipe, epochs=6))
    first = task_on_features(data, recipe).source(rank=0, world_size=1)[0, 0]
    assert isinstance(first, TokenPairBatch) and first.words.shape[1] < MAX_WORDS, "what is padding in all is left out"
    names = [name for name in expected.points[0][1] if name.startswith("train/") and name != "train/gradient_norm"]
    assert len(expected.curve(*names)) >= 20
    torch.testing.assert_close(found.curve(*names), expected.curve(*names), rtol=1e-5, atol=1e-5)
    assert expected.curve("train/loss")[0] != expected.curve("train/loss")[-1]
    validated = [name for _, point in expected.points for name in point if name.endswith("mean_rank")]
    assert validated and torch.isfinite(found.curve(*dict.fromkeys(validated))).all()
    for name in weights:
        if name.startswith("clip.") and name != "clip.logit_scale":
            assert torch.equal(weights[name], others[name]), name


@pytest.mark.slow
def test_half_precision_is_the_same_rounded(data: Storage, tmp_path: Path) -> None:
    """Losses then differ more than by rounding: a distance between tokens may fall to the other side of a cluster."""
    (tmp_path / "half").mkdir()
    again = write_split_data(tmp_path / "half", {"train": CAPTIONS, "val": (1, 2, 1)})
    whole, half = (
        task_on_features(write_features(place, recipe), recipe).source(rank=0, world_size=1)[0, 0]
        for place, recipe in (
            (data, make_recipe(tmp_path, dtype="float32")),
            (again, make_recipe(tmp_path, dtype="float16")),
        )
    )
    assert isinstance(whole, TokenPairBatch) and isinstance(half, TokenPairBatch)
    for one, other in ((whole.words, half.words), (whole.frames, half.frames)):
        assert other.dtype == torch.float16 and one.abs().max() > 0
        assert torch.equal(other, one.half())


@pytest.mark.slow
def test_no_image_and_no_word_is_encoded_again(data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)
    write_features(data, recipe)

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder was asked")

    for name in ("encode_frames", "encode_words"):
        monkeypatch.setattr(f"hbi_models.clip.backbone.ClipBackbone.{name}", refuse)
    recorder, _ = trained(task_on_features(data, recipe, epochs=1))
    assert len(recorder.curve("validation/score")) == 1


def test_features_that_do_not_fit_into_memory_are_the_same(data: Storage, tmp_path: Path) -> None:
    write_features(data, make_recipe(tmp_path))
    whole, by_row = (
        task_on_features(data, make_recipe(tmp_path, memory_gb=memory)).source(rank=0, world_size=1)
        for memory in (1.0, 0.0)
    )
    for address in ((0, 0), (0, 1), (1, 2)):
        one, other = whole[address], by_row[address]
        assert isinstance(one, TokenPairBatch) and isinstance(other, TokenPairBatch)
        assert one.video_ids == other.video_ids
        for found, expected in zip(other[:-1], one[:-1], strict=True):
            assert torch.equal(found, expected)


@pytest.mark.slow
def test_features_of_a_batch_are_read_once_and_ahead(
    data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_features(data, make_recipe(tmp_path, views=2))
    source = task_on_features(data, make_recipe(tmp_path, views=2, memory_gb=0.0)).source(rank=0, world_size=1)
    store, read = source._view.store, []  # type: ignore[attr-defined]
    original = store._stored.read

    def noted(videos: Sequence[int], columns: Sequence[str]) -> pa.Table:
        read.extend(videos)
        return original(videos, columns)

    monkeypatch.setattr(store._stored, "read", noted)
    wanted = sorted({pair.video for pair in source.pairs((0, 1))})  # type: ignore[attr-defined]
    source.read_ahead((0, 1))  # type: ignore[attr-defined]
    readers = store._ahead._readers
    assert readers is not None
    readers.shutdown()
    assert sorted(read) == wanted, "without being asked for a batch"
    source[0, 1]
    assert sorted(read) == wanted, "words, frames and views are read together"


@pytest.mark.slow
def test_views_are_augmented_copies_and_training_takes_one_of_them(data: Storage, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, views=3)
    write_features(data, recipe)
    training = feature_data(data, recipe)
    store = training.captions("train").store
    assert isinstance(store, TokenStore)
    videos = range(len(store))
    assert store.views(videos) == [3] * len(store)
    copies = [store.frames(videos, max_frames=MAX_FRAMES, views=[view] * len(store)).features for view in range(4)]
    assert not any(torch.equal(copies[one], copies[other]) for one in range(4) for other in range(one))
    # What is validated with is not augmented, and has no copies.
    held_out = training.captions("val").store
    assert isinstance(held_out, TokenStore) and held_out.views(range(len(held_out))) == [0] * len(held_out)
    task, seen = task_on_features(data, recipe), set()
    for epoch in range(2):
        batch = task.source(rank=0, world_size=1)[epoch, 0]
        assert isinstance(batch, TokenPairBatch)
        for name, frames in zip(batch.video_ids, batch.frames, strict=True):
            video = store.video_ids.index(name)
            (view,) = (view for view in range(4) if torch.equal(copies[view][video], frames))
            seen.add(view)
    assert 0 not in seen and len(seen) > 1


@pytest.mark.slow
def test_views_are_the_same_whoever_makes_them(data: Storage, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    again = write_split_data(tmp_path / "other", {"train": CAPTIONS, "val": (1, 2, 1)})
    recipe = make_recipe(tmp_path, views=2)
    stores = [feature_data(write_features(place, recipe), recipe).captions("train").store for place in (data, again)]
    views = [store.frames([2, 1], max_frames=MAX_FRAMES, views=[1, 2]) for store in stores]  # type: ignore[union-attr]
    assert torch.equal(views[0].features, views[1].features)


@pytest.mark.slow
def test_checkpoints_leave_the_frozen_encoder_out_and_the_chosen_model_has_it(data: Storage, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    write_features(data, recipe)
    output = Storage(str(tmp_path / "output"))
    resources = TrainResources(workers=0, gpus_per_worker=0)

    def train(epochs: int) -> dict[str, float]:
        task = task_on_features(data, recipe, epochs=epochs)
        settings = LoopSettings(log_every_steps=1)
        return train_task(task, output, StageTracker(), resources=resources, settings=settings)

    train(2)
    place = CheckpointFolder(output.folder(CHECKPOINTS)).latest(tmp_path)
    assert place is not None
    kept = load_file(place / WEIGHTS)
    assert {name for name in kept if name.startswith("clip.")} == {"clip.logit_scale"}
    model = load_model(output.folder(MODEL), tmp_path / "scratch")
    assert model.config.clip.architecture == output.path(MODEL, "architecture.json"), "it has its own copy"
    torch.manual_seed(SEED)
    initial = load_clip(recipe.model.clip).state_dict()
    for name, value in model.clip.state_dict().items():
        assert torch.equal(value, initial[name]) or name == "logit_scale", name
    assert torch.equal(model.temporal.positions.weight, kept["temporal.positions.weight"])
    # It goes on from such a checkpoint: nothing is trained twice.
    steps = sum(task_on_features(data, recipe, epochs=2).steps_per_epoch)
    assert train(2)["steps"] == steps and len(History(output).points) > 0
    with pytest.raises(ValueError, match=r"missing clip\."):
        load_model(output.folder(CHECKPOINTS, Path(place).name), tmp_path / "other")


@pytest.mark.slow
def test_a_checkpoint_with_averaged_weights_leaves_the_frozen_encoder_out_too(data: Storage, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    write_features(data, recipe)
    task = task_on_features(data, recipe)
    optimizer = OptimizerConfig(lr=1e-3, clip_lr_factor=1.0, ema_decay=0.9)
    task = replace(task, training=replace(task.training, optimizer=optimizer))
    loop = TrainingLoop(task, device=CPU, reporter=Recorder(), settings=LoopSettings())
    trained = loop.run().state_dict()
    with ExitStack() as scratch:
        folder = loop._written(scratch)
        kept = torch.load(folder / TRAINING, weights_only=True)
        assert {name for name in kept["weights"] if name.startswith("clip.")} == {"clip.logit_scale"}
        resumed = TrainingLoop(task, device=CPU, reporter=Recorder(), settings=LoopSettings())
        resumed._resume(folder)
    assert resumed.average is not None and loop.average is not None
    for found, expected in (
        (resumed.core.state_dict(), trained),
        (resumed.average.state(), loop.average.state()),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["removed", "cut off"])
def test_a_lost_shard_of_features_is_named_with_what_mends_it(data: Storage, tmp_path: Path, damage: str) -> None:
    recipe = make_recipe(tmp_path)
    write_features(data, recipe)
    tokens = data.folder("tokens")
    source = task_on_features(data, recipe).source(rank=0, world_size=1)
    index = data.folder("features").read_table(INDEX_FILE, columns=["video_id", "shard"])
    (shard,) = {row["shard"] for row in index.to_pylist() if row["video_id"] == "train0"}
    if damage == "removed":
        tokens.delete(shard)
    else:
        tokens.write_bytes(shard, tokens.read_bytes(shard)[:400])
    with pytest.raises(LostRowsError, match=rf"{shard}(.|\n)*Run the same command again: the features of its videos"):
        source[0, 0]
    pool = ShardPool(tokens, tokens_schema("float16"))
    assert pool.describe_loss(data.folder("features")) == "1 of its shards are missing", "so that the plan sees it"
    write_features(data, recipe)
    assert pool.describe_loss(data.folder("features")) is None
    assert task_on_features(data, recipe).source(rank=0, world_size=1)[0, 0].video_ids
