"""Frozen settings of CLIP: which architecture and weights, and how much of them is trained.

"Published" as in :mod:`hbi_models.configs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbi_models.config_fields import added_later, content_of, only_for, require

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
    state dict in .pt/.bin, or .safetensors; from the model.safetensors of a model of ours only the encoder is
    taken), or null to train from scratch."""

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
    """Mean of red, green and blue, on a scale of 0 to 1, by which the input is normalised. Null = the model's: what
    open_clip says about architecture and tag, or ``preprocess_cfg`` in the architecture's file; otherwise OpenAI's.
    Set it for a checkpoint file if open_clip has weights of the same architecture with different values, such as
    LAION's ViT-L-14 (0.5)."""

    pixel_std: tuple[float, float, float] | None = added_later(default=None)
    """The standard deviation, likewise."""

    def __post_init__(self) -> None:
        require(
            self.pixel_std is None or all(value > 0 for value in self.pixel_std),
            f"clip.pixel_std is {self.pixel_std}; every deviation must be positive",
        )
        require(self.last_layers >= 1, f"clip.last_layers is {self.last_layers}; it must be 1 or more")
