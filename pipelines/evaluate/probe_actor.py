"""The actor of the probes: scores of given pairs, features of perturbed videos, relevance of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from hbi_models.axes import at_least_float32
from hbi_models.moments import frame_relevance
from hbi_models.pair_scores import clip_cosines, pair_scores
from hbi_models.transfer import fetched, sent
from pipelines.evaluate.similarities import RetrievalScorerActor
from pipelines.models.encoding import Levels, encode_texts, encode_videos, on_device
from pipelines.video.frame_store import Frames, FrameStore
from pipelines.video.perturbations import perturb

Texts = Sequence[tuple[int, Sequence[str]]]
"""Positions of videos, each with its texts."""


class ProbeActor(RetrievalScorerActor):
    """Holds the model, like the actor of the evaluation, and computes more than similarities."""

    @torch.inference_mode()
    def scores(self, asked: Texts) -> Mapping[str, NDArray[np.float64]]:
        """Every pair score (``PAIR_SCORES``) of each video with each of its texts, in their order."""
        positions, texts, owners = _flat(asked)
        self._model.require_encoder("frames")
        store = self._view.store
        assert isinstance(store, FrameStore), "the stage probe reads frames"
        frames = store.batch(
            positions, image_size_px=self._model.clip.image_size_px, max_frames=self._model.config.max_frames
        )
        batch = self._model.video_batch(frames.frames, frames.mask)
        videos, words = self._model.encode_video(batch), on_device(self._all_levels(texts), self._device)
        # The images as plain CLIP has them, before the temporal encoder that encode_video applies.
        features = self._model.clip.encode_frames(batch.pixels[batch.mask])
        # Unit vectors, because a cosine compares directions alone. Padding stays 0 and adds nothing to the mean.
        units = features.new_zeros((*batch.mask.shape, features.shape[-1]))
        units[batch.mask] = F.normalize(at_least_float32(features), dim=-1)
        images = units.sum(dim=1) / batch.mask.sum(dim=1, keepdim=True)
        places = sent(torch.tensor(owners), self._device)
        # Now a row for each text, with its video.
        mine = tuple(level.map(lambda tensor: tensor[places]) for level in videos)
        floor, coalitions = self._model.config.quirks.zero_floor, self._model.config.game.coalitions
        found = {**pair_scores(words, mine, self._rates, zero_floor=floor, coalitions=coalitions)}
        found["CLIP cosine"] = clip_cosines(self._model.clip, self._model.text_batch(texts), images[places])
        scores = fetched([values.double() for values in found.values()])
        return {name: values.numpy() for name, values in zip(found, scores, strict=True)}

    @torch.inference_mode()
    def perturbed(self, positions: Sequence[int], name: str, strength: int) -> Levels:
        """The levels that count in the score, of the videos at ``positions`` with a perturbation."""

        def change(video_id: str, frames: Frames) -> Frames:
            return perturb(frames, name, strength, video_id)

        encode = partial(encode_videos, self._model, self._view.store, positions)
        return encode(**self._encode, change=change)

    @torch.inference_mode()
    def relevance(self, asked: Texts) -> list[list[float]]:
        """How relevant each frame of a video is to each of its texts."""
        positions, texts, owners = _flat(asked)
        # Only at the first level is a token of a video a single frame.
        options: dict[str, Any] = {**self._encode, "num_levels": 1}
        (videos,) = encode_videos(self._model, self._view.store, positions, **options)
        (words,) = encode_texts(self._model, texts, **options)
        found = []
        for number, owner in enumerate(owners):
            text = words.map(lambda tensor, row=number: tensor[row : row + 1])  # type: ignore[misc]
            video = videos.map(lambda tensor, row=owner: tensor[row : row + 1])  # type: ignore[misc]
            relevance = frame_relevance(text, video, self._model.config.game.coalitions)
            found.append(relevance[0][video.mask[0]].tolist())
        return found

    def _all_levels(self, texts: Sequence[str]) -> Levels:
        # pair_scores has a score of each level alone, also of those that do not count in the model's.
        return encode_texts(self._model, texts, **{**self._encode, "num_levels": 3})


def _flat(asked: Texts) -> tuple[list[int], list[str], list[int]]:
    """The videos, all texts one after the other, and for each text the place of its video."""
    positions = [position for position, _ in asked]
    pairs = [(text, place) for place, (_, texts) in enumerate(asked) for text in texts]
    return positions, [text for text, _ in pairs], [place for _, place in pairs]
