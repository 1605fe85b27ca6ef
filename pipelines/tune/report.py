"""What a search ends in: a ranking, pictures, and a recipe that is ready to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from pipelines.figures.files import png
from pipelines.tables import table
from pipelines.tune import figures
from pipelines.tune.finals import Standing, final_records, standings
from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.plan import BEST_RECIPE, RANKING, SUMMARY, asked_for
from pipelines.tune.proposals import importances
from pipelines.tune.search import Search
from pipelines.tune.space import Setting, describe
from pipelines.tune.tracking import SearchTracker
from pipelines.workspace.artifact import plain, versions


@dataclass(frozen=True)
class Results:
    """Everything that a search has to say whose trials have ended."""

    search: Search
    trials: Sequence[TrialRecord]
    finals: Sequence[TrialRecord]

    @classmethod
    def of(cls, search: Search, journal: Journal) -> Results:
        """The results as the journal has them.

        Raises:
            ValueError: no trial was trained to its end.
        """
        return cls(search, journal.of("search"), final_records(search, journal))

    @cached_property
    def ranking(self) -> list[Standing]:
        """Finalists and baselines, the best mean first."""
        return standings(self.search, self.finals)

    @property
    def winner(self) -> TrialRecord:
        """The training of the best setting with its first seed."""
        best = self.ranking[0].label
        return next(record for record in self.finals if record.label == best and record.state == "finished")

    @cached_property
    def importance(self) -> Mapping[str, float]:
        """Shares of the variance where all trials can be compared."""
        seen = [record for record in self.trials if record.reports]
        early = figures.common_progress(seen)
        values = [(record.values, record.value_at(early)) for record in seen]
        return importances(self.search.space, [(setting, value) for setting, value in values if value is not None])

    def summary(self) -> dict[str, Any]:
        """The whole search as one JSON document."""
        config, winner = self.search.config, self.winner
        return {
            "search": self.search.fingerprint,
            "asked_for": asked_for(self.search),
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
                "recipe": f"{self.search.storage.uri}/{BEST_RECIPE}",
            },
            "versions": versions(),
        }

    def best_recipe(self) -> str:
        """The winner's recipe as YAML, with where it comes from above it."""
        config, best, winner = self.search.config, self.ranking[0], self.winner
        spread = "" if best.low is None else f" (95% t-interval {best.low:.4g} to {best.high:.4g})"
        scores = ", ".join(f"{score:.6g}" for score in best.scores)
        lines = [
            f"The best of a search over {', '.join(self.search.space.fields)}.",
            "",
            f"  command    python -m jobs.run --config {self.search.storage.uri}/{BEST_RECIPE}",
            f"  setting    {best.label}: {describe(best.values, digits=10)}",
            f"  result     {config.metric} {best.mean:.4g}{spread} over seeds; with each: {scores}",
            f"  this seed  {winner.seed}: {config.metric} {winner.value!r}, {config.stage} {winner.fingerprint}",
            f"  chosen by  search {self.search.fingerprint}: {len(self.trials)} trials, sampler {config.sampler.name}, "
            f"scheduler {config.scheduler.name}; ranking in {SUMMARY} beside this file",
            f"  versions   {', '.join(f'{name} {version}' for name, version in versions().items())}",
        ]
        header = "".join(f"# {line}".rstrip() + "\n" for line in lines)
        recipe = self.search.recipe_of(winner.values, winner.seed)
        return f"{header}\n{yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)}"

    def ranking_table(self) -> str:
        """Finalists and baselines with mean, interval and values."""
        return table(
            ["", *(name.rsplit(".", 1)[-1] for name in self.search.space.fields), "mean", "95% interval", "by seed"],
            [
                [
                    standing.label,
                    *(_cell(standing.values, name) for name in self.search.space.fields),
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
        fields = {name: [record.values.get(name) for record in records] for name in self.search.space.fields}
        plain_columns = ("name", "phase", "label", "seed", "state", "value", "reason", "seconds", "fingerprint")
        return {
            **{name: [getattr(record, name) for record in records] for name in plain_columns},
            **fields,
            "epochs": [record.reports[-1].epoch if record.reports else 0.0 for record in records],
        }

    def write(self, tracker: SearchTracker) -> None:
        """Commits all of it to the folder of the search, and to the parent run."""
        storage = self.search.storage
        pictures = {
            "landscape.png": figures.landscape(self.search, self.trials, self.ranking),
            "parallel_coordinates.png": figures.parallel_coordinates(self.search, self.trials),
            "history.png": figures.history(self.search, self.trials),
            "importance.png": figures.importance(self.search, self.importance),
        }
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
        storage.write_json(SUMMARY, self.summary())


def _cell(setting: Setting, name: str) -> str:
    value = setting.get(name, "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
