"""The weights in a TorchScript archive, read without running the program in it.

``torch.jit.load`` executes what the archive asks for when its objects are restored, which includes
writing files. Here the archive is data: a pickle of modules that name their tensors, the tensors'
bytes beside it, and class declarations that tell parameters and buffers from other attributes.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A class of a module in the archive's code, with the names of its parameters and buffers.
_DECLARATION = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.MULTILINE
)
_QUOTED = re.compile(r'"([^"]*)"')

_STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Module:
    """A restored module: its attributes, or whatever else the archive gives as its state."""

    kind: str
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle._Unpickler):
    """Builds modules, tensors, numbers, texts and containers; refuses every other name.

    It derives from the unpickler written in Python. The one in C allocates memory for whatever memo index a damaged
    file names.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(_stored(archive, f"{root}/data.pkl")))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module.split(".")[0] == "__torch__":
            # A class of the archive's own code: nothing of it runs, only its name is looked up among the declarations.
            return type(name, (_Module,), {"kind": f"{module}.{name}"})
        raise pickle.UnpicklingError(f"it names {f'{module}.{name}'[:80]!r}, which is not part of a model's weights")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        # The key becomes the name of a member of the archive.
        if not isinstance(dtype, torch.dtype) or not str(key).isdigit():
            raise pickle.UnpicklingError("a tensor's bytes lie outside of the archive's data")
        content = _stored(self._archive, f"{self._root}/data/{key}")
        return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Returns the parameters and buffers of the module in a TorchScript archive, by name.

    Raises:
        ValueError: The archive holds anything that such a module does not need.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name.split("/")[0] for name in archive.namelist() if name.endswith("/data.pkl"))
            declared = _declarations(archive, root)
            return dict(_tensors(_Reader(archive, root).load(), declared))
    # A damaged pickle is a program with wrong instructions, so it may raise any error.
    except Exception as error:
        raise ValueError(f"{path} is not a TorchScript archive of a model: {error or type(error).__name__}") from error


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member of the archive. TorchScript compresses only its code; other compressed members may be a decompression
    bomb."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    # PyTorch refuses sizes that reach beyond the storage. Copied, because several tensors may share it.
    return torch.as_strided(storage, size, stride, offset).clone()


def _declarations(archive: zipfile.ZipFile, root: str) -> dict[str, set[str]]:
    """Names of the parameters and buffers of every class, by its qualified name."""
    declared = {}
    for name in archive.namelist():
        if name.startswith(f"{root}/code/") and name.endswith(".py"):
            module = name.removeprefix(f"{root}/code/").removesuffix(".py").replace("/", ".")
            for kind, parameters, buffers in _DECLARATION.findall(archive.read(name).decode()):
                declared[f"{module}.{kind}"] = set(_QUOTED.findall(f"{parameters},{buffers}"))
    return declared


def _tensors(module: Any, declared: dict[str, set[str]], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, _Module) or not isinstance(module.state, dict):
        raise ValueError(f"{prefix or 'the archive'} holds no module as PyTorch writes it")
    for name, value in module.state.items():
        if isinstance(value, _Module):
            yield from _tensors(value, declared, f"{prefix}{name}.")
        # Other tensors are plain attributes, which are in no state dict.
        elif isinstance(value, Tensor) and name in declared.get(module.kind, ()):
            yield f"{prefix}{name}", value
