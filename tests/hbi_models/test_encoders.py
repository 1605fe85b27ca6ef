"""Towers beyond OpenAI's, shrunk where they can be: the same features as open_clip's own forward gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.codecs import FileCodec, file_codec
from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.loading import build_clip, load_clip, read_architecture, refusal
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.retrieval import RetrievalModel
from pipelines.models.weights import load_model, save_model
from pipelines.workspace.storage import Storage
from tests.hbi_models.tiny_model import tiny_config

PAD, END, UNKNOWN = 1, 2, 3
PIECES = ["▁a", "▁red", "▁blue", "▁circle", "▁mov", "es", "▁left", "ing", "▁", "l", "e", "f", "t", "s"]


def write_tokenizer(folder: Path, *, says_padding: bool = True) -> Path:
    """Writes a small SentencePiece vocabulary as SigLIP's, whose only special piece is the end."""
    vocabulary = [("<x>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    vocabulary += [(piece, -float(len(PIECES)) + len(piece)) for piece in PIECES]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=UNKNOWN))
    tokenizer.add_special_tokens([AddedToken("<pad>"), AddedToken("</s>")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    if says_padding:
        tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>")
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def shrunk(name: str, image_size: int) -> dict[str, Any]:
    """An architecture of open_clip with two blocks where they are not timm's, a small vocabulary, and small images."""
    settings = open_clip.get_model_config(name)
    text = {**settings["text_cfg"], "layers": 2, "width": 64, "heads": 2, "vocab_size": 100}
    if text.get("proj_type") == "none":
        text["width"] = settings["embed_dim"]
    vision = {**settings["vision_cfg"], "image_size": image_size}
    if "layers" in vision:
        vision["layers"] = 2
    return {**settings, "text_cfg": text, "vision_cfg": vision}


SMALL = {
    # timm's towers with positions have one size.
    "PE-Core-T-16-384": 384,
    "ViT-B-16-SigLIP": 224,
    "ViT-B-16-SigLIP2": 224,
    "MobileCLIP2-S0": 64,
    "MobileCLIP2-B": 224,
    "EVA02-B-16": 224,
    "ViT-B-16": 32,
    "ViT-S-32-alt": 64,
    "ViTamin-S": 224,
    "ViT-L-14-worldwide": 28,
}
SLOW = ("ViT-B-16-SigLIP2", "MobileCLIP2-B", "EVA02-B-16")
"""Built in seconds, because only timm's towers can be shrunk to two blocks by their settings."""


def captions(settings: dict[str, Any], lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random texts, padded to the longest, that end with the architecture's end token."""
    text = settings["text_cfg"]
    end = text.get("eos_id", 2) if text.get("pool_type") == "eos" else 99
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    token_ids = torch.randint(4, 99, mask.shape, generator=torch.Generator().manual_seed(1))
    token_ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = end
    return token_ids.where(mask, 0), mask


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in SLOW else name for name in SMALL]
)
@torch.no_grad()
def test_images_words_and_whole_texts_are_those_of_open_clip(name: str, tmp_path: Path) -> None:
    settings, size = shrunk(name, SMALL[name]), SMALL[name]
    assert refusal(settings) is None
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    model = kind(**settings, output_dict=True).eval()
    other_tokens = "hf_tokenizer_name" in settings["text_cfg"]
    codec = FileCodec(write_tokenizer(tmp_path).read_text(), clean="lower", limit=100) if other_tokens else None
    backbone = ClipBackbone(model, embedding_dim=settings["embed_dim"], codec=codec).eval()
    token_ids, mask = captions(settings, [7, 4, 5])
    pad = backbone.codec.pad_id
    full = torch.full((3, backbone.context_length), pad)
    full[:, : mask.shape[1]] = token_ids.where(mask, pad)
    words = backbone.encode_words(token_ids, mask)
    assert words.shape == (*mask.shape, settings["embed_dim"])
    texts = backbone.embed_texts(token_ids, mask)
    torch.testing.assert_close(texts, model.encode_text(full), rtol=1e-4, atol=1e-5)
    if backbone.text_pool != "last":
        # The embedding of a text is the feature of its end token.
        torch.testing.assert_close(words[torch.arange(3), mask.sum(1) - 1], texts)
    pixels = torch.randn(2, 3, size, size)
    torch.testing.assert_close(backbone.encode_frames(pixels), model.encode_image(pixels))
    assert backbone.image_size_px == size
    # No word depends on how much its batch is padded, or on what stands there.
    alone = backbone.encode_words(token_ids[1:2, :4], mask[1:2, :4])
    torch.testing.assert_close(words[1, :4], alone[0], rtol=1e-4, atol=1e-5)


BIG = (
    *("PE-Core-L-14-336", "PE-Core-bigG-14-448", "ViT-L-16-SigLIP-384", "ViT-SO400M-16-SigLIP2-384"),
    *("ViT-gopt-16-SigLIP2-384", "ViT-SO400M-16-SigLIP-i18n-256", "MobileCLIP2-L-14", "MobileCLIP2-S4"),
    *("EVA02-L-14-336", "EVA02-E-14-plus", "EVA01-g-14", "ViT-L-14-336", "ViT-H-14-378-quickgelu", "ViT-bigG-14"),
    *("ViT-B-16-plus-240", "ViTamin-L-336", "convnext_base_w", "RN50x4", "ViT-H-14-worldwide"),
)


@pytest.mark.long
@pytest.mark.parametrize("name", BIG)
def test_large_ones_have_a_feature_per_word_and_per_frame(name: str) -> None:
    """On the meta device, which computes shapes alone."""
    settings = read_architecture(name)
    with torch.device("meta"):
        backbone = build_clip(settings)
        context = backbone.context_length
        token_ids, mask = torch.ones(2, context, dtype=torch.long), torch.ones(2, context, dtype=torch.bool)
        assert backbone.encode_words(token_ids, mask).shape == (2, context, settings["embed_dim"])
        assert backbone.embed_texts(token_ids, mask).shape == (2, settings["embed_dim"])
        size = backbone.image_size_px
        assert backbone.encode_frames(torch.zeros(1, 3, size, size)).shape == (1, settings["embed_dim"])


def test_each_architecture_of_open_clip_is_taken_or_refused_with_a_reason() -> None:
    refused = {}
    for name in open_clip.list_models():
        try:
            read_architecture(name)
        except ValueError as error:
            refused[name] = str(error)
    assert all("docs/encoders.md" in reason for reason in refused.values())
    families = {"coca": 4, "CLIPA": 6, "roberta": 4, "mt5": 2, "nllb": 4}
    for family, count in families.items():
        assert sum(family in name for name in refused) == count, family
    assert len(refused) == sum(families.values()) - 1  # coca_roberta is of two families


# --- tokens that are not CLIP's ---


def test_captions_are_cut_and_padded_as_the_library_does(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path)
    codec = FileCodec(path.read_text(), clean="canonicalize", limit=100)
    theirs = Tokenizer.from_file(str(path))
    theirs.enable_padding(pad_id=PAD, pad_token="<pad>", length=6)
    theirs.enable_truncation(max_length=6)
    texts = ["A red circle moves left, moving left!", "a", "", "zebra"]
    token_ids, mask = CaptionTokenizer(6, codec)(texts)
    clean = open_clip.tokenizer.get_clean_fn("canonicalize")
    expected = [theirs.encode(clean(text)) for text in texts]
    assert token_ids.tolist() == [found.ids for found in expected]
    assert mask.tolist() == [[bool(real) for real in found.attention_mask] for found in expected]
    assert token_ids[0, -1] == END and token_ids[1].tolist()[-3:] == [PAD] * 3


def test_pieces_are_shown_without_marks(tmp_path: Path) -> None:
    tokenizer = CaptionTokenizer(8, FileCodec(write_tokenizer(tmp_path).read_text(), clean="lower", limit=100))
    assert tokenizer.shown_pieces("A red moves") == [
        ("a", False),
        ("red", False),
        ("mov", False),
        ("es", False),
        ("</s>", True),
    ]
    assert tokenizer.readable_pieces("A red moves") == ["a", "red", "mov‑", "es", "⟨/s⟩"]
    assert len(tokenizer.pieces("A red moves")) == int(tokenizer(["A red moves"])[1].sum())


def test_what_captions_are_padded_with_is_read_from_the_file_beside(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path, says_padding=False)
    config, text = ClipConfig(tokenizer=str(path)), {"vocab_size": 100}
    with pytest.raises(ValueError, match=r"does not say what captions are padded with; put the tokenizer_config\.json"):
        file_codec(config, text)
    for damaged in ("{", "[1]"):
        (tmp_path / "tokenizer_config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json is no tokenizer_config\.json of Hugging Face's"):
            file_codec(config, text)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    codec = file_codec(config, text)
    assert codec is not None and codec.pad_id == PAD
    assert file_codec(ClipConfig(), text) is None


def test_a_tokenizer_of_another_encoder_is_refused(tmp_path: Path) -> None:
    codec = FileCodec(write_tokenizer(tmp_path).read_text(), clean="lower", limit=5)
    with pytest.raises(ValueError, match=r"gives the id 5, but this encoder has 5 tokens"):
        CaptionTokenizer(6, codec)(["red"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no tokenizer\.json"):
        file_codec(ClipConfig(tokenizer=str(tmp_path / "tokenizer.json")), {"vocab_size": 9})
    with pytest.raises(ValueError, match=r"clip\.tokenizer is .*; it must be a file tokenizer\.json"):
        file_codec(ClipConfig(tokenizer=str(tmp_path / "nowhere.json")), {"vocab_size": 9})


def test_offline_the_missing_tokenizer_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"the model hub's timm/ViT-B-16-SigLIP2 .* set model\.clip\.tokenizer to"):
        load_clip(ClipConfig(architecture="ViT-B-16-SigLIP2", pretrained=None))


def siglip_like() -> dict[str, Any]:
    text = {"context_length": 16, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}
    return {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {**text, "hf_tokenizer_name": "of/nobody", "no_causal_mask": True, "pool_type": "last"},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }


@torch.no_grad()
def test_a_stored_model_brings_its_architecture_its_tokenizer_and_its_pixels(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path)
    architecture = tmp_path / "siglip.json"
    architecture.write_text(json.dumps(siglip_like()))
    clip = ClipConfig(architecture=str(architecture), pretrained=None, tokenizer=str(path))
    torch.manual_seed(0)
    model = RetrievalModel(tiny_config(tmp_path, clip=clip)).eval()
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", model, kind="retrieval", config=model.config)
    path.unlink()
    architecture.unlink()
    loaded = load_model(Storage(str(tmp_path / "model")), tmp_path / "scratch")
    assert loaded.clip.pixel_mean == (0.5,) * 3
    texts = ["a red circle moves", "blue"]
    one, other = model.text_batch(texts), loaded.text_batch(texts)
    assert torch.equal(one.token_ids, other.token_ids) and one.token_ids[1, -1] == PAD
    frames = VideoBatch(torch.randn(2, 3, 3, 16, 16), torch.ones(2, 3, dtype=torch.bool))
    expected = model.similarity(model.encode_text(one), model.encode_video(frames))
    torch.testing.assert_close(loaded.similarity(loaded.encode_text(other), loaded.encode_video(frames)), expected)
    # As many columns of padding as there are change nothing.
    cut = TextBatch(one.token_ids[:, :6], one.mask[:, :6])
    torch.testing.assert_close(
        model.encode_text(cut)[0].features[one.mask[:, :6]], model.encode_text(one)[0].features[one.mask]
    )
