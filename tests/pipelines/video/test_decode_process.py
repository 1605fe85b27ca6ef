from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.video.decode_child import ExtractSettings
from pipelines.video.decode_process import DecodeProcess, ExtractionError, _own_gpu
from pipelines.video.messages import DeadlineError, Message, receive, send

SETTINGS = ExtractSettings(rate=1, max_frames=12, short_side_px=32, decoder="auto", format="jpeg", jpeg_quality=90)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_messages_survive_the_pipe() -> None:
    reading, writing = os.pipe()
    sent = Message({"a": [1, "ü"]}, [b"", b"x" * 10])
    send(writing, sent)
    received = receive(reading, deadline=time.monotonic() + 5)
    assert (received.header, list(received.blobs)) == (sent.header, list(sent.blobs))
    with pytest.raises(DeadlineError):
        receive(reading, deadline=time.monotonic() + 0.05)
    os.close(writing)
    with pytest.raises(EOFError):
        receive(reading)
    os.close(reading)


@pytest.mark.slow
def test_the_process_starts_at_the_first_video_and_is_reused(process: DecodeProcess, write_video: Any) -> None:
    path = str(write_video("a.mp4"))
    assert process.pid is None
    first = process.extract(path, SETTINGS)
    pid = process.pid
    assert process.extract(path, SETTINGS) == first
    assert process.pid == pid
    assert first.frame_index == [0, 10]


@pytest.mark.slow
def test_the_process_loads_neither_torch_nor_ray_nor_arrow() -> None:
    code = (
        "import sys, pipelines.video.decode_child; print([m for m in ('torch', 'ray', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_hanging_decoder_costs_one_video(write_video: Any) -> None:
    path = str(write_video("a.mp4"))
    process = DecodeProcess(timeout_s=0.5, max_memory_gb=4)
    process.extract(path, SETTINGS)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ExtractionError, match=r"longer than frames\.timeout_s = 0\.5 s") as failure:
        process.extract(path, SETTINGS)
    assert failure.value.reason == "timeout"
    assert not _is_running(pid)
    assert process.extract(path, SETTINGS).frame_index == [0, 10]
    process.close()


_CRASHES_AT_BAD = """
import os, signal, sys
from pipelines.video import decode_child
extract = decode_child.extract
def crash(source, settings):
    if "bad" in source:
        os.kill(os.getpid(), signal.SIGSEGV)
    return extract(source, settings)
decode_child.extract = crash
decode_child.main(sys.argv[1:])
"""

_HANGS_AT_BAD = """
import ctypes, sys
from pipelines.video import decode_child
extract = decode_child.extract
def hang(source, settings):
    if "bad" in source:
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock, as decord's known hang does
    return extract(source, settings)
decode_child.extract = hang
decode_child.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [(_CRASHES_AT_BAD, "crash", "ended with SIGSEGV"), (_HANGS_AT_BAD, "timeout", "longer than frames.timeout_s")],
)
def test_a_video_that_breaks_the_decoder_costs_itself_only(
    write_video: Any, code: str, reason: str, message: str
) -> None:
    good, bad = str(write_video("good.mp4")), str(write_video("bad.mp4"))
    process = DecodeProcess(timeout_s=1, max_memory_gb=4, command=[sys.executable, "-c", code])
    outcomes = []
    for path in (good, bad, good):
        try:
            outcomes.append(str(process.extract(path, SETTINGS).frame_index))
        except ExtractionError as error:
            assert message in str(error)
            outcomes.append(error.reason)
    process.close()
    assert outcomes == ["[0, 10]", reason, "[0, 10]"]


@pytest.mark.slow
def test_a_process_that_died_for_another_reason_blames_no_video(process: DecodeProcess, write_video: Any) -> None:
    path = str(write_video("a.mp4"))
    process.extract(path, SETTINGS)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert process.extract(path, SETTINGS).frame_index == [0, 10]
    assert process.pid != pid


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "print('noise')"])
def test_a_program_that_does_not_answer_is_a_crash(write_video: Any, code: str) -> None:
    process = DecodeProcess(timeout_s=5, max_memory_gb=1, command=[sys.executable, "-c", code])
    with pytest.raises(ExtractionError, match="ended with exit code") as failure:
        process.extract(str(write_video("a.mp4")), SETTINGS)
    assert failure.value.reason == "crash"
    assert process.pid is None


def test_memory_is_limited(real_videos: dict[str, Path], write_video: Any) -> None:
    process = DecodeProcess(timeout_s=30, max_memory_gb=0.01)
    with pytest.raises(ExtractionError) as failure:
        process.extract(str(real_videos["bigbuckbunny"]), SETTINGS)
    # Native code may abort where an allocation fails, before it can say why.
    assert failure.value.reason in ("memory", "crash")
    assert process.pid is None
    process.close()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_dies_with_its_parent(write_video: Any) -> None:
    code = f"""
import os, signal
from pipelines.video.decode_process import DecodeProcess
from pipelines.video.decode_child import ExtractSettings
process = DecodeProcess(timeout_s=30, max_memory_gb=4)
process.extract({str(write_video("a.mp4"))!r}, {SETTINGS!r})
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while _is_running(int(done.stdout)):
        assert time.monotonic() < deadline, "the decoding process outlived its parent"
        time.sleep(0.02)


@pytest.mark.slow
def test_the_process_ends_when_its_owner_is_collected(write_video: Any) -> None:
    process = DecodeProcess(timeout_s=30, max_memory_gb=4)
    process.extract(str(write_video("a.mp4")), SETTINGS)
    pid = process.pid
    assert pid is not None
    del process
    assert not _is_running(pid)


@pytest.mark.parametrize(
    ("device", "visible", "own"),
    [("cpu", "0,1", ""), ("cuda:0", None, "0"), ("cuda:1", "3, GPU-a", "GPU-a"), ("cuda:2", None, "2")],
)
def test_a_gpu_decodes_only_for_those_who_may_use_it(
    device: str, visible: str | None, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.resources.device.compute_device", lambda: torch.device(device))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _own_gpu() == own
