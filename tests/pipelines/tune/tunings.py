"""Tunings for tests, as a tune file describes them, and records of trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hbi_models.configs import GameConfig, RetrievalConfig
from jobs.settings import recipe_from_document
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.fields import with_values
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.tuning import SamplerConfig, SchedulerConfig, TuningConfig
from pipelines.tune.checks import make_tuning
from pipelines.tune.journal import Phase, Report, TrialRecord, TrialState
from pipelines.tune.tuning import Tuning
from pipelines.workspace.artifact import plain

KL, SKL = "model.loss.kl", "model.loss.skl"
BOTH = {KL: "loguniform 0.05 10", SKL: "loguniform 0.05 10"}


def tuning_of(workspace: Path, changes: Mapping[str, Any] | None = None, **config: Any) -> Tuning:
    """A tuning on generated data; keywords are the settings of the tune file."""
    recipe = Recipe(
        workspace=str(workspace),
        data=DataConfig(shapes=ShapesConfig(train_videos=30)),
        model=RetrievalConfig(game=GameConfig(teacher="exact")),
    )
    if changes:
        recipe = recipe_from_document(with_values(plain(recipe), changes))
    settings: dict[str, Any] = {
        "space": BOTH,
        "sampler": {"name": "random"},
        "scheduler": {"name": "none"},
        **config,
    }
    settings["sampler"] = SamplerConfig(**settings["sampler"])
    settings["scheduler"] = SchedulerConfig(**settings["scheduler"])
    return make_tuning(recipe, TuningConfig(**settings), recipe_from_document)


def record_of(
    number: int,
    values: Mapping[str, Any],
    scores: Sequence[float],
    *,
    state: TrialState = "finished",
    phase: Phase = "trial",
    label: str | None = None,
    seed: int = 42,
    per_epoch: int = 1,
) -> TrialRecord:
    """A trial with these validations."""
    name = f"trial-{number:03d}"
    reports = tuple(
        Report(progress=place, epoch=place / per_epoch, step=10 * place, value=score)
        for place, score in enumerate(scores, start=1)
    )
    return TrialRecord(
        name=name,
        phase=phase,
        label=label or name,
        values=values,
        seed=seed,
        fingerprint=f"{number:016x}",
        state=state,
        reports=reports,
        value=scores[-1] if scores else None,
    )
