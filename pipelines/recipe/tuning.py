"""What a tune file says: which settings are tuned, by which metric they are compared, how many are tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hbi_models.config_fields import require
from pipelines.recipe.checks import require_counts


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the next setting is proposed."""

    name: Literal["tpe", "random", "grid"] = "tpe"
    """``tpe``: Optuna's tree-structured Parzen estimator, which learns from the trials before;
    ``random``; ``grid``: every combination in turn, where every field lists its values."""

    seed: int = 0
    """The setting of trial n is a function of this, of n, and for ``tpe`` of the trials that ended before."""

    startup_trials: int = 8
    """``tpe``: trials drawn at random before there is enough to learn from."""

    def __post_init__(self) -> None:
        require_counts(self, "tune.sampler", "startup_trials")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How bad trials are ended early."""

    name: Literal["asha", "pbt", "none"] = "asha"
    """``asha``: asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934). ``pbt``:
    population-based training (Jaderberg et al., 2017, arXiv 1711.09846): all trials train together, bad
    ones take over weights and settings of good ones. ``none``: every trial is trained to its end."""

    reports_per_epoch: int = 1
    """Validations per epoch; a trial may be ended at each of them. Only the scheduler sees those before the epoch's
    end, so they change no result."""

    grace_epochs: float = 1.0
    """``asha``: epochs for which no trial is ended."""

    reduction_factor: float = 3.0
    """``asha``: at each rung one trial in this many continues. Rungs lie at the grace period times the powers of this
    factor."""

    perturbation_epochs: float = 1.0
    """``pbt``: epochs between two exchanges."""

    quantile: float = 0.25
    """``pbt``: fraction of the trials at the bottom that take over from as many at the top."""

    def __post_init__(self) -> None:
        require_counts(self, "tune.scheduler", "reports_per_epoch")
        for name, epochs in (("grace_epochs", self.grace_epochs), ("perturbation_epochs", self.perturbation_epochs)):
            # A fraction such as 0.1 is not exact in binary.
            reports = epochs * self.reports_per_epoch
            require(
                epochs > 0 and abs(reports - round(reports)) < 1e-6,
                f"tune.scheduler.{name} is {epochs}; it must be a positive multiple of 1 / reports_per_epoch, "
                f"1 / {self.reports_per_epoch}: trials are judged at their reports",
            )
        require(
            self.reduction_factor > 1,
            f"tune.scheduler.reduction_factor is {self.reduction_factor}; it must be larger than 1",
        )
        require(0 < self.quantile <= 0.5, f"tune.scheduler.quantile is {self.quantile}; it must lie in (0, 0.5]")


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """A search over settings of a recipe."""

    space: dict[str, Any] = field(default_factory=dict)
    """Field of the recipe → how its values are drawn, as text or as a mapping:

    * ``loguniform 0.05 10``, ``uniform 0 1``, ``int 1 8``: both ends included;
    * ``choice 1 2 3``, or ``{choice: [[1, 0, 0], [1, 1, 1]]}`` for values that are not single words;
    * ``grid 1 2 3``: the same, where every value is to be tried, with the sampler ``grid``;
    * a mapping may add ``when: {other.field: value or [values]}``: then the field is tuned only in
      trials whose other field has that value, and keeps the recipe's value in the rest."""

    stage: str = "retrieval"
    """The training stage that is tuned."""

    metric: str = "validation/score"
    """What is compared: any metric that the stage reports after an epoch, at the checkpoint that the
    stage chooses. ``validation/score`` is the mean R@1 of both directions for the retrieval model."""

    direction: Literal["max", "min"] = "max"
    """Whether the metric is to be large or small."""

    trials: int = 16
    """Settings to try. A later run with a larger number continues the same tuning."""

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    finalists: int = 2
    """Best settings of the trials that are trained again, with several seeds, for the final ranking. Trials are
    compared on one half of the validation videos, the ranking is on the other."""

    seeds: int = 3
    """Trainings of each finalist and baseline, with the seeds after the recipe's own. The finalists were chosen with
    that one, so a mean that includes it would favour them."""

    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → values of fields, for settings that enter the final ranking in any case."""

    recipe: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe that all trials change, such as fewer epochs; they override the recipe and the command
    line."""

    concurrent_trials: int | None = None
    """Most trials at once; null = as many as fit on the cluster."""

    map: list[str] | None = None
    """The one or two fields over which the metric is drawn; null = the first two of the space."""

    def __post_init__(self) -> None:
        require_counts(self, "tune", "trials", "finalists", "seeds", "concurrent_trials")
        require(
            self.map is None or len(self.map) in (1, 2),
            f"tune.map names {len(self.map or ())} fields; a picture has one or two",
        )

    @property
    def sign(self) -> int:
        """The metric times this is larger where it is better."""
        return 1 if self.direction == "max" else -1
