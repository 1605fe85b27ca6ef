"""Frozen settings of the models, with the source of each default.

Those of CLIP are in :mod:`hbi_models.clip.configs`, of a pretrained encoder alone in
:mod:`hbi_models.zero_shot_config`, of the optimizer in :mod:`hbi_models.optimizer_config`.

"Published" means the public implementation of Jin et al., *Video-Text as Game Players:
Hierarchical Banzhaf Interaction for Cross-Modal Representation Learning*, CVPR 2023
(arXiv 2303.14369). Modules of settings import nothing but the standard library, so that
configurations can be parsed and printed without loading PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hbi_models.clip.configs import ClipConfig
from hbi_models.config_fields import added_later, only_for, require

LEVELS = ("entity", "action", "event")
"""The three levels of the hierarchy, finest first: single tokens, phrases, sentences."""

Teacher = Literal["exact", "estimator", "cosine", "none"]

PUBLISHED_SCALE = 1000.0
"""What the published code multiplies cosines by before it plays the game."""


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Token features of another model, which take CLIP's place: HBI is then a head on that model."""

    word_dim: int
    """Channels of a word."""

    frame_dim: int
    """Channels of a frame."""

    dim: int = 512
    """Channels to which both are projected by learnt maps: the width of everything above."""

    def __post_init__(self) -> None:
        for name in ("word_dim", "frame_dim", "dim"):
            require(getattr(self, name) >= 1, f"tokens.{name} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """The transformer over the frames of a video; its width is CLIP's embedding size."""

    layers: int = 4
    """Number of blocks (published: 4)."""

    layer_norm_eps: float = 1e-12
    """Published: 1e-12, TensorFlow style."""

    init_from_clip_text: bool = only_for("features", "training", "answering", default=True)
    """Copy the first blocks and the positions of CLIP's text tower (published). Needs a text
    tower as wide as the embedding and with at least as many blocks."""

    def __post_init__(self) -> None:
        require(self.layers >= 0, f"temporal.layers is {self.layers}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class MergingConfig:
    """Token merging by density-peak clustering, entity → action → event."""

    text_rates: tuple[float, float] = (0.25, 0.5)
    """Fraction of the tokens that remain after each of the two merges (published .25, .5)."""

    video_rates: tuple[float, float] = (0.25, 0.5)
    """The same for frames."""

    neighbours: int = 3
    """k of the k-nearest-neighbour density (published: 3)."""

    heads: int = 8
    """Attention heads of the merge block (published: 8)."""

    tie_break_noise: float = only_for("training", default=0.0)
    """Amplitude of the uniform noise added to densities in training (published: 1e-6, also in
    evaluation). 0 makes the clustering deterministic: ties go to the first token."""

    def __post_init__(self) -> None:
        for name, rates in (("text_rates", self.text_rates), ("video_rates", self.video_rates)):
            require(
                all(0 < rate <= 1 for rate in rates),
                f"merging.{name} is {rates}; every rate must lie in (0, 1]",
            )
        require(self.neighbours >= 1, f"merging.neighbours is {self.neighbours}; it must be 1 or more")
        require(
            self.tie_break_noise >= 0, f"merging.tie_break_noise is {self.tie_break_noise}; it must not be negative"
        )


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """Behaviours of the published code that are clearly mistakes; each is off by default.

    ``Quirks.published()`` turns all of them on, which the parity tests need and which
    reproduces published training runs.
    """

    encode_padding: bool = False
    """Encode padded frames as zero images and let the convolution of the merge read padding."""

    coupled_clustering: bool = only_for("training", "answering", "evaluation", default=False)
    """Use the largest distance in the whole batch as the clustering's "far away"."""

    surplus_clusters: bool = only_for("training", "answering", "evaluation", default=False)
    """Let clusters that hold only padding take part at the action and event levels."""

    zero_floor: bool = only_for("training", "answering", "evaluation", default=False)
    """Leave padded words and frames in the maxima of the similarity as candidates with cosine
    0, so that an item shorter than the longest scores no maximum below 0."""

    batch_axis_kl: bool = only_for("training", "answering", default=False)
    """Take the second term of the interaction loss over the batch axis (a ``.T`` on three
    axes), and let padding take part in its softmaxes."""

    padded_interaction: bool = only_for("training", "answering", default=False)
    """In question answering, let padding enter the interaction loss with whatever the networks
    predict there (in retrieval it is set to 0)."""

    padded_answer_weights: bool = only_for("answering", "evaluation", default=False)
    """In the answer heads, let padded words and frames take part in the softmax of the token
    weights before they are dropped: weights of real tokens then sum to less than 1."""

    @classmethod
    def published(cls) -> Quirks:
        """Every quirk on."""
        return cls(
            encode_padding=True,
            coupled_clustering=True,
            surplus_clusters=True,
            zero_floor=True,
            batch_axis_kl=True,
            padded_interaction=True,
            padded_answer_weights=True,
        )


@dataclass(frozen=True, kw_only=True)
class GameConfig:
    """The cooperative game of words and frames, and the teacher of the interaction."""

    teacher: Teacher = only_for("training", "answering", default="estimator")
    """Where the target interaction comes from: ``estimator`` (a network trained on labels, as
    published), ``exact`` (closed form of the pair at hand, no network), ``cosine`` (the pair's cosines
    themselves: the control that tells what the game adds) or ``none``. docs/game.md has the results of each."""

    similarity_scale: float | Literal["auto"] = only_for("features", "training", "answering", default=PUBLISHED_SCALE)
    """Cosines are multiplied by this before the game is played (published: 1000). The targets of the interaction loss
    are softmaxes of what comes out, and levels differ tenfold in its size. ``auto`` scales the targets of every level
    in every batch to a normalised entropy of 0.5, halfway between equal shares and one-hot; labels are made with
    1000 then."""

    estimator_channels: int = only_for("training", "answering", "evaluation", default=64)
    """Channels of the estimator and of the predictors (published: 64)."""

    coalitions: float | None = added_later("training", "answering", "evaluation", default=None)
    """Null: the entity level's similarity is that of all words and frames (published). A probability p between 0
    and 1: it is the expected similarity of random coalitions, which each word and frame joins with probability p;
    in training, evaluation and search alike. docs/game.md has its results."""

    def __post_init__(self) -> None:
        require(
            self.coalitions is None or 0 < self.coalitions < 1,
            f"game.coalitions is {self.coalitions}; it is a probability between 0 and 1, or null for everybody present",
        )
        require(
            self.similarity_scale == "auto" or self.scale > 0,
            f"game.similarity_scale is {self.similarity_scale}; it must be positive",
        )

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before the game is played."""
        return PUBLISHED_SCALE if self.similarity_scale == "auto" else self.similarity_scale


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the parts of the loss (published README: kl 2, skl 1)."""

    kl: float = 2.0
    """Weight of the distillation of the entity level into the action and event levels: of its
    similarities in retrieval, of its answers in question answering."""

    skl: float = 1.0
    """Weight of the interaction loss (predictor against teacher)."""

    def __post_init__(self) -> None:
        require(self.kl >= 0, f"loss.kl is {self.kl}; it must not be negative")
        require(self.skl >= 0, f"loss.skl is {self.skl}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """The text-video retrieval model."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    tokens: TokensConfig | None = added_later(default=None)
    """Null = CLIP encodes words and frames. Otherwise they come encoded by another model (``data.features``), and
    ``clip`` and ``temporal.init_from_clip_text`` have no effect."""

    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    merging: MergingConfig = only_for("training", "evaluation", default_factory=MergingConfig)
    game: GameConfig = field(default_factory=GameConfig)
    loss: LossConfig = only_for("training", default_factory=LossConfig)
    quirks: Quirks = field(default_factory=Quirks)

    max_words: int = only_for("features", "training", "evaluation", default=24)
    """Tokens of a caption, start and end included; longer captions are cut (published: 24)."""

    max_frames: int = 12
    """Frames of a video (published: 12 for MSR-VTT, 64 for ActivityNet)."""

    level_rates: tuple[float, float, float] = only_for("training", "evaluation", default=(1.0, 0.0, 0.0))
    """Weights of the entity, action and event similarities in the retrieval score
    (published default: entity alone)."""

    def __post_init__(self) -> None:
        require(self.max_words >= 3, f"max_words is {self.max_words}; a caption needs start, one piece and end: 3")
        require(self.max_frames >= 1, f"max_frames is {self.max_frames}; it must be 1 or more")
        require(
            self.game.coalitions is None or not self.quirks.zero_floor,
            f"game.coalitions is {self.game.coalitions} and quirks.zero_floor is true; padding joins no coalition: set "
            "one of them",
        )

    def with_clip(self, clip: ClipConfig) -> RetrievalConfig:
        """Returns these settings with another encoder."""
        return replace(self, clip=clip)


@dataclass(frozen=True, kw_only=True)
class AnswerHeadConfig:
    """The classifier that each level of the question answering model has."""

    projection: int = 2048
    """Channels to which the pooled question and the pooled video are projected (published: 2048)."""

    hidden: int = 8192
    """Channels of the hidden layer over both of them (published: 8192)."""

    dropout: float = only_for("training", default=0.1)
    """Probability with which a projected channel is dropped in training (published: .1)."""

    def __post_init__(self) -> None:
        require(self.projection >= 1, f"head.projection is {self.projection}; it must be 1 or more")
        require(self.hidden >= 1, f"head.hidden is {self.hidden}; it must be 1 or more")
        require(0 <= self.dropout < 1, f"head.dropout is {self.dropout}; it must lie in [0, 1)")


def published_video_qa_encoder() -> RetrievalConfig:
    """Returns the published settings of the retrieval model inside of the question answering model.

    They differ from those of retrieval in CLIP's architecture and what of it is frozen, in the
    number of words, and in the rates of the second merges, which leave one token at the event level.
    """
    return RetrievalConfig(
        clip=ClipConfig(architecture="ViT-B-16-quickgelu", freeze_embeddings=True),
        merging=MergingConfig(text_rates=(0.25, 0.125), video_rates=(0.25, 0.25)),
        max_words=32,
    )


@dataclass(frozen=True, kw_only=True)
class VideoQAConfig:
    """The video question answering model: a retrieval model, and an answer head per level."""

    encoder: RetrievalConfig = field(default_factory=published_video_qa_encoder)
    """The retrieval model whose levels the heads read. Its quirks and the weights of its loss hold
    for the whole model; its ``level_rates`` have no effect on answers."""

    head: AnswerHeadConfig = field(default_factory=AnswerHeadConfig)

    num_answers: int = 1500
    """Size of the answer vocabulary, which the heads choose from (published: 1500)."""

    pair_loss_weight: float = only_for("training", default=0.5)
    """Weight of the contrastive and interaction losses, beside the cross-entropy (published: .5)."""

    level_rates: tuple[float, float, float] = (0.4, 0.4, 0.2)
    """Weights of the entity, action and event logits in an answer (published: .4, .4, .2)."""

    def __post_init__(self) -> None:
        require(self.num_answers >= 2, f"num_answers is {self.num_answers}; there must be 2 or more to choose from")
        require(self.pair_loss_weight >= 0, f"pair_loss_weight is {self.pair_loss_weight}; it must not be negative")
        require(
            all(rate >= 0 for rate in self.level_rates) and any(self.level_rates),
            f"level_rates is {self.level_rates}; no rate may be negative, and at least one must be positive",
        )

    @property
    def clip(self) -> ClipConfig:
        """The encoder's."""
        return self.encoder.clip

    def with_clip(self, clip: ClipConfig) -> VideoQAConfig:
        """Returns these settings with another encoder."""
        return replace(self, encoder=self.encoder.with_clip(clip))
