"""Weights that a tag of open_clip names, handed to every node through the workspace.

The driver fetches them once, before any work. Nodes read them from the workspace and compare their digest. They need
neither the network nor a cache, and a file that changes at its source does not affect work that has begun. A local file
in ``model.clip.pretrained`` is read where it is.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from hbi_models.clip.configs import ClipConfig
from pipelines.workspace.artifact import digest
from pipelines.workspace.contents import content_digest
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri

logger = logging.getLogger(__name__)

_FILE = "clip.safetensors"
_DOCUMENT = "weights.json"
"""Written last: what the file is, and the digest of its contents."""


def weights_folders(clip: ClipConfig) -> tuple[str, ...]:
    """The folder of a workspace in which the weights of ``clip`` are kept, if a tag names them."""
    if clip.pretrained is None or Path(clip.pretrained).is_file():
        return ()
    return (f"weights/{digest([clip.architecture, clip.pretrained])}",)


def hand_out(workspace: Storage, clip: ClipConfig) -> None:
    """Puts the weights that a tag names into ``workspace``, unless it holds them.

    Raises:
        ValueError: they are neither in the cache of this machine nor can they be downloaded, or do not fit.
        StorageError: they cannot be written.
    """
    for name in weights_folders(clip):
        folder = workspace.folder(name)
        if _is_whole(folder):
            return
        from hbi_models.clip.loading import fetch_weights, save_clip

        if fetch_weights(clip) is None:
            return
        logger.info("puts the weights %s of %s into %s, for all nodes", clip.pretrained, clip.architecture, folder.uri)
        with TemporaryDirectory() as scratch:
            save_clip(clip, Path(scratch) / _FILE)
            workspace.upload(Path(scratch), name)
            found = content_digest(str(Path(scratch) / _FILE))
        folder.write_json(
            _DOCUMENT, {"architecture": clip.architecture, "pretrained": clip.pretrained, "sha256": found}
        )


def _is_whole(folder: Storage) -> bool:
    try:
        recorded = _digest_on_record(folder)
        # In a store, comparing would need a download; the node that downloads the file compares it.
        return not folder.is_local or recorded == content_digest(join_uri(folder.uri, _FILE))
    except (FileNotFoundError, DamagedFileError):
        return False


def _digest_on_record(folder: Storage) -> str:
    document = folder.read_json(_DOCUMENT)
    if not isinstance(document, dict) or "sha256" not in document:
        raise DamagedFileError(f"{folder.place(_DOCUMENT)} does not say what the weights beside it are")
    return str(document["sha256"])


def handed_out(workspace: Storage, clip: ClipConfig) -> Storage | None:
    """The folder in which :func:`hand_out` has put the weights of ``clip``; None = it has not."""
    folders = (workspace.folder(name) for name in weights_folders(clip))
    return next((folder for folder in folders if folder.exists(_DOCUMENT)), None)


def local_weights(folder: Storage | None, scratch: Path) -> Path | None:
    """The file in ``folder`` on this machine, compared with what was put there; a download goes to ``scratch``.

    Raises:
        DamagedFileError: its contents have changed.
    """
    if folder is None:
        return None
    file = folder.download("", scratch) / _FILE
    if content_digest(str(file)) != _digest_on_record(folder):
        raise DamagedFileError(
            f"{folder.place(_FILE)} has changed since it was put there; remove its folder, and run the same command "
            "again: it is made anew"
        )
    return file
