"""A device that is not there: what would make a GPU and its host wait for each other is seen on any machine.

Its tensors hold their values on the CPU and say that they are on ``absent:0``. Operations that mix them with others are
refused, as CUDA refuses them, and everything that makes the host wait for the device is noted with the line of ours
that asked for it:

    read        a number or a tensor comes to the host
    copy        a tensor goes to the device from memory that is not page-locked
    size        the size of a result depends on values (``nonzero``, indexing by a mask)
    index       a tensor on the device is indexed by one that is not

Copies from page-locked memory are noted apart. Forward and backward passes run, gradients and optimizers included.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "absent"
CPU = torch.device("cpu")

OURS = ("/hbi_models/", "/pipelines/")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
SIZED_BY_VALUES = ("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::repeat_interleave")


class _Module:
    """``torch.absent``, as PyTorch wants a device to have it."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
ABSENT = torch.device(NAME, 0)


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of the device and of the host."""


@dataclass
class Journal:
    """What made the host wait, by kind and line."""

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    """Copies to the device that nobody waits for."""

    def clear(self) -> None:
        self.waits.clear()
        self.copies.clear()

    def reads(self) -> int:
        """How often something came to the host."""
        return sum(count for (kind, _), count in self.waits.items() if kind == "read")

    def others(self, *, but: str = "") -> dict[tuple[str, str], int]:
        """What else made it wait, but for one kind."""
        return {key: count for key, count in self.waits.items() if key[0] not in ("read", but)}


_journal = Journal()


class AbsentTensor(Tensor):
    """Says that it is on the device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> AbsentTensor:
        # Autograd keeps count of views, which it refuses for a view made in inference mode of what was not.
        with torch.inference_mode(False):
            return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
                cls,
                held.size(),
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                layout=held.layout,
                device=ABSENT,
            )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"AbsentTensor({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees operations that make tensors on the device out of nothing, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(item, AbsentTensor) or _is_absent(item) for item in _leaves(args, kwargs)):
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():
            # Without autograd, nothing has taken an operation apart yet that is made of others.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return _run(func, args, kwargs)


def _is_absent(item: Any) -> bool:
    return isinstance(item, torch.device) and item.type == NAME


def _held(item: Any) -> Any:
    return item.held if isinstance(item, AbsentTensor) else item


def _on_device(item: Any) -> Any:
    return AbsentTensor(item) if isinstance(item, Tensor) and not isinstance(item, AbsentTensor) else item


def _asked_by() -> str:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in OURS) and "/tests/" not in name:
            line = linecache.getline(name, frame.f_lineno).strip()
            return f"{'/'.join(name.rsplit('/', 2)[-2:])}:{frame.f_lineno} {line}"
        frame = frame.f_back
    return "elsewhere"


def _note(kind: str) -> None:
    _journal.waits[kind, _asked_by()] += 1


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    flat = _leaves(args, kwargs)
    absent = [item for item in flat if isinstance(item, AbsentTensor)]
    present = [item for item in flat if isinstance(item, Tensor) and not isinstance(item, AbsentTensor)]
    if name == "aten::_local_scalar_dense":
        _note("read")
        return func(args[0].held)
    if name == "aten::_to_copy":
        return _copied(func, args, kwargs)
    if name == "aten::copy_":
        return _written(args)
    if absent and name != "aten::_has_compatible_shallow_copy_type":
        # A number may come from the host: it travels with the call.
        if any(item.dim() > 0 for item in present):
            if name not in INDEXING:
                raise MixedDevicesError(f"{name} got tensors of {ABSENT} and of the host at {_asked_by()}")
            _note("index")
        by_mask = name in INDEXING and any(item.dtype in (torch.bool, torch.uint8) for item in absent[1:])
        if name in SIZED_BY_VALUES or by_mask:
            _note("size")
    there = {key: CPU if key == "device" and value is not None else _held_in(value) for key, value in kwargs.items()}
    result = func(*_held_in(args), **there)
    if name.endswith("_") and not name.startswith("aten::_") and args and isinstance(args[0], AbsentTensor):
        return args[0]
    return kwargs["out"] if "out" in kwargs else _mapped(_on_device, result)


def _held_in(items: Any) -> Any:
    return _mapped(_held, items)


def _leaves(args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments of an operation, which are lists at most. PyTorch's own trees take half of a test's time."""
    found = []
    for item in (*args, *kwargs.values()):
        if isinstance(item, list | tuple):
            found += item
        else:
            found.append(item)
    return found


def _mapped(change: Callable[[Any], Any], items: Any) -> Any:
    if isinstance(items, list | tuple):
        return type(items)([_mapped(change, item) for item in items]) if type(items) in (list, tuple) else items
    return change(items)


def _copied(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    source, target = args[0], kwargs.get("device")
    from_device = isinstance(source, AbsentTensor)
    to_device = from_device if target is None else _is_absent(target)
    rest = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    result = func(_held(source), **rest)
    if from_device and not to_device:
        _note("read")
    if to_device and not from_device:
        if _is_pinned(source) and kwargs.get("non_blocking"):
            _journal.copies[_asked_by()] += 1
        else:
            _note("copy")
    return AbsentTensor(result) if to_device else result


def _written(args: Any) -> Any:
    target, source = args[:2]
    if isinstance(target, AbsentTensor) != isinstance(source, AbsentTensor):
        _note("copy" if isinstance(target, AbsentTensor) else "read")
    _held(target).copy_(_held(source))
    return target


_pinned: dict[int, Tensor] = {}
"""Page-locked memory by its address; held, so that no other memory gets it."""


def _pin(tensor: Tensor) -> Tensor:
    found = tensor.clone()
    _pinned[found.untyped_storage().data_ptr()] = found
    return found


def _is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned


@contextmanager
def absent_device() -> Iterator[Journal]:
    """Within it, :data:`ABSENT` is a device like any other; what makes the host wait for it is noted."""
    _journal.clear()
    with pytest.MonkeyPatch.context() as patch, _Mode(), torch.autograd.set_multithreading_enabled(False):
        patch.setattr(Tensor, "pin_memory", _pin)
        patch.setattr(Tensor, "is_pinned", _is_pinned)
        yield _journal
    _pinned.clear()


def values(tensor: Tensor) -> Tensor:
    """What a tensor holds, wherever it is; not noted."""
    found: Tensor = _held(tensor)
    return found.detach()
