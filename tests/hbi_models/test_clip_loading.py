"""Where architectures and weights come from, and what is refused."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.loading import ARCHITECTURES, build_clip, load_clip, read_architecture
from tests.hbi_models.tiny_model import TINY_CLIP, write_architecture


@pytest.fixture(name="weights")
def random_weights() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in build_clip(TINY_CLIP).state_dict().items()}


def config(folder: Path, pretrained: Path | str | None, **architecture: Any) -> ClipConfig:
    path = write_architecture(folder, {**TINY_CLIP, **architecture})
    return ClipConfig(architecture=path, pretrained=None if pretrained is None else str(pretrained))


def openai_archive(weights: dict[str, Tensor], path: Path) -> Path:
    """Writes a TorchScript archive laid out like OpenAI's: a tree of modules, half precision, three constants."""
    root = nn.Module()
    constants = {"input_resolution": 16, "context_length": 16, "vocab_size": 50}
    for name, tensor in {**weights, **{name: torch.tensor(value) for name, value in constants.items()}}.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_buffer(leaf, tensor.half() if tensor.is_floating_point() else tensor)
    with warnings.catch_warnings():
        # Writing such archives is deprecated; those that OpenAI wrote remain.
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(root).save(str(path))
    return path


@pytest.mark.parametrize("path", sorted(ARCHITECTURES.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_architecture_builds(path: Path) -> None:
    backbone = load_clip(ClipConfig(architecture=path.stem, pretrained=None))
    pixels = torch.zeros(1, 3, backbone.image_size_px, backbone.image_size_px)
    assert backbone.encode_frames(pixels).shape == (1, backbone.embedding_dim)
    assert all(parameter.dtype == torch.float32 for parameter in backbone.parameters())


def test_a_state_dict_is_read_from_every_kind_of_file(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "plain.pt")
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": t for name, t in weights.items()}}, tmp_path / "run.bin")
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("plain.pt", "run.bin", "weights.safetensors"):
        loaded = load_clip(config(tmp_path, tmp_path / name))
        torch.testing.assert_close(dict(loaded.state_dict()), weights, rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["clip.", "encoder.clip."])
def test_the_encoder_of_a_whole_model_of_ours_is_taken(tmp_path: Path, weights: dict[str, Tensor], prefix: str) -> None:
    others = {f"{prefix.removesuffix('clip.')}temporal.positions.weight": torch.zeros(3)}
    save_file({**{f"{prefix}{name}": tensor for name, tensor in weights.items()}, **others}, tmp_path / "m.safetensors")
    loaded = load_clip(config(tmp_path, tmp_path / "m.safetensors"))
    torch.testing.assert_close(dict(loaded.state_dict()), weights, rtol=0, atol=0)


def test_weights_of_a_separate_text_tower_fit_the_same_names(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    text = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    torch.save({f"text.{n}" if n.startswith(text) else n: t for n, t in weights.items()}, tmp_path / "custom.pt")
    loaded = load_clip(config(tmp_path, tmp_path / "custom.pt", custom_text=True))
    torch.testing.assert_close(dict(loaded.state_dict()), weights, rtol=0, atol=0)


def test_openais_archive_is_read_in_full_precision(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    loaded = load_clip(config(tmp_path, openai_archive(weights, tmp_path / "archive.pt")))
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())
    # Half precision keeps eleven bits.
    torch.testing.assert_close(dict(loaded.state_dict()), weights, rtol=2**-11, atol=1e-6)


def test_openais_weights_are_refused_without_quick_gelu(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    archive = openai_archive(weights, tmp_path / "archive.pt")
    with pytest.raises(ValueError, match=r"quick_gelu=True.*'-quickgelu'"):
        load_clip(config(tmp_path, archive, quick_gelu=False))
    with pytest.raises(ValueError, match="trained with quick_gelu=True"):
        load_clip(ClipConfig(architecture="ViT-B-32", pretrained="openai"))


def test_weights_of_another_architecture_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    del weights["ln_final.bias"]
    torch.save(weights, tmp_path / "incomplete.pt")
    with pytest.raises(ValueError, match=r"(?s)incomplete\.pt does not fit.*ln_final\.bias"):
        load_clip(config(tmp_path, tmp_path / "incomplete.pt"))


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "objects.pt").write_bytes(pickle.dumps(Path("anything"), protocol=2))
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (("objects.pt", "nothing else is unpickled"), ("list.pt", "holds list")):
        with pytest.raises(ValueError, match=message):
            load_clip(config(tmp_path, tmp_path / name))


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shapes-tiny"):
        load_clip(ClipConfig(architecture="ViT-nonsense", pretrained=None))
    with pytest.raises(ValueError, match="no such file"):
        load_clip(ClipConfig(architecture=str(tmp_path / "missing.json"), pretrained=None))
    with pytest.raises(ValueError, match="laion2b_s34b_b79k"):
        load_clip(ClipConfig(architecture="ViT-B-32", pretrained="no_such_tag"))


def test_text_towers_without_clips_tokens_are_refused() -> None:
    for name, reason in (
        ("xlm-roberta-base-ViT-B-32", "xlm-roberta-base of the library transformers"),
        ("coca_ViT-B-32", "a class token"),
        ("ViT-H-14-CLIPA", "strip_sep_token"),
    ):
        with pytest.raises(ValueError, match=f"{reason}.*one feature per word"):
            load_clip(ClipConfig(architecture=name, pretrained=None))


def test_settings_that_open_clip_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        load_clip(config(tmp_path, None, nonsense=1))
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ValueError, match="embed_dim"):
        load_clip(ClipConfig(architecture=str(tmp_path / "empty.json"), pretrained=None))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"embed_dim": 32', "is not JSON, or is damaged: "),
        (b"\xff\xfe", "is not JSON, or is damaged: "),
        (b"[" * 100_000, "is not JSON, or is damaged: "),
        (b"[1, 2]", r"holds \[1, 2\]; open_clip's format asks for an object"),
        (b'{"model_cfg": [1]}', r"holds \[1\]; open_clip's format asks for an object"),
        (b'{"embed_dim": 32, "vision_cfg": {}, "text_cfg": [1]}', r"has text_cfg: \[1\]; open_clip's format"),
    ],
)
def test_a_file_that_is_no_architecture_is_named_with_what_is_wrong(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"clip\.architecture '.*mine\.json' {reason}"):
        read_architecture(str(tmp_path / "mine.json"))


