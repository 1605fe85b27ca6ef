"""The answer vocabulary: which answers a question answering model chooses from, and their class ids.

Answers are compared without outer spaces and otherwise as they are (published: with outer spaces): ``Cat`` and ``cat``
are two answers. An answer outside the vocabulary has no class: such questions are left out of training, and count as
wrong where all questions are evaluated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.datasets.record_files import read_json_file
from pipelines.workspace.storage import Storage

ANSWERS_JSON = "answers.json"
"""The ordered list of answers, in the artifact of the stage ``answers`` and beside a model."""

DEFAULT_SIZE = 1500
"""Answers of a vocabulary made from the training questions (published: 1,500)."""

UNKNOWN = -1
"""Label of an answer that is not in the vocabulary."""


class Vocabulary:
    """Answers in the order of their class ids.

    Raises:
        ValueError: there are fewer than two answers, one is empty, or one occurs twice.
    """

    def __init__(self, answers: Iterable[str]) -> None:
        self.answers = tuple(answer.strip() for answer in answers)
        # Of an answer that occurs twice the last class stays, by which the check below notices it.
        self._labels = {answer: label for label, answer in enumerate(self.answers)}
        if len(self.answers) < 2:
            raise ValueError(
                f"a vocabulary of {len(self.answers)} answers leaves nothing to choose; it needs 2 or more"
            )
        if "" in self._labels:
            raise ValueError(f"the answer of class {self._labels['']} is empty")
        if len(self._labels) < len(self.answers):
            twice = next(answer for label, answer in enumerate(self.answers) if self._labels[answer] != label)
            raise ValueError(f"the answer {twice!r} has more than one class")

    def __len__(self) -> int:
        return len(self.answers)

    def __contains__(self, answer: object) -> bool:
        return answer in self._labels

    def label(self, answer: str) -> int:
        """The class id of ``answer``, or ``UNKNOWN``."""
        return self._labels.get(answer, UNKNOWN)

    @classmethod
    def read(cls, folder: Storage) -> Vocabulary:
        """The vocabulary that was written to ``folder``."""
        return cls(_ordered(folder.read_json(ANSWERS_JSON)))

    def write(self, folder: Storage) -> None:
        """Commits the ordered list of answers in ``folder``."""
        folder.write_json(ANSWERS_JSON, list(self.answers))


def read_vocabulary(uri: str) -> Vocabulary:
    """The vocabulary in a JSON file: an object from answer to class id, or a list in their order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither of the two, or the class ids are not 0 to n - 1.
    """
    try:
        return Vocabulary(_ordered(read_json_file(uri)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{uri} is not an answer vocabulary: {error}") from error


def _ordered(document: Any) -> Sequence[str]:
    if isinstance(document, list) and all(isinstance(answer, str) for answer in document):
        return document
    # isinstance would take true for the class id 1.
    if not isinstance(document, dict) or not all(type(label) is int for label in document.values()):
        raise ValueError("it must hold an object from answer to class id, or a list of answers")
    if sorted(document.values()) != list(range(len(document))):
        ids = document.values()
        raise ValueError(
            f"its {len(document):,} answers have the class ids {min(ids, default=0)} to {max(ids, default=0)}; they "
            f"must be 0 to {len(document) - 1}, each once"
        )
    return sorted(document, key=lambda answer: document[answer])


def most_frequent(answers: Iterable[str], size: int) -> list[str]:
    """The ``size`` most frequent of ``answers``, in that order; equally frequent ones in alphabetical order."""
    counts = Counter(answers)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:size]


def coverage(questions: Iterable[Mapping[str, str]], vocabulary: Vocabulary) -> dict[str, int]:
    """How many questions each split has, and how many of them have an answer in the vocabulary, by name."""
    counts: Counter[str] = Counter()
    for question in questions:
        counts[f"{question['split']}_questions"] += 1
        counts[f"{question['split']}_answerable"] += question["answer"] in vocabulary
    return dict(counts)
