"""Plain data is read whoever wrote it; what would run code is refused before it runs."""

from __future__ import annotations

import builtins
import collections
import copyreg
import io
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.datasets.plain_pickle import load_plain_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


class Calls:
    """Calls ``function`` when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Words(dict[str, Any]):
    """A dictionary that is not a plain one."""


@pytest.mark.slow
@given(data=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(data: Any, protocol: int) -> None:
    assert load_plain_pickle(pickle.dumps(data, protocol)) == data


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["system", "eval", "reconstructor", "dict subclass", "ordered dict", "class"])
def test_what_names_a_class_or_a_function_is_refused_before_it_runs(tmp_path: Path, kind: str, protocol: int) -> None:
    trace = tmp_path / "trace"
    payload, name = {
        "system": (Calls(os.system, f"touch {trace}"), "system"),
        "eval": (Calls(builtins.eval, f"open({str(trace)!r}, 'w')"), "eval"),
        "reconstructor": (Calls(copyreg._reconstructor, Words, dict, {}), "_reconstructor"),  # type: ignore[attr-defined]
        "dict subclass": (Words(a=1), "Words|_reconstructor"),
        "ordered dict": (collections.OrderedDict(a=1), "OrderedDict"),
        "class": (io.BytesIO, "BytesIO"),
    }[kind]
    with pytest.raises(ValueError, match=rf"not a pickle of plain data: it names '[^']*({name})'"):
        load_plain_pickle(pickle.dumps({"video": [["a", payload]]}, protocol))
    assert not trace.exists()
    # The same bytes do run where they may: the test would notice if they did above.
    pickle.loads(pickle.dumps(payload, protocol))
    assert trace.exists() == (kind in ("system", "eval"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(ios\nsystem\n.", "os.system"),  # the old instruction that names and calls a class at once
        (b"\x80\x02\x82\x01.", "extension"),  # a registered class, by its number
        (b"Pelsewhere\n.", "persistent"),  # an object that is kept elsewhere
    ],
)
def test_other_ways_to_objects_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_plain_pickle(data)


def test_no_memory_is_reserved_for_what_a_file_only_names() -> None:
    tracemalloc.start()
    try:
        # Place 16,777,215 of the memo: 256 MB, where the memo is an array.
        assert load_plain_pickle(b"\x80\x02}r\xff\xff\xff\x00.") == {}
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@given(data=st.data())
def test_a_damaged_file_is_a_value_error_or_plain_data(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"video": [["a", "man"], ["ein", "Mann"]]}, data.draw(st.sampled_from([0, 2, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = load_plain_pickle(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except ValueError as error:
        assert "not a pickle of plain data" in str(error)
    else:
        assert type(found).__module__ == "builtins"
