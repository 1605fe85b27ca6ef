"""Golden data measured on the published implementation, and the weights that go with it.

The tests read the folder named by ``HBI_PARITY_DIR`` (default: the copy beside this file), so
that other data in the same format can be put through the same tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

PARITY_DIR = Path(os.environ.get("HBI_PARITY_DIR", Path(__file__).parent / "data"))


@dataclass(frozen=True)
class Golden:
    """The golden folder: ``golden.arrays("b3_loss_units")``, ``golden.json("config")``."""

    folder: Path

    def has(self, name: str) -> bool:
        """Whether the folder holds ``<name>.npz`` or ``<name>.json``."""
        return any((self.folder / f"{name}{suffix}").exists() for suffix in (".npz", ".json"))

    def arrays(self, name: str) -> Mapping[str, np.ndarray]:
        """The arrays of ``<name>.npz``; skips the test where the folder does not hold the case."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"{self.folder} holds no {name}.npz")
        with np.load(path) as archive:
            return {key: archive[key] for key in archive.files}

    def json(self, name: str) -> Any:
        """The contents of ``<name>.json``."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            pytest.skip(f"{self.folder} holds no {name}.json")
        return json.loads(path.read_text())

    @cached_property
    def recipe(self) -> ModuleType:
        """The script that makes weights and training batches from names, shapes and seeds."""
        spec = importlib.util.spec_from_file_location("parity_recipe", self.folder / "recipe.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def weights(self, keys: str, seed: int) -> dict[str, torch.Tensor]:
        """The state dict of ``<keys>.json`` (published names) for a weight seed."""
        filled = self.recipe.fill_all(self.json(keys), seed)
        return {name: torch.from_numpy(np.array(value)) for name, value in filled.items()}


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(PARITY_DIR)
