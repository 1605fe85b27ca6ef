"""Names inside a training artifact, for modules that must not load PyTorch."""

MODEL = "model"
"""Folder that holds the chosen checkpoint."""

HISTORY = "history.jsonl"
"""Every point of every curve, one step a line."""
