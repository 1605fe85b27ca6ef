from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.clip.preprocessing import normalize_pixels
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.configs import GameConfig
from hbi_models.published_weights import retrieval_to_published, video_qa_to_published
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from pipelines.datasets.answers import Vocabulary
from pipelines.models.estimator import EstimatorConfig
from pipelines.models.weights import load_video_qa, save_model
from pipelines.recipe.training import AugmentationConfig
from pipelines.stages.video_qa import count_seen_test_videos
from pipelines.train.checkpoints import Position
from pipelines.train.loop import SCORE, LoopSettings, TrainingLoop
from pipelines.train.video_qa import QuestionBatch, VideoQATask
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import training_data
from tests.tiny_video_qa import OUTSIDE, VOCABULARY, video_qa_config, video_qa_task, write_question_data

TRAIN = (3, 1, 2, 2, 3, 1, 2, 1, 2)
VALIDATION = (3, 1, 2)
CPU = torch.device("cpu")


@dataclass
class Recorder:
    """Keeps the losses and every checkpoint; may stop the training after one of them."""

    folder: Path
    interrupt_after: int | None = None
    losses: dict[int, float] = field(default_factory=dict)
    checkpoints: int = 0

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            self.losses[step] = metrics["train/loss"]

    def checkpoint(self, folder: Path | None, score: float) -> None:
        assert folder is not None
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(folder, self.folder)
        self.checkpoints += 1
        if self.checkpoints == self.interrupt_after:
            raise InterruptedError


@pytest.fixture
def data(tmp_path: Path) -> Storage:
    return write_question_data(tmp_path, {"train": TRAIN, "val": VALIDATION})


@pytest.fixture
def task(data: Storage, tmp_path: Path) -> VideoQATask:
    return video_qa_task(data, video_qa_config(tmp_path))


def flat(batch: QuestionBatch) -> list[torch.Tensor]:
    return [*batch.pairs[:-1], batch.labels]


def assert_same(one: QuestionBatch, other: QuestionBatch) -> None:
    assert one.pairs.video_ids == other.pairs.video_ids
    for found, expected in zip(flat(one), flat(other), strict=True):
        assert torch.equal(found, expected)


def asked_in_manifest(data: Storage) -> dict[tuple[str, tuple[int, ...]], set[int]]:
    """Class ids of the answers by video and token ids of the question, of answerable training questions."""
    tokenizer = CaptionTokenizer(video_qa_config(Path(data.path())).encoder.max_words)
    asked: dict[tuple[str, tuple[int, ...]], set[int]] = {}
    for row in data.read_table("manifest/manifest.parquet").to_pylist():
        for item in row["questions"]:
            if item["split"] == "train" and item["answer"] != OUTSIDE:
                key = row["video_id"], tuple(tokenizer([item["question"]])[0][0].tolist())
                asked.setdefault(key, set()).add(VOCABULARY.answers.index(item["answer"]))
    return asked


def test_an_epoch_asks_every_answerable_question_with_its_clip_and_answer(data: Storage, task: VideoQATask) -> None:
    asked = asked_in_manifest(data)
    view = training_data(data).questions("train")
    clips = {name: view.store.decoded(video) for video, name in enumerate(view.store.video_ids)}
    seen = []
    for batch in task.batches(Position(epoch=1)):
        assert len(set(batch.pairs.video_ids)) == len(batch.pairs.video_ids), "two questions of one video"
        for row, name in enumerate(batch.pairs.video_ids):
            key = name, tuple(batch.pairs.token_ids[row].tolist())
            assert int(batch.labels[row]) in asked[key]
            seen.append(key)
            # Cut from the middle of the stored picture, which is 8 px wider than high.
            assert int(batch.pairs.frame_mask[row].sum()) == len(clips[name])
            assert torch.equal(batch.pairs.frames[row, 0], clips[name][0][:, :, 4:-4])
    assert len(set(seen)) == len(seen)
    assert len(seen) == task.steps(1) * 4 > 0.7 * len(asked)


def test_questions_without_a_known_answer_are_kept_out(data: Storage, task: VideoQATask) -> None:
    assert sum(training_data(data).questions("train").texts_per_video) == sum(TRAIN)
    assert all((batch.labels >= 0).all() for batch in task.batches(Position()))


