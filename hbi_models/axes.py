"""Words for axes, and the batch types that carry their masks.

Axis words in shape annotations, everywhere in this project:

======================  =====================================================================
``texts``, ``videos``   items of a batch of captions / clips; the two counts may differ
``pairs``               matching (caption, video) pairs; text i belongs to video i
``items``               texts or videos, in code that serves both
``words``, ``frames``   tokens of a text / of a video at any level of the hierarchy
``tokens``              words or frames, in code that serves both
``clusters``            merged tokens
``answers``             entries of the answer vocabulary
``dim``                 channels of a token
``heads``               attention heads
``height``, ``width``   pixels
======================  =====================================================================

Masks are boolean, True = real, False = padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hbi_models.transfer import sent


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Tokenised captions. Only the mask tells padding: its id (of CLIP 0) may also be that of a real token."""

    token_ids: Int[Tensor, "texts words"]
    mask: Bool[Tensor, "texts words"]

    def to(self, device: torch.device) -> TextBatch:
        """Returns the batch on ``device``."""
        return TextBatch(sent(self.token_ids, device), sent(self.mask, device))


@dataclass(frozen=True, slots=True)
class VideoBatch:
    """Normalised pixels of sampled frames; values at padding are unspecified."""

    pixels: Float[Tensor, "videos frames 3 height width"]
    mask: Bool[Tensor, "videos frames"]


@dataclass(frozen=True, slots=True)
class TokenFeatures:
    """Features of words or frames, not normalised; values at padding are unspecified."""

    features: Float[Tensor, "items tokens dim"]
    mask: Bool[Tensor, "items tokens"]


@dataclass(frozen=True, slots=True)
class TokenLevel:
    """One modality at one level: its tokens and their importance.

    ``logits`` are the importance logits before the softmax over an item's tokens; the weights
    of the similarity are that softmax.
    """

    features: Float[Tensor, "items tokens dim"]
    mask: Bool[Tensor, "items tokens"]
    logits: Float[Tensor, "items tokens"]

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenLevel:
        """Returns the level with ``function`` applied to each tensor (to move, cut or gather it)."""
        return TokenLevel(function(self.features), function(self.mask), function(self.logits))


@dataclass(frozen=True, slots=True)
class Interaction:
    """Predicted and target interaction of every word and frame of every pair at one level."""

    prediction: Float[Tensor, "pairs words frames"]
    target: Float[Tensor, "pairs words frames"]

    def map(self, function: Callable[[Tensor], Tensor]) -> Interaction:
        """Returns the interaction with ``function`` applied to each tensor."""
        return Interaction(function(self.prediction), function(self.target))


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """All that the loss needs to know about matching pairs, level by level.

    Each row is computed from its own pair alone, so the features of a batch are the
    concatenation of the features of its parts: a distributed step gathers every tensor along
    the first axis with ``map``.
    """

    texts: tuple[TokenLevel, ...]
    videos: tuple[TokenLevel, ...]
    interactions: tuple[Interaction, ...]
    """One per level, or empty without an interaction loss."""

    def map(self, function: Callable[[Tensor], Tensor]) -> PairFeatures:
        """Returns the features with ``function`` applied to each tensor, always in the same order."""
        return PairFeatures(
            texts=tuple(level.map(function) for level in self.texts),
            videos=tuple(level.map(function) for level in self.videos),
            interactions=tuple(interaction.map(function) for interaction in self.interactions),
        )


@dataclass(frozen=True, slots=True)
class AnsweredPairs:
    """All that the loss of question answering needs to know about questions and their videos.

    Like ``PairFeatures``, each row is computed from its own pair alone, and a distributed step
    gathers every tensor along the first axis with ``map``.
    """

    pairs: PairFeatures
    """The question is the text of its pair."""
    logits: tuple[Float[Tensor, "pairs answers"], ...]
    """One per level, entity first."""
    labels: Int[Tensor, " pairs"]
    """Right answers; -1 if the answer is not in the vocabulary."""

    def map(self, function: Callable[[Tensor], Tensor]) -> AnsweredPairs:
        """Returns the pairs with ``function`` applied to each tensor, always in the same order."""
        return AnsweredPairs(
            pairs=self.pairs.map(function),
            logits=tuple(function(logits) for logits in self.logits),
            labels=function(self.labels),
        )


@runtime_checkable
class Rows(Protocol):
    """Tensors with a row per item: a ``TokenLevel``, an ``Interaction``, ``PairFeatures`` or ``AnsweredPairs``."""

    def map(self: R, function: Callable[[Tensor], Tensor]) -> R:
        """Returns the same rows with ``function`` applied to each tensor, always in the same order."""
        ...


R = TypeVar("R", bound=Rows)


def tensors_of(rows: Rows) -> list[Tensor]:
    """Returns the tensors of ``rows``, in the order of their ``map``."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    rows.map(collect)
    return found


def with_tensors(rows: R, tensors: Iterable[Tensor]) -> R:
    """Returns ``rows`` with the next of ``tensors`` in the place of each of theirs, in the order of :func:`tensors_of`.

    Of an iterator, only as many are taken as ``rows`` hold.
    """
    following = iter(tensors)
    return rows.map(lambda _: next(following))


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 if it has half precision, such as under autocast; otherwise in its own type."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
