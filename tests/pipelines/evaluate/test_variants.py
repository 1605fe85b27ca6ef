"""Figures beside the raw ones: which there are, what they say of themselves, and where parameters come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hbi_models.metrics import text_to_video_ranks
from hbi_models.post_processing import dual_softmax
from pipelines.evaluate.documents import POST_PROCESSING_NEEDS
from pipelines.evaluate.variants import (
    PUBLISHED,
    Scored,
    choose_parameters,
    convention_variants,
    post_processed_ranks,
    post_processed_variants,
    training_bank,
)
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.splits import SplitView
from tests.tiny_retrieval import write_split_data


def scored(seed: int, owners: list[int], videos: int, bank: int = 9) -> Scored:
    generator = torch.Generator().manual_seed(seed)
    return Scored(
        torch.rand(len(owners), videos, generator=generator),
        torch.tensor(owners),
        torch.rand(bank, videos, generator=generator),
    )


def test_one_caption_a_video_has_no_other_convention() -> None:
    assert list(convention_variants(scored(0, [0, 1, 2], 3))) == []


def test_several_captions_bring_the_conventions_of_the_field_with_their_own_protocol() -> None:
    found = {variant.name: variant for variant in convention_variants(scored(0, [1, 0, 0, 1, 2], 3))}
    assert list(found) == ["caption_max", "caption_mean", "one_caption"]
    assert {name: set(variant.ranks) for name, variant in found.items()} == {
        "caption_max": {"video_to_text"},
        "caption_mean": {"video_to_text"},
        "one_caption": {"text_to_video", "video_to_text"},
    }
    alone = found["one_caption"]
    assert alone.texts.tolist() == [1, 0, 4]
    assert alone.protocol["text_queries"] == 3
    similarity = scored(0, [1, 0, 0, 1, 2], 3).similarity
    expected = text_to_video_ranks(similarity[[1, 0, 4]], torch.tensor([0, 1, 2]))
    assert torch.equal(alone.ranks["text_to_video"], expected)


def test_parameters_are_those_that_are_best_on_validation_and_the_tested_split_has_no_part_in_it() -> None:
    validation, tested = scored(1, [0, 1, 2, 3, 4, 5], 6), scored(2, [0, 1, 2, 3], 4)
    (variant,) = post_processed_variants(["dual_softmax"], tested, validation, validation_split="val")
    chosen = variant.details["parameters"]
    assert chosen == choose_parameters("dual_softmax", validation)

    def recall(temperature: float) -> float:
        ranks = text_to_video_ranks(dual_softmax(validation.similarity, temperature), validation.owners)
        return (ranks <= 1).double().mean().item()

    assert recall(chosen["temperature"]) == max(
        recall(float(value)) for value in (1, 3, 10, 20, 30, 50, 100, 200, 500, 1000)
    )
    assert "on 6 videos of val" in variant.details["parameters_chosen"]


def test_without_a_validation_split_parameters_are_the_published_ones() -> None:
    variants = list(post_processed_variants(list(PUBLISHED), scored(2, [0, 1, 2], 3), None, validation_split="val"))
    assert {variant.name: variant.details["parameters"] for variant in variants} == PUBLISHED
    assert {variant.details["parameters_chosen"] for variant in variants} == {"published values"}
    assert {variant.name: variant.details["needs"] for variant in variants} == POST_PROCESSING_NEEDS


@pytest.mark.parametrize("method", ["qb_norm", "nnn"])
def test_a_bank_of_captions_corrects_videos_alone(method: str) -> None:
    ranks = post_processed_ranks(method, scored(3, [0, 1, 2], 3), PUBLISHED[method])
    assert list(ranks) == ["text_to_video"]


def test_dual_softmax_of_the_other_direction_takes_its_share_among_the_videos() -> None:
    given = scored(4, [0, 1, 2, 3], 4)
    ranks = post_processed_ranks("dual_softmax", given, {"temperature": 20.0})
    turned = Scored(given.similarity.T, given.owners, given.bank)
    expected = post_processed_ranks("dual_softmax", turned, {"temperature": 20.0})["text_to_video"]
    assert torch.equal(ranks["video_to_text"], expected)


def test_the_settings_know_which_methods_need_a_bank() -> None:
    methods = EvaluationConfig(post_processing=("nnn", "dual_softmax", "qb_norm")).bank_methods
    assert methods == ("nnn", "qb_norm")
    assert all("bank" in POST_PROCESSING_NEEDS[method] for method in methods)
    assert "bank" not in POST_PROCESSING_NEEDS["dual_softmax"]


def test_the_bank_is_drawn_by_video_and_number_whatever_else_is_there(tmp_path: Path) -> None:
    def view(folder: Path, counts: list[int]) -> SplitView:
        data = write_split_data(folder, {"train": counts})
        return SplitView(data.folder("manifest"), data.folder("frames"), data.folder("pool"), "train")

    whole = view(tmp_path / "whole", [3, 2, 4, 1])
    captions, _, _ = whole.texts_of(range(4))
    everything = training_bank(whole, 99)
    assert sorted(everything.captions) == sorted(captions)
    assert all(text in whole.texts(video) for video, text in everything.texts)
    few = training_bank(whole, 4).texts
    assert len(few) == 4 and few == everything.texts[:4]


def test_a_bank_without_captions_is_refused(tmp_path: Path) -> None:
    data = write_split_data(tmp_path, {"test": [1]})
    view = SplitView(data.folder("manifest"), data.folder("frames"), data.folder("pool"), "train")
    with pytest.raises(ValueError, match="needs a bank of training captions, and no video of the split train has"):
        training_bank(view, 9)
