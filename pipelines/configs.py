"""Frozen settings of every stage, and the recipe that holds them all.

Imports nothing but the standard library and ``hbi_models.configs``, so that ``--help`` and
``--print_config`` answer at once. Each field's sentence gives its unit; "published" refers to
the public implementation of HBI (arXiv 2303.14369).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hbi_models.configs import (
    AnswerHeadConfig,
    LossConfig,
    MergingConfig,
    OptimizerConfig,
    RetrievalConfig,
    VideoQAConfig,
    require,
)

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Task = Literal["retrieval", "video_qa"]


PUBLISHED_METRICS = (
    *(
        f"{direction}/{name}"
        for direction in ("text_to_video", "video_to_text")
        for name in ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50", "median_rank", "mean_rank")
    ),
    "all/accuracy",
    "answerable/accuracy",
)
"""Metrics of the evaluations that the report compares with figures of others."""


def require_counts(config: object, section: str, *names: str, least: int = 1) -> None:
    """Raises ``ValueError`` unless each named field of ``config`` is None or ``least`` or more."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= least, f"{section}.{name} is {value}; it must be {least} or more")


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """A generated data set: real H.264 files, MSR-VTT's annotation layout, known truth."""

    train_videos: int = 1500
    """Clips for training; the validation split is carved from them."""

    test_videos: int = 250
    """Clips for testing; their combinations of attributes never occur in training."""

    captions_per_video: int = 4
    """Paraphrases of one clip's events."""

    image_size_px: int = 64
    """Width and height of the files."""

    fps: float = 8.0
    """Frames per second of the files."""

    duration_s: float = 4.0
    """Mean length of a clip; clips vary around it."""

    seed: int = 0
    """Everything drawn is a function of this and the clip's number."""

    def __post_init__(self) -> None:
        require_counts(self, "data.shapes", "train_videos", "test_videos", "captions_per_video", "image_size_px")
        require(
            self.image_size_px % 2 == 0,
            f"data.shapes.image_size_px is {self.image_size_px}; H.264 with 4:2:0 colour needs an even number",
        )
        require(self.fps > 0, f"data.shapes.fps is {self.fps}; it must be positive")
        require(self.duration_s > 0, f"data.shapes.duration_s is {self.duration_s}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which videos and captions: a data set in its published layout, or the user's own."""

    dataset: Literal["msrvtt", "msrvtt_qa", "msvd", "activitynet", "didemo", "captions_file"] = "msrvtt"
    """A published data set, from its annotation files (docs/datasets.md), or ``captions_file``: a
    CSV or JSONL with a column ``path`` or ``uri``, a column ``caption``, and optionally
    ``split``, ``video_id``, ``start_s``, ``end_s``."""

    annotations: str | None = None
    """Folder of the annotation files, or the file (captions_file)."""

    videos: str | None = None
    """Folder or URI of the video files; relative paths of the user's own files start here."""

    questions: str | None = None
    """The user's own questions, in place of the data set's: a JSONL or CSV with columns ``video``
    (id, path or URI), ``question``, ``answer``, and optionally ``type``, ``split``. With
    ``captions_file`` and without ``annotations`` the videos are those that it names."""

    msrvtt_train_list: Literal["9k", "7k"] = "9k"
    """Which published training list of MSR-VTT."""

    validation_videos: int = 200
    """Videos taken from the training split for choosing checkpoints, by a hash of their ids;
    0 where the data has a validation split of its own, or none is wanted."""

    max_missing_fraction: float = 0.05
    """Fraction of listed videos that may be missing before the manifest is refused."""

    shapes: ShapesConfig | None = None
    """Generate this data set first and read it instead of ``annotations`` and ``videos``."""

    def __post_init__(self) -> None:
        require(
            self.validation_videos >= 0, f"data.validation_videos is {self.validation_videos}; it must not be negative"
        )
        require(
            0 <= self.max_missing_fraction <= 1,
            f"data.max_missing_fraction is {self.max_missing_fraction}; it must lie in [0, 1]",
        )
        require(
            self.shapes is None or (self.annotations is None and self.videos is None),
            "data.shapes generates the videos and annotations; leave data.annotations and data.videos unset with it",
        )
        require(
            self.shapes is None or self.dataset == "msrvtt",
            f"data.shapes writes MSR-VTT's layout; set data.dataset to msrvtt, not {self.dataset}",
        )

    @property
    def is_questions_alone(self) -> bool:
        """Whether the videos are those of the user's own questions."""
        return self.dataset == "captions_file" and self.annotations is None and self.questions is not None

    @property
    def has_captions(self) -> bool:
        """Whether videos have captions; questions are their texts otherwise."""
        return self.dataset != "msrvtt_qa" and not self.is_questions_alone

    @property
    def may_have_questions(self) -> bool:
        """Whether there is a place where questions can come from."""
        return self.questions is not None or self.dataset in ("msrvtt", "msrvtt_qa")


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """Sampling, decoding and storing frames."""

    fps: float = 1.0
    """Frames sampled per second of video (published: 1)."""

    max_frames: int = 12
    """Frames kept per video, uniformly chosen from the sampled ones (published: 12)."""

    short_side_px: int = 224
    """Length of the shorter side after resizing (bicubic, antialiased)."""

    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """``decord``; ``pyav``; or ``auto``: decord, and PyAV for the files that decord is known to
    read wrongly (edit lists, AVI, MPEG, WMV, MPEG-4 Part 2) or cannot read (AV1, any error)."""

    format: Literal["jpeg", "png"] = "jpeg"
    """``jpeg``: about a tenth of the raw size; ``png``: lossless."""

    jpeg_quality: int = 90
    """1 to 100."""

    timeout_s: float = 120.0
    """Seconds after which the decoding of one video is abandoned and its process killed."""

    max_memory_gb: float = 4.0
    """Address space that the decoding process may take on top of its start, in GB."""

    videos_per_shard: int = 64
    """Videos per Parquet file, the unit of work, of commit and of loss; fewer where that makes less than 64 files."""

    max_error_fraction: float = 0.1
    """Fraction of undecodable videos above which the stage stops."""

    retry_errors: bool = False
    """Decode again the videos that an earlier run put into the errors table, where the stage
    runs: with ``--force`` for a finished stage, which then keeps the frames of the others."""

    def __post_init__(self) -> None:
        require(self.fps > 0, f"frames.fps is {self.fps}; it must be positive")
        require_counts(self, "frames", "max_frames", "short_side_px", "videos_per_shard")
        require(1 <= self.jpeg_quality <= 100, f"frames.jpeg_quality is {self.jpeg_quality}; it must lie in [1, 100]")
        require(self.timeout_s > 0, f"frames.timeout_s is {self.timeout_s}; it must be positive")
        require(
            0 <= self.max_error_fraction <= 1,
            f"frames.max_error_fraction is {self.max_error_fraction}; it must lie in [0, 1]",
        )


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Banzhaf-interaction labels of (caption, video) pairs, the estimator's training data.

    Where the data has no captions, the questions of training and validation take their place.
    """

    kind: Literal["exact", "published"] = "exact"
    """``exact``: the Banzhaf interaction in closed form. ``published``: the exact expectation
    of what the published code samples, so that its estimator checkpoints keep their meaning."""

    checkpoint: str | None = None
    """Folder of a trained retrieval model whose features play the game; null = the model as
    initialised (published)."""

    captions_per_video: int | None = None
    """Captions of a training video that become pairs; null = all (published)."""

    batch_size: int = 64
    """Pairs encoded at once."""

    videos_per_shard: int = 256
    """Videos per Parquet file: the unit of work and of commit."""

    def __post_init__(self) -> None:
        require_counts(self, "labels", "captions_per_video", "batch_size", "videos_per_shard")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a training stage saves itself."""

    every_steps: int | None = None
    """Save after every so many optimizer steps, besides after each epoch; null = epochs only."""

    def __post_init__(self) -> None:
        require_counts(self, "checkpoint", "every_steps")


@dataclass(frozen=True, kw_only=True)
class EstimatorTrainingConfig:
    """Training of the small network that imitates the labels."""

    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-2))
    epochs: int = 10
    """Passes over all pairs (published: 10); 0 with ``init_checkpoint``: take it as it is."""

    init_checkpoint: str | None = None
    """Folder of ours or file of the published implementation to start from."""

    batch_size: int = 128
    """Pairs per step over all workers (published: 128)."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    enabled: bool | None = None
    """Run the stages ``labels`` and ``estimator``: true, false, or null = only where the
    retrieval model's teacher is the estimator."""

    def __post_init__(self) -> None:
        require(
            self.epochs > 0 or self.init_checkpoint is not None,
            "estimator.epochs is 0 and estimator.init_checkpoint is not set; nothing would train the estimator",
        )
        require_counts(self, "estimator", "batch_size")
        require_counts(self, "estimator", "epochs", least=0)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """RandAugment, the same operations for all frames of a clip (published for MSR-VTT)."""

    enabled: bool = True
    operations: int = 4
    """Operations drawn per clip, with replacement (published: 4)."""

    magnitude: float = 7.0
    """Mean strength, 0 to 10 (published: 7)."""

    magnitude_std: float = 0.5
    """Standard deviation of the strength (published: 0.5)."""

    probability: float = 0.5
    """Probability with which a drawn operation is applied (published: 0.5)."""


