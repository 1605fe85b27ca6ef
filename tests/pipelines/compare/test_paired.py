"""Paired differences against a plain loop, and what may be compared at all."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from hbi_models.student import welch_interval
from pipelines.compare.measured import Side, read_measured, require_comparable
from pipelines.compare.paired import Difference, compare
from pipelines.workspace.storage import Storage
from tests.pipelines.compare.evaluations import write_answers, write_retrieval

Ranks = dict[str, list[float]]


def random_ranks(seed: int, videos: int = 12) -> Ranks:
    random = np.random.default_rng(seed)
    counts = np.random.default_rng(99).integers(1, 5, videos)
    return {f"v{number:02}": random.integers(1, 4, count).astype(float).tolist() for number, count in enumerate(counts)}


def side(folder: Path, name: str, runs: list[Ranks]) -> Side:
    places = [
        write_retrieval(Storage(str(folder / f"{name}{seed}")), ranks, seed=seed) for seed, ranks in enumerate(runs)
    ]
    return Side(name, [read_measured(place, stage="evaluation") for place in places])


def of(differences: list[Difference], part: str, metric: str) -> Difference:
    (found,) = [each for each in differences if (each.part, each.metric) == (part, metric)]
    return found


def recall(ranks: Ranks, videos: list[str]) -> float:
    drawn = [rank for video in videos for rank in ranks[video]]
    return 100 * sum(rank <= 1 for rank in drawn) / len(drawn)


@pytest.mark.slow
def test_differences_and_their_intervals_are_those_of_a_plain_loop_over_videos(tmp_path: Path) -> None:
    runs = [[random_ranks(seed) for seed in seeds] for seeds in ((1, 2), (3, 4, 5))]
    found = compare(side(tmp_path, "a", runs[0]), side(tmp_path, "b", runs[1]), seed=7, resamples=200)

    videos, generator = sorted(runs[0][0]), torch.Generator().manual_seed(7)
    differences = []
    for _ in range(200):
        drawn = [videos[place] for place in torch.randint(len(videos), (len(videos),), generator=generator).tolist()]
        one, other = (fmean(recall(ranks, drawn) for ranks in side) for side in runs)
        differences.append(other - one)
    whole = [[recall(ranks, videos) for ranks in side] for side in runs]

    measured = of(found, "text_to_video", "recall_at_1")
    assert (measured.first, measured.second) == pytest.approx((fmean(whole[0]), fmean(whole[1])), abs=1e-9)
    assert measured.difference == pytest.approx(fmean(whole[1]) - fmean(whole[0]), abs=1e-9)
    assert measured.over_videos == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=1e-9)
    assert measured.over_seeds == pytest.approx(welch_interval(*whole), abs=1e-9)


def test_a_run_does_not_differ_from_itself_and_one_seed_has_no_interval_over_seeds(tmp_path: Path) -> None:
    ranks = random_ranks(0)
    found = compare(side(tmp_path, "a", [ranks]), side(tmp_path, "b", [ranks]), seed=0, resamples=50)
    assert {each.part for each in found} == {"text_to_video", "video_to_text"}
    assert {(each.difference, each.over_videos, each.over_seeds) for each in found} == {(0.0, (0.0, 0.0), None)}


@pytest.mark.slow
def test_pairing_makes_small_steady_gains_visible(tmp_path: Path) -> None:
    """Each model alone is uncertain by many points; that one is never behind is certain."""
    before = {f"v{number}": [float(number % 3 + 1)] for number in range(60)}
    after = {video: [1.0 if video in ("v1", "v4", "v7", "v10", "v13") else rank] for video, (rank,) in before.items()}
    found = compare(side(tmp_path, "a", [before]), side(tmp_path, "b", [after]), seed=0, resamples=500)
    measured = of(found, "text_to_video", "recall_at_1")
    assert measured.difference == pytest.approx(100 * 5 / 60)
    assert measured.over_videos[0] > 0


@pytest.mark.slow
def test_questions_are_drawn_with_their_clip(tmp_path: Path) -> None:
    """Twenty questions a clip that are all right or all wrong: as uncertain as one question a clip."""
    clips = {f"v{number}": number % 2 == 0 for number in range(30)}

    def width(times: int, name: str) -> float:
        sides = [
            Side(str(right), [read_measured(write_answers(Storage(str(tmp_path / f"{name}{right}")), {
                video: [good if right else True] * times for video, good in clips.items()
            }), stage="qa_evaluation")])
            for right in (False, True)
        ]  # fmt: skip
        measured = of(compare(*sides, seed=3, resamples=300), "answers", "accuracy")
        assert measured.difference == pytest.approx(-50)
        return measured.over_videos[1] - measured.over_videos[0]

    assert width(20, "many") == pytest.approx(width(1, "one"))


def test_other_protocols_are_refused_with_fields_values_and_places(tmp_path: Path) -> None:
    ranks = random_ranks(0)
    first = read_measured(write_retrieval(Storage(str(tmp_path / "a")), ranks), stage="evaluation")
    other = read_measured(
        write_retrieval(Storage(str(tmp_path / "b")), ranks, split="val", missing_videos=3), stage="evaluation"
    )
    with pytest.raises(
        ValueError, match="different protocols and cannot be compared: missing_videos: 0 and 3; split: "
    ):
        require_comparable([Side("a", [first]), Side("b", [other])])
    with pytest.raises(ValueError, match=r"missing_videos: 0 and 3$"):
        require_comparable([Side("a", [first]), Side("b", [other])], allowed=["split"])
    require_comparable([Side("a", [first]), Side("b", [other])], allowed=["split", "missing_videos"])


def test_other_queries_are_refused_though_the_fields_that_differ_are_allowed(tmp_path: Path) -> None:
    sides = [side(tmp_path, name, [random_ranks(0, videos)]) for name, videos in (("a", 5), ("b", 6))]
    fields = ["gallery_videos", "text_queries", "captions_per_video", "pairs"]
    with pytest.raises(ValueError, match=r"different queries, although their protocols agree: text_to_video v05"):
        require_comparable(sides, allowed=fields)


def test_metrics_without_a_protocol_are_of_an_earlier_version(tmp_path: Path) -> None:
    Storage(str(tmp_path)).write_json("metrics.json", {"protocol": "every caption is a query"})
    with pytest.raises(ValueError, match="has no protocol, because an earlier version wrote it"):
        read_measured(str(tmp_path / "metrics.json"), stage="evaluation")


def test_an_encoder_alone_cannot_be_compared(tmp_path: Path) -> None:
    document = {"architecture": "ViT-B-32", "pretrained": "openai", "protocol": "every caption is a query"}
    Storage(str(tmp_path)).write_json("metrics.json", document)
    with pytest.raises(ValueError, match=r"of an encoder alone .*name an evaluation of a trained model"):
        read_measured(str(tmp_path), stage="evaluation")


def test_a_workspace_with_one_finished_evaluation_is_a_place_and_with_two_it_is_not(tmp_path: Path) -> None:
    workspace = Storage(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nor a workspace with a finished stage evaluation"):
        read_measured(workspace.uri, stage="evaluation")
    document = {"version": 3, "finished_at": "2026-01-01", "settings": {}, "inputs": {}, "counts": {}}
    for name in ("0123", "4567"):
        write_retrieval(workspace.folder("evaluation", name), random_ranks(0))
        workspace.write_json(f"evaluation/{name}/artifact.json", document)
        if name == "0123":
            assert read_measured(workspace.uri, stage="evaluation").seed == 1
    with pytest.raises(ValueError, match=r"2 finished evaluations; name one of them: evaluation/0123 \(2026-01-01\)"):
        read_measured(workspace.uri, stage="evaluation")
