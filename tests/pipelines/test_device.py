"""Every path on a device that is not there: nothing is on two devices, results are the CPU's, and waits are counted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import pipelines.evaluate.similarities
import pipelines.evaluate.video_qa
import pipelines.labels
import pipelines.models.features
import pipelines.search.features
from hbi_models.configs import GameConfig, MergingConfig
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.retrieval import RetrievalModel
from hbi_models.zero_shot import ZeroShotModel
from hbi_models.zero_shot_config import ZeroShotConfig
from pipelines.evaluate.similarities import RetrievalScorerActor
from pipelines.evaluate.video_qa import AnswererActor
from pipelines.figures.reading import PairReader
from pipelines.labels import LabelSettings, LabelShard
from pipelines.models.encoding import on_device, on_host
from pipelines.models.estimator import EstimatorConfig
from pipelines.models.features import EncodeFeatures
from pipelines.models.weights import save_model
from pipelines.recipe.evaluation import EvaluationConfig, QAEvaluationConfig
from pipelines.recipe.features import FeaturesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.labels import LabelsConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import AugmentationConfig, RetrievalTrainingConfig
from pipelines.search.features import EncodeShard
from pipelines.search.searcher import Searcher
from pipelines.splits import SplitView
from pipelines.stages.features import encoder_settings, wanted_features
from pipelines.train.checkpoints import Position
from pipelines.train.loop import LoopSettings, Task, TrainingLoop
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import FEATURES, FRAMES, INDEX_FILE, LABELS, tokens_schema
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.absent_device import ABSENT, CPU, Journal, absent_device, values
from tests.tiny_estimator import estimator_task, write_labels
from tests.tiny_retrieval import (
    IMAGE_PX,
    MAX_FRAMES,
    feature_data,
    frozen_config,
    retrieval_config,
    retrieval_task,
    training_data,
    write_features,
    write_split_data,
)
from tests.tiny_video_qa import VOCABULARY, video_qa_config, video_qa_task, write_question_data

pytestmark = pytest.mark.slow

CAPTIONS = (3, 1, 2, 2, 3, 1, 2, 1, 2)
VALIDATION = (1, 2, 1)


class Silent:
    """Takes what a training reports."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append((step, {name: value for name, value in metrics.items() if "throughput" not in name}))

    def checkpoint(self, folder: Path | None, score: float) -> None: ...


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return write_split_data(tmp_path_factory.mktemp("data"), {"train": CAPTIONS, "val": VALIDATION})


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return write_question_data(tmp_path_factory.mktemp("questions"), {"train": CAPTIONS, "val": VALIDATION})


def two_steps(task: Task[Any], device: torch.device, journal: Journal | None = None) -> tuple[list[Any], nn.Module]:
    """The losses of two steps, and the model after them; the second step is the one that the journal is about."""
    loop = TrainingLoop(task, device=device, reporter=Silent(), settings=LoopSettings())
    batches = task.batches(Position(), device)
    loop.model.train()
    losses = []
    for _ in range(2):
        batch = next(batches)
        if journal is not None:
            journal.clear()
        losses.append({name: values(part) for name, part in loop._step(batch)[0].items()})
    batches.close()
    if journal is not None:
        assert not journal.waits, "a step waits for nothing"
        loop._watch.look()
        assert journal.reads() == 1, "all steps since the last look are looked at in one transfer"
        assert not journal.others()
    return losses, loop.core


