"""Compiled towers and predictors: kernels that PyTorch fuses for the device at hand."""

from __future__ import annotations

from torch import nn

from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.clip.backbone import ClipBackbone
from hbi_models.temporal_encoder import TemporalEncoder


def compile_parts(model: nn.Module, *, backend: str = "inductor") -> list[str]:
    """Compiles the parts of ``model`` in place that do most of its arithmetic; returns their names.

    Names and values of the weights stay. Each is compiled when it is first called, once for its sizes: on a GPU a
    batch always has the same.
    """
    compiled = []
    for name, module in model.named_modules():
        parts = {"visual": module.visual, "transformer": module.transformer} if isinstance(module, ClipBackbone) else {}
        if isinstance(module, TemporalEncoder):
            parts = {"transformer": module.transformer}
        if isinstance(module, InteractionEstimator):
            parts = {"": module}
        for part, found in parts.items():
            # In place. ``torch.compile(module)`` would return a wrapper, under which every weight has another name.
            found.compile(backend=backend)
            compiled.append(".".join(filter(None, (name, part))))
    return compiled
