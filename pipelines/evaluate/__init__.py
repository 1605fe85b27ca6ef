"""Evaluation on Ray: features once per text and video, similarities in tiles."""
