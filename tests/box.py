"""A sandbox as tests use it: a real systemd, our units, and glmctl as a person would type it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx

from deploy.journal.journal import Journal
from deploy.loadtest import Report
from deploy.releases.store import Releases
from deploy.systemd.sandbox import Sandbox
from service.contract.generations import Generation, current, generations
from service.contract.slots import Slots
from tests import forkserver

Engine = Literal["model", "dummy"]

CODE = Path(__file__).resolve().parent.parent


class Box:
    """One host in a private service manager. Its workers run the model, or with `engine` "dummy" do without one."""

    def __init__(self, sandbox: Sandbox, engine: Engine = "model") -> None:
        self.sandbox = sandbox
        self.engine = engine
        self.host = sandbox.host
        self.env = sandbox.env
        self.env.setdefault("GLM_GUARD_SECONDS", "600")  # tests end the rollouts of killed controllers themselves
        self.listen = sandbox.addresses.listen
        self._commands: list[subprocess.Popen[str]] = []
        self.slots = Slots(sandbox.host.root)

    def glmctl(self, *words: str, expect: int | None = 0, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run glmctl to its end; fails the test when the exit code is another than expected."""
        done = forkserver.glmctl(words, self.env, timeout=timeout)
        if expect is not None and done.returncode != expect:
            raise AssertionError(
                f"glmctl {' '.join(words)} ended with {done.returncode} instead of {expect}\n"
                f"{done.stdout}{done.stderr}\n--- log\n{self.log()}"
            )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *words: str, expect: int | None = 0, timeout: float = 120) -> Any:
        """Run glmctl with --json and return the document."""
        return json.loads(self.glmctl(*words, "--json", expect=expect, timeout=timeout).stdout)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start glmctl and return it running."""
        command = subprocess.Popen(
            ["glmctl", *words], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._commands.append(command)
        return command

    def end(self) -> None:
        """Kill the commands that a failed test left running."""
        for command in self._commands:
            if command.poll() is None:
                command.kill()
                command.wait()
            if command.stdout:
                command.stdout.close()

    def systemctl(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run systemctl --user in this host's manager."""
        return subprocess.run(
            ["systemctl", "--user", "--no-pager", *words], env=self.env, capture_output=True, text=True, timeout=timeout
        )

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", unit, f"--property={name}", "--value").stdout.strip()

    def configure(self, **settings: object) -> None:
        """Write GLM_* settings for generations that start from now on."""
        self.host.settings.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"GLM_{name.upper()}={value}" for name, value in {"engine": self.engine, **settings}.items()]
        self.host.settings.write_text("\n".join(lines) + "\n")

    def stock(self, checkpoints: dict[str, Path]) -> None:
        """Add each checkpoint as a release, under the version that is its key."""
        for version, path in checkpoints.items():
            Releases(self.host).add(path, version=version)

    def drop_in(self, text: str) -> None:
        """Change glm@.service as an operator would."""
        path = self.host.units / "glm@.service.d/test.conf"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.systemctl("daemon-reload")

    def get(self, path: str, **more: Any) -> httpx.Response:
        """Ask the public socket, on a connection of its own."""
        return httpx.get(f"http://{self.listen}{path}", timeout=30, trust_env=False, **more)

    def generation(self, slot: str) -> Generation:
        """The slot's present generation."""
        one = current(self.host.runtime, slot)
        assert one is not None, f"no generation of {slot} lives\n{self.log()}"
        return one

    def generations(self, slot: str) -> list[Generation]:
        """All generations of the slot that left an account."""
        return generations(self.host.runtime, slot)

    def log(self) -> str:
        """What the units wrote, the end of it."""
        return self.sandbox.log.read_text(errors="replace")[-6000:]

    @contextmanager
    def baking(self, version: str) -> Iterator[subprocess.Popen[str]]:
        """A deploy that bakes in another terminal until the block has rolled it back."""
        deploy = self.begin("deploy", version, "--bake", "600s")
        self.await_phase(deploy, "bake")
        yield deploy
        out, _ = deploy.communicate(timeout=60)
        assert deploy.returncode == 5, out

    def await_phase(self, command: subprocess.Popen[str], phase: str, seconds: float = 60) -> None:
        """Wait until the rollout under way has journalled `phase`; it looks every 2 ms, for some phases are short."""
        deadline = time.monotonic() + seconds
        directory, seen, next_read = self.host.state / "history", 0, 0.0
        while True:
            now = time.monotonic()
            changed = directory.stat().st_mtime_ns if directory.exists() else 0
            if changed != seen or now >= next_read:  # two records may be written within one tick of the file system
                seen, next_read = changed, now + 0.02
                if (one := Journal(self.host).last()) and one.phase == phase and one.outcome is None:
                    return
                assert command.poll() is None, f"it ended before {phase}: {command.communicate()[0]}"
                assert now < deadline, f"no {phase} within {seconds} s\n{self.log()}"
            time.sleep(0.002)

    @contextmanager
    def load(
        self, tmp_path: Path, *, seconds: float = 600, scale: float = 1.0, words: Sequence[str] = ()
    ) -> Iterator[Load]:
        """Run the mixed load, and stop it at the end of the block. `words`: further arguments."""
        load = Load(self, tmp_path / "load.json", seconds, scale, words)
        try:
            yield load
        finally:
            load.stop()


@contextmanager
def empty_host(engine: Engine) -> Iterator[Box]:
    """A host on which nothing was deployed yet."""
    with Sandbox() as sandbox:
        box = Box(sandbox, engine)
        box.configure(threads=1)
        try:
            yield box
        finally:
            box.end()


@contextmanager
def live_host(checkpoints: dict[str, Path], engine: Engine = "dummy") -> Iterator[Box]:
    """A host that has both releases, and on which 1.0.0 is live, in blue."""
    with empty_host(engine) as box:
        box.stock(checkpoints)
        box.glmctl("deploy", "1.0.0")
        yield box


class Load:
    """The mixed load, in a process of its own."""

    def __init__(self, box: Box, path: Path, seconds: float, scale: float, words: Sequence[str] = ()) -> None:
        self._path = path
        self._log = path.with_suffix(".log").open("w")
        host, port = box.listen.split(":")
        self._process = subprocess.Popen(
            ["python", "-m", "deploy.loadtest", host, port, "--seconds", str(seconds), "--scale", str(scale),
             "--json", str(path), *words],
            env=box.env, stdout=self._log, stderr=self._log, cwd=CODE,
        )  # fmt: skip
        time.sleep(2)

    def stop(self) -> Report:
        """Let it finish what is in flight and report."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(90)
        self._log.close()
        return Report.model_validate_json(self._path.read_text())


def wait_for(condition: Callable[[], object], seconds: float = 60, what: str = "it") -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def kill(pid: int) -> None:
    """Kill -9."""
    os.kill(pid, signal.SIGKILL)
