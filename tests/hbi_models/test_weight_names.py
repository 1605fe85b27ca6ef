"""State dicts as other training codes leave them, and under transformers' names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.loading import build_clip, load_clip, read_checkpoint
from hbi_models.weight_names import listed, without_wrappers
from tests.hbi_models.tiny_model import TINY_CLIP, write_architecture

TRANSFORMERS = Path(__file__).parent / "data" / "transformers_clip.safetensors"
"""What transformers 5.24 makes: random weights of a CLIPModel (``state.*``), and its features of words and frames.

    config = CLIPConfig(projection_dim=12,
        text_config=dict(vocab_size=30, hidden_size=16, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=8, hidden_act="quick_gelu", projection_dim=12),
        vision_config=dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=16, patch_size=8, hidden_act="quick_gelu", projection_dim=12))
    words = model.text_projection(model.text_model(input_ids=ids).last_hidden_state)
    frames = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
"""

ITS_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 2, "width": 16, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(name="weights")
def tiny_weights() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in build_clip(TINY_CLIP).state_dict().items()}


def loaded(folder: Path, content: Any, architecture: dict[str, Any] = TINY_CLIP) -> ClipBackbone:
    torch.save(content, folder / "weights.ckpt")
    path = write_architecture(folder, architecture)
    return load_clip(ClipConfig(architecture=path, pretrained=str(folder / "weights.ckpt")))


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}, "optimizer": {"state": {}}},
        lambda state: {f"_orig_mod.{name}": t for name, t in state.items()},
        lambda state: {f"module._orig_mod.{name}": t for name, t in state.items()},
        lambda state: {name.replace("visual.", "visual._orig_mod."): t for name, t in state.items()},
        lambda state: {f"model.{name}": t for name, t in state.items()},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "best": np.float64(0.5), "epoch": 3},
        lambda state: {**state, "logit_scale": state["logit_scale"].reshape(1)},
    ],
    ids=["ddp", "compiled", "compiled-ddp", "compiled-part", "lightning", "under-model", "numpy-score", "vector"],
)
def test_what_training_codes_put_around_weights_is_taken_off(
    tmp_path: Path, weights: dict[str, Tensor], wrapped: Any
) -> None:
    found = loaded(tmp_path, wrapped(weights)).state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_two_models_in_one_file_are_refused_by_name(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="several models: model, model_ema; save the one that is meant by itself"):
        loaded(tmp_path, {"model": weights, "model_ema": weights})


def test_a_misfit_is_a_count_and_the_first_five_names(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    strange = {f"strange.{name}": tensor for name, tensor in weights.items()}
    with pytest.raises(ValueError, match=r"weights\.ckpt does not fit") as failure:
        loaded(tmp_path, {**strange, "logit_scale": weights["logit_scale"]})
    assert len(re.findall(r"strange\.", str(failure.value))) == 5
    assert f"left over {len(strange)} (" in str(failure.value) and f"and {len(strange) - 5} more" in str(failure.value)
    assert len(str(failure.value)) < 1000
    with pytest.raises(ValueError, match=r"of another shape 1 \(ln_final\.bias: \(3,\) for \(32,\)\)"):
        loaded(tmp_path, {**weights, "ln_final.bias": torch.zeros(3)})


def test_a_prefix_that_is_part_of_a_name_stays() -> None:
    assert without_wrappers({"model.a": 1, "other.b": 2}) == {"model.a": 1, "other.b": 2}
    assert without_wrappers({"module.model.a": 1, "module.model.b": 2}) == {"a": 1, "b": 2}
    assert without_wrappers({}) == {}


def test_lists_of_names_stay_short() -> None:
    assert listed([]) == "0"
    assert listed(["b", "a"]) == "2 (a, b)"
    assert listed([f"name{number}" for number in range(8)]) == "8 (name0, name1, name2, name3, name4 and 3 more)"


def test_weights_of_transformers_compute_what_transformers_computes(tmp_path: Path) -> None:
    arrays = load_file(TRANSFORMERS)
    state = {name.removeprefix("state."): tensor for name, tensor in arrays.items() if name.startswith("state.")}
    save_file(state, tmp_path / "model.safetensors")
    architecture = write_architecture(tmp_path, ITS_ARCHITECTURE)
    clip = load_clip(ClipConfig(architecture=architecture, pretrained=str(tmp_path / "model.safetensors"))).eval()
    mask = torch.ones_like(arrays["ids"], dtype=torch.bool)
    # Float32 rounding of another order of sums.
    torch.testing.assert_close(clip.encode_words(arrays["ids"], mask), arrays["words"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.encode_frames(arrays["pixels"]), arrays["frames"], rtol=1e-4, atol=1e-5)
    # As its training code may have wrapped it, and with the buffers of older releases.
    older = {**state, "text_model.embeddings.position_ids": torch.arange(8)[None]}
    again = loaded(tmp_path, {f"module.{name}": tensor for name, tensor in older.items()}, ITS_ARCHITECTURE)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in clip.state_dict().items())


def test_reading_alone_keeps_the_names_of_transformers(tmp_path: Path) -> None:
    state = {"text_model.encoder.layers.0.layer_norm1.weight": torch.ones(2), "logit_scale": torch.ones(())}
    torch.save(state, tmp_path / "clip.pt")
    assert read_checkpoint(tmp_path / "clip.pt").keys() == state.keys()
