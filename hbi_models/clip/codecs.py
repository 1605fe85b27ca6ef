"""Tokenizers of other encoders than CLIP's: a ``tokenizer.json`` as Hugging Face's library writes it.

SigLIP and SigLIP 2 read SentencePiece vocabularies of 32,000 to 256,000 pieces, MetaCLIP 2 XLM-V's. open_clip
asks ``transformers`` for them; the library ``tokenizers`` below it is all that is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from open_clip.tokenizer import get_clean_fn

from hbi_models.clip.configs import ClipConfig
from hbi_models.config_fields import require
from hbi_models.model_files import TOKENIZER

_SETTINGS_FILE = "tokenizer_config.json"
_WORD_BEGINS = "▁"
# The length of a piece that stands for one byte, such as <0x0A>.
_BYTE = 6


@runtime_checkable
class Codec(Protocol):
    """From a caption to the ids of its pieces, the special ones included, and back to what people read."""

    pad_id: int
    """What stands behind the last piece."""
    vocabulary_size: int

    def encode(self, caption: str) -> list[int]:
        """The ids of all pieces without the special ones."""
        ...

    def pieces(self, caption: str, max_words: int) -> list[str]:
        """The pieces of :meth:`ids` as the vocabulary spells them."""
        ...

    def ids(self, caption: str, max_words: int) -> list[int]:
        """The ids of at most ``max_words`` pieces; the special ones always stay."""
        ...

    def shown(self, caption: str, max_words: int) -> list[tuple[str, bool]]:
        """The same pieces as text without marks of words, and whether each is special."""
        ...

    def readable(self, caption: str, max_words: int) -> list[str]:
        """The same as people read them, "‑" where a word goes on."""
        ...


class FileCodec:
    """The pieces of a ``tokenizer.json``.

    Args:
        document: its content, which says what is padded with.
        clean: what is done to captions first: ``canonicalize`` (SigLIP: lower case, no punctuation), ``lower``,
            ``whitespace``.
        limit: entries of the encoder's table; ids must lie below.
    """

    def __init__(self, document: str, *, clean: str, limit: int) -> None:
        from tokenizers import Tokenizer

        self.document = document
        self._tokenizer = Tokenizer.from_str(document)
        padding = self._tokenizer.padding
        if padding is None:
            raise ValueError(f"a {TOKENIZER} that does not say what captions are padded with cannot be used")
        self.pad_id = int(padding["pad_id"])
        # Captions are cut to ``max_words`` below and padded by CaptionTokenizer, whatever lengths the file says.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._clean: Callable[[str], str] = get_clean_fn(clean)
        self.vocabulary_size = limit

    def _cut(self, caption: str, max_words: int) -> list[tuple[int, str, bool]]:
        found = self._tokenizer.encode(self._clean(caption))
        pieces = [
            (number, text, bool(special))
            for number, text, special in zip(found.ids, found.tokens, found.special_tokens_mask, strict=True)
        ]
        largest = max((number for number, _, _ in pieces), default=0)
        require(
            largest < self.vocabulary_size,
            f"the tokenizer gives the id {largest}, but this encoder has {self.vocabulary_size} tokens; set "
            "clip.tokenizer to the file that belongs to clip.architecture",
        )
        # What the tokenizer puts at the end has to stay, so the cut is made in front of it.
        last = len(pieces)
        while last and pieces[last - 1][2]:
            last -= 1
        end = pieces[last:]
        require(len(end) < max_words, f"max_words is {max_words}; the tokenizer adds {len(end)} to every caption")
        return [*pieces[:last][: max_words - len(end)], *end]

    def encode(self, caption: str) -> list[int]:
        """As :meth:`Codec.encode`."""
        return list(self._tokenizer.encode(self._clean(caption), add_special_tokens=False).ids)

    def pieces(self, caption: str, max_words: int) -> list[str]:
        """As :meth:`Codec.pieces`."""
        return [text for _, text, _ in self._cut(caption, max_words)]

    def ids(self, caption: str, max_words: int) -> list[int]:
        """As :meth:`Codec.ids`."""
        return [number for number, _, _ in self._cut(caption, max_words)]

    def shown(self, caption: str, max_words: int) -> list[tuple[str, bool]]:
        """As :meth:`Codec.shown`."""
        return [(_plain(text), special) for _, text, special in self._cut(caption, max_words)]

    def readable(self, caption: str, max_words: int) -> list[str]:
        """As :meth:`Codec.readable`."""
        pieces = self._cut(caption, max_words)
        shown = []
        for place, (_, text, special) in enumerate(pieces):
            goes_on = place + 1 < len(pieces) and not (pieces[place + 1][2] or _begins_word(pieces[place + 1][1]))
            shown.append(f"⟨{text.strip('<>')}⟩" if special else _plain(text) + ("‑" if goes_on else ""))
        return shown


def _begins_word(piece: str) -> bool:
    return piece.startswith(_WORD_BEGINS)


def _plain(piece: str) -> str:
    is_byte = len(piece) == _BYTE and piece.startswith("<0x") and piece.endswith(">")
    return "�" if is_byte else piece.replace(_WORD_BEGINS, " ").strip()


def file_codec(config: ClipConfig, text_cfg: Mapping[str, Any]) -> FileCodec | None:
    """The tokenizer of the file that the settings or the architecture name; None where it is CLIP's own.

    Raises:
        ValueError: The file cannot be had or used.
    """
    name = text_cfg.get("hf_tokenizer_name")
    if config.tokenizer is None and name is None:
        return None
    path = fetch_tokenizer(str(name), config.architecture) if config.tokenizer is None else Path(config.tokenizer)
    # The default is that of open_clip's HFTokenizer.
    clean = (text_cfg.get("tokenizer_kwargs") or {}).get("clean", "whitespace")
    require(path.is_file(), f"clip.tokenizer is {config.tokenizer!r}; it must be a file {TOKENIZER}")
    return FileCodec(_document(path, path.stat().st_mtime_ns), clean=clean, limit=int(text_cfg["vocab_size"]))


def fetch_tokenizer(name: str, architecture: str) -> Path:
    """The file of a tokenizer of the model hub, in the hub's cache on this machine.

    Raises:
        ValueError: It is not there and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        # Not read here: it then lies beside the other file, where _document looks for it.
        hf_hub_download(name, _SETTINGS_FILE)
        return Path(hf_hub_download(name, TOKENIZER))
    # Errors of the hub, of its client and of the network have no class in common.
    except Exception as error:
        raise ValueError(
            f"the tokenizer of {architecture} is not in the cache of this machine and cannot be downloaded from the "
            f"model hub's {name} ({type(error).__name__}). Connect to the network once, or set model.clip.tokenizer to "
            f"a local copy of its {TOKENIZER}, with {_SETTINGS_FILE} beside it"
        ) from error


# ``_changed``, the time of the last change, is part of the cache's key: a file that was edited is read again.
@cache
def _document(path: Path, _changed: int) -> str:
    """The content of a tokenizer's file. Where it names no padding token, that of the file beside it is added."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The library raises a bare Exception.
    except Exception as error:
        raise ValueError(f"clip.tokenizer {path} is no {TOKENIZER} of Hugging Face's library: {error}") from error
    if tokenizer.padding is None:
        beside = path.with_name(_SETTINGS_FILE)
        try:
            said = json.loads(beside.read_text(encoding="utf-8")).get("pad_token") if beside.is_file() else None
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{beside} is no {_SETTINGS_FILE} of Hugging Face's library: {error}") from error
        token = said.get("content") if isinstance(said, Mapping) else said
        number = None if token is None else tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(
                f"{path} does not say what captions are padded with; put the {_SETTINGS_FILE} that belongs to it "
                "beside it, which names the pad_token"
            )
        tokenizer.enable_padding(pad_id=number, pad_token=token)
    return str(tokenizer.to_str())
