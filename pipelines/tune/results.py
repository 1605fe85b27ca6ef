"""The results of a tuning: a ranking, tables, and a recipe that is ready to run."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import yaml
from matplotlib.figure import Figure
from optuna import Study

from hbi_models.student import t_interval
from pipelines.figures.files import png
from pipelines.tables import table
from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.proposals import final_records, importances, study_of
from pipelines.tune.space import Setting, describe
from pipelines.tune.tracking import TuningTracker
from pipelines.tune.tuning import BEST_RECIPE, RANKING, SUMMARY, Tuning, asked_for
from pipelines.workspace.artifact import plain, versions
from pipelines.workspace.uris import join_uri


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One setting in the final ranking."""

    label: str
    values: Setting
    scores: tuple[float, ...]
    """The metric with each seed whose training did not fail."""
    mean: float
    low: float | None
    high: float | None
    """Bounds of the mean's 95% t-interval over seeds; None for one seed."""
    is_baseline: bool


def standings(tuning: Tuning, records: Sequence[TrialRecord]) -> list[Standing]:
    """The settings of the final trainings, the best mean first; those without a score last.

    Raises:
        ValueError: every training failed.
    """
    by_label: dict[str, list[TrialRecord]] = {}
    for record in records:
        by_label.setdefault(record.label, []).append(record)
    found = []
    for label, trained in by_label.items():
        scores = [record.value for record in trained if record.state == "finished" and record.value is not None]
        low, high = t_interval(scores) or (None, None)
        found.append(
            Standing(
                label=label,
                values=trained[0].values,
                scores=tuple(scores),
                mean=mean(scores) if scores else math.nan,
                low=low,
                high=high,
                is_baseline=label in tuning.config.baselines,
            )
        )
    most = max(len(standing.scores) for standing in found)
    if not most:
        raise ValueError(f"every training of the final ranking failed, the first: {records[0].reason}")
    # A mean over fewer seeds is never ranked above a mean over all.
    return sorted(
        found, key=lambda one: (len(one.scores) < most, -tuning.config.sign * one.mean if one.scores else 0.0)
    )