@dataclass(frozen=True, kw_only=True)
class RetrievalTrainingConfig:
    """Training of the retrieval model."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 5
    """An epoch shows every caption once (published: 5)."""

    batch_size: int = 128
    """Pairs per step over all workers (published: 128)."""

    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    init_checkpoint: str | None = None
    """Folder of ours or file of the published implementation to start from."""

    max_captions_per_video: int | None = None
    """Captions of a video used per epoch; null = all (published)."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast on a GPU, float32 on a CPU."""

    def __post_init__(self) -> None:
        require_counts(self, "retrieval", "epochs", "batch_size", "max_captions_per_video")


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """The vocabulary that answers are chosen from."""

    file: str | None = None
    """A JSON file: an object from answer to class id, as ``train_ans2label.json`` of MSR-VTT-QA, or
    a list in the order of the ids, as ``answers.json`` beside a model. Null = the data set's
    own file where it has one, else the most frequent answers of the training questions."""

    size: int | None = None
    """Take so many of the most frequent answers of the training questions, whatever file there is;
    null = 1,500 (published) where there is none."""

    def __post_init__(self) -> None:
        require_counts(self, "video_qa.answers", "size", least=2)
        require(
            self.file is None or self.size is None,
            f"video_qa.answers.file is {self.file} and video_qa.answers.size is {self.size}; set one of them",
        )


