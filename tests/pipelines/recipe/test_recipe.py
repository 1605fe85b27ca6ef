from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from hbi_models.configs import GameConfig, RetrievalConfig, VideoQAConfig
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.evaluation import EvaluationConfig, QAEvaluationConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.labels import LabelsConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ActorResources, ResourcesConfig, TrainResources
from pipelines.recipe.tracking import TrackingConfig
from pipelines.recipe.training import (
    AnswersConfig,
    CheckpointConfig,
    EstimatorTrainingConfig,
    RetrievalTrainingConfig,
    VideoQATrainingConfig,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FramesConfig(fps=0), "frames.fps is 0; it must be positive"),
        (lambda: FramesConfig(max_frames=0), "frames.max_frames is 0; it must be 1 or more"),
        (lambda: FramesConfig(jpeg_quality=101), r"frames.jpeg_quality is 101; it must lie in \[1, 100\]"),
        (lambda: FramesConfig(timeout_s=0), "frames.timeout_s is 0; it must be positive"),
        (lambda: FramesConfig(max_error_fraction=1.5), "frames.max_error_fraction is 1.5"),
        (lambda: ShapesConfig(image_size_px=63), "data.shapes.image_size_px is 63; .* even number"),
        (lambda: ShapesConfig(train_videos=0), "data.shapes.train_videos is 0; it must be 1 or more"),
        (lambda: DataConfig(validation_videos=-1), "data.validation_videos is -1"),
        (lambda: EstimatorTrainingConfig(epochs=0), "estimator.epochs is 0 .* nothing would train the estimator"),
        (lambda: EstimatorTrainingConfig(epochs=-1, init_checkpoint="/a"), "estimator.epochs is -1"),
        (lambda: DataConfig(max_missing_fraction=2), "data.max_missing_fraction is 2"),
    ],
)
def test_impossible_values_are_refused_by_name(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Recipe(frames=FramesConfig(max_frames=8)),
            "model.max_frames is 12 and frames.max_frames is 8; .* set both to the same number",
        ),
        (
            lambda: Recipe(
                retrieval=RetrievalTrainingConfig(batch_size=10),
                resources=ResourcesConfig(retrieval=TrainResources(workers=4)),
            ),
            "retrieval.batch_size is 10 over resources.retrieval.workers = 4 workers; .* multiple",
        ),
        (
            lambda: Recipe(
                estimator=EstimatorTrainingConfig(batch_size=9),
                resources=ResourcesConfig(estimator=TrainResources(workers=2)),
            ),
            "estimator.batch_size is 9 over resources.estimator.workers = 2",
        ),
        (
            lambda: DataConfig(shapes=ShapesConfig(), annotations="/data"),
            "data.shapes generates the videos .* leave data.annotations and data.videos unset",
        ),
        (
            lambda: DataConfig(shapes=ShapesConfig(), dataset="captions_file"),
            "data.shapes writes MSR-VTT's layout; set data.dataset to msrvtt, not captions_file",
        ),
        (
            lambda: ActorResources(min_actors=3, max_actors=2),
            "min_actors is 3 and max_actors is 2; the least must not be above the most",
        ),
        (lambda: Recipe(tasks=()), "tasks is empty; choose retrieval, video_qa or both"),
        (lambda: Recipe(tasks=("retrieval", "retrieval")), "name each task once"),
        (
            lambda: Recipe(data=DataConfig(dataset="msrvtt_qa")),
            r"msrvtt_qa gives questions without captions; set tasks to \[video_qa\]",
        ),
        (
            lambda: Recipe(data=DataConfig(dataset="captions_file", questions="q.jsonl")),
            "captions_file gives questions without captions",
        ),
        (
            lambda: Recipe(tasks=("video_qa",), data=DataConfig(dataset="captions_file", annotations="a.csv")),
            "captions_file has no questions .* set data.questions to a file of yours",
        ),
        (
            lambda: Recipe(tasks=("video_qa",), video_qa=VideoQATrainingConfig(from_retrieval=True)),
            "from_retrieval is true, but tasks does not hold retrieval",
        ),
        (
            lambda: VideoQATrainingConfig(from_retrieval=True, init_checkpoint="/model"),
            "a training starts from one of them",
        ),
        (
            lambda: AnswersConfig(file="answers.json", size=100),
            "video_qa.answers.file is answers.json and video_qa.answers.size is 100; set one",
        ),
        (
            lambda: Recipe(
                tasks=("video_qa",),
                video_qa=VideoQATrainingConfig(batch_size=9),
                resources=ResourcesConfig(video_qa=TrainResources(workers=2)),
            ),
            "video_qa.batch_size is 9 over resources.video_qa.workers = 2",
        ),
        (
            lambda: Recipe(frames=FramesConfig(decoder="nvdec")),
            "decoder is nvdec and resources.decode.gpus_per_task is 0; set it to the part of a GPU",
        ),
    ],
)
def test_contradictions_are_refused_in_the_users_words(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# With 0 these would divide by zero, or silently do nothing.
COUNTS: dict[type, tuple[str, ...]] = {
    LabelsConfig: ("batch_size", "videos_per_shard", "captions_per_video"),
    CheckpointConfig: ("every_steps",),
    EstimatorTrainingConfig: ("batch_size",),
    RetrievalTrainingConfig: ("epochs", "batch_size", "max_captions_per_video"),
    EvaluationConfig: ("batch_size", "tile", "bootstrap_samples"),
    VideoQATrainingConfig: ("epochs", "batch_size", "max_questions_per_video"),
    QAEvaluationConfig: ("batch_size", "bootstrap_samples"),
    ActorResources: ("min_actors",),
    TrackingConfig: ("every_steps",),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in COUNTS.items() for name in names])
