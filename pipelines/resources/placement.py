"""Whether every node of a cluster sees the folders that a run works in; asked before any work starts.

Local folders are fine on one machine, and on several where they are mounted everywhere. On several
machines without that, each would decode into a folder of its own, and nobody would notice for hours.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import absolute_uri, is_local

IDENTITY = "workspace.json"
"""A file in every workspace that tells it from a folder of the same name on another machine."""

_PROBE_TIMEOUT_S = 120.0
"""Seconds to wait for a node. If its workers do not start within this time, its problem is not a missing folder."""

_HEAD_BYTES = 4096
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the driver of a submitted job, whose current folder is a copy of what was uploaded."""


class PlacementError(ValueError):
    """A node of the cluster cannot reach what its tasks will read or write."""


@dataclass(frozen=True)
class Landmark:
    """A file by which a node recognises a place."""

    setting: str
    """The setting that names the place."""
    place: str
    """The folder or file as it is set."""
    file: str
    digest: str
    """A digest of the file's size and first bytes."""
    writes: bool = False
    """Whether workers write into the folder."""

    def trouble(self) -> str | None:
        """What keeps this machine from using the place; None = nothing."""
        try:
            if _digest(self.file) != self.digest:
                return f"has another file at {self.file}"
            if self.writes:
                with tempfile.NamedTemporaryFile(dir=Path(self.file).parent, prefix=".tmp-"):
                    pass
        except FileNotFoundError:
            return "does not see it"
        except OSError as error:
            return f"cannot use it ({error.strerror or type(error).__name__})"
        return None


class NodeCheck:
    """Looks for ``landmarks`` on every node of the connected cluster, once per node."""

    def __init__(self, landmarks: Sequence[Landmark]) -> None:
        self._landmarks = list(landmarks)
        self._checked: set[str] = set()

    def check(self) -> None:
        """Asks the nodes that have not been asked yet; does nothing if no place is local.

        Raises:
            PlacementError: a node does not see a place, cannot write to it, or does not have this code.
        """
        if not self._landmarks:
            return
        import ray

        nodes = _addresses()
        # The landmarks were found on this node, so it need not be asked.
        new = nodes.keys() - self._checked - {ray.get_runtime_context().get_node_id()}
        answers = _ask(sorted(new), self._landmarks)
        self._checked.update(new)
        for position, landmark in enumerate(self._landmarks):
            troubled = [
                f"{nodes[node]} (node {node[:8]}) {found[position]}"
                for node, found in answers.items()
                if found[position]
            ]
            if troubled:
                raise PlacementError(
                    f"{landmark.setting} is {landmark.place}, a place of one machine, and the cluster has {len(nodes)} "
                    f"nodes: {'; '.join(troubled)}. Use an object store (s3://… or gs://…), or mount a shared file "
                    "system (such as NFS) at this path on every node"
                )


def _addresses() -> dict[str, str]:
    """The address of every living node by its id."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _ask(nodes: Sequence[str], landmarks: Sequence[Landmark]) -> dict[str, list[str | None]]:
    """What each of ``nodes`` says of each landmark; one that leaves the cluster meanwhile says nothing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # No CPU, so that nodes that are busy answer, too. No other node may answer in place of the one that is asked.
    look = ray.remote(num_cpus=0)(_look)
    asked = {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(list(landmarks))
        for node in nodes
    }
    answers = {}
    for node, reference in asked.items():
        try:
            answers[node] = ray.get(reference, timeout=_PROBE_TIMEOUT_S)
        # Also raised after the timeout: the node has started no worker for the question in time.
        except ray.exceptions.RayError as error:
            if node not in (addresses := _addresses()):
                continue
            raise PlacementError(
                f"{addresses[node]} (node {node[:8]}) cannot run this project's code: "
                f"{str(error).strip().splitlines()[-1]}. Submit with --working-dir from the folder that holds "
                "pipelines/, to nodes that have its packages installed"
            ) from error
    return answers


def _look(landmarks: Sequence[Landmark]) -> list[str | None]:
    return [landmark.trouble() for landmark in landmarks]


def _digest(file: str) -> str:
    """A digest that distinguishes files without reading a whole video."""
    with Path(file).open("rb") as opened:
        return hashlib.sha256(b"%d " % os.fstat(opened.fileno()).st_size + opened.read(_HEAD_BYTES)).hexdigest()


_session: NodeCheck | None = None


@contextmanager
def checked_nodes(workspace: Storage, places: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Refuses a cluster whose nodes do not see the run's local folders; :func:`check_new_nodes` goes on with it.

    Args:
        workspace: of the run.
        places: what workers read outside of it: the names of settings, and the places that they name.

    Raises:
        PlacementError: as :meth:`NodeCheck.check`.
    """
    global _session
    _session = NodeCheck(find_landmarks(workspace, places))
    _session.check()
    try:
        yield
    finally:
        _session = None


def check_new_nodes() -> None:
    """Asks the nodes that an autoscaler has started meanwhile; called as results come in.

    Raises:
        PlacementError: as :meth:`NodeCheck.check`.
    """
    if _session is not None:
        _session.check()


def find_landmarks(workspace: Storage, places: Iterable[tuple[str, str]]) -> list[Landmark]:
    """A landmark of the workspace and of each of ``places`` (setting, place) that lie on a local file system."""
    found = []
    if workspace.is_local:
        if not workspace.exists(IDENTITY):
            workspace.write_json(IDENTITY, {"id": uuid.uuid4().hex})
        identity = workspace.path(IDENTITY)
        found.append(Landmark("workspace", workspace.uri, identity, _digest(identity), writes=True))
    for setting, place in places:
        if is_local(place) and not _is_uploaded(place) and (file := _first_file(Storage(place).path())) is not None:
            found.append(Landmark(setting, place, file, _digest(file)))
    return found


def require_lasting(workspace: Storage) -> None:
    """Refuses a workspace in the folder of a submitted job, which Ray removes after the job.

    Raises:
        PlacementError: it lies there.
    """
    if workspace.is_local and _is_uploaded(workspace.path()):
        raise PlacementError(
            f"workspace is {workspace.uri}, which lies in the job's own folder, and Ray removes that after the job; "
            "give a URI (s3://… or gs://…) or the absolute path of a shared folder"
        )


def _is_uploaded(place: str) -> bool:
    """Whether ``place`` came with a submitted job: every worker has a copy of it."""
    return _IN_JOB in os.environ and Path(absolute_uri(place)).is_relative_to(Path.cwd())


def _first_file(place: str) -> str | None:
    """The first file at or below ``place``, in the order in which it is listed."""
    if Path(place).is_file():
        return place
    for folder, _, names in os.walk(place):
        for name in names:
            return f"{folder}/{name}"
    return None
