"""Processes for native code: a request that kills its process harms no other request."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.isolation.processes import Died, IsolatedProcesses, Refusal

MODULE = "tests.isolated_functions"


@pytest.fixture(scope="module")
def processes() -> Iterator[IsolatedProcesses]:
    made = IsolatedProcesses(MODULE, lambda: b"given", count=2, memory=64 << 20, seconds=1)
    yield made
    made.close()


def call(processes: IsolatedProcesses, *request: bytes) -> bytes:
    return bytes(processes.call(*request))


DEADLY = {
    b"crash": "SIGSEGV",
    b"signal SIGABRT": "SIGABRT",
    b"signal SIGKILL": "SIGKILL",
    b"exit 3": "exit code 3",
    b"fill 100000000": "too much memory",
    b"raise x": "KeyError",
    b"spin": "1 s of processor time",
}


@pytest.mark.parametrize(("request_", "reason"), DEADLY.items())
def test_what_kills_the_process_is_an_error_of_its_request(
    processes: IsolatedProcesses, request_: bytes, reason: str
) -> None:
    """The error says why, and the next request is answered."""
    with pytest.raises(Died, match=reason):
        processes.call(request_)
    assert call(processes, b"echo ", b"again") == b"again"


@given(st.lists(st.sampled_from([b"echo ", b"refuse no", b"crash", b"exit 0", b"raise x", b"setup"]), max_size=8))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_request_gets_its_own_answer(processes: IsolatedProcesses, requests: list[bytes]) -> None:
    """Whatever requests run beside each other, in whatever order."""

    def check(number: int, request: bytes) -> None:
        tag = str(number).encode()
        if request == b"echo ":
            assert call(processes, request, tag) == tag
        elif request == b"setup":
            assert call(processes, request) == b"given"
        elif request == b"refuse no":
            with pytest.raises(Refusal, match=f"no{number}"):
                processes.call(request, tag)
        else:
            with pytest.raises(Died):
                processes.call(request)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, range(len(requests)), requests))


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 20) + 1, 20_000_000])
def test_requests_and_replies_of_any_size_arrive_whole(processes: IsolatedProcesses, size: int) -> None:
    """Pipes take pieces."""
    data = bytes(range(256)) * (size // 256 + 1)
    assert call(processes, b"echo ", data[:size]) == data[:size]


def test_output_of_a_library_is_no_reply(processes: IsolatedProcesses) -> None:
    """What is printed goes to the log."""
    assert call(processes, b"print hello") == b""
    assert call(processes, b"echo x") == b"x"


def test_a_process_is_started_at_first_use_and_kept() -> None:
    """A second one is not started while one is idle; all end with `close`."""
    made = IsolatedProcesses(MODULE, lambda: b"", count=3, memory=1 << 24, seconds=1)
    before = psutil.Process().children()
    pids = {int(call(made, b"pid")) for _ in range(3)}
    assert len(pids) == 1
    made.close()
    assert psutil.Process().children() == before


def test_a_process_ends_with_its_parent() -> None:
    """Also when that is killed."""
    program = f"""
import sys, time
from service.isolation.processes import IsolatedProcesses
made = IsolatedProcesses({MODULE!r}, lambda: b"", count=1, memory=1 << 24, seconds=1)
print(int(bytes(made.call(b"pid"))), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 5
    with suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
