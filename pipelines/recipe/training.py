"""Settings of the trainings: the estimator, the retrieval model, the question answering model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hbi_models.config_fields import added_later, content_of, only_for, require
from hbi_models.configs import AnswerHeadConfig, LossConfig, MergingConfig, VideoQAConfig
from hbi_models.optimizer_config import OptimizerConfig
from pipelines.recipe.checks import require_counts

Precision = Literal["float32", "bfloat16", "float16"]
"""``float32``, or ``bfloat16``: matrix products in bfloat16 (autocast), sums, losses and weights in float32. On GPUs
bfloat16 is several times as fast. A GPU that only imitates bfloat16 (T4, V100) refuses it: ``float16`` is for those,
with gradients that are scaled, and steps left out where they overflow."""

ValidationHalf = Literal["choosing", "ranking"]
"""One of two halves of the validation videos, by a hash of their ids: what was chosen on one is ranked on the other."""

ImageDecoding = Literal["cpu", "gpu"]
"""Who decodes stored frames in a training: the loader, or the model's GPU (nvJPEG; pixels may differ by a few grey
levels)."""

# Its defaults are the published ones for questions; MergingConfig's own are for retrieval.
_PUBLISHED_QA = VideoQAConfig()


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
    """Passes over all pairs (published: 10); 0 = use ``init_checkpoint`` unchanged."""

    init_checkpoint: str | None = content_of("checkpoint")
    """Folder of ours or file of the published implementation to start from."""

    batch_size: int = 128
    """Pairs per step over all workers (published: 128)."""

    checkpoint: CheckpointConfig = only_for(default_factory=CheckpointConfig)

    enabled: bool | None = only_for(default=None)
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

    device: Literal["auto", "cpu", "gpu"] = added_later(default="cpu")
    """Where clips are augmented. ``cpu``: in the loader, on whole frames. ``gpu``: on the model's GPU, on the squares
    that the model sees, many clips at once, with operations that are within a grey level of those in the loader.
    ``auto``: as ``gpu`` if the model is on a GPU, else as ``cpu``."""


@dataclass(frozen=True, kw_only=True)
class RetrievalTrainingConfig:
    """Training of the retrieval model."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 5
    """An epoch shows every caption once (published: 5)."""

    batch_size: int = 128
    """Pairs per step over all workers (published: 128)."""

    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    checkpoint: CheckpointConfig = only_for(default_factory=CheckpointConfig)

    init_checkpoint: str | None = content_of("checkpoint")
    """Folder of ours or file of the published implementation to start from."""

    max_captions_per_video: int | None = None
    """Captions of a video used per epoch; null = all (published)."""

    precision: Precision = "float32"
    """Of the arithmetic, on GPUs and CPUs alike."""

    validation_half: ValidationHalf | None = added_later(default=None)
    """Validate with one half of the validation videos; null = all. ``jobs.tune`` chooses finalists on the one
    and ranks them, and the baselines, on the other."""

    compiled: bool = added_later(default=False)
    """Compile towers and predictors with ``torch.compile``: faster steps on GPUs after minutes of compiling, and other
    roundings."""

    image_decoding: ImageDecoding = added_later(default="cpu")
    """Who decodes the stored JPEG images: ``cpu`` = the loader; ``gpu`` = the model's GPU, where the loader's cores are
    too few. Then RandAugment runs there, too."""

    validation_batch_size: int = only_for(default=64)
    """Texts, or videos, encoded at once in a validation."""

    def __post_init__(self) -> None:
        require_counts(self, "retrieval", "epochs", "batch_size", "max_captions_per_video", "validation_batch_size")
        _check_image_decoding("retrieval", self.image_decoding, self.augmentation)


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """The vocabulary that answers are chosen from."""

    file: str | None = None
    """A JSON file: an object from answer to class id, as ``train_ans2label.json`` of MSR-VTT-QA, or
    a list in the order of the ids, as ``answers.json`` beside a model. Null = the data set's
    own file where it has one, else the most frequent answers of the training questions."""

    size: int | None = None
    """Take this many of the most frequent answers of the training questions, even if there is a file; null = 1,500
    (published) if there is none."""

    def __post_init__(self) -> None:
        require_counts(self, "video_qa.answers", "size", least=2)
        require(
            self.file is None or self.size is None,
            f"video_qa.answers.file is {self.file} and video_qa.answers.size is {self.size}; set one of them",
        )


