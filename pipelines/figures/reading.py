"""Computes the interaction of a text and a video file with a trained model, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from hbi_models.axes import TokenLevel
from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.config_fields import require
from hbi_models.configs import LEVELS
from hbi_models.retrieval import RetrievalModel, hierarchy_members, level_interaction
from hbi_models.similarity import level_similarity, token_cosines, token_weights
from hbi_models.transfer import fetched, sent
from pipelines.figures.maps import InteractionMaps, Kind, LevelMap, Map, Members
from pipelines.models.encoding import on_host
from pipelines.models.estimator import load_estimator
from pipelines.models.folder import is_published_file, model_folder
from pipelines.models.initial_weights import checkpoint_kind, initialise_estimator_from, load_checkpoint
from pipelines.models.one_video import frames_of, read_video
from pipelines.models.weights import load_video_qa
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.resources.device import compute_device
from pipelines.video.frame_store import decode_images, stack_frames


@dataclass(frozen=True)
class PairReader:
    """A trained model with all that is needed to compute the interaction of a text and a video file."""

    model: RetrievalModel
    estimator: InteractionEstimator | None
    """The network that estimates the interaction, if there is one."""
    frames: FramesConfig
    """How videos are sampled and decoded, as they were for training."""

    def read(self, video: str, text: str, kinds: Sequence[Kind] = ("exact",)) -> InteractionMaps:
        """The interactions of a video file and a text.

        Args:
            video: path or URI; it is decoded in a process that can be killed.
            text: a description; words beyond the model's maximum are cut.
            kinds: which interactions.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the video cannot be decoded, the text is empty, or a kind needs a missing estimator.
        """
        require(bool(text.strip()), "the text is empty; say something about the video")
        row = read_video(video, self.frames)
        return self.relate(decode_images(row["frames"]), text, kinds, video=video, times_s=row["time_s"])

    @torch.inference_mode()
    def relate(
        self,
        images: Sequence[UInt8[Tensor, "3 height width"]],
        text: str,
        kinds: Sequence[Kind] = ("exact",),
        *,
        video: str,
        times_s: Sequence[float],
    ) -> InteractionMaps:
        """The interactions of frames that are decoded already; raises as :meth:`read`."""
        model = self.model
        tokenizer = model.tokenizer
        clip = stack_frames([images], image_size_px=model.clip.image_size_px, max_frames=model.config.max_frames)
        words = model.encode_text(model.text_batch([text]))
        frames = model.encode_video(model.video_batch(clip.frames, clip.mask))
        members = [*hierarchy_members(words, model.text_merges), *hierarchy_members(frames, model.video_merges)]
        # A pair is small: from here on the host is as fast, and need not ask for every number.
        members = fetched(members)
        levels = [
            self._level(name, word, frame, word_members[0], frame_members[0], kinds)
            for name, word, frame, word_members, frame_members in zip(
                LEVELS, on_host(words), on_host(frames), members[: len(words)], members[len(words) :], strict=True
            )
        ]
        shown = clip.frames[0][clip.mask[0]]
        return InteractionMaps(
            text=text,
            tokens=tuple(tokenizer.readable_pieces(text)),
            video=video,
            times_s=tuple(times_s[: len(shown)]),
            images=list(rearrange(shown, "frames rgb height width -> frames height width rgb").numpy()),
            levels=tuple(levels),
        )

    def _level(
        self,
        name: str,
        words: TokenLevel,
        frames: TokenLevel,
        word_members: Bool[Tensor, "finest words"],
        frame_members: Bool[Tensor, "finest frames"],
        kinds: Sequence[Kind],
    ) -> LevelMap:
        # Clusters come in the order of their centres. They are drawn in the order of their first members, from left to
        # right.
        (rows, row_members), (columns, column_members) = _ordered(word_members), _ordered(frame_members)

        def cut(values: Tensor) -> Map:
            return values[0][rows][:, columns].float().numpy()

        cosines = token_cosines(words, frames)
        # As in the model's similarity: coalitions are for the finest level alone.
        coalitions = self.model.config.game.coalitions if name == LEVELS[0] else None
        zero_floor = self.model.config.quirks.zero_floor
        return LevelMap(
            name=name,
            words=row_members,
            frames=column_members,
            word_weights=token_weights(words, coalitions)[0, rows].numpy(),
            frame_weights=token_weights(frames, coalitions)[0, columns].numpy(),
            similarity=level_similarity(words, frames, zero_floor=zero_floor, coalitions=coalitions).item(),
            cosines=cut(cosines),
            interactions={kind: cut(self._interaction(kind, cosines, words, frames)) for kind in kinds},
        )

    def _interaction(
        self, kind: Kind, cosines: Float[Tensor, "pairs words frames"], words: TokenLevel, frames: TokenLevel
    ) -> Float[Tensor, "pairs words frames"]:
        if kind == "exact":
            return level_interaction(words, frames)
        if self.estimator is None:
            raise ValueError(
                f"the {kind} needs an estimator, and this model was trained without one; give one with "
                "--estimator_checkpoint, or draw the exact interaction alone"
            )
        # The estimator was trained on labels of scaled similarities.
        estimate: Tensor = self.estimator(sent(cosines, self.model.device)).cpu() / self.model.config.game.scale
        if kind == "estimator":
            return estimate
        return estimate - self._interaction("exact", cosines, words, frames)


def load_pair_reader(checkpoint: str, recipe: Recipe | None = None, estimator: str | None = None) -> PairReader:
    """The retrieval model of ``checkpoint``, or the one within a model that answers questions.

    Args:
        checkpoint: a folder of ours, or a published file, which needs its recipe.
        recipe: model and frames, if the checkpoint does not say.
        estimator: folder or file of an estimator; by default the one that taught the model.

    Raises:
        FileNotFoundError: there is no such checkpoint, or nothing says how its videos were sampled.
        ValueError: it holds another kind of model, or does not fit the recipe.
    """
    if is_published_file(checkpoint) and recipe is None:
        raise ValueError(
            f"{checkpoint} is a file of the published code, which holds weights alone; give the recipe that says its "
            "model and frames with --config"
        )
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if checkpoint_kind(checkpoint, folder) == "retrieval":
            model = load_checkpoint(checkpoint, (recipe or Recipe()).model, folder)
        elif is_published_file(checkpoint):
            raise ValueError(
                f"{checkpoint} is a published model that answers questions; give a published retrieval model"
            )
        else:
            model = load_video_qa(model_folder(checkpoint), folder).encoder
    frames = recipe.frames if is_published_file(checkpoint) and recipe else frames_of(checkpoint, recipe)
    # A model that an estimator taught holds it.
    network = model.teacher if estimator is None else _read_estimator(estimator, model)
    device = compute_device()
    return PairReader(model.to(device), None if network is None else network.to(device), frames)


def _read_estimator(checkpoint: str, model: RetrievalModel) -> InteractionEstimator:
    with TemporaryDirectory() as scratch:
        if not is_published_file(checkpoint):
            return load_estimator(model_folder(checkpoint), Path(scratch))
        network = InteractionEstimator(model.config.game.estimator_channels)
        initialise_estimator_from(checkpoint, network, Path(scratch))
        return network.eval()


def _ordered(members: Bool[Tensor, "finest tokens"]) -> tuple[list[int], Members]:
    """The tokens that hold something, by their first member, and the members of each."""
    groups = {token: tuple(column.nonzero()[:, 0].tolist()) for token, column in enumerate(members.T)}
    order = sorted((token for token, group in groups.items() if group), key=lambda token: groups[token])
    return order, tuple(groups[token] for token in order)
