"""Optuna as the proposer of settings: what was tried, what came of it, what to try next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import Trial
from optuna.trial import TrialState as OptunaState

from pipelines.tune.configs import SearchConfig
from pipelines.tune.journal import Report, TrialRecord
from pipelines.tune.space import Parameter, Range, Setting, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

_LEAST_FOR_IMPORTANCE = 4


class Proposer:
    """Proposes settings and learns from trials.

    Ray Tune's own wrapper of Optuna keeps its state in Tune's snapshots and takes no past trials where
    fields are conditional; this one is filled from records, which are committed one by one.
    """

    def __init__(self, search: SearchConfig, space: Space) -> None:
        self._sampler, self._space = search.sampler, space
        self._grid = space.combinations() if search.sampler.name == "grid" else None
        self._study = optuna.create_study(direction="maximize" if search.direction == "max" else "minimize")
        self._asked: dict[str, Trial] = {}

    def propose(self, name: str, number: int, attempt: int = 0) -> Setting | None:
        """The setting of trial ``number``, to be known by ``name``; None where a grid has no more."""
        if self._grid is not None:
            if number >= len(self._grid):
                return None
            self._study.enqueue_trial(_encode(self._space, self._grid[number]))
        # A sampler of its own for every draw: a search that goes on draws what it would have drawn.
        seed = int(np.random.SeedSequence([self._sampler.seed, number, attempt]).generate_state(1)[0])
        if self._sampler.name == "tpe":
            self._study.sampler = TPESampler(
                seed=seed, n_startup_trials=self._sampler.startup_trials, constant_liar=True
            )
        else:
            self._study.sampler = RandomSampler(seed=seed)
        return self._ask(name)

    def started(self, record: TrialRecord) -> None:
        """A trial of an earlier run is known, with what was reported of it."""
        self._study.enqueue_trial(_encode(self._space, record.values))
        self._ask(record.name)
        for report in record.reports:
            self.reported(record.name, report)

    def _ask(self, name: str) -> Setting:
        trial = self._asked[name] = self._study.ask()
        return self._space.draw(lambda parameter: _suggest(trial, parameter))

    def reported(self, name: str, report: Report) -> None:
        """A trial was validated."""
        self._asked[name].report(report.value, report.progress)

    def ended(self, record: TrialRecord) -> None:
        """A trial came to its end. One that was stopped is known to be worse than those that went on."""
        trial = self._asked.pop(record.name)
        if record.state == "finished":
            self._study.tell(trial, record.value)
        else:
            self._study.tell(trial, state=OptunaState.PRUNED if record.state == "stopped" else OptunaState.FAIL)

    def drop(self, name: str) -> None:
        """A proposal is not tried."""
        self._study.tell(self._asked.pop(name), state=OptunaState.FAIL)


def importances(space: Space, values: Iterable[tuple[Setting, float]]) -> Mapping[str, float]:
    """The share of the metric's variance that each field explains, by functional ANOVA over a random forest.

    Only fields that every setting has are judged (Hutter, Hoos and Leyton-Brown, ICML 2014). Empty where
    there are too few settings, or all came to the same.
    """
    study = optuna.create_study(direction="maximize")
    given = list(values)
    if len(given) < _LEAST_FOR_IMPORTANCE or len({value for _, value in given}) == 1:
        return {}
    for setting, value in given:
        study.enqueue_trial(_encode(space, setting))
        trial = study.ask()
        space.draw(lambda parameter, trial=trial: _suggest(trial, parameter))  # type: ignore[misc]
        study.tell(trial, value)
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in found.items()}


def _suggest(trial: Trial, parameter: Parameter) -> object:
    domain = parameter.domain
    if not isinstance(domain, Range):
        # By place: Optuna takes no lists as values.
        return domain.values[trial.suggest_categorical(parameter.field, list(range(len(domain.values))))]
    if domain.integer:
        return trial.suggest_int(parameter.field, int(domain.low), int(domain.high))
    return domain.tidy(trial.suggest_float(parameter.field, domain.low, domain.high, log=domain.log))


def _encode(space: Space, setting: Setting) -> dict[str, object]:
    """A setting as Optuna keeps it."""
    encoded: dict[str, object] = {}
    for field, value in setting.items():
        domain = space[field].domain
        encoded[field] = value if isinstance(domain, Range) else domain.values.index(value)
    return encoded
