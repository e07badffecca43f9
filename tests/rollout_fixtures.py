"""A host of directories alone, whose service manager is scripted: rollouts without a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.display import Display
from deploy.host import Host
from deploy.journal.journal import Journal, begin
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.systemd.systemctl import Systemd, UnitState
from deploy.systemd.timers import Timers
from service.contract.slots import Slots

__all__ = ["Moments", "ScriptedContext", "directories"]


@contextmanager
def directories(path: Path) -> Iterator[Host]:
    """A host in `path` on which 1.0.0 is live in blue, and green leads to 1.1.0."""
    for name in ("root", "run", "state", "state/history"):
        (path / name).mkdir()
    for link, target in (("blue", "releases/1.0.0"), ("green", "releases/1.1.0"), ("live", "blue")):
        (path / "root" / link).symlink_to(target)
    yield Host(True, path / "root", path / "run", path / "state", path, path / "glm.env")


@dataclass
class Moments:
    """Counts the moments of a rollout, and has another process act at one of them.

    The other process is a thread. It may wait for a lock: then the rollout goes on, and it acts when the lock is free.
    """

    chosen: int = -1
    act: Callable[[], None] = lambda: None
    passed: int = 0
    _thread: threading.Thread | None = None

    def tick(self, *_: object, **__: object) -> None:
        """One moment passes."""
        if self.passed == self.chosen:
            self._thread = threading.Thread(target=self.act)
            self._thread.start()
            self._thread.join(0.03)
        self.passed += 1

    def end(self) -> None:
        """Wait for the other process."""
        if self._thread is not None:
            self._thread.join(10)
            assert not self._thread.is_alive()


@dataclass(frozen=True)
class _ScriptedSystemd(Systemd):
    context: ScriptedContext | None = None

    def stop(self, unit: str, watch: Callable[[], object] = lambda: None) -> None:
        self._end(unit, "stop")

    def kill_main(self, unit: str, signal: str) -> None:
        self._end(unit, signal)

    def _end(self, unit: str, how: str) -> None:
        assert self.context is not None
        slot = unit.partition("@")[2].removesuffix(".service")
        for _ in range(2):  # when the command begins, and when it has ended
            self.context.calls.append((how, slot, self.context.slots.live or ""))
            self.context.moments.tick()

    def start(self, unit: str) -> None:
        pass

    def state(self, unit: str) -> UnitState:
        return UnitState("loaded", "active", "success", "", 1)

    def listen(self) -> str | None:
        return None

    def memory_max(self, unit: str) -> int | None:
        return None


@dataclass(frozen=True)
class _ScriptedTimers(Timers):
    context: ScriptedContext | None = None

    def _schedule(self, name: str, command: list[str], *when: str) -> None:
        pass

    def _cancel(self, name: str) -> None:
        pass


@dataclass(frozen=True)
class ScriptedContext(Context):
    """A context whose service manager records what ends a slot, and which slot was live then."""

    moments: Moments = field(default_factory=Moments)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    """What was done (stop, or a signal), to which slot, and the live slot, before and after."""

    @classmethod
    def of(cls, host: Host, moments: Moments) -> ScriptedContext:
        """Return a context that displays nothing."""
        return cls(host, Display(quiet=True), moments)

    @property
    def systemd(self) -> Systemd:
        return _ScriptedSystemd(True, self)

    @property
    def timers(self) -> Timers:
        return _ScriptedTimers(self.host, self)

    @property
    def slots(self) -> Slots:
        return Slots(self.host.root)

    def deploy(self, plan: Plan) -> Rollout:
        """Return a deploy to green that has begun."""
        return Rollout.begin(self, plan, begin(Journal(self.host), "deploy", plan.version, "green", plan.strategy))
