"""Stages of the pipeline on Ray: data, training, evaluation, storage and tracking.

This room takes configuration objects and parses no arguments. ``pipelines.recipe.recipe`` holds the
settings and imports nothing heavy; every other module may import Ray.
"""
