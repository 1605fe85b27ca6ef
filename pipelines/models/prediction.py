"""Answers to a question about one video file, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hbi_models.config_fields import require
from hbi_models.configs import VideoQAConfig
from hbi_models.video_qa import VideoQAModel
from pipelines.datasets.answers import Vocabulary, read_vocabulary
from pipelines.datasets.msrvtt_qa import ANSWER_LABELS_FILE
from pipelines.models.folder import is_published_file, vocabulary_of
from pipelines.models.initial_weights import load_video_qa_checkpoint
from pipelines.models.one_video import frames_of, read_video
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.resources.device import compute_device
from pipelines.video.frame_store import decode_images, stack_frames
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer and its probability, from 0 to 1."""

    answer: str
    probability: float


@dataclass(frozen=True)
class QuestionAnswerer:
    """A trained model with all that it needs to answer a question about a video file."""

    model: VideoQAModel
    vocabulary: Vocabulary
    frames: FramesConfig
    """How videos are sampled and decoded, as they were for training."""

    def answer(
        self, video: str, question: str, *, top: int = 5, start_s: float | None = None, end_s: float | None = None
    ) -> list[Prediction]:
        """The best answers, the best first.

        Args:
            video: path or URI of a video file; it is decoded in a process that can be killed.
            question: a question about it.
            top: how many answers; all of a small vocabulary.
            start_s: start of the segment that the question is about; None = the file's.
            end_s: its end, likewise.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be decoded, the question is empty, or ``top`` is not positive.
        """
        # Here, too, because decoding may take long.
        check_question(question, top)
        row = read_video(video, self.frames, start_s=start_s, end_s=end_s)
        return self.answer_about(row["frames"], question, top=top)

    @torch.inference_mode()
    def answer_about(self, images: Sequence[bytes], question: str, *, top: int = 5) -> list[Prediction]:
        """The best answers about a video whose frames are ``images``, sampled as :attr:`frames` says.

        Raises:
            ValueError: the question is empty, or ``top`` is not positive.
        """
        check_question(question, top)
        encoder = self.model.encoder
        clip = stack_frames(
            [decode_images(images)], image_size_px=encoder.clip.image_size_px, max_frames=encoder.config.max_frames
        )
        questions = encoder.encode_text(encoder.text_batch([question]))
        videos = encoder.encode_video(encoder.video_batch(clip.frames, clip.mask))
        probabilities = self.model.answer_logits(questions, videos).softmax(dim=1)[0]
        best = probabilities.topk(min(top, len(self.vocabulary)))
        return [
            Prediction(self.vocabulary.answers[label], probability)
            for label, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def check_question(question: str, top: int) -> None:
    """Raises ``ValueError`` for an empty question, or one that no answer is wanted to."""
    require(bool(question.strip()), "the question is empty; ask something about the video")
    require(top >= 1, f"top is {top}; it must be 1 or more")


def load_answerer(checkpoint: str, recipe: Recipe | None = None) -> QuestionAnswerer:
    """The model of ``checkpoint``: a folder of ours, which needs nothing else, or a published file with its recipe.

    Raises:
        FileNotFoundError: there is no such checkpoint, or a file that belongs to it is missing.
        ValueError: it holds another kind of model, does not fit the recipe, or the recipe is missing or not wanted.
    """
    if is_published_file(checkpoint):
        if recipe is None:
            raise ValueError(
                f"{checkpoint} is a file of the published code, which holds weights alone; give the recipe that says "
                "its model, frames and answers"
            )
        vocabulary, frames = _vocabulary_of_recipe(recipe), recipe.frames
        config = recipe.video_qa_model(len(vocabulary))
    else:
        require(recipe is None, f"{checkpoint} says itself how it was trained; leave out the recipe and its settings")
        vocabulary, frames, config = vocabulary_of(checkpoint), frames_of(checkpoint), VideoQAConfig()
    with TemporaryDirectory() as scratch:
        model = load_video_qa_checkpoint(checkpoint, config, Path(scratch))
    device = compute_device()
    return QuestionAnswerer(model.to(device), vocabulary, frames)


def _vocabulary_of_recipe(recipe: Recipe) -> Vocabulary:
    if recipe.video_qa.answers.file is not None:
        return read_vocabulary(recipe.video_qa.answers.file)
    if recipe.data.annotations is not None and Storage(recipe.data.annotations).exists(ANSWER_LABELS_FILE):
        return read_vocabulary(join_uri(recipe.data.annotations, ANSWER_LABELS_FILE))
    raise FileNotFoundError(
        "no vocabulary of answers; set video_qa.answers.file, or data.annotations to the folder with "
        f"{ANSWER_LABELS_FILE}"
    )