@dataclass(frozen=True)
class Results:
    """All results of a tuning whose trials have ended."""

    tuning: Tuning
    trials: Sequence[TrialRecord]
    finals: Sequence[TrialRecord]

    @classmethod
    def of(cls, tuning: Tuning, journal: Journal) -> Results:
        """The results according to the journal.

        Raises:
            ValueError: no trial was trained to its end.
        """
        return cls(tuning, journal.of("trial"), final_records(tuning, journal))

    @cached_property
    def ranking(self) -> list[Standing]:
        """Finalists and baselines, the best mean first."""
        return standings(self.tuning, self.finals)

    @property
    def winner(self) -> TrialRecord:
        """The training of the best setting with its first seed."""
        best = self.ranking[0].label
        return next(record for record in self.finals if record.label == best and record.state == "finished")

    @cached_property
    def importance(self) -> Mapping[str, float]:
        """How important each field is, at the last validation that all trials reached."""
        return importances(self.compared)

    @cached_property
    def compared(self) -> Study:
        """All trials at the last validation that each of them reached."""
        seen = [record for record in self.trials if record.reports]
        early = common_progress(seen)
        values = [(record.values, record.value_at(early)) for record in seen]
        return study_of(self.tuning, [(setting, value) for setting, value in values if value is not None])

    def summary(self) -> dict[str, Any]:
        """The whole tuning as one JSON document."""
        config, winner = self.tuning.config, self.winner
        return {
            "tuning": self.tuning.fingerprint,
            "asked_for": asked_for(self.tuning),
            "stage": config.stage,
            "metric": config.metric,
            "direction": config.direction,
            "trials": dict(Counter(record.state for record in self.trials)),
            "ranking": plain(self.ranking),
            "seeds": sorted({record.seed for record in self.finals}),
            "importance": dict(self.importance),
            "winner": {
                "label": winner.label,
                "values": dict(winner.values),
                "seed": winner.seed,
                "value": winner.value,
                "fingerprint": winner.fingerprint,
                "recipe": join_uri(self.tuning.storage.uri, BEST_RECIPE),
            },
            "versions": versions(),
        }

    def best_recipe(self) -> str:
        """The winner's recipe as YAML, with a header that says where it comes from."""
        config, best, winner = self.tuning.config, self.ranking[0], self.winner
        spread = "" if best.low is None else f" (95% t-interval {best.low:.4g} to {best.high:.4g})"
        scores = ", ".join(f"{score:.6g}" for score in best.scores)
        lines = [
            f"The best of a tuning of {', '.join(self.tuning.space.fields)}.",
            "",
            f"  command    python -m jobs.run --config {shlex.quote(join_uri(self.tuning.storage.uri, BEST_RECIPE))}",
            f"  setting    {best.label}: {describe(best.values, digits=10)}",
            f"  result     {config.metric} {best.mean:.4g}{spread} over seeds; with each: {scores}",
            f"  this seed  {winner.seed}: {config.metric} {winner.value!r}, {config.stage} {winner.fingerprint}",
            f"  chosen by  tuning {self.tuning.fingerprint}: {len(self.trials)} trials, sampler {config.sampler.name}, "
            f"scheduler {config.scheduler.name}; ranking in {SUMMARY} beside this file",
            f"  versions   {', '.join(f'{name} {version}' for name, version in versions().items())}",
        ]
        header = "".join(f"# {line}".rstrip() + "\n" for line in lines)
        recipe = self.tuning.recipe_of_trial(winner.values, phase=winner.phase, seed=winner.seed)
        return f"{header}\n{yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)}"

    def ranking_table(self) -> str:
        """Finalists and baselines with mean, interval and values."""
        return table(
            ["", *(name.rsplit(".", 1)[-1] for name in self.tuning.space.fields), "mean", "95% interval", "by seed"],
            [
                [
                    standing.label,
                    *(_cell(standing.values, name) for name in self.tuning.space.fields),
                    f"{standing.mean:.2f}" if standing.scores else "failed",
                    "" if standing.low is None else f"{standing.low:.2f}–{standing.high:.2f}",
                    ", ".join(f"{score:.2f}" for score in standing.scores),
                ]
                for standing in self.ranking
            ],
        )

    def trial_table(self) -> dict[str, list[Any]]:
        """All trainings by column."""
        records = [*self.trials, *self.finals]
        fields = {name: [record.values.get(name) for record in records] for name in self.tuning.space.fields}
        plain_columns = ("name", "phase", "label", "seed", "state", "value", "reason", "seconds", "fingerprint")
        return {
            **{name: [getattr(record, name) for record in records] for name in plain_columns},
            **fields,
            "epochs": [record.reports[-1].epoch if record.reports else 0.0 for record in records],
        }

    def write(self, tracker: TuningTracker, pictures: Mapping[str, Figure]) -> None:
        """Commits all of it, with ``pictures`` by file name, to the folder of the tuning, and to the parent run."""
        storage = self.tuning.storage
        files = {
            **{name: png(figure) for name, figure in pictures.items()},
            RANKING: f"{self.ranking_table()}\n".encode(),
            BEST_RECIPE: self.best_recipe().encode(),
        }
        for name, data in files.items():
            storage.write_bytes(name, data)
        metrics = {
            "final/mean": self.ranking[0].mean,
            **{f"importance/{name}": share for name, share in self.importance.items()},
        }
        tracker.log_results(
            storage,
            list(files),
            metrics,
            len(self.trials),
            {"trials.json": self.trial_table()},
            {SUMMARY: self.summary()},
        )
        # Last, because it says that the tuning is done: after an interruption all of the above is repeated.
        storage.write_json(SUMMARY, self.summary())


def common_progress(records: Sequence[TrialRecord]) -> int:
    """The last validation that every trial with a validation has reached: trials are compared there."""
    return min((record.reports[-1].progress for record in records if record.reports), default=0)


def _cell(setting: Setting, name: str) -> str:
    value = setting.get(name, "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
