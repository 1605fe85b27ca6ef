"""Weights from elsewhere: a checkpoint folder of ours, or a file of the published implementation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.clip.loading import read_checkpoint
from hbi_models.clip.transformers_names import is_transformers_clip
from hbi_models.configs import RetrievalConfig, VideoQAConfig
from hbi_models.published_weights import estimator_from_published, retrieval_from_published, video_qa_from_published
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from pipelines.datasets.answers import ANSWERS_JSON, Vocabulary
from pipelines.models.folder import is_published_file, kind_of_model, model_folder, vocabulary_of
from pipelines.models.weights import fill, load_model, load_video_qa, load_weights, without_pretraining
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name, parent_uri

_PUBLISHED_ANSWER_HEAD = "classifier."
"""Only published question answering checkpoints have names that begin so."""


def initialise_from(checkpoint: str, model: RetrievalModel, scratch: Path) -> None:
    """Fills ``model`` from ``checkpoint``, strictly; only the teacher network may be missing or left over.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it does not fit the model; the message lists what is missing and left over.
    """
    if is_published_file(checkpoint):
        _fill_retrieval(model, _read_published(checkpoint, scratch), checkpoint)
    else:
        # A training puts its own teacher in afterwards (``PairTask.install_teacher``).
        load_weights(model_folder(checkpoint).download("", scratch), model, optional="teacher.")


def initialise_video_qa_from(checkpoint: str, model: VideoQAModel, vocabulary: Vocabulary, scratch: Path) -> None:
    """Fills ``model`` from a question answering checkpoint, or its encoder alone from a retrieval one, strictly.

    Only the teacher network may be missing or left over.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it does not fit the model, or its answers are not those of ``vocabulary``.
    """
    if is_published_file(checkpoint):
        published = _read_published(checkpoint, scratch)
        if _published_kind(published) == "video_qa":
            _fill_video_qa(model, published, checkpoint)
        else:
            _fill_retrieval(model.encoder, published, checkpoint)
    elif checkpoint_kind(checkpoint, scratch) == "video_qa":
        _refuse_other_answers(checkpoint, vocabulary)
        load_weights(model_folder(checkpoint).download("", scratch), model, optional="encoder.teacher.")
    else:
        load_weights(model_folder(checkpoint).download("", scratch), model.encoder, optional="teacher.")


def _fill_retrieval(model: RetrievalModel, published: Mapping[str, Tensor], checkpoint: str) -> None:
    fill(model, retrieval_from_published(published, model.state_dict().keys()), source=checkpoint)


def _fill_video_qa(model: VideoQAModel, published: Mapping[str, Tensor], checkpoint: str) -> None:
    fill(model, video_qa_from_published(published, model.state_dict().keys()), source=checkpoint)


def checkpoint_kind(checkpoint: str, scratch: Path) -> str:
    """What kind of model a checkpoint holds: ``retrieval`` or ``video_qa``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it holds another kind of model.
    """
    if is_published_file(checkpoint):
        return _published_kind(_read_published(checkpoint, scratch))
    kind = kind_of_model(model_folder(checkpoint))
    if kind not in ("retrieval", "video_qa"):
        raise ValueError(f"{checkpoint} holds a model of kind {kind!r}; give one of kind 'retrieval' or 'video_qa'")
    return kind


def _published_kind(names: Iterable[str]) -> str:
    return "video_qa" if any(name.startswith(_PUBLISHED_ANSWER_HEAD) for name in names) else "retrieval"


def _refuse_other_answers(checkpoint: str, vocabulary: Vocabulary) -> None:
    answers = vocabulary_of(checkpoint).answers
    if answers != vocabulary.answers:
        raise ValueError(
            f"{checkpoint} chooses from {len(answers):,} answers that are not the {len(vocabulary):,} of this recipe, "
            f"or not in their order; set video_qa.answers.file to its {ANSWERS_JSON}"
        )


def initialise_estimator_from(checkpoint: str, model: InteractionEstimator, scratch: Path) -> None:
    """Fills an estimator from ``checkpoint``, strictly.

    Raises:
        FileNotFoundError, ValueError: as :func:`initialise_from`.
    """
    if is_published_file(checkpoint):
        fill(model, estimator_from_published(_read_published(checkpoint, scratch)), source=checkpoint)
    else:
        load_weights(model_folder(checkpoint).download("", scratch), model)


def load_checkpoint(checkpoint: str, config: RetrievalConfig, scratch: Path) -> RetrievalModel:
    """The model of ``checkpoint``: ours with its own configuration, a published one with ``config``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it does not fit.
    """
    if is_published_file(checkpoint):
        # Evaluation needs no teacher, so the checkpoint's teacher is left out.
        game = replace(config.game, teacher="exact")
        model = RetrievalModel(without_pretraining(replace(config, game=game)))
        initialise_from(checkpoint, model, scratch)
        return model.eval()
    return load_model(model_folder(checkpoint), scratch)


def load_video_qa_checkpoint(checkpoint: str, config: VideoQAConfig, scratch: Path) -> VideoQAModel:
    """The question answering model of ``checkpoint``: ours with its own configuration, a published one with ``config``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it does not fit.
    """
    if not is_published_file(checkpoint):
        return load_video_qa(model_folder(checkpoint), scratch)
    published = _read_published(checkpoint, scratch)
    if _published_kind(published) != "video_qa":
        raise ValueError(f"{checkpoint} holds a published model without answers; give one trained for them")
    # No network of a teacher, as in ``load_checkpoint``.
    game = replace(config.encoder.game, teacher="exact")
    model = VideoQAModel(replace(config, encoder=without_pretraining(replace(config.encoder, game=game))))
    _fill_video_qa(model, published, checkpoint)
    return model.eval()


def _read_published(checkpoint: str, scratch: Path) -> dict[str, Tensor]:
    weights = read_checkpoint(_local_file(checkpoint, scratch))
    if is_transformers_clip(weights):
        raise ValueError(
            f"{checkpoint} holds the weights of a CLIP alone, under the names of transformers' CLIPModel; name it in "
            "model.clip.pretrained, with the model.clip.architecture that it has"
        )
    return weights


def _local_file(uri: str, scratch: Path) -> Path:
    storage, name = Storage(parent_uri(uri)), last_name(uri)
    if storage.is_local:
        path = Path(storage.path(name))
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint file {path}")
        return path
    path = scratch / name
    path.write_bytes(storage.read_bytes(name))
    return path
