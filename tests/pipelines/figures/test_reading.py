from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hbi_models.axes import TextBatch, TokenFeatures, VideoBatch
from hbi_models.banzhaf.game import brute_force_interaction
from hbi_models.clip.preprocessing import normalize_pixels
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.configs import GameConfig
from hbi_models.retrieval import RetrievalModel
from hbi_models.similarity import token_cosines
from pipelines.figures.maps import InteractionMaps
from pipelines.figures.reading import PairReader, load_pair_reader
from pipelines.models.weights import save_model
from pipelines.recipe.frames import FramesConfig
from tests.tiny_retrieval import IMAGE_PX, MAX_FRAMES, retrieval_config

TEXT = "a red circle moves left then grows"
FRAMES = 5


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> PairReader:
    torch.manual_seed(0)
    game = GameConfig(teacher="estimator", estimator_channels=8)
    model = RetrievalModel(retrieval_config(tmp_path_factory.mktemp("model"), game=game)).eval()
    return PairReader(model, model.teacher, FramesConfig())


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (3, IMAGE_PX, IMAGE_PX)
    return [torch.randint(256, shape, generator=generator, dtype=torch.uint8) for _ in range(FRAMES)]


@pytest.fixture(scope="module")
def maps(reader: PairReader) -> InteractionMaps:
    times = [number / 4 for number in range(FRAMES)]
    return reader.relate(images(), TEXT, ("exact", "estimator", "difference"), video="clip.mp4", times_s=times)


def test_the_entity_level_is_the_interaction_by_its_definition(reader: PairReader, maps: InteractionMaps) -> None:
    model = reader.model
    token_ids, mask = map(torch.from_numpy, CaptionTokenizer(model.config.max_words)([TEXT]))
    pixels = normalize_pixels(torch.stack(images()))[None]
    with torch.inference_mode():
        (words, *_) = model.encode_text(TextBatch(token_ids, mask))
        (frames, *_) = model.encode_video(VideoBatch(pixels, torch.ones(1, FRAMES, dtype=torch.bool)))
        expected = brute_force_interaction(
            token_cosines(words, frames).double(), words.logits.double(), frames.logits.double(), mask, frames.mask
        )
    count = int(mask.sum())
    np.testing.assert_allclose(maps.levels[0].interactions["exact"], expected[0, :count].numpy(), atol=1e-6)
    np.testing.assert_allclose(maps.levels[0].cosines, token_cosines(words, frames)[0, :count].numpy(), atol=1e-6)


def test_each_level_divides_the_words_and_frames_among_its_own(maps: InteractionMaps) -> None:
    assert maps.tokens == ("⟨start⟩", *TEXT.split(), "⟨end⟩")
    for level in maps.levels:
        assert sorted(token for phrase in level.words for token in phrase) == list(range(len(maps.tokens)))
        assert sorted(frame for clip in level.frames for frame in clip) == list(range(FRAMES))
        assert list(level.words) == sorted(level.words)
        assert level.cosines.shape == (len(level.words), len(level.frames))
        assert level.word_weights.sum() == pytest.approx(1, abs=1e-5)
    entity, action, event = maps.levels
    assert len(entity.words) > len(action.words) > len(event.words)
    for above, below in ((action, entity), (event, action)):
        for phrase in above.words:
            assert set(phrase) == {token for part in below.words if set(part) <= set(phrase) for token in part}


def test_a_merged_row_belongs_to_its_phrase(reader: PairReader, maps: InteractionMaps) -> None:
    """The rows of the action level, put in the order of the phrases, are those of the model's own clusters."""
    model = reader.model
    token_ids, mask = map(torch.from_numpy, CaptionTokenizer(model.config.max_words)([TEXT]))
    with torch.inference_mode():
        entity, action, _ = model.encode_text(TextBatch(token_ids, mask))
        merge = model.text_merges["action"]
        clusters = merge.cluster(merge.prepare(TokenFeatures(entity.features, mask))[0], mask)[0]
    level = maps.levels[1]
    for number, phrase in enumerate(level.words):
        (cluster,) = clusters[list(phrase)].any(dim=0).nonzero()[:, 0].tolist()
        weight = action.logits[0].masked_fill(~action.mask[0], -torch.inf).softmax(0)[cluster]
        assert level.word_weights[number] == pytest.approx(float(weight), abs=1e-5)


def test_the_estimate_is_that_of_the_teacher_in_units_of_the_cosines(reader: PairReader, maps: InteractionMaps) -> None:
    level = maps.levels[0]
    config = reader.model.config
    padded = torch.zeros(1, config.max_words, MAX_FRAMES)
    padded[0, : len(maps.tokens), :FRAMES] = torch.from_numpy(level.cosines)
    assert reader.model.teacher is not None
    with torch.inference_mode():
        estimate = reader.model.teacher(padded)[0, : len(maps.tokens), :FRAMES] / config.game.similarity_scale
    np.testing.assert_allclose(level.interactions["estimator"], estimate.numpy(), atol=1e-6)
    np.testing.assert_allclose(
        level.interactions["difference"], estimate.numpy() - level.interactions["exact"], atol=1e-6
    )


def test_without_an_estimator_there_is_no_estimate(reader: PairReader) -> None:
    alone = dataclasses.replace(reader, estimator=None)
    with pytest.raises(ValueError, match=r"the difference needs an estimator.*--estimator_checkpoint"):
        alone.relate(images(), TEXT, ["difference"], video="clip.mp4", times_s=[0.0] * FRAMES)


def test_a_short_text_and_a_single_frame_have_an_interaction(reader: PairReader) -> None:
    maps = reader.relate(images()[:1], "circle", video="clip.mp4", times_s=[0.0])
    assert maps.tokens == ("⟨start⟩", "circle", "⟨end⟩")
    assert [level.cosines.shape[1] for level in maps.levels] == [1, 1, 1]


def test_a_long_text_is_cut_as_the_model_cuts_it(reader: PairReader) -> None:
    maps = reader.relate(images(), "red " * 100, video="clip.mp4", times_s=[0.0] * FRAMES)
    assert len(maps.tokens) == reader.model.config.max_words


def test_a_folder_must_say_how_its_videos_were_sampled(reader: PairReader, tmp_path: Path) -> None:
    save_model(tmp_path, reader.model, kind="retrieval", config=reader.model.config)
    with pytest.raises(FileNotFoundError, match=r"holds no frames\.json.*with --config"):
        load_pair_reader(str(tmp_path))


@pytest.mark.parametrize("caption", ["two skateboarders", "crème", "a naïve café in zürich"])
def test_pieces_make_up_the_words(caption: str) -> None:
    start, *pieces, end = CaptionTokenizer(20).readable_pieces(caption)
    assert (start, end) == ("⟨start⟩", "⟨end⟩")
    assert "".join(piece.removesuffix("‑") if piece.endswith("‑") else f"{piece} " for piece in pieces) == f"{caption} "
