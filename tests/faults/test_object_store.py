"""An object store that refuses, dawdles, hangs up or dies."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from functools import partial

import pytest

from pipelines.workspace.errors import StorageError
from pipelines.workspace.file_systems import read_patiently
from pipelines.workspace.storage import Storage
from tests.faults.flaky_s3 import FlakyS3, Request

pytestmark = pytest.mark.fault

LARGE = bytes(range(256)) * (12 << 12)
"""12 MiB, which travels in two parts."""


def deeds(storage: Storage) -> dict[str, Callable[[], object]]:
    """Everything that is done with a storage, on the file ``a`` that is there."""
    return {
        "look at": lambda: storage.exists("a"),
        "list": lambda: storage.files(),
        "read": lambda: storage.read_bytes("a"),
        "write": lambda: storage.write_bytes("b", b"2"),
        "delete": lambda: storage.delete("c"),
    }


@pytest.mark.parametrize("status", [500, 503])
def test_a_store_that_refuses_for_a_while_costs_only_that_while(s3: FlakyS3, bucket: Storage, status: int) -> None:
    bucket.write_bytes("a", b"1")
    for name, deed in deeds(bucket).items():
        fault = s3.refuse(3, status=status)
        deed()
        assert fault.struck == 3, name
    assert bucket.read_bytes("a") == b"1"
    assert bucket.read_bytes("b") == b"2"


def test_a_store_that_travelled_to_another_process_is_as_patient(s3: FlakyS3, bucket: Storage) -> None:
    bucket.write_bytes("a", b"1")
    # Ray Train gets the file system itself and pickles it.
    filesystem = pickle.loads(pickle.dumps(bucket.filesystem))
    fault = s3.refuse(5)
    with filesystem.open_input_stream(bucket.path("a")) as stream:
        assert stream.read() == b"1"
    assert fault.struck == 5, "the library's own patience ends after three"


def test_a_slow_store_is_waited_for(s3: FlakyS3, bucket: Storage) -> None:
    bucket.write_bytes("a", b"1")
    # The library's own patience with a silent connection ends after three seconds.
    fault = s3.delay(1, 4.0, strikes=lambda request: request.method == "GET")
    assert bucket.read_bytes("a") == b"1"
    assert fault.struck == 1
    assert sum(request.method == "GET" for request in s3.requests) == 1, "the request was not made again"


def test_a_connection_that_breaks_while_reading_is_made_again(s3: FlakyS3, bucket: Storage) -> None:
    bucket.write_bytes("a", LARGE)
    fault = s3.cut(2, answer=True, strikes=lambda request: request.method == "GET")
    assert bucket.read_bytes("a") == LARGE
    assert fault.struck == 2


def test_an_answer_that_breaks_off_where_the_library_gives_up_is_read_again() -> None:
    asked = []

    def read(failures: int, words: str) -> bytes:
        asked.append(words)
        if len(asked) <= failures:
            raise OSError(f"AWS Error INTERNAL_FAILURE during GetObject operation: {words}")
        return b"1"

    broke_off = "Failed to flush response stream (eof: 0, bad: 1)"
    assert read_patiently(partial(read, 2, broke_off)) == b"1"
    for failures, words in ((3, broke_off), (1, "the bucket is gone")):
        asked.clear()
        with pytest.raises(OSError, match=re.escape(words)):
            read_patiently(partial(read, failures, words))
        assert len(asked) == failures


def test_a_connection_that_breaks_while_writing_is_made_again(s3: FlakyS3, bucket: Storage) -> None:
    fault = s3.cut(2, strikes=lambda request: request.is_upload_of_a_part)
    bucket.write_bytes("a", LARGE)
    assert fault.struck == 2
    assert bucket.read_bytes("a") == LARGE


def begins(request: Request) -> bool:
    return request.method == "POST" and request.path.endswith("?uploads")


def second_part(request: Request) -> bool:
    return "partNumber=2" in request.path


def ends(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path


@pytest.mark.parametrize(
    ("event", "strikes"), [("refuse", begins), ("refuse", second_part), ("cut", second_part), ("refuse", ends)]
)
def test_a_store_that_dies_while_a_large_object_is_written_shows_nothing_of_it(
    s3: FlakyS3, bucket: Storage, impatient: None, event: str, strikes: Callable[[Request], bool]
) -> None:
    fault = s3.refuse(1000, strikes=strikes) if event == "refuse" else s3.cut(1000, strikes=strikes)
    with pytest.raises(StorageError, match=rf"cannot write {bucket.uri}/a: .*AWS Error.*run the same command again"):
        bucket.write_bytes("a", LARGE)
    assert fault.struck > 1
    s3.heal()
    assert bucket.files() == []
    assert not bucket.exists("a")
    bucket.write_bytes("a", LARGE)
    assert bucket.read_bytes("a") == LARGE


def test_a_store_that_dies_leaves_the_old_object(s3: FlakyS3, bucket: Storage, impatient: None) -> None:
    bucket.write_bytes("a", b"old")
    s3.refuse(1000, strikes=second_part)
    with pytest.raises(StorageError):
        bucket.write_bytes("a", LARGE)
    assert bucket.read_bytes("a") == b"old"


def test_a_store_that_stays_away_is_named_with_what_to_do(s3: FlakyS3, bucket: Storage, impatient: None) -> None:
    bucket.write_bytes("a", b"1")
    for name, deed in deeds(bucket).items():
        s3.refuse(1000)
        with pytest.raises(
            StorageError, match=rf"cannot {name} {bucket.uri}.*(SLOW_DOWN|503).*run the same command again"
        ):
            deed()
        s3.heal()


def test_missing_credentials_are_named_and_not_waited_for(s3: FlakyS3, bucket: Storage) -> None:
    fault = s3.refuse(1000, status=403)
    with pytest.raises(StorageError, match=r"ACCESS_DENIED.*give credentials in the environment \(AWS_ACCESS_KEY_ID"):
        bucket.read_bytes("a")
    assert fault.struck == 1


def test_messages_hold_no_credentials() -> None:
    storage = Storage("s3://AKIA:secret@bucket/folder?region=us-east-1&endpoint_override=localhost%3A1")
    assert storage.place("a") == "s3://bucket/folder/a"
