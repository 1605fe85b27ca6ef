"""Token ids against the published tokeniser (case i)."""

from __future__ import annotations

import re

import numpy as np

from hbi_models.clip.tokenizer import CaptionTokenizer
from tests.parity.conftest import Golden


def test_captions_are_cut_into_the_published_pieces(golden: Golden) -> None:
    expected = golden.json("i_tokens")
    captions = expected["captions"]
    assert captions
    tokenizer = CaptionTokenizer(max_words=10_000)
    assert tokenizer.vocabulary_size == expected["vocab_size"]
    for caption, pieces, ids in zip(captions, expected["tokens"], expected["encode"], strict=True):
        assert tokenizer.encode(caption) == ids, caption
        assert tokenizer.pieces(caption)[1:-1] == pieces, caption


def test_rows_are_framed_cut_and_padded_as_published(golden: Golden) -> None:
    captions, arrays = golden.json("i_tokens")["captions"], golden.arrays("i_tokenizer")
    lengths = [int(match.group(1)) for name in arrays if (match := re.fullmatch(r"ids_(\d+)", name))]
    assert lengths
    for max_words in lengths:
        token_ids, mask = CaptionTokenizer(max_words)(captions)
        np.testing.assert_array_equal(token_ids, arrays[f"ids_{max_words}"])
        np.testing.assert_array_equal(mask, arrays[f"mask_{max_words}"].astype(bool))
