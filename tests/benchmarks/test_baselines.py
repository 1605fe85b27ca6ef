"""The baselines of the benchmarks give our results, on sizes that take no time; and the comparison can fail."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import evaluation, labels
from benchmarks.evaluation import Evaluation, Task
from benchmarks.heads import Shape
from benchmarks.peak_memory import in_own_process, peak_extra_mb
from benchmarks.retrieval_step import Contender, compare
from benchmarks.rows import ResultsDifferError
from hbi_models.banzhaf.exact import exact_interaction

DIM = 32


@pytest.mark.slow
def test_the_straightforward_retrieval_step_has_our_loss_and_gradients(tmp_path: Path) -> None:
    ours, theirs = (Contender(name, Shape(5, 5, 13, 12), tmp_path, dim=DIM) for name in ("ours", "theirs"))
    expected = theirs.results()
    compare(ours.results(), expected)
    assert float(expected["text_merges.action.score.weight"].abs().max()) > 0
    assert float(expected["predictors.event.query"].abs().max()) > 0
    ours.model.config = replace(ours.model.config, loss=replace(ours.model.config.loss, kl=2.1))
    with pytest.raises(ResultsDifferError):
        compare(ours.results(), expected)


def test_the_published_loop_has_our_scores(tmp_path: Path) -> None:
    work = Evaluation(Task(Shape(40, 70, 9, 12), 36, 1), tmp_path, dim=DIM)
    with torch.inference_mode():
        levels = evaluation.merge_blocks(work.model, evaluation.part(work.words, 0, 36), work.frames)
    scores = torch.zeros(36, 70)
    work.score(*levels, scores)
    evaluation.check(work, scores)
    scores[3, 3] += 0.01
    with pytest.raises(ResultsDifferError, match=r"\(0, 0\)"):
        evaluation.check(work, scores)


def test_sampling_agrees_with_the_exact_labels() -> None:
    game = labels.random_game(6, 5, 4, logit_scale=2.0)
    exact = exact_interaction(*game)
    draws = 2000
    mean, square = labels.sampled_moments(game, draws, torch.Generator().manual_seed(0))
    error = (square - mean.square()).sqrt() / draws**0.5
    labels.check_scores("sampling", mean - exact, error)
    with pytest.raises(ResultsDifferError, match="sampling"):
        labels.check_scores("sampling", mean - 1.1 * exact, error)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_work() -> None:
    megabytes = in_own_process(peak_extra_mb, partial(np.ones, (64, 1 << 17)))
    assert 60 < megabytes < 100
