"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass

from hbi_models.config_fields import require
from pipelines.recipe.checks import require_counts


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the server listens, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; the default can be reached only from this machine. There is no login: before you choose
    another address, put a proxy with a login in front."""

    port: int = 8000
    """TCP port."""

    allowed_hosts: tuple[str, ...] = ()
    """Host names that browsers may use, besides ``host`` and this machine's own; ``*`` allows all."""

    max_requests: int = 64
    """Requests that are processed at the same time. As many again wait; further ones are refused with "come back
    later"."""

    timeout_s: float = 30.0
    """Seconds after which a request is given up."""

    max_batch: int = 16
    """Queries that are searched together."""

    batch_wait_s: float = 0.01
    """Seconds that a query waits for others."""

    max_upload_mb: float = 64.0
    """Size of an uploaded clip, in MB."""

    kept_uploads: int = 32
    """Uploaded clips that are kept, as frames in memory; the oldest are removed first."""

    def __post_init__(self) -> None:
        require_counts(self, "server", "max_requests", "max_batch", "kept_uploads")
        require(0 < self.port < 1 << 16, f"port is {self.port}; it must lie between 1 and 65535")
        require(self.timeout_s > 0, f"timeout_s is {self.timeout_s}; it must be positive")
        require(self.batch_wait_s >= 0, f"batch_wait_s is {self.batch_wait_s}; it must not be negative")
        require(self.max_upload_mb > 0, f"max_upload_mb is {self.max_upload_mb}; it must be positive")

    @property
    def url_host(self) -> str:
        """``host`` as URLs have it: IPv6 in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def max_upload_bytes(self) -> int:
        """Size of an uploaded clip, in bytes."""
        return int(self.max_upload_mb * 1e6)
