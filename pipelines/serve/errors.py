"""Errors of an engine, for modules that must not load PyTorch."""


class UnknownVideoError(LookupError):
    """There is no such video, or it has no such frame."""


class UnusableVideoError(ValueError):
    """A clip cannot be used, or questions are not answered; the message says why."""
