"""Evaluation of question answering on Ray: accuracy overall and per question type, with intervals and baselines.

Videos are spread over actors; each is encoded once, and its features serve all its questions.

Protocol: the best answer of the vocabulary counts. ``all``: over all questions; those whose answer is not in the
vocabulary count as wrong. ``answerable``: without those (published). Two baselines see no video: the most frequent
answer of the training questions, and the most frequent one of the question's type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hbi_models.config_fields import require
from hbi_models.configs import VideoQAConfig
from hbi_models.metric_names import ANSWER_METRICS
from hbi_models.metrics import AnswerMetrics, bootstrap_intervals
from pipelines.datasets.annotations import OVERALL, Question
from pipelines.datasets.answers import Vocabulary, most_frequent
from pipelines.evaluate.actors import as_finished, blocks, result_of, start_actors, stop_actors
from pipelines.evaluate.documents import ANSWERS_FILE, METRICS_FILE, curve_names, protocol_tags
from pipelines.evaluate.protocol import answers_protocol
from pipelines.models.answering import Answers, answer_questions, concatenate_answers
from pipelines.models.initial_weights import load_video_qa_checkpoint
from pipelines.progress import Progress
from pipelines.recipe.evaluation import QAEvaluationConfig
from pipelines.recipe.resources import ActorResources
from pipelines.resources.device import compute_device
from pipelines.splits import QuestionView
from pipelines.tracker import StageTracker
from pipelines.workspace.records import ANSWERS
from pipelines.workspace.storage import Storage

_ASKED = ["video_id", "question", "answer"]


@dataclass(frozen=True)
class _Sampling:
    """How the questions are resampled for the intervals: by video."""

    clusters: Int[Tensor, " questions"]
    resamples: int
    seed: int

    def metrics(self, ranks: Float[Tensor, " questions"], counted: Bool[Tensor, " questions"]) -> dict[str, Any]:
        """Metrics with intervals of the questions that count."""
        intervals = bootstrap_intervals(
            ranks[counted],
            generator=torch.Generator().manual_seed(self.seed),
            metrics=AnswerMetrics,
            clusters=self.clusters[counted],
            num_resamples=self.resamples,
        )
        values = AnswerMetrics.from_ranks(ranks[counted]).as_dict()
        return {name: {"value": value, **asdict(intervals[name])} for name, value in values.items()}


class AnswererActor:
    """Holds the model and answers the questions about blocks of videos."""

    def __init__(
        self,
        checkpoint: str,
        config: VideoQAConfig,
        view: QuestionView,
        vocabulary: Vocabulary,
        settings: QAEvaluationConfig,
    ) -> None:
        self._device = compute_device()
        with TemporaryDirectory() as scratch:
            self._model = load_video_qa_checkpoint(checkpoint, config, Path(scratch)).to(self._device)
        self._view, self._vocabulary, self._settings = view, vocabulary, settings

    @torch.inference_mode()
    def answer(self, videos: Sequence[int]) -> Answers:
        """Answers to all questions about ``videos``."""
        return answer_questions(
            self._model,
            self._view,
            videos,
            self._vocabulary,
            device=self._device,
            batch_size=self._settings.batch_size,
            level_rates=self._settings.level_rates,
        )


def evaluate_video_qa(
    output: Storage,
    tracker: StageTracker,
    view: QuestionView,
    *,
    trained: Sequence[Question],
    vocabulary: Vocabulary,
    checkpoint: str,
    config: VideoQAConfig,
    settings: QAEvaluationConfig,
    resources: ActorResources,
    seed: int,
    dataset: str,
    missing_videos: int = 0,
) -> dict[str, float]:
    """Writes ``metrics.json`` and ``answers.parquet`` and returns the metrics by name.

    Args:
        output: the stage's folder.
        tracker: receives the metrics.
        view: the questions and their videos.
        trained: the training questions, for the baselines.
        vocabulary: the answers in the order of the model's classes.
        checkpoint: folder of ours or file of the published code.
        config: settings of the model, used if the checkpoint is a published file.
        settings: what to compute.
        resources: actors.
        seed: of the resampling.
        dataset: its name, for the protocol.
        missing_videos: how many videos have no file.

    Raises:
        ValueError: the split holds no question about a video with frames, or a question got no answer.
    """
    if not len(view):
        raise ValueError(
            f"the split {settings.split!r} holds no question about a video with frames; choose qa_evaluation.split "
            "among those that the stage answers counts"
        )
    answers = _answer_all(view, vocabulary, checkpoint, config, settings, resources)
    questions = [question for video in range(len(view)) for question in view.questions(video)]
    require(
        len(answers.ranks) == len(questions),
        f"{len(questions):,} questions got {len(answers.ranks):,} answers",
    )
    table = _answers_table(view, vocabulary, answers)
    # The video of each question; the questions of a video stand together.
    clusters = torch.arange(len(view)).repeat_interleave(torch.tensor(view.texts_per_video))
    protocol = answers_protocol(
        dataset=dataset,
        split=settings.split,
        video_ids=view.store.video_ids,
        asked=[(row["video_id"], row["question"], row["answer"]) for row in table.select(_ASKED).to_pylist()],
        questions_per_video=view.texts_per_video,
        # The rank is infinite where the vocabulary does not hold the answer.
        answerable=int(answers.ranks.isfinite().sum()),
        vocabulary=vocabulary.answers,
        missing_videos=missing_videos + view.without_frames,
        checkpoint=checkpoint,
        seed=seed,
    )
    sampling = _Sampling(clusters, settings.bootstrap_samples, seed)
    document: dict[str, Any] = {
        "split": settings.split,
        "checkpoint": checkpoint,
        "seed": seed,
        "questions": len(questions),
        "answerable_questions": int(answers.ranks.isfinite().sum()),
        "videos": len(view),
        "vocabulary": len(vocabulary),
        "protocol": protocol,
        **_metrics(answers.ranks, questions, sampling),
        # A given checkpoint may be evaluated on data without training questions.
        "baselines": _baselines(trained, questions, vocabulary, sampling) if trained else {},
    }
    output.write_table(ANSWERS_FILE, table)
    output.write_json(METRICS_FILE, document)
    flat = _flat(document)
    tracker.log_metrics(flat)
    tracker.log_tags(protocol_tags(protocol))
    tracker.log_files(output, [METRICS_FILE])
    return flat


def _answer_all(
    view: QuestionView,
    vocabulary: Vocabulary,
    checkpoint: str,
    config: VideoQAConfig,
    settings: QAEvaluationConfig,
    resources: ActorResources,
) -> Answers:
    parts = blocks(len(view), settings.batch_size)
    actors = start_actors(
        AnswererActor, checkpoint, config, view, vocabulary, settings, resources=resources, most=len(parts)
    )
    calls = [actors[i % len(actors)].answer.remote(list(part)) for i, part in enumerate(parts)]
    with Progress("qa_evaluation", total=sum(view.texts_per_video), unit="questions") as progress:
        for part in as_finished(calls):
            progress.advance(sum(view.texts_per_video[video] for video in parts[part]))
    # In the order of the view, whatever the order in which the calls end: rows are matched with questions by place.
    answers = concatenate_answers([result_of(call) for call in calls])
    stop_actors(actors)
    return answers


def _answers_table(view: QuestionView, vocabulary: Vocabulary, answers: Answers) -> pa.Table:
    asked = [(view.store.video_ids[video], item) for video in range(len(view)) for item in view.questions(video)]
    ranks = answers.ranks.tolist()
    labels = [vocabulary.label(question.answer) for _, question in asked]
    known = [label >= 0 for label in labels]
    return pa.table(
        {
            "video_id": [video_id for video_id, _ in asked],
            "question": [question.question for _, question in asked],
            "type": [question.kind for _, question in asked],
            "answer": [question.answer for _, question in asked],
            "label": [label if is_known else None for label, is_known in zip(labels, known, strict=True)],
            "rank": [rank if is_known else None for rank, is_known in zip(ranks, known, strict=True)],
            # Ties have the rank that is expected in random order: a first place that is shared is 1.5, and not correct.
            "correct": [rank <= 1 for rank in ranks],
            "top_answers": [[vocabulary.answers[label] for label in best] for best in answers.labels.tolist()],
            "top_probabilities": answers.probabilities.tolist(),
        },
        schema=ANSWERS,
    )


def _metrics(ranks: Float[Tensor, " questions"], questions: Sequence[Question], sampling: _Sampling) -> dict[str, Any]:
    """Metrics over ``all`` and over ``answerable`` questions: overall, then by type, the most frequent first."""
    kinds = most_frequent((question.kind for question in questions), len(questions))
    members = {OVERALL: torch.ones(len(questions), dtype=torch.bool)}
    members |= {kind: torch.tensor([question.kind == kind for question in questions]) for kind in kinds}
    return {
        name: {
            kind: {"questions": int((rows & counted).sum()), **sampling.metrics(ranks, rows & counted)}
            for kind, rows in members.items()
            # A type may have no answerable question, and there are no metrics of none.
            if (rows & counted).any()
        }
        for name, counted in (("all", members[OVERALL]), ("answerable", ranks.isfinite()))
    }


def _baselines(
    trained: Sequence[Question],
    questions: Sequence[Question],
    vocabulary: Vocabulary,
    sampling: _Sampling,
) -> dict[str, Any]:
    """The accuracy of guessing without a video, over all and over answerable questions."""
    (guess,) = most_frequent((question.answer for question in trained), 1)
    by_kind: dict[str, list[str]] = {}
    for question in trained:
        by_kind.setdefault(question.kind, []).append(question.answer)
    guesses = {kind: most_frequent(answers, 1)[0] for kind, answers in by_kind.items()}
    answerable = torch.tensor([question.answer in vocabulary for question in questions])

    def accuracies(guessed: Sequence[str]) -> dict[str, Any]:
        hits = torch.tensor([mine == question.answer for mine, question in zip(guessed, questions, strict=True)])
        # A single guess ranks no other answers, so only its accuracy is used below.
        ranks = torch.where(hits, 1.0, torch.inf)
        return {
            name: sampling.metrics(ranks, counted)["accuracy"]
            for name, counted in (("all", torch.ones_like(answerable)), ("answerable", answerable))
            if counted.any()
        }

    return {
        "most_frequent_answer": {"answer": guess, **accuracies([guess] * len(questions))},
        "most_frequent_answer_per_type": {
            "answers": guesses,
            **accuracies([guesses.get(question.kind, guess) for question in questions]),
        },
    }


def _flat(document: Mapping[str, Any]) -> dict[str, float]:
    """The values of ``metrics.json`` under the names of curves: ``all/accuracy``, ``all/what/accuracy``, …"""
    flat = {name: float(document[name]) for name in ("questions", "answerable_questions", "videos")}
    flat["missing_videos"] = float(document["protocol"]["missing_videos"])
    # Every answerable type is one of all.
    names = curve_names(set(document["all"]) - {OVERALL}, lambda kind: re.sub(r"\W+", "_", kind))
    for name in ("all", "answerable"):
        for kind, values in document[name].items():
            prefix = name if kind == OVERALL else f"{name}/{names[kind]}"
            flat |= {f"{prefix}/{metric}": values[metric]["value"] for metric in ANSWER_METRICS}
        for baseline, values in document["baselines"].items():
            if name in values:
                flat[f"{name}/{baseline}"] = values[name]["value"]
    return flat