def test_counts_must_be_positive(kind: type, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; it must be 1 or more"):
        kind(**{name: 0})


def test_the_estimator_takes_part_where_it_teaches_or_is_asked_for() -> None:
    untaught = RetrievalConfig(game=GameConfig(teacher="exact"))
    assert Recipe(model=RetrievalConfig(game=GameConfig(teacher="estimator"))).has_estimator
    assert not Recipe(model=untaught).has_estimator
    assert Recipe(model=untaught, estimator=EstimatorTrainingConfig(enabled=True)).has_estimator


def test_a_teacher_that_is_not_trained_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.game.teacher is estimator and estimator.enabled is false"):
        Recipe(
            model=RetrievalConfig(game=GameConfig(teacher="estimator")),
            estimator=EstimatorTrainingConfig(enabled=False),
        )


def test_the_question_model_shares_what_is_not_its_own() -> None:
    encoder = RetrievalConfig(game=GameConfig(teacher="exact"), max_words=20)
    recipe = Recipe(model=encoder)
    model = recipe.video_qa_model(7)
    assert model.num_answers == 7
    own = {"max_words", "merging", "loss"}
    for name in RetrievalConfig.__dataclass_fields__:
        expected = recipe.video_qa if name in own else encoder
        assert getattr(model.encoder, name) == getattr(expected, name), name
    for name in ("head", "pair_loss_weight", "level_rates"):
        assert getattr(model, name) == getattr(recipe.video_qa, name)


def test_the_defaults_of_question_answering_are_the_published_ones() -> None:
    published = VideoQAConfig()
    model = Recipe().video_qa_model(1500)
    for name in ("max_words", "merging", "loss"):
        assert getattr(model.encoder, name) == getattr(published.encoder, name)
    assert replace_encoder(model) == replace_encoder(published)
    training = VideoQATrainingConfig()
    assert (training.epochs, training.batch_size, training.augmentation.enabled) == (5, 32, False)


def replace_encoder(config: VideoQAConfig) -> VideoQAConfig:
    """``config`` but for what it shares with retrieval."""
    return dataclasses.replace(config, encoder=RetrievalConfig())


def test_configurations_are_values() -> None:
    assert Recipe() == Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 1  # type: ignore[misc]


def test_reading_the_settings_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipelines.recipe.recipe, jobs.settings\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