def test_the_parts_of_the_ranks_make_the_batch(task: VideoQATask) -> None:
    task.training = replace(task.training, augmentation=AugmentationConfig(operations=2))
    whole = task.source(rank=0, world_size=1)
    parts = [task.source(rank=rank, world_size=2) for rank in range(2)]
    for address in ((0, 0), (0, 1), (1, 1)):
        one, two = (part[address] for part in parts)
        joined = [torch.cat(pair) for pair in zip(flat(one), flat(two), strict=True)]
        assert all(torch.equal(found, expected) for found, expected in zip(joined, flat(whole[address]), strict=True))


def test_a_source_travels_to_loader_processes(task: VideoQATask) -> None:
    source = task.source(rank=0, world_size=1)
    assert_same(pickle.loads(pickle.dumps(source))[1, 0], source[1, 0])


def test_questions_of_a_video_can_be_limited(data: Storage, tmp_path: Path) -> None:
    task = video_qa_task(data, video_qa_config(tmp_path), max_questions_per_video=1)
    names = [name for batch in task.batches(Position(epoch=1)) for name in batch.pairs.video_ids]
    assert len(set(names)) == len(names) == 8


@pytest.mark.slow
def test_an_interrupted_training_ends_as_an_uninterrupted_one(task: VideoQATask, tmp_path: Path) -> None:
    settings = LoopSettings(checkpoint_every_steps=2, log_every_steps=1)
    assert min(task.steps_per_epoch) >= 3

    def loop(recorder: Recorder, resume: Path | None = None) -> TrainingLoop[QuestionBatch]:
        return TrainingLoop(task, device=CPU, reporter=recorder, settings=settings, resume=resume)

    whole = Recorder(tmp_path / "whole")
    expected = loop(whole).run().state_dict()
    first, second = Recorder(tmp_path / "first", interrupt_after=1), Recorder(tmp_path / "second")
    with pytest.raises(InterruptedError):
        loop(first).run()
    found = loop(second, resume=first.folder).run().state_dict()
    # To the last bit, dropout included.
    assert first.losses | second.losses == whole.losses
    assert second.losses.keys() == whole.losses.keys() - first.losses.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    encoder = task.model_config.encoder
    own = replace(encoder.clip, architecture=str(whole.folder / "architecture.json"))
    loaded = load_video_qa(Storage(str(whole.folder)), tmp_path).config
    assert loaded == replace(task.model_config, encoder=encoder.with_clip(own))


@pytest.mark.slow
def test_validation_counts_questions_without_a_known_answer_as_wrong(data: Storage, task: VideoQATask) -> None:
    torch.manual_seed(0)
    model = task.make_model().eval()
    view, right, among_five = training_data(data).questions("val"), 0, 0
    assert isinstance(model, VideoQAModel)
    with torch.inference_mode():
        metrics = task.validate(model, CPU)
        for video in range(len(view)):
            for question in view.questions(video):
                scores = answer_alone(model, view, video, question.question)
                best = [VOCABULARY.answers[label] for label in scores.argsort(descending=True)]
                right += question.answer == best[0]
                among_five += question.answer in best[:5]
    assert metrics["validation/accuracy"] == metrics[SCORE] == pytest.approx(100 * right / sum(VALIDATION))
    assert metrics["validation/top_5_accuracy"] == pytest.approx(100 * among_five / sum(VALIDATION))
    assert among_five < sum(VALIDATION)


def answer_alone(model: VideoQAModel, view: object, video: int, question: str) -> torch.Tensor:
    """Logits of all answers to one question about one video, in a batch of its own."""
    store, encoder = view.store, model.encoder  # type: ignore[attr-defined]
    token_ids, mask = map(torch.from_numpy, CaptionTokenizer(encoder.config.max_words)([question]))
    clip = store.batch([video], image_size_px=32, max_frames=encoder.config.max_frames)
    questions = encoder.encode_text(TextBatch(token_ids, mask))
    return model.answer_logits(questions, encoder.encode_video(VideoBatch(normalize_pixels(clip.frames), clip.mask)))[0]


def test_without_validation_questions_there_is_nothing_to_choose_by(tmp_path: Path) -> None:
    data = write_question_data(tmp_path, {"train": TRAIN})
    task = video_qa_task(data, video_qa_config(tmp_path))
    assert task.validate(task.make_model(), CPU) == {SCORE: 0.0}


