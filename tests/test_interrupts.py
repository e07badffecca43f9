"""An interrupt, whenever it comes: what was begun is known, so that it can be undone."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deploy import interrupts
from deploy.systemd.systemctl import Systemd
from tests.box import Box

UNIT = "test-interrupts.service"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals interrupt as in glmctl."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (*SIGNALS, signal.SIGALRM)}
    interrupts.handle()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def systemd(handled: None, empty_box: Box, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """The private manager, with a unit that takes 60 s to start."""
    del handled
    unit = Path(empty_box.env["XDG_CONFIG_HOME"]) / "systemd/user" / UNIT
    unit.write_text("[Service]\nType=notify\nExecStart=/bin/sleep 60\nTimeoutStopSec=5\n")
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, empty_box.env[name])
    systemd = Systemd(user=True)
    systemd.daemon_reload()
    yield systemd
    systemd.stop(UNIT)
    unit.unlink()
    systemd.daemon_reload()


def assert_stays_inactive(systemd: Systemd) -> None:
    """Stop the unit as an undo does; no request of before starts it afterwards."""
    systemd.stop(UNIT)
    time.sleep(0.1)
    assert systemd.state(UNIT).active == "inactive"


@given(delay=st.floats(0, 0.06))
@example(delay=0)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_job_that_is_interrupted_can_be_cancelled(systemd: Systemd, delay: float) -> None:
    """Whether systemctl has just been started, or its request is on its way, or the job runs."""

    def interrupt() -> None:
        begun.wait()
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)

    begun = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        begun.set()
        with systemd.starting(UNIT) as job:
            while not job.done:
                time.sleep(0.01)
    thread.join()
    assert_stays_inactive(systemd)


def test_an_interrupt_while_systemctl_is_being_started(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is a process object to end it by; the request comes half a second later."""
    slow = tmp_path / "systemctl"
    slow.write_text(
        '#!/bin/sh\nexport PATH="${PATH#*:}"\ncase "$*" in *" start "*) sleep 0.5;; esac\nexec systemctl "$@"\n'
    )
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    begin = subprocess.Popen

    class Interrupted(begin):  # type: ignore[misc, valid-type]
        def __init__(self, argv: list[str], **options: object) -> None:
            super().__init__(argv, **options)
            if "start" in argv:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), systemd.starting(UNIT):
        pass
    assert_stays_inactive(systemd)
    time.sleep(0.6)
    assert systemd.state(UNIT).active == "inactive"


@pytest.mark.usefixtures("handled")
def test_every_signal_waits_for_the_end_of_a_held_block() -> None:
    """SIGINT, SIGTERM and SIGHUP raise once the outermost block has ended, and at once outside of one."""
    for number in SIGNALS:
        done = []
        with pytest.raises(KeyboardInterrupt), interrupts.held():  # noqa: PT012
            with interrupts.held():
                os.kill(os.getpid(), number)
                done.append("inner")
            done.append("outer")
        assert done == ["inner", "outer"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


class Node:
    """An object whose end can be observed."""


def in_a_finalizer(act: Callable[[], None]) -> None:
    """Call act in an object's `__del__`."""
    type("Finalized", (), {"__del__": lambda _: act()})()


def in_a_weak_reference(act: Callable[[], None]) -> None:
    """Call act when an object that is referred to weakly has gone, as `WeakSet` and `weakref.finalize` do."""
    node = Node()
    reference = weakref.ref(node, lambda _: act())
    del node
    assert reference() is None


def in_a_collection(act: Callable[[], None]) -> None:
    """Call act in an object of a cycle, which the garbage collector finds."""
    node = type("Finalized", (), {"__del__": lambda _: act()})()
    node.itself = node
    del node
    gc.collect()


def in_a_generator(act: Callable[[], None]) -> None:
    """Call act when a generator that nobody reads any further is closed."""

    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            act()

    next(numbers())


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("where", [in_a_finalizer, in_a_weak_reference, in_a_collection, in_a_generator])
def test_an_interrupt_whose_exception_is_discarded_comes_again(
    where: Callable[[Callable[[], None]], None], number: signal.Signals
) -> None:
    """Python discards what is raised where nobody could catch it: the interrupt is not lost with it."""
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        where(lambda: os.kill(os.getpid(), number))
        time.sleep(5)
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.held():  # noqa: PT012
        where(lambda: os.kill(os.getpid(), number))
        time.sleep(0.05)
        done.append("held")
    assert done


@pytest.mark.usefixtures("handled")
def test_another_discarded_exception_is_still_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only interrupts are taken from the hook that was there before."""
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda discarded: seen.append(discarded.exc_type))
    interrupts.handle()
    interrupts.handle()
    in_a_finalizer(lambda: os.close(-1))
    assert seen == [OSError]


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    """Ctrl-C does not reach a script's command in the background, nor the end of a terminal one under nohup."""
    signal.signal(number, signal.SIG_IGN)
    interrupts.handle()
    os.kill(os.getpid(), number)
    assert signal.getsignal(number) == signal.SIG_IGN
