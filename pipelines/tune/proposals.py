"""Which trials come next: those that were interrupted, settings that Optuna proposes, the final ranking's."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import Trial, create_trial
from optuna.trial import TrialState as OptunaState

from pipelines.recipe.tuning import TuningConfig
from pipelines.tune.journal import Journal, Report, TrialRecord
from pipelines.tune.space import Parameter, Range, Setting, Space, Values
from pipelines.tune.tuning import Tuning, slug

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

_LEAST_FOR_IMPORTANCE = 4

_ATTEMPTS = 50
"""Number of draws after which all settings of a space are assumed to have been tried. A grid has its own end."""


class Proposer:
    """Proposes settings and learns from trials.

    Ray Tune's own wrapper of Optuna keeps its state in Tune's snapshots, and cannot be given past trials if fields are
    conditional. This one is restored from records, which are committed one by one.
    """

    def __init__(self, config: TuningConfig, space: Space) -> None:
        self._sampler, self._space = config.sampler, space
        self._grid = iter(space.combinations()) if config.sampler.name == "grid" else None
        self._study = new_study(config)
        self._asked: dict[str, Trial] = {}

    def propose(self, name: str, number: int, attempt: int = 0) -> Setting | None:
        """The setting of trial ``number``, which gets the name ``name``; None if there seem to be no more."""
        if self._grid is not None:
            if (setting := next(self._grid, None)) is None:
                return None
            # An enqueued trial gets these values when it is asked for, whatever the sampler.
            self._study.enqueue_trial(_encode(self._space, setting))
        elif attempt >= _ATTEMPTS:
            return None
        # A new sampler for every draw, so that a resumed tuning draws the same settings as an uninterrupted one.
        seed = int(np.random.SeedSequence([self._sampler.seed, number, attempt]).generate_state(1)[0])
        if self._sampler.name == "tpe":
            # constant_liar: trials that still run count as bad ones, so that trials side by side do not try the same.
            self._study.sampler = TPESampler(
                seed=seed, n_startup_trials=self._sampler.startup_trials, constant_liar=True
            )
        else:
            self._study.sampler = RandomSampler(seed=seed)
        return self._ask(name)

    def started(self, record: TrialRecord) -> None:
        """Adds a trial of an earlier run with its reports."""
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
        """A trial came to its end. A stopped trial counts as worse than those that went on."""
        trial = self._asked.pop(record.name)
        if record.state == "finished":
            self._study.tell(trial, record.value)
        else:
            self._study.tell(trial, state=OptunaState.PRUNED if record.state == "stopped" else OptunaState.FAIL)

    def drop(self, name: str) -> None:
        """A proposal is not tried."""
        # The sampler learns nothing from failed trials.
        self._study.tell(self._asked.pop(name), state=OptunaState.FAIL)


def importances(study: optuna.Study) -> Mapping[str, float]:
    """How much each field influences whether a trial is among the best, in shares of 1; the largest first.

    Empty if there are too few trials, or all have the same value.
    """
    values = [trial.value for trial in study.get_trials(deepcopy=False)]
    if len(values) < _LEAST_FOR_IMPORTANCE or len({*values}) == 1:
        return {}
    found = get_param_importances(study, evaluator=evaluator_of(study))
    return {name: float(share) for name, share in found.items()}


def evaluator_of(study: optuna.Study) -> PedAnovaImportanceEvaluator:
    """PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023, arXiv 2304.10255), which needs no random forest.

    It considers the best tenth of the trials, but at least five, and at most half of them.
    """
    return PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(study.trials))))


def study_of(tuning: Tuning, values: Iterable[tuple[Setting, float]]) -> optuna.Study:
    """Settings and their values as a study of Optuna, for its pictures and importances."""
    study = new_study(tuning.config)
    for setting, value in values:
        distributions = {field: _distribution(tuning.space[field].domain) for field in setting}
        params = {
            field: given if isinstance(tuning.space[field].domain, Range) else str(given)
            for field, given in setting.items()
        }
        study.add_trial(create_trial(params=params, distributions=distributions, value=value))
    return study


def new_study(config: TuningConfig) -> optuna.Study:
    """A study without trials."""
    return optuna.create_study(direction="maximize" if config.direction == "max" else "minimize")


def _distribution(domain: Range | Values) -> BaseDistribution:
    if not isinstance(domain, Range):
        # As text, and not by position as in _suggest: nothing is drawn from this study, and pictures show its values.
        return CategoricalDistribution([str(value) for value in domain.values])
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high))
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _suggest(trial: Trial, parameter: Parameter) -> object:
    domain = parameter.domain
    if not isinstance(domain, Range):
        # By position, because Optuna does not accept lists as values.
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


class ProposedTrials:
    """The trials of the tuning itself: those that were interrupted, then new ones, each setting once."""

    def __init__(self, tuning: Tuning, journal: Journal) -> None:
        self._tuning, self._proposer = tuning, Proposer(tuning.config, tuning.space)
        records = journal.of("trial")
        for record in records:
            self._proposer.started(record)
            if record.ended:
                self._proposer.ended(record)
        self._interrupted = [record for record in records if not record.ended]
        self._known = {record.fingerprint for record in records}
        self._count = len(records)
        self.total, self.done = tuning.config.trials, len(records) - len(self._interrupted)

    def next(self) -> TrialRecord | None:
        """The next trial; None when there are as many as wanted, or no setting is left."""
        if self._interrupted:
            return self._interrupted.pop(0)
        if self._count >= self.total:
            return None
        name = trial_name(self._count)
        attempts = itertools.count()
        while (values := self._proposer.propose(name, self._count, next(attempts))) is not None:
            record = self._tuning.record(name, values, phase="trial", label=name, seed=self._tuning.recipe.seed)
            if record.fingerprint not in self._known:
                self._known.add(record.fingerprint)
                self._count += 1
                return record
            self._proposer.drop(name)
        logger.info("tuning: no setting is left that was not tried; it ends with %d trials", self._count)
        self.total = self._count
        return None

    def reported(self, record: TrialRecord) -> None:
        """A trial was validated."""
        self._proposer.reported(record.name, record.reports[-1])

    def ended(self, record: TrialRecord) -> None:
        """A trial came to its end."""
        self._proposer.ended(record)


class ListedTrials:
    """A fixed list of trials, without those that ended in an earlier run."""

    def __init__(self, records: Sequence[TrialRecord]) -> None:
        self._left = [record for record in records if not record.ended]
        self.total, self.done = len(records), len(records) - len(self._left)

    def next(self) -> TrialRecord | None:
        """The next one of the list."""
        return self._left.pop(0) if self._left else None

    def reported(self, record: TrialRecord) -> None:
        """Nothing follows from it."""

    def ended(self, record: TrialRecord) -> None:
        """Nothing follows from it."""


def trial_name(number: int) -> str:
    """``trial-007``."""
    return f"trial-{number:03d}"


def population(tuning: Tuning, journal: Journal) -> list[TrialRecord]:
    """The trials of population-based training, with the settings that they have by now."""
    proposer = Proposer(tuning.config, tuning.space)
    records = []
    for number in range(tuning.config.trials):
        name = trial_name(number)
        values = proposer.propose(name, number)
        assert values is not None, "a population is drawn"
        known = journal.get(name)
        records.append(known or tuning.record(name, values, phase="trial", label=name, seed=tuning.recipe.seed))
    return records


def final_records(tuning: Tuning, journal: Journal) -> list[TrialRecord]:
    """The trainings of the final ranking, seed after seed, those of earlier runs as they stand.

    The finalists were chosen with the seed of the trials, so a setting may be among them by luck with that seed. The
    ranking therefore uses other seeds, the same for all settings.
    """
    # A finalist may equal a baseline: it is then trained once, under the baseline's name.
    settings = [*tuning.config.baselines.items(), *finalists(tuning, journal)]
    records: dict[str, TrialRecord] = {}
    for seed in final_seeds(tuning):
        for label, values in settings:
            new = tuning.record(f"final-{slug(label)}-seed-{seed}", values, phase="final", label=label, seed=seed)
            if new.fingerprint not in {record.fingerprint for record in records.values()}:
                known = journal.get(new.name)
                records[new.name] = known if known is not None and known.fingerprint == new.fingerprint else new
    return list(records.values())


def final_seeds(tuning: Tuning) -> range:
    """The seeds after the recipe's own."""
    first = tuning.recipe.seed + 1
    return range(first, first + tuning.config.seeds)


def finalists(tuning: Tuning, journal: Journal) -> list[tuple[str, Setting]]:
    """Labels and values of the best finished trials, the best first.

    Raises:
        ValueError: no trial was trained to its end.
    """
    finished = [record for record in journal.of("trial") if record.state == "finished" and record.value is not None]
    if not finished:
        reasons = [f"{record.name}: {record.reason}" for record in journal.of("trial")]
        raise ValueError(f"no trial was trained to its end ({'; '.join(reasons[:3])}); there is nothing to rank")
    # Sorting is stable, so of equal trials the one that was tried first comes first.
    ranked = sorted(finished, key=lambda record: -tuning.config.sign * (record.value or 0.0))
    return [(record.label, record.values) for record in ranked[: tuning.config.finalists]]