def make(config: object, seed: int) -> VideoQAModel:
    torch.manual_seed(seed)
    return VideoQAModel(config)  # type: ignore[arg-type]


def save(folder: Path, model: VideoQAModel | RetrievalModel, kind: str, answers: Vocabulary | None = None) -> str:
    folder.mkdir()
    save_model(folder, model, kind=kind, config=model.config)
    if answers is not None:
        answers.write(Storage(str(folder)))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("kind", ["video_qa", "retrieval"])
def test_training_starts_from_either_kind_of_checkpoint(
    data: Storage, tmp_path: Path, kind: str, published: bool
) -> None:
    config = video_qa_config(tmp_path)
    other = replace(config, encoder=replace(config.encoder, game=GameConfig(teacher="none", estimator_channels=8)))
    source = make(config if published else other, seed=1)
    start = source if kind == "video_qa" else source.encoder
    if published:
        exported = {"video_qa": video_qa_to_published, "retrieval": retrieval_to_published}[kind](start.state_dict())
        checkpoint = str(tmp_path / "pytorch_model.bin.3")
        torch.save(exported, checkpoint)
    else:
        checkpoint = save(tmp_path / kind, start, kind, VOCABULARY)
    torch.manual_seed(0)
    model = video_qa_task(data, config, init_checkpoint=checkpoint).make_model()
    new = make(config, seed=0)
    for name, value in model.state_dict().items():
        taken = kind == "video_qa" or name.startswith("encoder.")
        assert torch.equal(value, (source if taken else new).state_dict()[name]), name


@pytest.mark.slow
def test_a_checkpoint_with_other_answers_is_refused(data: Storage, tmp_path: Path) -> None:
    config = video_qa_config(tmp_path)
    turned = Vocabulary(reversed(VOCABULARY.answers))
    checkpoint = save(tmp_path / "other", make(config, 1), "video_qa", turned)
    with pytest.raises(
        ValueError, match=r"7 answers that are not the 7 .*video_qa\.answers\.file to its answers\.json"
    ):
        video_qa_task(data, config, init_checkpoint=checkpoint).make_model()
    smaller = make(replace(config, num_answers=5), 1)
    torch.save(video_qa_to_published(smaller.state_dict()), tmp_path / "model.bin")
    with pytest.raises(ValueError, match=r"model\.bin do not fit .* is \(5, 24\), needed \(7, 24\)"):
        video_qa_task(data, config, init_checkpoint=str(tmp_path / "model.bin")).make_model()


def test_another_kind_of_checkpoint_is_refused(data: Storage, tmp_path: Path) -> None:
    (tmp_path / "estimator").mkdir()
    save_model(tmp_path / "estimator", InteractionEstimator(8), kind="estimator", config=EstimatorConfig(8))
    with pytest.raises(ValueError, match="holds a model of kind 'estimator'"):
        video_qa_task(data, video_qa_config(tmp_path), init_checkpoint=str(tmp_path / "estimator")).make_model()


def test_the_trained_estimator_teaches(data: Storage, tmp_path: Path) -> None:
    estimator = InteractionEstimator(8)
    (tmp_path / "estimator").mkdir()
    save_model(tmp_path / "estimator", estimator, kind="estimator", config=EstimatorConfig(8))
    taught = video_qa_config(tmp_path, game=GameConfig(teacher="estimator", estimator_channels=8))
    task = video_qa_task(data, taught)
    with pytest.raises(ValueError, match="there is no trained estimator to teach"):
        task.make_model()
    task.data = replace(task.data, estimator=Storage(str(tmp_path / "estimator")))
    model = task.make_model()
    for name, value in estimator.state_dict().items():
        assert torch.equal(model.state_dict()[f"encoder.teacher.{name}"], value), name


def test_videos_that_retrieval_saw_and_questions_test_are_counted(tmp_path: Path) -> None:
    data = write_question_data(tmp_path, {"train": (1, 2, 3), "val": (1,), "test": (2,)})
    table = data.read_table("manifest/manifest.parquet")
    rows = table.to_pylist()
    for row in (rows[0], rows[2], rows[3]):
        row["questions"][0]["split"] = "test"
    data.write_table("manifest/manifest.parquet", type(table).from_pylist(rows, schema=table.schema))
    # Of the three the last one is no training video.
    assert count_seen_test_videos(data.folder("manifest")) == 2
