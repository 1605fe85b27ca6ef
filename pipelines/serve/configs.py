"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass

from hbi_models.configs import require
from pipelines.recipe.checks import require_counts


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the server listens, and what it takes at once."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine alone. There is no login: put a
    proxy that asks for one in front before you choose another."""

    port: int = 8000
    """TCP port."""

    allowed_hosts: tuple[str, ...] = ()
    """Names by which browsers may ask, besides ``host`` and this machine's own; ``*`` allows all."""

    max_requests: int = 64
    """Requests in work; as many again wait, and further ones are told to come back later."""

    timeout_s: float = 30.0
    """Seconds after which a request is given up."""

    max_batch: int = 16
    """Queries that are searched together."""

    batch_wait_s: float = 0.01
    """Seconds that a query waits for others."""

    max_upload_mb: float = 64.0
    """Size of an uploaded clip, in MB."""

    kept_uploads: int = 32
    """Uploaded clips that are kept, as frames in memory; the oldest go first."""

    def __post_init__(self) -> None:
        require_counts(self, "server", "max_requests", "max_batch", "kept_uploads")
        require(0 < self.port < 1 << 16, f"port is {self.port}; it must lie between 1 and 65535")
        require(self.timeout_s > 0, f"timeout_s is {self.timeout_s}; it must be positive")
        require(self.batch_wait_s >= 0, f"batch_wait_s is {self.batch_wait_s}; it must not be negative")
        require(self.max_upload_mb > 0, f"max_upload_mb is {self.max_upload_mb}; it must be positive")

    @property
    def max_upload_bytes(self) -> int:
        """Size of an uploaded clip, in bytes."""
        return int(self.max_upload_mb * 1e6)
