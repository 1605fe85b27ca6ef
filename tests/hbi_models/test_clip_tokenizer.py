"""Cutting, padding and display of captions; ids are compared with the published ones in tests/parity."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from hbi_models.clip.tokenizer import CaptionTokenizer

START, END = 49406, 49407


def test_long_captions_are_cut_before_the_end_token() -> None:
    token_ids, mask = CaptionTokenizer(max_words=5)(["a dog chases a red ball", "a dog"])
    assert token_ids.dtype == np.int64
    assert token_ids[0].tolist() == [START, 320, 1929, 45011, END]
    assert token_ids[1].tolist() == [START, 320, 1929, END, 0]
    assert mask.tolist() == [[True] * 5, [True] * 4 + [False]]


def test_an_empty_caption_is_start_and_end() -> None:
    token_ids, mask = CaptionTokenizer(max_words=4)([""])
    assert token_ids.tolist() == [[START, END, 0, 0]]
    assert mask.sum() == 2


def test_the_mask_tells_a_real_token_from_padding_with_the_same_id() -> None:
    token_ids, mask = CaptionTokenizer(max_words=6)(["!%"])
    assert token_ids[0].tolist() == [START, 0, 260, END, 0, 0]
    assert mask[0].tolist() == [True, True, True, True, False, False]


def test_pieces_stand_at_the_positions_of_their_ids() -> None:
    tokenizer = CaptionTokenizer(max_words=6)
    caption = "antidisestablishmentarianism"
    pieces = tokenizer.pieces(caption)
    assert len(pieces) == tokenizer([caption])[1].sum()
    assert pieces[0] == "<|startoftext|>"
    assert pieces[-1] == "<|endoftext|>"
    assert caption.startswith("".join(pieces[1:-1]).replace("</w>", ""))


def test_a_tokenizer_travels_to_other_processes() -> None:
    tokenizer = CaptionTokenizer(max_words=8)
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(["A Dog &amp; a cat"])[0], tokenizer(["a dog & a cat"])[0])


def test_captions_too_short_to_hold_a_piece_are_refused() -> None:
    with pytest.raises(ValueError, match="max_words is 2"):
        CaptionTokenizer(max_words=2)