@dataclass(frozen=True, kw_only=True)
class VideoQATrainingConfig:
    """The question answering model and its training; CLIP, temporal encoder and game are ``model``'s."""

    max_words: int = 32
    """Tokens of a question, start and end included; longer ones are cut (published: 32)."""

    merging: MergingConfig = field(
        default_factory=lambda: MergingConfig(text_rates=(0.25, 0.125), video_rates=(0.25, 0.25))
    )
    """Token merging (published for questions: .25, .125 for words and .25, .25 for frames)."""

    head: AnswerHeadConfig = field(default_factory=AnswerHeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    pair_loss_weight: float = 0.5
    """Weight of the contrastive and interaction losses, beside the cross-entropy (published: .5)."""

    level_rates: tuple[float, float, float] = (0.4, 0.4, 0.2)
    """Weights of the entity, action and event logits in an answer (published: .4, .4, .2)."""

    answers: AnswersConfig = field(default_factory=AnswersConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 5
    """An epoch shows every question once (published: 5)."""

    batch_size: int = 32
    """Questions per step over all workers (published: 32)."""

    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(enabled=False))
    """Off by default (published)."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    from_retrieval: bool = False
    """Start from the retrieval model that this recipe trains."""

    init_checkpoint: str | None = None
    """Folder of ours or file of the published implementation to start from: a question answering
    model, or a retrieval model, which gives all but the answer heads."""

    max_questions_per_video: int | None = None
    """Questions about a video used per epoch; null = all (published)."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast on a GPU, float32 on a CPU."""

    def __post_init__(self) -> None:
        require_counts(self, "video_qa", "epochs", "batch_size", "max_questions_per_video")
        require(
            not self.from_retrieval or self.init_checkpoint is None,
            f"video_qa.from_retrieval is true and video_qa.init_checkpoint is {self.init_checkpoint}; "
            "a training starts from one of them",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Retrieval evaluation."""

    split: Split = "test"
    """Which split of the manifest."""

    level_rates: tuple[float, float, float] | None = None
    """Weights of the entity, action and event similarities; null = those of the checkpoint."""

    batch_size: int = 64
    """Texts, or videos, encoded at once."""

    tile: int = 256
    """Texts and videos per side of a similarity tile: bounds the memory."""

    bootstrap_samples: int = 1000
    """Resamples of the queries for the 95% intervals."""

    def __post_init__(self) -> None:
        require_counts(self, "evaluation", "batch_size", "tile", "bootstrap_samples")


@dataclass(frozen=True, kw_only=True)
class QAEvaluationConfig:
    """Evaluation of question answering."""

    split: Split = "test"
    """Which questions, by their own split."""

    level_rates: tuple[float, float, float] | None = None
    """Weights of the entity, action and event logits; null = those of the checkpoint."""

    batch_size: int = 64
    """Videos encoded, or questions answered, at once."""

    bootstrap_samples: int = 1000
    """Resamples of the questions for the 95% intervals."""

    def __post_init__(self) -> None:
        require_counts(self, "qa_evaluation", "batch_size", "bootstrap_samples")


@dataclass(frozen=True, kw_only=True)
class IndexingConfig:
    """Features of the videos of an index (``jobs.index``)."""

    batch_size: int = 32
    """Videos encoded at once."""

    videos_per_shard: int = 64
    """Videos per Parquet file: the unit of work and of commit."""

    def __post_init__(self) -> None:
        require_counts(self, "indexing", "batch_size", "videos_per_shard")


@dataclass(frozen=True, kw_only=True)
class TaskResources:
    """Machines for one stage of independent tasks without a model."""

    max_tasks: int | None = None
    """Most tasks at once; null = as many as fit on the cluster."""

    cpus_per_task: float = 1.0
    memory_gb_per_task: float | None = None
    """Memory set aside for one task, so that no more start on a node than it has room for; null = none."""

    def __post_init__(self) -> None:
        require_counts(self, "resources", "max_tasks")


@dataclass(frozen=True, kw_only=True)
class TrainResources:
    """Machines for one training stage."""

    workers: int = 1
    """Processes that train together (DDP)."""

    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    """Null = one where the cluster has at least one per worker, else none. Name it where GPU nodes
    are started on demand: they are then waited for."""

    memory_gb_per_worker: float | None = None
    """Memory set aside for one worker; null = none."""

    loader_processes: int = 0
    """Processes per worker that read, decode and augment; 0 = a thread inside the worker."""

    max_failures: int = 3
    """Restarts of the worker group after a worker or node died."""

    def __post_init__(self) -> None:
        require_counts(self, "resources", "workers")
        require_counts(self, "resources", "loader_processes", "max_failures", least=0)


@dataclass(frozen=True, kw_only=True)
class ActorResources:
    """Machines for one stage that maps over data with a model in each actor."""

    min_actors: int = 1
    """Actors that the stage begins with, where there is work for so many."""

    max_actors: int | None = None
    """Null = as many as fit on the nodes that are there when the stage begins, at least one. Name it
    where nodes are started on demand."""

    cpus_per_actor: float = 1.0
    gpus_per_actor: float | None = None
    """Null = one where the cluster has one, else none. Name it where GPU nodes are started on demand:
    they are then waited for."""

    memory_gb_per_actor: float | None = None
    """Memory set aside for one actor; null = none."""

    def __post_init__(self) -> None:
        require_counts(self, "resources", "min_actors", "max_actors")
        require(
            self.max_actors is None or self.min_actors <= self.max_actors,
            f"resources: min_actors is {self.min_actors} and max_actors is {self.max_actors}; the least must not be "
            "above the most",
        )


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """How much of the cluster each stage takes. Nothing here changes a result."""

    ray_address: str | None = None
    """Address of a running cluster; null = RAY_ADDRESS, else a local Ray is started."""

    local_cpus: int | None = None
    """CPUs of a local Ray; null = all of the machine."""

    local_object_store_gb: float = 0.5
    """Shared memory of a local Ray. Frames never pass through it, so it can be small."""

    require_gpus: bool = False
    """Refuse a cluster without GPUs for stages with a model, unless their number of GPUs is named;
    false: such a stage then runs on CPUs, and the log says so."""

    decode: TaskResources = field(default_factory=TaskResources)
    """Of the stages that write and decode videos."""

    labels: ActorResources = field(default_factory=ActorResources)
    estimator: TrainResources = field(default_factory=TrainResources)
    retrieval: TrainResources = field(default_factory=TrainResources)
    evaluation: ActorResources = field(default_factory=ActorResources)
    video_qa: TrainResources = field(default_factory=TrainResources)
    qa_evaluation: ActorResources = field(default_factory=ActorResources)
    index: ActorResources = field(default_factory=ActorResources)
    """Of the index for search (``jobs.index``)."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The page at the end of a run."""

    enabled: bool = True
    """Write it."""

    queries: int = 8
    """How many of the best and of the worst queries are shown."""

    figures: int = 2
    """How many of each are drawn with their interactions."""

    mistakes: int = 12
    """How many wrongly answered questions of each type are shown."""

    published: dict[str, float] = field(default_factory=dict)
    """Figures to compare with, by metric: ``text_to_video/recall_at_1``, ``all/accuracy``."""

    def __post_init__(self) -> None:
        require_counts(self, "report", "queries", "figures", "mistakes", least=0)
        unknown = sorted(set(self.published) - set(PUBLISHED_METRICS))
        require(
            not unknown,
            f"report.published names {', '.join(unknown)}; the metrics are: {', '.join(PUBLISHED_METRICS)}",
        )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow."""

    experiment: str = "hbi"
    """Name of the MLflow experiment."""

    log_model: bool = True
    """Log the trained model so that ``mlflow.pytorch.load_model`` reads it."""

    every_steps: int = 5
    """Steps between two points of a training curve."""

    def __post_init__(self) -> None:
        require_counts(self, "tracking", "every_steps")


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
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    estimator: EstimatorTrainingConfig = field(default_factory=EstimatorTrainingConfig)
    retrieval: RetrievalTrainingConfig = field(default_factory=RetrievalTrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    video_qa: VideoQATrainingConfig = field(default_factory=VideoQATrainingConfig)
    qa_evaluation: QAEvaluationConfig = field(default_factory=QAEvaluationConfig)
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
            workers = getattr(self.resources, stage).workers
            require(
                training.batch_size % workers == 0,
                f"{stage}.batch_size is {training.batch_size} over resources.{stage}.workers = {workers} workers; "
                "it is the global batch and must be a multiple of the number of workers",
            )
        require(
            self.model.game.teacher != "estimator" or self.estimator.enabled is not False,
            "model.game.teacher is estimator and estimator.enabled is false; leave estimator.enabled unset, or choose "
            "the teacher exact or none",
        )

        self._check_tasks()

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

    def require_questions(self) -> None:
        """Raises ``ValueError`` where no question can come from."""
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
        """Whether the stage ``estimator`` takes part, and ``labels`` before it if it trains at all."""
        if self.estimator.enabled is None:
            return self.model.game.teacher == "estimator"
        return self.estimator.enabled
