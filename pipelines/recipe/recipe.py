"""Frozen settings of every stage, and the recipe that holds them all.

Imports nothing but the standard library and light modules of ``hbi_models``, so that ``--help`` and
``--print_config`` answer at once. Each field's sentence gives its unit; "published" refers to
the public implementation of HBI (arXiv 2303.14369).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hbi_models.clip.pixels import with_pixel_statistics
from hbi_models.config_fields import added_later, require
from hbi_models.configs import RetrievalConfig, VideoQAConfig
from pipelines.recipe.data import DataConfig
from pipelines.recipe.evaluation import EvaluationConfig, QAEvaluationConfig
from pipelines.recipe.features import FeaturesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.indexing import IndexingConfig
from pipelines.recipe.labels import LabelsConfig
from pipelines.recipe.probe import ProbeConfig
from pipelines.recipe.report import ReportConfig
from pipelines.recipe.resources import ResourcesConfig
from pipelines.recipe.tracking import TrackingConfig
from pipelines.recipe.training import (
    AugmentationConfig,
    EstimatorTrainingConfig,
    RetrievalTrainingConfig,
    VideoQATrainingConfig,
)

Task = Literal["retrieval", "video_qa"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run of the pipeline depends on."""

    workspace: str = "workspace"
    """Folder or URI (s3://, gs://) of everything the pipeline writes."""

    seed: int = 42
    """Seed of initial weights, order of the data and augmentation (published: 42)."""

    tasks: tuple[Task, ...] = ("retrieval",)
    """What is trained and evaluated: ``retrieval``, ``video_qa`` or both."""

    data: DataConfig = field(default_factory=DataConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    model: RetrievalConfig = field(default_factory=RetrievalConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    estimator: EstimatorTrainingConfig = field(default_factory=EstimatorTrainingConfig)
    retrieval: RetrievalTrainingConfig = field(default_factory=RetrievalTrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    video_qa: VideoQATrainingConfig = field(default_factory=VideoQATrainingConfig)
    qa_evaluation: QAEvaluationConfig = field(default_factory=QAEvaluationConfig)
    probe: ProbeConfig = added_later(default_factory=ProbeConfig)
    indexing: IndexingConfig = field(default_factory=IndexingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        require(
            self.model.max_frames == self.frames.max_frames,
            f"model.max_frames is {self.model.max_frames} and frames.max_frames is {self.frames.max_frames}; "
            "the model reads what the frames stage stores: set both to the same number",
        )
        for stage, training in (
            ("estimator", self.estimator),
            ("retrieval", self.retrieval),
            ("video_qa", self.video_qa),
        ):
            # 0 workers: the process of the command trains, alone.
            workers = max(1, getattr(self.resources, stage).workers)
            require(
                training.batch_size % workers == 0,
                f"{stage}.batch_size is {training.batch_size} over resources.{stage}.workers = {workers} workers; "
                "it is the global batch and must be a multiple of the number of workers",
            )
        require(
            self.model.game.teacher != "estimator" or self.estimator.enabled is not False,
            "model.game.teacher is estimator and estimator.enabled is false; leave estimator.enabled unset, or choose "
            "the teacher exact, cosine or none",
        )

        require(
            self.resources.estimator.pairs_at_once is None,
            f"resources.estimator.pairs_at_once is {self.resources.estimator.pairs_at_once}; leave it unset: the "
            "estimator's batches fit any device",
        )
        # What the tag of the weights says about pixels decides over every result, so it is part of the settings.
        clip = with_pixel_statistics(self.model.clip)
        object.__setattr__(self, "model", replace(self.model, clip=clip))
        self._check_tasks()
        self._check_features()
        decode = self.resources.decode
        require(
            # 0 tasks: the process of the command decodes, and asks Ray for no GPU.
            self.frames.decoder != "nvdec" or decode.gpus_per_task > 0 or decode.max_tasks == 0,
            "frames.decoder is nvdec and resources.decode.gpus_per_task is 0; set it to the part of a GPU that a task "
            "takes, such as 0.1, or choose another decoder",
        )
        for section, trained in (("retrieval", self.retrieval), ("video_qa", self.video_qa)):
            require(
                trained.image_decoding == "cpu" or self.frames.format == "jpeg",
                f"{section}.image_decoding is gpu and frames.format is {self.frames.format}; a GPU decodes JPEG images "
                "only: set frames.format to jpeg, or decode on the CPU",
            )

    def _check_tasks(self) -> None:
        require(bool(self.tasks), "tasks is empty; choose retrieval, video_qa or both")
        require(len(set(self.tasks)) == len(self.tasks), f"tasks is {list(self.tasks)}; name each task once")
        require(
            "retrieval" not in self.tasks or self.data.has_captions,
            f"tasks holds retrieval, but data.dataset {self.data.dataset} gives questions without captions; set tasks "
            "to [video_qa], or choose data with captions",
        )
        require(
            "retrieval" in self.tasks or not ("video_qa" in self.tasks and self.video_qa.from_retrieval),
            "video_qa.from_retrieval is true, but tasks does not hold retrieval; add it, or set "
            "video_qa.init_checkpoint to a trained retrieval model",
        )
        if "video_qa" in self.tasks:
            self.require_questions()

    def _check_features(self) -> None:
        require(
            (self.data.features is None) == (self.model.tokens is None),
            "data.features and model.tokens go together: the one names the features of another model, the other says "
            f"how many channels they have; data.features is {self.data.features}, model.tokens {self.model.tokens}",
        )
        require(
            self.model.tokens is None or not (self.has_estimator and self.estimator.epochs),
            "the estimator learns from labels, which a model makes that knows words and frames before its training, "
            "and with model.tokens there is none; set model.game.teacher to exact or none, or take an estimator "
            "as it is (estimator.init_checkpoint and estimator.epochs 0)",
        )
        if not self.stores_features:
            require(
                not self.features.views,
                f"features.views is {self.features.views}, and no features are stored, because the encoder is trained; "
                "set model.clip.train to none, or features.views to 0",
            )
            return
        require(
            not self.model.quirks.encode_padding,
            "model.clip.train is none, so that features of real words and frames are stored, and "
            "model.quirks.encode_padding reads those of padding; set one of them to its default",
        )
        augmented = {name: found for name, found in self._augmentations.items() if found.enabled}
        require(
            not augmented or self.features.views > 0,
            f"{' and '.join(augmented)}.augmentation is enabled, and a frozen encoder sees each clip once; set "
            "features.views to the number of augmented copies to store of each clip, or enabled to false",
        )
        require(
            len(set(augmented.values())) <= 1,
            "retrieval.augmentation and video_qa.augmentation differ, and the views of both are the same; set them "
            "alike, or disable one",
        )
        require(
            bool(augmented) or not self.features.views,
            f"features.views is {self.features.views}, and no training uses them; set retrieval.augmentation.enabled "
            "to true, or features.views to 0",
        )
        require(
            self.model.tokens is None or not self.features.views,
            f"features.views is {self.features.views}, and features that another model made cannot be augmented; set "
            "it to 0, and retrieval.augmentation.enabled to false",
        )

    @property
    def _augmentations(self) -> dict[str, AugmentationConfig]:
        """Of the trainings that take part, by their stage."""
        return {task: getattr(self, task).augmentation for task in self.tasks}

    @property
    def stores_features(self) -> bool:
        """Whether the stage ``features`` takes part: the encoder is frozen, or another model's."""
        return self.model.tokens is not None or self.model.clip.train == "none"

    @property
    def view_augmentation(self) -> AugmentationConfig:
        """How the views of a clip are made."""
        # Those that are enabled are alike (_check_features), so any of them will do.
        return next((found for found in self._augmentations.values() if found.enabled), AugmentationConfig())

    def require_questions(self) -> None:
        """Raises ``ValueError`` if the data cannot have questions."""
        require(
            self.data.may_have_questions,
            f"data.dataset {self.data.dataset} has no questions to train or evaluate with; set data.questions to a "
            "file of yours, or data.dataset to msrvtt_qa",
        )

    def video_qa_model(self, num_answers: int) -> VideoQAConfig:
        """The question answering model for a vocabulary of ``num_answers`` answers."""
        settings = self.video_qa
        return VideoQAConfig(
            encoder=replace(self.model, merging=settings.merging, loss=settings.loss, max_words=settings.max_words),
            head=settings.head,
            num_answers=num_answers,
            pair_loss_weight=settings.pair_loss_weight,
            level_rates=settings.level_rates,
        )

    @property
    def has_estimator(self) -> bool:
        """Whether the recipe has the stage ``estimator``, with ``labels`` before it unless nothing is trained."""
        if self.estimator.enabled is None:
            return self.model.game.teacher == "estimator"
        return self.estimator.enabled
