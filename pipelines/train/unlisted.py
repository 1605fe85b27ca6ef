"""Checkpoints of a training on Ray Train that Ray's own list does not name.

Ray keeps one list of its checkpoints, and overwrites it in place. A machine that stops in the middle leaves half a
list. The checkpoints themselves are whole, because each is written before it is listed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.train.checkpoints import Position, inspect
from pipelines.train.files import RAY_SNAPSHOT, RAY_TRAIN
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)

# So Ray Train names its folders of checkpoints.
_PREFIX = "checkpoint_"


@dataclass(frozen=True)
class Unlisted:
    """A whole checkpoint, in a folder that Ray made."""

    name: str
    position: Position
    score: float


def unlisted_checkpoints(output: Storage, listed: Collection[str]) -> list[Unlisted]:
    """The whole checkpoints of the training in ``output`` whose folders are not ``listed``, the furthest last."""
    train = output.folder(RAY_TRAIN)
    found = []
    for name in train.folders():
        if name.startswith(_PREFIX) and name not in listed:
            with TemporaryDirectory() as scratch:
                try:
                    found.append(Unlisted(name, *inspect(train.download(name, Path(scratch)))))
                except DamagedFileError as error:
                    # Copying this one was interrupted; the one before it is used.
                    logger.info("left out: %s", error)
    return sorted(found, key=lambda checkpoint: checkpoint.position.step)


def best_checkpoint(output: Storage, listed: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The name and the score of the best whole checkpoint of the training in ``output``, of equal ones the last.

    ``listed`` are those on Ray's list, in the order of their making where their scores are equal.
    """
    # If Ray's list was lost, the best one may be from before the list that it began anew.
    unlisted = [(each.name, each.score) for each in unlisted_checkpoints(output, dict(listed))]
    # Of equal scores ``max`` takes the first.
    return max(reversed([*unlisted, *listed]), key=lambda checkpoint: checkpoint[1])


def place_to_go_on_from(output: Storage) -> Storage | None:
    """The furthest whole checkpoint of a training whose list is missing or damaged; a damaged one is removed.

    None if the list is as Ray writes it, or if there is no whole checkpoint.
    """
    if _list_is_whole(output):
        return None
    found = unlisted_checkpoints(output, ())
    if output.exists(RAY_SNAPSHOT):
        logger.warning(
            "%s is damaged, which names the checkpoints of this training; going on %s",
            output.place(RAY_SNAPSHOT),
            f"from step {found[-1].position.step:,}, the furthest that is whole" if found else "from the start",
        )
        # Ray Train does not start with a list that it cannot read, or that names a missing checkpoint.
        output.delete(RAY_SNAPSHOT)
    return output.folder(RAY_TRAIN, found[-1].name) if found else None


def _list_is_whole(output: Storage) -> bool:
    """Whether Ray's list exists, and every checkpoint that it names."""
    try:
        document = output.read_json(RAY_SNAPSHOT)
        names = {result["checkpoint_dir_name"] for result in document["checkpoint_results"]}
    except (FileNotFoundError, DamagedFileError, LookupError, TypeError):
        return False
    return names <= set(output.folders(RAY_TRAIN))
