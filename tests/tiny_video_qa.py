"""A question answering model, questions and a training task small enough to train in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hbi_models.configs import AnswerHeadConfig, VideoQAConfig
from hbi_models.optimizer_config import OptimizerConfig
from pipelines.datasets.answers import Vocabulary
from pipelines.recipe.data import Split
from pipelines.recipe.training import VideoQATrainingConfig
from pipelines.train.pairs import steps_of_epochs
from pipelines.train.video_qa import VideoQATask
from pipelines.workspace.records import MANIFEST, MANIFEST_FILE
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import WORDS, retrieval_config, training_data, write_split_data

VOCABULARY = Vocabulary(["red", "blue", "circle", "square", "two", "left", "right"])
OUTSIDE = "purple"
"""An answer that the vocabulary does not hold."""


def video_qa_config(folder: Path, *, dropout: float = 0.1, **encoder: Any) -> VideoQAConfig:
    """Returns settings of the tiny model; keywords replace those of its encoder."""
    return VideoQAConfig(
        encoder=retrieval_config(folder, **encoder),
        head=AnswerHeadConfig(projection=16, hidden=24, dropout=dropout),
        num_answers=len(VOCABULARY),
    )


def write_question_data(folder: Path, questions: dict[Split, Sequence[int]]) -> Storage:
    """Commits videos with so many questions each; the last question of a video with three has no known answer."""
    storage = write_split_data(folder, {split: [1] * len(counts) for split, counts in questions.items()})
    random = np.random.default_rng(1)
    rows = storage.read_table(f"manifest/{MANIFEST_FILE}").to_pylist()
    counts = [(split, count) for split, members in questions.items() for count in members]
    for row, (split, count) in zip(rows, counts, strict=True):
        row["questions"] = [
            {
                "question": " ".join(["what", *random.choice(WORDS, random.integers(2, 9))]),
                "answer": OUTSIDE if number == 2 else str(random.choice(VOCABULARY.answers)),
                "type": "what" if number % 2 else "who",
                "split": split,
            }
            for number in range(count)
        ]
    storage.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(rows, schema=MANIFEST))
    return storage


def video_qa_task(
    data: Storage, model: VideoQAConfig, *, init_checkpoint: str | None = None, **training: Any
) -> VideoQATask:
    """Returns the training of ``model`` on the data that ``write_question_data`` made."""
    config = VideoQATrainingConfig(
        **{"epochs": 2, "batch_size": 4, "optimizer": OptimizerConfig(lr=1e-3, clip_lr_factor=1.0), **training}
    )
    places = training_data(data)
    return VideoQATask(
        model_config=model,
        training=config,
        seed=3,
        data=places,
        vocabulary=VOCABULARY,
        init_checkpoint=init_checkpoint,
        loader_processes=0,
        steps_per_epoch=steps_of_epochs(
            places.questions("train", answerable_by=VOCABULARY).texts_per_video,
            batch_size=config.batch_size,
            seed=3,
            epochs=config.epochs,
            max_texts=config.max_questions_per_video,
        ),
    )