def test_embeddings_are_frozen_on_request(tmp_path: Path) -> None:
    path = write_architecture(tmp_path)
    for freeze in (True, False):
        backbone = load_clip(ClipConfig(architecture=path, pretrained=None, freeze_patch_embedding=freeze))
        assert backbone.visual.conv1.weight.requires_grad is not freeze
        backbone = load_clip(ClipConfig(architecture=path, pretrained=None, freeze_embeddings=freeze))
        assert backbone.token_embedding.weight.requires_grad is not freeze


@pytest.mark.parametrize(
    "vision",
    [
        {**TINY_CLIP["vision_cfg"], "patch_dropout": 0.5},
        {
            "timm_model_name": "convnext_atto",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "timm_drop": 0.5,
            "timm_drop_path": 0.5,
            "image_size": 32,
        },
    ],
    ids=["patches", "depth"],
)
def test_towers_draw_nothing_in_training(tmp_path: Path, vision: dict[str, Any]) -> None:
    """Not on the device, where the draws would depend on machine and worker."""
    clip = replace(config(tmp_path, None, vision_cfg=vision), freeze_patch_embedding=False)
    backbone = load_clip(clip).train()
    pixels = torch.rand(8, 3, backbone.image_size_px, backbone.image_size_px)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(backbone.encode_frames(pixels))
    assert torch.equal(*found)


def test_batch_norms_of_a_tower_keep_their_statistics(tmp_path: Path) -> None:
    """A feature of a frame then depends on nothing but the frame, on however many workers."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}
    clip = replace(config(tmp_path, None, vision_cfg=vision), freeze_patch_embedding=False)
    backbone = load_clip(clip).eval()
    pixels = torch.rand(4, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    expected = backbone.encode_frames(pixels)
    backbone.train()
    assert backbone.training
    torch.testing.assert_close(backbone.encode_frames(pixels), expected, rtol=0, atol=0)
    torch.testing.assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)