def require_equal(task: Task[Any], other: Task[Any]) -> None:
    """The steps of one task on the CPU are those of the other on the device, to rounding."""
    expected, model = two_steps(task, CPU)
    with absent_device() as journal:
        found, there = two_steps(other, ABSENT, journal)
        assert all(parameter.device == ABSENT for parameter in there.parameters())
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=2e-4, atol=2e-5, msg=name)
    weights = dict(model.named_parameters())
    # Adam divides by the size of the gradient, which amplifies rounding where that is small.
    apart = [(values(parameter) - weights[name]).abs().max() for name, parameter in there.named_parameters()]
    assert torch.stack(apart).median() < 1e-5


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("bert_adam", marks=pytest.mark.long)])
def test_a_step_of_the_retrieval_training_waits_for_nothing(data: Storage, tmp_path: Path, optimizer: Any) -> None:
    noisy = MergingConfig(text_rates=(0.5, 0.5), video_rates=(0.5, 0.5), heads=4, tie_break_noise=1e-3)
    config = retrieval_config(tmp_path, merging=noisy)
    settings = OptimizerConfig(name=optimizer, lr=1e-3, clip_lr_factor=1.0)
    one, other = (retrieval_task(data, config, CAPTIONS, optimizer=settings) for _ in range(2))
    require_equal(one, other)


@pytest.mark.parametrize("teacher", ["estimator", pytest.param("none", marks=pytest.mark.long)])
def test_so_do_steps_with_other_teachers(data: Storage, tmp_path: Path, teacher: Any) -> None:
    config = retrieval_config(tmp_path, game=GameConfig(teacher=teacher, estimator_channels=8))
    tasks = []
    for _ in range(2):
        task = retrieval_task(data, config, CAPTIONS)
        if teacher == "estimator":
            folder = tmp_path / "teacher"
            folder.mkdir(exist_ok=True)
            torch.manual_seed(0)
            network = RetrievalModel(config).teacher
            assert network is not None
            save_model(folder, network, kind="estimator", config=EstimatorConfig(8))
            object.__setattr__(task.data, "estimator", Storage(str(folder)))
        tasks.append(task)
    require_equal(*tasks)


@pytest.mark.parametrize(
    "game",
    [
        {"coalitions": 0.5, "similarity_scale": "auto"},
        pytest.param({"coalitions": 0.2}, marks=pytest.mark.long),
        pytest.param({"coalitions": 0.5}, marks=pytest.mark.long),
        pytest.param({"similarity_scale": "auto"}, marks=pytest.mark.long),
    ],
)
def test_so_does_a_step_with_random_coalitions_or_scaled_targets(data: Storage, tmp_path: Path, game: Any) -> None:
    game = GameConfig(teacher="exact", estimator_channels=8, **game)
    one, other = (retrieval_task(data, retrieval_config(tmp_path, game=game), CAPTIONS) for _ in range(2))
    require_equal(one, other)


def test_a_step_of_question_answering_waits_for_nothing(questions: Storage, tmp_path: Path) -> None:
    one, other = (video_qa_task(questions, video_qa_config(tmp_path, dropout=0.3)) for _ in range(2))
    require_equal(one, other)


def frozen_recipe(folder: Path) -> Recipe:
    return Recipe(
        workspace=str(folder / "workspace"),
        model=frozen_config(folder),
        frames=FramesConfig(max_frames=MAX_FRAMES),
        features=FeaturesConfig(dtype="float32", batch_size=3),
        retrieval=RetrievalTrainingConfig(augmentation=AugmentationConfig(enabled=False)),
    )


def test_a_step_on_stored_features_waits_for_nothing(tmp_path: Path) -> None:
    data = write_split_data(tmp_path / "data", {"train": CAPTIONS, "val": VALIDATION})
    recipe = frozen_recipe(tmp_path)
    write_features(data, recipe)
    plain = recipe.retrieval.augmentation
    tasks = (retrieval_task(data, recipe.model, CAPTIONS, augmentation=plain) for _ in range(2))
    one, other = (replace(task, data=feature_data(data, recipe)) for task in tasks)
    require_equal(one, other)


