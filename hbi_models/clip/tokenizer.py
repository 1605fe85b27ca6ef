"""Captions to token ids, cut and padded as in the published model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import open_clip
from jaxtyping import Bool, Int

from hbi_models.configs import require

# OpenAI's spelling of the two special tokens, which captions may contain, and open_clip's.
SPECIAL_TOKENS = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}

START, END = "⟨start⟩", "⟨end⟩"
"""Readable names of the first and the last token."""


class CaptionTokenizer:
    """CLIP's byte-pair encoding with 49408 entries; the first one of a process takes a fraction of a second.

    A caption becomes the start token, at most ``max_words - 2`` pieces and the end token, then
    zeros. Zero is also the id of a real piece, so only the mask tells padding.
    """

    def __init__(self, max_words: int) -> None:
        require(max_words >= 3, f"max_words is {max_words}; a caption needs start, one piece and end: 3")
        self.max_words = max_words
        self._bpe = _byte_pair_encoding()

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens."""
        return int(self._bpe.vocab_size)

    def encode(self, caption: str) -> list[int]:
        """Returns the ids of all pieces of a caption, without start, end and padding."""
        return list(self._bpe.encode(caption))

    def __call__(
        self, captions: Sequence[str]
    ) -> tuple[Int[np.ndarray, "texts max_words"], Bool[np.ndarray, "texts max_words"]]:
        """Returns token ids (int64) and the mask of real tokens."""
        token_ids = np.zeros((len(captions), self.max_words), np.int64)
        mask = np.zeros((len(captions), self.max_words), np.bool_)
        for row, caption in enumerate(captions):
            ids = self._framed(caption)
            token_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return token_ids, mask

    def pieces(self, caption: str) -> list[str]:
        """Returns the tokens of a caption as text, one for each real position of its row.

        ``</w>`` marks the end of a word; the first and the last entry are the start and end
        tokens.
        """
        openai_spelling = {theirs: ours for ours, theirs in SPECIAL_TOKENS.items()}
        texts = (self._bpe.decoder[token_id] for token_id in self._framed(caption))
        return [openai_spelling.get(text, text) for text in texts]

    def readable_pieces(self, caption: str) -> list[str]:
        """Returns the tokens in readable form: letters instead of byte codes, "‑" where a word continues.

        The special tokens are ``START`` and ``END``; a piece that is not a whole letter is "�".
        """
        return [START, *map(self._readable, self.pieces(caption)[1:-1]), END]

    def _readable(self, piece: str) -> str:
        if piece in SPECIAL_TOKENS:
            return piece
        letters = bytes(self._bpe.byte_decoder[code] for code in piece.removesuffix("</w>"))
        return letters.decode(errors="replace") + ("" if piece.endswith("</w>") else "‑")

    def _framed(self, caption: str) -> list[int]:
        pieces = self.encode(caption)[: self.max_words - 2]
        return [self._bpe.sot_token_id, *pieces, self._bpe.eot_token_id]


@cache
def _byte_pair_encoding() -> Any:
    """open_clip's tokenizer, which reads its vocabulary once in a process."""
    bpe = open_clip.SimpleTokenizer()
    bpe.clean_fn = partial(clean_caption, clean=bpe.clean_fn)
    return bpe


def clean_caption(text: str, clean: Callable[[str], str]) -> str:
    """Returns the cleaned text, with OpenAI's special tokens spelled as open_clip spells them."""
    text = clean(text)
    for openai_spelling, open_clip_spelling in SPECIAL_TOKENS.items():
        text = text.replace(openai_spelling, open_clip_spelling)
    return text
