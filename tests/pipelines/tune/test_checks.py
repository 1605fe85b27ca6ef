from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.recipe.tuning import SchedulerConfig
from pipelines.train.files import RETRIEVAL_METRICS
from pipelines.tune.trials import TrialJob, configuration
from tests.pipelines.tune.tunings import BOTH, KL, SKL, tuning_of

LR = "retrieval.optimizer.lr"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"space": {"model.loss.klx": "uniform 0 1"}},
            r"tune.space names model.loss.klx.*did you mean model.loss.kl",
        ),
        ({"space": {KL: "uniform -1 1"}}, r"tune.space: kl -1 is refused: loss.kl is -1.0; it must not be negative"),
        ({"space": {KL: "choice none 1"}}, r"tune.space: kl none is refused.*model.loss.kl"),
        ({"space": {"model.max_frames": "choice 6 12"}}, r"model.max_frames is 6 and frames.max_frames is 12"),
        ({"space": {"seed": "choice 1 2"}}, r"tune.space names seed.*tune.seeds"),
        ({"space": {"resources.local_cpus": "choice 1 2"}}, r"nothing under resources is tuned"),
        ({"space": {"labels.kind": "choice exact published"}}, r"the stage retrieval is the same for every value"),
        ({"space": {KL: "grid 1 2"}}, r"is a grid, and the sampler random draws"),
        ({"sampler": {"name": "grid"}}, r"the sampler grid tries every value, and model.loss.kl is loguniform"),
        ({"stage": "evaluation"}, r"tune.stage is 'evaluation'; the training stages of this recipe are: retrieval"),
        ({"metric": "validation/recall"}, r"which the stage retrieval never reports; it reports: validation/score, .*"),
        ({"metric": "train/loss"}, r"tune.metric is 'train/loss'"),
        ({"baselines": {"none": {"loss.kl": 0}}}, r"tune.baselines.none names loss.kl.*did you mean model.loss.kl"),
        ({"baselines": {"none": {KL: -2}}}, r"tune.baselines.none: kl -2 is refused"),
        ({"baselines": {"a b": {KL: 0}, "a-b": {KL: 1}}}, r"their names must differ"),
        ({"recipe": {"retrieval": {"epoch": 1}}}, r"tune.recipe names retrieval.epoch, .*retrieval.epochs"),
        ({"recipe": {"retrieval.epochs": 0}}, r"tune.recipe: epochs 0 is refused"),
        ({"map": [LR]}, r"tune.map names retrieval.optimizer.lr, which is not tuned"),
        ({"map": [KL, SKL, LR]}, r"tune.map names 3 fields"),
        ({"trials": 0}, r"tune.trials is 0; it must be 1 or more"),
        ({"finalists": 0}, r"tune.finalists is 0"),
        ({"scheduler": {"name": "asha", "grace_epochs": 5}}, r"grace_epochs is 5 and a trial has 5 epochs"),
        ({"scheduler": {"name": "asha", "grace_epochs": 0.5}}, r"positive multiple of 1 / reports_per_epoch, 1 / 1"),
        ({"scheduler": {"name": "asha", "reduction_factor": 1}}, r"reduction_factor is 1; it must be larger"),
        ({"scheduler": {"name": "pbt"}, "space": {LR: "loguniform 1e-4 1e-3"}}, r"is fixed when a training starts"),
        ({"scheduler": {"name": "pbt"}, "sampler": {"name": "tpe"}}, r"tune.sampler.name to random"),
        ({"scheduler": {"name": "pbt"}, "trials": 1}, r"tune.trials to 2 or more"),
        (
            {"scheduler": {"name": "pbt"}, "recipe": {"resources.retrieval.workers": 2}},
            r"resources.retrieval.workers to 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tuning_of(tmp_path / "workspace", **config)
    assert not (tmp_path / "workspace").exists()


def test_every_metric_of_the_stage_may_be_tuned_for(tmp_path: Path) -> None:
    for metric in RETRIEVAL_METRICS[:3]:
        assert tuning_of(tmp_path, metric=metric).config.metric == metric


def test_the_recipe_of_the_trials_is_that_of_the_tuning(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, recipe={"retrieval": {"epochs": 2}, "retrieval.batch_size": 16})
    assert (tuning.recipe.retrieval.epochs, tuning.recipe.retrieval.batch_size) == (2, 16)
    trial = tuning.recipe_of({KL: 3, "model.level_rates": [1, 0.5, 0]}, seed=7)
    assert (trial.model.loss.kl, trial.model.level_rates, trial.seed) == (3.0, (1.0, 0.5, 0.0), 7)
    assert trial.retrieval == tuning.recipe.retrieval


def test_trials_and_the_ranking_are_validated_with_different_videos(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path)
    trial, final = (tuning.recipe_of_trial({KL: 3}, phase=phase, seed=7) for phase in ("trial", "final"))
    assert (trial.retrieval.validation_half, final.retrieval.validation_half) == ("choosing", "ranking")
    assert trial.model == final.model and trial.model.loss.kl == 3
    records = [tuning.record("x", {KL: 3}, phase=phase, label="x", seed=7) for phase in ("trial", "final")]
    assert records[0].fingerprint != records[1].fingerprint
    job = TrialJob.of(tuning)
    for record, recipe in zip(records, (trial, final), strict=True):
        assert job.recipe(configuration(record)) == recipe
    assert tuning.recipe.retrieval.validation_half is None


def test_trials_find_the_workspace_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tuning_of(Path("here")).recipe.workspace == str(tmp_path / "here")


@pytest.mark.slow
def test_a_tuning_is_known_by_what_it_tries_and_not_by_how_long(tmp_path: Path) -> None:
    base = tuning_of(tmp_path).fingerprint
    longer = tuning_of(tmp_path, trials=99, finalists=5, seeds=9, baselines={"none": {KL: 0}}, map=[KL])
    assert longer.fingerprint == base
    assert tuning_of(tmp_path, {"resources.local_cpus": 1}).fingerprint == base
    others = [
        tuning_of(tmp_path, space={**BOTH, KL: "loguniform 0.05 11"}),
        tuning_of(tmp_path, metric="validation/text_to_video/mean_rank", direction="min"),
        tuning_of(tmp_path, sampler={"name": "random", "seed": 1}, scheduler={"name": "asha"}),
        tuning_of(tmp_path, {"retrieval.batch_size": 64}),
    ]
    assert len({base, *(tuning.fingerprint for tuning in others)}) == 1 + len(others)


def test_stages_are_shared_unless_a_tuned_field_changes_them(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path)
    assert [stage.name for stage in tuning.shared] == ["shapes", "manifest", "frames"]
    assert tuning.readers == {KL: {"retrieval"}, SKL: {"retrieval"}}

    space = {**BOTH, "labels.kind": "choice exact published", "frames.jpeg_quality": "int 50 90"}
    tuning = tuning_of(tmp_path, {"model.game.teacher": "estimator"}, space=space)
    assert tuning.readers["labels.kind"] == {"labels", "estimator", "retrieval"}
    assert tuning.readers["frames.jpeg_quality"] == {"frames", "labels", "estimator", "retrieval"}
    assert [stage.name for stage in tuning.shared] == ["shapes", "manifest"]


def test_a_field_that_decides_which_stages_there_are(tmp_path: Path) -> None:
    space = {
        "model.game.teacher": "choice exact estimator",
        "labels.kind": {"choice": ["exact", "published"], "when": {"model.game.teacher": "estimator"}},
    }
    tuning = tuning_of(tmp_path, space=space)
    assert tuning.readers["model.game.teacher"] == {"labels", "estimator", "retrieval"}
    assert [stage.name for stage in tuning.shared] == ["shapes", "manifest", "frames"]


def test_the_longest_trial_counts(tmp_path: Path) -> None:
    space = {KL: "uniform 0 1", "retrieval.epochs": "choice 2 8 4"}
    assert tuning_of(tmp_path, space=space, scheduler={"reports_per_epoch": 3}).reports == 24


def test_judged_times_are_reports() -> None:
    assert SchedulerConfig(grace_epochs=0.5, reports_per_epoch=2, perturbation_epochs=1.5).grace_epochs == 0.5
    with pytest.raises(ValueError, match=r"perturbation_epochs is 0.75; it must be a positive multiple"):
        SchedulerConfig(perturbation_epochs=0.75, reports_per_epoch=2)
