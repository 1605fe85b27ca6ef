"""Checks that several sections share."""

from __future__ import annotations

from hbi_models.config_fields import require


def require_counts(config: object, section: str, *names: str, least: int = 1) -> None:
    """Raises ``ValueError`` unless each named field of ``config`` is None or ``least`` or more."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= least, f"{section}.{name} is {value}; it must be {least} or more")
