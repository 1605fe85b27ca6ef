"""Frozen settings of every model, with the source of each default.

"Published" means the public implementation of Jin et al., *Video-Text as Game Players:
Hierarchical Banzhaf Interaction for Cross-Modal Representation Learning*, CVPR 2023
(arXiv 2303.14369). This module imports nothing but the standard library, so that
configurations can be parsed and printed without loading PyTorch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, Field, dataclass, field, replace
from typing import Any, Literal

LEVELS = ("entity", "action", "event")
"""The three levels of the hierarchy, finest first: single tokens, phrases, sentences."""

Teacher = Literal["exact", "estimator", "cosine", "none"]

PUBLISHED_SCALE = 1000.0
"""What the published code multiplies cosines by before it plays the game."""

Use = Literal["features", "training", "answering", "evaluation"]
"""What settings of a retrieval model are used for: ``features`` of single words and frames by a model as it is
initialised, which labels are made of; its ``training``; ``answering``: the training inside of a question
answering model, which has its own words, merges, losses and rates; ``evaluation`` of given weights."""

Content = Literal["checkpoint", "file or name"]
"""What a setting names: a ``checkpoint`` (a folder or a file), or a ``file or name``: a local file, or else a name
that says everything."""

_USES, _CONTENT, _ABSENT = "uses", "content", "absent_at_default"


def only_for(
    *uses: Use,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    names: Content | None = None,
) -> Any:
    """A field of settings that can change results only in ``uses``; without ``uses`` it changes no result.

    An ordinary field can change every result. ``names`` as in :func:`content_of`.
    """
    metadata = {_USES: uses} | ({} if names is None else {_CONTENT: names})
    return field(default=default, default_factory=default_factory, metadata=metadata)


def content_of(names: Content, *, default: Any = None) -> Any:
    """A field of settings that names a file or folder, whose contents and not its place decide over results."""
    return field(default=default, metadata={_CONTENT: names})


def counts_for(item: Field[Any], uses: Collection[Use]) -> bool:
    """Whether the setting ``item`` can change a result of any of ``uses``."""
    marked = item.metadata.get(_USES)
    return marked is None or any(use in uses for use in marked)


def content_named_by(item: Field[Any]) -> Content | None:
    """What the setting ``item`` names by path; None = nothing."""
    found: Content | None = item.metadata.get(_CONTENT)
    return found


def added_later(
    *uses: Use, default: Any = MISSING, default_factory: Any = MISSING, names: Content | None = None
) -> Any:
    """A field of settings that is left out of documents and fingerprints at its default.

    So artifacts from before the setting existed keep their fingerprints. ``uses`` as in :func:`only_for`, but without
    any it counts everywhere; ``names`` as in :func:`content_of`.
    """
    metadata = {_ABSENT: True} | ({_USES: uses} if uses else {}) | ({} if names is None else {_CONTENT: names})
    return field(default=default, default_factory=default_factory, metadata=metadata)


def is_absent(item: Field[Any], value: Any) -> bool:
    """Whether a setting of this value is left out of documents and fingerprints, as if there were no such setting."""
    if not item.metadata.get(_ABSENT):
        return False
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return bool(value == default)


def require(condition: bool, message: str) -> None:
    """Raises ``ValueError(message)`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


TrainedPart = Literal["all", "last_layers", "lora", "none"]

LoraProjection = Literal["attention_in", "attention_out", "mlp"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of the weights in the blocks of both towers (Hu et al., 2021, arXiv 2106.09685).

    A weight W becomes W + alpha / rank · B A with trained A (rank × inputs) and B (outputs × rank, 0 at first).
    """

    rank: int = 8
    """Rank of each update; queries, keys and values have one each."""

    alpha: float = 16.0
    """Scale of the update, divided by the rank."""

    projections: tuple[LoraProjection, ...] = ("attention_in", "attention_out")
    """Which weights: ``attention_in`` (queries, keys, values), ``attention_out``, ``mlp`` (its linear layers)."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"clip.lora.rank is {self.rank}; it must be 1 or more")
        require(self.alpha > 0, f"clip.lora.alpha is {self.alpha}; it must be positive")
        require(
            bool(self.projections),
            "clip.lora.projections is empty; name attention_in, attention_out or mlp, or set clip.train to none",
        )


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The CLIP backbone: an open_clip architecture and, optionally, its weights."""

    architecture: str = content_of("file or name", default="ViT-B-32-quickgelu")
    """An open_clip model name, the name of an architecture shipped in
    ``hbi_models/clip/architectures``, or the path of a JSON file in open_clip's format."""

    pretrained: str | None = only_for("features", "training", "answering", default="openai", names="file or name")
    """An open_clip pretraining tag, the path of a local checkpoint (OpenAI's .pt archive, a
    state dict in .pt/.bin, or .safetensors; of the model.safetensors of a model of ours its encoder
    is taken), or null to train from scratch."""

    freeze_patch_embedding: bool = only_for("training", "answering", default=True)
    """Keep the patch convolution fixed (published). Set to false when training from scratch."""

    freeze_embeddings: bool = only_for("training", "answering", default=False)
    """Keep the other layers below the blocks fixed, too: class, token and position embeddings, and
    the layer norm in front of the image blocks (published for question answering)."""

    gradient_checkpointing: bool = only_for(default=False)
    """Recompute the towers' activations in the backward pass: less memory, about 30% more time."""

    train: TrainedPart = added_later("training", "answering", default="all")
    """How much of the two towers is trained: ``all`` but what the two settings above freeze (published),
    the ``last_layers``, low-rank updates (``lora``), or ``none``: words and frames are then encoded once (the stage
    ``features``). Rates: ``optimizer.clip_lr_factor``. The loss's temperature is trained in any case."""

    last_layers: int = added_later("training", "answering", default=2)
    """With ``train: last_layers``: so many blocks of each tower, counted from the top, with the norm and the
    projection above them."""

    lora: LoraConfig = added_later("training", "answering", default_factory=LoraConfig)
    """With ``train: lora``. Checkpoints hold the weights with the updates added to them."""

    tokenizer: str | None = added_later(default=None, names="file or name")
    """A local ``tokenizer.json`` for an architecture that does not read CLIP's own tokens (SigLIP, MetaCLIP 2), with
    its ``tokenizer_config.json`` beside it. Null = the one that the architecture names, from the model hub or its
    cache; CLIP's where it names none."""

    pixel_mean: tuple[float, float, float] | None = added_later(default=None)
    """Mean of red, green and blue, on a scale of 0 to 1, by which the input is normalised. Null = the
    model's: what open_clip says about architecture and tag, or ``preprocess_cfg`` in the architecture's
    file; OpenAI's where nothing is said. Set it for a checkpoint file whose architecture open_clip knows
    with several, such as LAION's ViT-L-14 (0.5)."""

    pixel_std: tuple[float, float, float] | None = added_later(default=None)
    """The standard deviation, likewise."""

    def __post_init__(self) -> None:
        require(
            self.pixel_std is None or all(value > 0 for value in self.pixel_std),
            f"clip.pixel_std is {self.pixel_std}; every deviation must be positive",
        )
        require(self.last_layers >= 1, f"clip.last_layers is {self.last_layers}; it must be 1 or more")


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


ZeroShotPooling = Literal["mean", "softmax"]

ZERO_SHOT_POOLINGS: tuple[ZeroShotPooling, ...] = ("mean", "softmax")


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Retrieval by a pretrained encoder alone."""

    clip: ClipConfig = field(default_factory=ClipConfig)

    max_frames: int = 12
    """Frames of a video."""

    pooling: ZeroShotPooling = "mean"
    """How frames become the score of their video: by the ``mean`` of their embeddings (published zero-shot protocol),
    or by their cosines with the text, weighted by a ``softmax`` over the frames."""

    temperature: float = 0.1
    """Of that softmax (Bain et al., 2022, arXiv 2205.08508: 0.1)."""

    def __post_init__(self) -> None:
        require(self.max_frames >= 1, f"max_frames is {self.max_frames}; it must be 1 or more")
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be positive")

    @property
    def level_rates(self) -> tuple[float, ...]:
        """There is one level."""
        return (1.0,)

    @property
    def game(self) -> GameConfig:
        """What weighs tokens: there is one of a text, and frames are equally important."""
        return GameConfig()

    @property
    def quirks(self) -> Quirks:
        """None of those of the published model."""
        return Quirks()

    def with_clip(self, clip: ClipConfig) -> ZeroShotConfig:
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


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, its learning rates and its schedule."""

    name: Literal["adamw", "bert_adam"] = "adamw"
    """``bert_adam`` is the published optimizer (no bias correction, clipping per parameter, a
    jump of the rate at the end of the warm-up); ``adamw`` is PyTorch's with a warm-up and
    cosine schedule without the jump."""

    lr: float = 1e-4
    """Peak learning rate of everything but CLIP (published: 1e-4)."""

    clip_lr_factor: float = 1e-3
    """CLIP's learning rate as a multiple of ``lr`` (published ``coef_lr``: 1e-3)."""

    clip_layer_decay: float = added_later(default=1.0)
    """Factor of the learning rate from each block of CLIP's towers to the one below it (Clark et al., 2020; Bao et
    al., 2022): the layers above the blocks have CLIP's rate, the last block that times this factor, and so on
    down to the embeddings. 1 = one rate for all (published)."""

    weight_decay: float = 0.2
    """Decay of weights; biases are exempt (published: 0.2)."""

    warmup_fraction: float = 0.1
    """Fraction of all steps over which the rate rises from 0 (published: 0.1)."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the two moments (published: .9, .98)."""

    eps: float = 1e-6
    """Added to the root of the second moment (published: 1e-6)."""

    ema_decay: float | None = added_later(default=None)
    """Decay, per step, of the exponential moving average of the weights, which starts after the warm-up. Validation
    and the checkpoints that are kept then have the average. Null = none (published). 0.999 is an average
    over the last 1,000 steps; take no more than the training has."""

    max_grad_norm: float = 1.0
    """Norm to which the whole gradient is clipped (published: 1)."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optimizer.lr is {self.lr}; it must be positive")
        require(self.clip_lr_factor >= 0, f"optimizer.clip_lr_factor is {self.clip_lr_factor}; it must not be negative")
        require(
            0 < self.clip_layer_decay <= 1,
            f"optimizer.clip_layer_decay is {self.clip_layer_decay}; it must lie in (0, 1]",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"optimizer.ema_decay is {self.ema_decay}; it must lie between 0 and 1",
        )
        require(
            0 <= self.warmup_fraction < 1,
            f"optimizer.warmup_fraction is {self.warmup_fraction}; it must lie in [0, 1)",
        )
