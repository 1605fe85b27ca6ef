from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hbi_models.clip.loading import read_checkpoint
from hbi_models.clip.torchscript import read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Parts(nn.Module):
    """Every kind of attribute that a module may have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.coarse = nn.Linear(3, 3).half()
        self.children_list = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 2)])
        self.tied = self.children_list[0].weight
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.no_weight = torch.ones(4)
        self.view = nn.Parameter(torch.arange(6.0).reshape(2, 3).t()[1:])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(inputs) + self.no_weight[0]


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_the_weights_are_those_that_running_the_archive_gives(tmp_path: Path, how: str) -> None:
    module = Parts().eval()
    archive = torch.jit.script(module) if how == "scripted" else torch.jit.trace(module, torch.ones(2, 3))
    archive.save(str(tmp_path / "a.pt"))
    expected = torch.jit.load(str(tmp_path / "a.pt")).state_dict()
    found = read_torchscript(tmp_path / "a.pt")
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


class Program(nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.marker = ""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, str, bool]:
        return (self.weight, self.marker, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.weight = state[0] + torch.from_file(state[1], True, 4).fill_(1.0).sum()
        self.marker = state[1]
        self.training = state[2]


@pytest.mark.fault
def test_an_archive_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    program, marker, path = Program(), tmp_path / "marker", tmp_path / "program.pt"
    program.marker = str(marker)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(program).save(str(path))
    with pytest.raises(ValueError, match=r"program\.pt .*the archive holds no module as PyTorch writes it"):
        read_checkpoint(path)
    assert not marker.exists()
    torch.jit.load(str(path))
    assert marker.exists(), "this is what was kept from happening"


def with_pickle(path: Path, content: bytes, *, compression: int = zipfile.ZIP_STORED) -> None:
    """An archive with a class and a pickle of its own."""
    declaration = 'class M(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = []\n'
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/code/__torch__.py", declaration)
        archive.writestr("a/constants.pkl", pickle.dumps(()))
        archive.writestr("a/data/0", bytes(8))
        archive.writestr("a/data.pkl", content)


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0%bX\x03\0\0\0cpuK\x02tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"%btR"
MODULE = b"\x80\x02c__torch__\nM\n)\x81}X\x01\0\0\0w%bsb."


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (MODULE % (TENSOR % (b"0", b"K\x00K\x09\x85K\x01\x85")), "out of bounds"),
        (MODULE % (TENSOR % (b"/", b"K\x00K\x02\x85K\x01\x85")), "outside of the archive's data"),
        (MODULE % (TENSOR % (b"1", b"K\x00K\x02\x85K\x01\x85")), "There is no item named"),
        (b"", "."),
        (b"\x80\x02}.", "holds no module"),
    ],
    ids=["size", "path", "missing", "empty", "dict"],
)
def test_an_archive_that_lies_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.pt"
    with_pickle(path, MODULE % (TENSOR % (b"0", b"K\x00K\x02\x85K\x01\x85")))
    assert torch.equal(read_checkpoint(path)["w"], torch.zeros(2)), "the archive itself is read"
    with_pickle(path, content)
    with pytest.raises(ValueError, match=reason):
        read_checkpoint(path)


@pytest.mark.fault
def test_an_archive_that_names_a_function_is_refused(tmp_path: Path) -> None:
    with_pickle(tmp_path / "a.pt", pickle.dumps(Touch(tmp_path / "marker"), protocol=2))
    with pytest.raises(ValueError, match="which is not part of a model's weights"):
        read_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.fault
def test_an_archive_that_would_grow_is_refused(tmp_path: Path) -> None:
    with_pickle(tmp_path / "a.pt", b"\x80\x02}.", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"data\.pkl is compressed"):
        read_checkpoint(tmp_path / "a.pt")
