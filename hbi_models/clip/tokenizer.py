"""Captions to token ids, cut and padded as in the published model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Bool, Int

from hbi_models.axes import TextBatch
from hbi_models.clip.codecs import Codec
from hbi_models.config_fields import require

# OpenAI's spelling of the two special tokens, which captions may contain, and open_clip's.
SPECIAL_TOKENS = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}

START, END = "⟨start⟩", "⟨end⟩"
"""Readable names of the first and the last token."""


class BytePairCodec:
    """CLIP's byte-pair encoding with 49408 entries: the start token, the pieces, and the end token."""

    pad_id = 0
    """Also the id of a real piece, so only the mask tells padding."""

    def __init__(self) -> None:
        self._bpe = _byte_pair_encoding()
        self.vocabulary_size = int(self._bpe.vocab_size)

    def encode(self, caption: str) -> list[int]:
        """Returns the ids of all pieces of a caption, without start and end."""
        return list(self._bpe.encode(caption))

    def ids(self, caption: str, max_words: int) -> list[int]:
        """As :meth:`Codec.ids`."""
        return [self._bpe.sot_token_id, *self.encode(caption)[: max_words - 2], self._bpe.eot_token_id]

    def pieces(self, caption: str, max_words: int) -> list[str]:
        """Returns the pieces as text; ``</w>`` marks the end of a word."""
        openai_spelling = {theirs: ours for ours, theirs in SPECIAL_TOKENS.items()}
        texts = (self._bpe.decoder[token_id] for token_id in self.ids(caption, max_words))
        return [openai_spelling.get(text, text) for text in texts]

    def shown(self, caption: str, max_words: int) -> list[tuple[str, bool]]:
        """As :meth:`Codec.shown`."""
        pieces = self.pieces(caption, max_words)
        return [(text.removesuffix("</w>"), place in (0, len(pieces) - 1)) for place, text in enumerate(pieces)]

    def readable(self, caption: str, max_words: int) -> list[str]:
        """As :meth:`Codec.readable`; bytes that are no whole letter are shown as "�"."""
        return [START, *map(self._readable, self.pieces(caption, max_words)[1:-1]), END]

    def _readable(self, piece: str) -> str:
        if piece in SPECIAL_TOKENS:
            return piece
        # Each character of a piece stands for a byte, and a piece may end within a letter of several bytes.
        letters = bytes(self._bpe.byte_decoder[code] for code in piece.removesuffix("</w>"))
        return letters.decode(errors="replace") + ("" if piece.endswith("</w>") else "‑")


class CaptionTokenizer:
    """Captions as an encoder reads them; CLIP's first tokenizer of a process takes a fraction of a second.

    A caption becomes at most ``max_words`` ids, of which the tokenizer's own (CLIP: start and end) always stay,
    and padding.
    """

    def __init__(self, max_words: int, codec: Codec | None = None) -> None:
        require(max_words >= 3, f"max_words is {max_words}; a caption needs start, one piece and end: 3")
        self.max_words = max_words
        self.codec: Codec = BytePairCodec() if codec is None else codec

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens."""
        return self.codec.vocabulary_size

    def encode(self, caption: str) -> list[int]:
        """Returns the ids of all pieces of a caption, without start, end and padding."""
        return self.codec.encode(caption)

    def pieces(self, caption: str) -> list[str]:
        """Returns the tokens of a caption as the vocabulary spells them, one for each real position of its row.

        Of CLIP ``</w>`` marks the end of a word; the first and the last entry are the start and end tokens.
        """
        return self.codec.pieces(caption, self.max_words)

    def __call__(
        self, captions: Sequence[str]
    ) -> tuple[Int[np.ndarray, "texts max_words"], Bool[np.ndarray, "texts max_words"]]:
        """Returns token ids (int64) and the mask of real tokens."""
        token_ids = np.full((len(captions), self.max_words), self.codec.pad_id, np.int64)
        mask = np.zeros((len(captions), self.max_words), np.bool_)
        for row, caption in enumerate(captions):
            ids = self.codec.ids(caption, self.max_words)
            token_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return token_ids, mask

    def batch(self, captions: Sequence[str]) -> TextBatch:
        """Returns the same as tensors, on the host."""
        token_ids, mask = self(captions)
        return TextBatch(torch.from_numpy(token_ids), torch.from_numpy(mask))

    def shown_pieces(self, caption: str) -> list[tuple[str, bool]]:
        """Returns the tokens of a caption as text, one for each real position of its row, and whether it is special."""
        return self.codec.shown(caption, self.max_words)

    def readable_pieces(self, caption: str) -> list[str]:
        """Returns the same as people read them: letters instead of byte codes, "‑" where a word goes on.

        CLIP's special tokens are ``START`` and ``END``.
        """
        return self.codec.readable(caption, self.max_words)


@cache
def _byte_pair_encoding() -> Any:
    """open_clip's tokenizer, which reads its vocabulary once in a process."""
    bpe = open_clip.SimpleTokenizer()
    # Its encode() cleans with this attribute first, and then knows only open_clip's spelling of special tokens.
    bpe.clean_fn = partial(clean_caption, clean=bpe.clean_fn)
    return bpe


def clean_caption(text: str, clean: Callable[[str], str]) -> str:
    """Returns the cleaned text, with OpenAI's special tokens spelled as open_clip spells them."""
    text = clean(text)
    for openai_spelling, open_clip_spelling in SPECIAL_TOKENS.items():
        text = text.replace(openai_spelling, open_clip_spelling)
    return text