@dataclass(frozen=True, kw_only=True)
class VideoQATrainingConfig:
    """The question answering model and its training; CLIP, the temporal encoder and the game are set in ``model``."""

    max_words: int = _PUBLISHED_QA.encoder.max_words
    """Tokens of a question, start and end included; longer ones are cut (published: 32)."""

    merging: MergingConfig = field(default_factory=lambda: _PUBLISHED_QA.encoder.merging)
    """Token merging (published for questions: .25, .125 for words and .25, .25 for frames)."""

    head: AnswerHeadConfig = field(default_factory=lambda: _PUBLISHED_QA.head)
    loss: LossConfig = field(default_factory=lambda: _PUBLISHED_QA.encoder.loss)

    pair_loss_weight: float = _PUBLISHED_QA.pair_loss_weight
    """Weight of the contrastive and interaction losses, beside the cross-entropy (published: .5)."""

    level_rates: tuple[float, float, float] = _PUBLISHED_QA.level_rates
    """Weights of the entity, action and event logits in an answer (published: .4, .4, .2)."""

    answers: AnswersConfig = only_for(default_factory=AnswersConfig)
    """Settings of the stage ``answers``, whose result is an input of the training."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 5
    """An epoch shows every question once (published: 5)."""

    batch_size: int = 32
    """Questions per step over all workers (published: 32)."""

    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(enabled=False))
    """Off by default (published)."""

    checkpoint: CheckpointConfig = only_for(default_factory=CheckpointConfig)

    from_retrieval: bool = False
    """Start from the retrieval model that this recipe trains."""

    init_checkpoint: str | None = content_of("checkpoint")
    """Folder of ours or file of the published implementation to start from: a question answering
    model, or a retrieval model, which gives all but the answer heads."""

    max_questions_per_video: int | None = None
    """Questions about a video used per epoch; null = all (published)."""

    precision: Precision = "float32"
    """Of the arithmetic, on GPUs and CPUs alike."""

    validation_half: ValidationHalf | None = added_later(default=None)
    """Validate with one half of the validation videos; null = all. ``jobs.tune`` chooses finalists on the one
    and ranks them, and the baselines, on the other."""

    compiled: bool = added_later(default=False)
    """Compile towers and predictors with ``torch.compile``: faster steps on GPUs after minutes of compiling, and other
    roundings."""

    image_decoding: ImageDecoding = added_later(default="cpu")
    """Who decodes the stored JPEG images: ``cpu`` = the loader; ``gpu`` = the model's GPU, where the loader's cores are
    too few. Then RandAugment runs there, too."""

    validation_batch_size: int = only_for(default=64)
    """Texts, or videos, encoded at once in a validation."""

    def __post_init__(self) -> None:
        require_counts(self, "video_qa", "epochs", "batch_size", "max_questions_per_video", "validation_batch_size")
        _check_image_decoding("video_qa", self.image_decoding, self.augmentation)
        require(
            not self.from_retrieval or self.init_checkpoint is None,
            f"video_qa.from_retrieval is true and video_qa.init_checkpoint is {self.init_checkpoint}; "
            "a training starts from one of them",
        )


def _check_image_decoding(section: str, decoding: ImageDecoding, augmentation: AugmentationConfig) -> None:
    require(
        decoding == "cpu" or not augmentation.enabled or augmentation.device != "cpu",
        f"{section}.image_decoding is gpu and {section}.augmentation.device is cpu, where no pixels are; set the "
        "latter to gpu",
    )