def test_features_come_in_one_transfer_per_batch(
    data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = frozen_recipe(tmp_path)
    inputs = {name: Artifact(name, "", data.folder(name), {}) for name in ("manifest", "frames")}
    videos = wanted_features(inputs, recipe)

    def encode(folder: Path) -> dict[str, list[Any]]:
        pool = ShardPool(Storage(str(folder)), tokens_schema(recipe.features.dtype))
        EncodeFeatures(encoder_settings(recipe), data.folder("pool"), pool)(videos)
        (name,) = pool.storage.files(suffix=".parquet")
        return pool.storage.read_table(name).to_pydict()

    expected = encode(tmp_path / "cpu")
    monkeypatch.setattr(pipelines.models.features, "compute_device", lambda: ABSENT)
    with absent_device() as journal:
        found = encode(tmp_path / "device")
    # Videos in batches of three, texts in batches of 24.
    assert journal.reads() == -(-len(videos) // 3) + -(-sum((*CAPTIONS, *VALIDATION)) // 24)
    assert not journal.others(but="copy"), "the towers themselves are copied once"
    assert found["num_frames"] == expected["num_frames"] and found["num_words"] == expected["num_words"]
    for name in ("frames", "words"):
        for one, two in zip(expected[name], found[name], strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_a_step_of_the_estimator_waits_for_nothing(tmp_path: Path) -> None:
    write_labels(tmp_path)
    require_equal(estimator_task(tmp_path), estimator_task(tmp_path))


def test_a_validation_of_the_estimator_reads_once(tmp_path: Path) -> None:
    write_labels(tmp_path)
    task = estimator_task(tmp_path)
    torch.manual_seed(0)
    model = task.make_model().eval()
    expected = task.validate(model, CPU)
    with absent_device() as journal, torch.no_grad():
        there = copy.deepcopy(model).to(ABSENT)
        journal.clear()
        found = task.validate(there, ABSENT)
    assert found == pytest.approx(expected, rel=1e-4)
    assert journal.reads() == 1
    assert not journal.others()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["retrieval", "video_qa", "estimator"])
def test_a_whole_training_with_validation_and_checkpoints_is_that_of_the_cpu(
    data: Storage, questions: Storage, tmp_path: Path, kind: str
) -> None:
    write_labels(tmp_path)

    def run(device: torch.device) -> list[tuple[int, dict[str, float]]]:
        task: Task[Any]
        if kind == "retrieval":
            task = retrieval_task(data, retrieval_config(tmp_path), CAPTIONS, epochs=1)
        elif kind == "video_qa":
            task = video_qa_task(questions, video_qa_config(tmp_path), epochs=1)
        else:
            task = estimator_task(tmp_path, epochs=1)
        reporter = Silent()
        settings = LoopSettings(checkpoint_every_steps=2)
        with nullcontext() if device == CPU else absent_device():
            TrainingLoop(task, device=device, reporter=reporter, settings=settings).run()
        return reporter.points

    expected, found = run(CPU), run(ABSENT)
    assert [step for step, _ in found] == [step for step, _ in expected]
    for (step, one), (_, two) in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=5e-3, abs=1e-4), f"{name} at step {step}"


@pytest.mark.parametrize("kind", ["exact", "published"])
def test_labels_come_in_one_transfer_per_batch(
    data: Storage, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [["a red circle", "blue", "a small square moves left"], ["two"], ["a blue square"], ["red", "a"], ["left"]]
    videos = data.read_table(f"frames/{INDEX_FILE}").sort_by("video_id").slice(0, len(texts))
    videos = videos.append_column("frames_key", videos.column("key")).append_column("texts", pa.array(texts))
    settings = LabelSettings(retrieval_config(tmp_path), LabelsConfig(kind=kind, batch_size=4), seed=0)

    def label(folder: Path) -> dict[str, list[Any]]:
        pool = ShardPool(Storage(str(folder)), LABELS)
        LabelShard(settings, data.folder("pool"), pool)(videos)
        (name,) = pool.storage.files(suffix=".parquet")
        return pool.storage.read_table(name).to_pydict()

    expected = label(tmp_path / "cpu")
    monkeypatch.setattr(pipelines.labels, "compute_device", lambda: ABSENT)
    with absent_device() as journal:
        found = label(tmp_path / "device")
    # Four videos with seven texts in batches of four, and one video with one.
    assert journal.reads() == 3
    assert not journal.others(but="copy"), "the model itself is copied once"
    for name, column in expected.items():
        for one, two in zip(column, found[name], strict=True):
            if isinstance(one, list):
                # In units of similarities, which are a thousand times cosines.
                np.testing.assert_allclose(two, one, rtol=1e-4, atol=5e-3, err_msg=name)
            else:
                assert one == two


def test_scores_come_in_one_transfer_per_batch_and_tile(
    data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retrieval_config(tmp_path)
    (tmp_path / "model").mkdir()
    torch.manual_seed(0)
    save_model(tmp_path / "model", RetrievalModel(config), kind="retrieval", config=config)
    places = training_data(data)
    view = SplitView(places.manifest, places.frames, places.frames_pool, "train")
    captions, owners, _ = view.texts_of(range(len(view)))
    said = list(zip(owners, captions, strict=True))
    settings = EvaluationConfig(batch_size=5)

    def score() -> Any:
        actor = RetrievalScorerActor(str(tmp_path / "model"), config, view, settings)
        return actor.tile(actor.texts(said), actor.videos(range(len(view))))

    expected = score()
    monkeypatch.setattr(pipelines.evaluate.similarities, "compute_device", lambda: ABSENT)
    with absent_device() as journal:
        found = score()
    assert journal.reads() == -(-len(captions) // 5) + -(-len(view) // 5) + 1
    assert not journal.others(but="copy")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_answers_come_in_one_transfer_per_batch(
    questions: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = video_qa_task(questions, video_qa_config(tmp_path))
    (tmp_path / "model").mkdir()
    torch.manual_seed(0)
    save_model(tmp_path / "model", task.make_model(), kind="video_qa", config=task.model_config)
    view = task.data.questions("train")
    settings = QAEvaluationConfig(batch_size=6)

    def answer() -> Any:
        actor = AnswererActor(str(tmp_path / "model"), task.model_config, view, VOCABULARY, settings)
        return actor.answer(range(len(view)))

    expected = answer()
    monkeypatch.setattr(pipelines.evaluate.video_qa, "compute_device", lambda: ABSENT)
    with absent_device() as journal:
        found = answer()
    # For each batch of videos their levels; for each batch of questions theirs, and the answers.
    sizes = [len(view.questions(video)) for video in range(len(view))]
    batches = [-(-sum(sizes[start : start + 6]) // 6) for start in range(0, len(view), 6)]
    assert journal.reads() == len(batches) + 2 * sum(batches)
    assert not journal.others(but="copy")
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-4, atol=1e-5)


def test_features_of_an_index_come_in_one_transfer_per_batch(
    data: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retrieval_config(tmp_path)
    (tmp_path / "model").mkdir()
    torch.manual_seed(0)
    save_model(tmp_path / "model", RetrievalModel(config), kind="retrieval", config=config)
    videos = data.read_table(f"frames/{INDEX_FILE}").slice(0, 7)
    videos = videos.append_column("end_s", pa.nulls(7, pa.float64()))

    def encode(folder: Path) -> list[dict[str, Any]]:
        pool = ShardPool(Storage(str(folder)), FEATURES)
        frames = ShardPool(data.folder("pool"), FRAMES)
        EncodeShard(Storage(str(tmp_path / "model")), frames, pool, 0, 3)(videos)
        (name,) = pool.storage.files(suffix=".parquet")
        return pool.storage.read_table(name).sort_by("key").to_pylist()

    expected = encode(tmp_path / "cpu")
    monkeypatch.setattr(pipelines.search.features, "compute_device", lambda: ABSENT)
    with absent_device() as journal:
        found = encode(tmp_path / "device")
    assert journal.reads() == 3
    assert not journal.others(but="copy")
    for one, two in zip(expected, found, strict=True):
        np.testing.assert_allclose(np.array(two["coarse"], np.float32), np.array(one["coarse"], np.float32), atol=2e-3)


def test_a_pretrained_encoder_alone_asks_the_device_for_nothing(data: Storage, tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = retrieval_config(tmp_path).clip
    model = ZeroShotModel(ZeroShotConfig(clip=clip, max_frames=MAX_FRAMES, pooling="softmax")).eval()
    batch = next(retrieval_task(data, retrieval_config(tmp_path), CAPTIONS).batches(Position()))
    assert not batch.frame_mask.all()
    captions = ["a red circle", "blue"]

    def score() -> Tensor:
        videos = model.encode_video(model.video_batch(batch.frames, batch.frame_mask))
        return model.similarity(model.encode_text(model.text_batch(captions)), videos)

    with torch.inference_mode():
        expected = score()
        with absent_device() as journal:
            model.to(ABSENT)
            journal.clear()
            found = score()
            assert not journal.waits and journal.reads() == 0
            torch.testing.assert_close(values(found), expected, rtol=1e-4, atol=1e-5)


def test_a_query_and_a_clip_come_in_one_transfer_each(data: Storage, tmp_path: Path) -> None:
    searcher = Searcher.__new__(Searcher)  # an index is files alone; what computes is the model
    torch.manual_seed(0)
    searcher.model = RetrievalModel(retrieval_config(tmp_path)).eval()
    searcher._device = CPU
    images = training_data(data).captions("train").store.encoded(0)
    queries = ["a red circle", "blue"]
    expected = [*searcher.encode(queries), *searcher.encode_frames(images)]
    with absent_device() as journal:
        searcher.model.to(ABSENT)
        searcher._device = ABSENT
        journal.clear()
        found = [*searcher.encode(queries), *searcher.encode_frames(images)]
        assert journal.reads() == 2
        assert not journal.others()
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(two.features, one.features, rtol=1e-4, atol=1e-5)
        assert torch.equal(two.mask, one.mask)


def test_a_drawing_asks_the_device_a_few_times(tmp_path: Path) -> None:
    torch.manual_seed(0)
    game = GameConfig(teacher="estimator", estimator_channels=8)
    model = RetrievalModel(retrieval_config(tmp_path, game=game)).eval()
    reader = PairReader(model, model.teacher, FramesConfig())
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(256, (3, IMAGE_PX, IMAGE_PX), generator=generator, dtype=torch.uint8) for _ in range(4)]

    def draw() -> Any:
        return reader.relate(images, "a red circle", ("exact", "estimator"), video="clip", times_s=[0.0, 1.0, 2.0, 3.0])

    expected = draw()
    with absent_device() as journal:
        model.to(ABSENT)
        journal.clear()
        found = draw()
        # Words, frames and their members; one estimate for each level.
        assert journal.reads() == 3 + 3
        assert not journal.others()
    for one, two in zip(expected.levels, found.levels, strict=True):
        assert one.words == two.words
        assert one.similarity == pytest.approx(two.similarity, abs=1e-5)
        for kind, interaction in one.interactions.items():
            np.testing.assert_allclose(two.interactions[kind], interaction, atol=1e-5)


def test_padded_frames_are_encoded_and_count_for_nothing(data: Storage, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RetrievalModel(retrieval_config(tmp_path)).eval()
    task = retrieval_task(data, model.config, CAPTIONS)
    batch = next(task.batches(Position()))
    assert not batch.frame_mask.all()
    with torch.inference_mode():
        expected = model.encode_video(model.video_batch(batch.frames, batch.frame_mask))
        there = copy.deepcopy(model)
        with absent_device():
            there.to(ABSENT)
            found = on_host(there.encode_video(there.video_batch(batch.frames, batch.frame_mask)))
            assert on_device(found, ABSENT)[0].features.device == ABSENT
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(two.logits, one.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two.features, one.features, rtol=1e-4, atol=1e-5)


def test_the_tensors_of_the_tool_are_tensors() -> None:
    with absent_device():
        assert isinstance(torch.ones(1, device=ABSENT), Tensor)
