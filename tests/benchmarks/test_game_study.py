"""The study of the game: its features, its pairs of arms, its statistics, and that it goes on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import game_study
from benchmarks.study import document, results
from benchmarks.study.arms import ARMS, CLAIMED, CONTRASTS
from benchmarks.study.features import DATA_SETS, Split, encode_words, generated_features, read_features, write_features
from benchmarks.study.heads import Heads, Training, batches, mean_token, train_heads
from benchmarks.study.recipe import features_of
from hbi_models.axes import TokenLevel
from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.loading import load_clip
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.retrieval import RetrievalModel
from hbi_models.similarity import level_similarity
from pipelines.models.weights import save_model
from tests.hbi_models.test_encoders import siglip_like, write_tokenizer
from tests.hbi_models.tiny_model import write_architecture
from tests.tiny_retrieval import retrieval_config, training_data, write_split_data

CPU = torch.device("cpu")
DATA = "three events, 12 frames"
SHORT = Training(steps=3, batch_size=4)


@pytest.fixture(scope="module", name="encoder")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> RetrievalModel:
    torch.manual_seed(0)
    return RetrievalModel(retrieval_config(tmp_path_factory.mktemp("encoder"))).eval()


@pytest.fixture(scope="module", name="splits")
def stored_splits(encoder: RetrievalModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Split]:
    data = DATA_SETS[DATA]
    data = replace(data, shapes=replace(data.shapes, train_videos=8, test_videos=5))
    path = tmp_path_factory.mktemp("features") / "three.safetensors"
    splits = generated_features(encoder.clip, data, name=DATA, max_words=encoder.config.max_words)
    write_features(path, splits, "some")
    return read_features(path)


def heads(name: str, encoder: RetrievalModel, seed: int = 1) -> Heads:
    return Heads(ARMS[name], ARMS[name].settings(encoder.config, 12), encoder, seed)


@pytest.mark.slow
def test_features_are_those_of_the_encoder_and_know_what_is_seen(
    encoder: RetrievalModel, splits: dict[str, Split]
) -> None:
    train, test = splits["train"], splits["test"]
    assert train.frames.features.shape[:2] == (8, 12)
    assert [len(texts) for texts in train.texts_of_videos] == [4] * 8
    assert [len(texts) for texts in test.texts_of_videos] == [2] * 5
    assert len(test.truth) == 10
    # Three events one after the other: what is named is seen in some of the frames.
    assert all(len(line["frame_index"]) == 12 for line in test.truth)
    assert {word["event"] for word in test.truth[0]["words"]} == {0, 1, 2}
    with torch.inference_mode():
        tokens = heads("none", encoder).texts(test.pairs([3])[0])[0]
    # Adapters add nothing at the start.
    torch.testing.assert_close(tokens.features, test.words.features[3:4])


def test_words_are_read_with_the_tokens_of_the_encoder(tmp_path: Path) -> None:
    architecture, tokenizer = write_architecture(tmp_path, siglip_like()), str(write_tokenizer(tmp_path))
    clip = load_clip(ClipConfig(architecture=architecture, pretrained=None, tokenizer=tokenizer)).eval()
    captions = ["a red circle moves", "blue"]
    words = CaptionTokenizer(8, clip.codec).batch(captions)
    found = encode_words(clip, captions, 8)
    assert torch.equal(found.mask, words.mask)
    with torch.inference_mode():
        torch.testing.assert_close(found.features, clip.encode_words(words.token_ids, words.mask))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARMS if name != "none"])
def test_arms_of_a_seed_share_initial_weights_and_batches(
    encoder: RetrievalModel, splits: dict[str, Split], name: str
) -> None:
    plain, other = (dict(heads(arm, encoder).named_parameters()) for arm in ("none", name))
    assert plain.keys() <= other.keys()
    for key, value in plain.items():
        assert torch.equal(value, other[key]), key
    one, again, later = (
        [words.features for words, _ in batches(splits["train"], SHORT, seed, CPU)] for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], later[0])
    assert len(one) == SHORT.steps


def test_features_of_stored_frames_are_those_of_the_recipes_encoder(encoder: RetrievalModel, tmp_path: Path) -> None:
    view = training_data(write_split_data(tmp_path, {"val": (2, 1, 3)})).captions("val")
    split = features_of(view, encoder, "val")
    assert split.video_of_text.tolist() == [0, 0, 1, 2, 2, 2]
    frames = view.store.batch([0, 1, 2], image_size_px=encoder.clip.image_size_px, max_frames=6)
    assert torch.equal(split.frames.mask, frames.mask)
    with torch.inference_mode():
        for video in range(3):
            pixels = encoder.clip.normalize(frames.frames[video, frames.mask[video]])
            expected = encoder.clip.encode_frames(pixels)
            found = split.frames.features[video, frames.mask[video]].float()
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
        texts = encoder.encode_text(encoder.text_batch(view.texts(2)))[0]
    found = split.words.features[3:].float()[texts.mask]
    torch.testing.assert_close(found, texts.features[texts.mask], rtol=2e-3, atol=2e-3)


def test_only_heads_and_temperature_are_trained(encoder: RetrievalModel) -> None:
    trained = [name for name, part in heads("exact", encoder).named_parameters() if part.requires_grad]
    assert [name for name in trained if ".clip." in name] == ["model.clip.logit_scale"]
    assert {"word_adapter.outer.weight", "model.predictors.event.conv_out.weight"} <= set(trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_trains_and_is_measured(encoder: RetrievalModel, splits: dict[str, Split], name: str) -> None:
    measured = train_heads(ARMS[name], splits, encoder, seed=1, training=SHORT, device=CPU)
    assert np.isfinite(list(measured.values())).all()
    assert {"r1", "r1_t2v", "r1_v2t", "entity_r1", "mean_rank_t2v", "auc", "auc_colour", "auc_interaction"} <= set(
        measured
    )
    assert 0 <= measured["r1"] <= 100
    assert ("event_gradient" in measured) == ("exact" in name or name in ("cosine", "estimator"))


@pytest.mark.slow
def test_a_training_is_a_function_of_its_seed(encoder: RetrievalModel, splits: dict[str, Split]) -> None:
    one, again, other = (
        train_heads(ARMS["exact"], splits, encoder, seed=seed, training=SHORT, device=CPU) for seed in (1, 1, 2)
    )
    seconds = one.pop("seconds"), again.pop("seconds")
    assert all(value > 0 for value in seconds)
    assert one == again
    assert one["loss"] != other["loss"]


@pytest.mark.slow
def test_the_best_weights_on_the_validation_split_are_tested(encoder: RetrievalModel, splits: dict[str, Split]) -> None:
    with_validation = {**splits, "val": splits["test"]}
    training = replace(SHORT, steps=4, validate_every=1)
    chosen = train_heads(ARMS["none"], with_validation, encoder, seed=1, training=training, device=CPU)
    every = [train_heads(ARMS["none"], splits, encoder, seed=1, training=replace(SHORT, steps=4), device=CPU)["r1"]]
    assert chosen["r1"] >= max(every)


def test_mean_pooling_is_the_cosine_of_the_means_of_real_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    levels = [TokenLevel(torch.randn(2, 3, 4, generator=generator), mask, torch.randn(2, 3)) for _ in range(2)]
    means = [torch.stack([level.features[0, :2].mean(0), level.features[1, 0]]) for level in levels]
    expected = torch.cosine_similarity(means[0][:, None], means[1][None], dim=-1)
    torch.testing.assert_close(level_similarity(*map(mean_token, levels)), expected)


def test_differences_are_those_of_a_paired_t_test() -> None:
    random = np.random.default_rng(0)
    values: results.Values = {
        "exact": {seed: float(random.normal(2, 1)) for seed in range(1, 10)},
        "none": {seed: float(random.normal(0, 1)) for seed in range(3, 13)},
    }
    found = results.difference(values, "exact", "none")
    assert found is not None
    common = range(3, 10)
    test = stats.ttest_rel([values["exact"][seed] for seed in common], [values["none"][seed] for seed in common])
    interval = test.confidence_interval()
    assert (found.seeds, found.p) == (7, pytest.approx(test.pvalue))
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert results.difference(values, "exact", "cosine") is None


def test_holms_correction_of_a_worked_example() -> None:
    assert results.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert results.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("exact", "cosine", "wanted"), [(3.0, 1.0, "exact"), (3.0, 3.0, "cosine"), (0.0, -1.0, "exact"), (0.0, 0.0, "none")]
)
def test_the_rule_chooses_by_intervals(exact: float, cosine: float, wanted: str) -> None:
    noise = {seed: 0.1 * (-1) ** seed for seed in range(6)}
    values: results.Values = {
        "none": dict.fromkeys(noise, 0.0),
        "exact": {seed: exact + value for seed, value in noise.items()},
        "cosine": {seed: cosine - value for seed, value in noise.items()},
    }
    assert results.decision(results.claims(values)).startswith(f"{wanted}:")
    assert results.decision([]).startswith("undecided")
    assert all(arm in CLAIMED for pair in CONTRASTS for arm in pair)


def test_lines_outlive_a_kill_in_the_middle_of_one(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first, second = ({"study": "s", "seed": seed} for seed in (1, 2))
    results.append(path, first)
    with path.open("a") as file:
        file.write('{"study": "s", "se')
    assert results.read(path, "s") == [first]
    results.append(path, second)
    results.append(path, {"study": "other", "seed": 3})
    assert results.read(path, "s") == [first, second]


def row(arm: str, seed: int, value: float) -> dict[str, Any]:
    measured = {"r1": value, "entity_r1": value - 1, "auc": 80.0, "seconds": 1.0}
    return {"study": "s", "data": DATA, "arm": arm, "seed": seed, "measured": measured}


def test_tables_and_picture_say_what_was_measured(tmp_path: Path) -> None:
    rows = [row(arm, seed, 40 + 3 * (arm == "exact") + seed / 10) for arm in ("none", "exact") for seed in (1, 2, 3)]
    rows[0]["measured"]["r1"] += 0.3
    content = document.tables(rows, [DATA], measure="r1")
    assert "| exact | 3 | 43.2 ± 0.1 (+2.9: +2.5 to +3.3) |" in content
    assert "| exact − none | 3 | +2.90 | +2.47 to +3.33 |" in content
    assert "By the rule, which asks for 12 seeds and so far has 3: **undecided" in content
    assert content.endswith("Arms that were not run: cosine, " + ", ".join(list(ARMS)[3:]) + ".")
    assert "exact − none" in document.console(rows, [DATA], measure="r1")
    document.picture(rows, [DATA], tmp_path / "study.png", measure="r1")
    assert (tmp_path / "study.png").stat().st_size > 5000
    page = tmp_path / "page.md"
    page.write_text(f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n")
    document.put_into(page, content)
    document.put_into(page, content)
    assert page.read_text() == f"before\n{document.BEGIN}\n\n{content}\n\n{document.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no lines"):
        document.put_into(page, content)


def test_the_named_differences_come_first_seed_by_seed() -> None:
    order = game_study.cells(["a", "b"], ARMS, seeds=2, other_seeds=1)
    assert len(order) == len(set(order)) == 2 * (2 * len(CLAIMED) + len(ARMS) - len(CLAIMED))
    assert [(cell.data, cell.seed) for cell in order[: 4 * len(CLAIMED)]] == [
        (data, seed) for seed in (1, 2) for data in ("a", "b") for _ in CLAIMED
    ]


@pytest.mark.long
def test_a_study_goes_on_where_it_stopped(encoder: RetrievalModel, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    save_model(folder, encoder, kind="retrieval", config=encoder.config)
    options = ["--encoder", str(folder), "--output", str(tmp_path / "study"), "--data", DATA]
    options += ["--train_videos", "8", "--test_videos", "4", "--steps", "2", "--batch_size", "4", "--processes", "1"]
    options += ["--arms", "none", "exact + coalitions"]
    assert game_study.main([*options, "--seeds", "1"]) == 0
    path = tmp_path / "study" / "results.jsonl"
    first = path.read_bytes()
    assert first.count(b"\n") == 2
    assert game_study.main([*options, "--seeds", "2"]) == 0
    assert path.read_bytes().startswith(first)
    assert path.read_bytes().count(b"\n") == 4
    assert "exact + coalitions − none" in (tmp_path / "study" / "study.md").read_text()
    # Another length is another study.
    assert game_study.main([*options, "--seeds", "1", "--steps", "3"]) == 0
    assert path.read_bytes().count(b"\n") == 6
