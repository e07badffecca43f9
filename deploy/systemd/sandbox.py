"""A private systemd user manager with our units installed and an empty root, of which nothing is left behind.

It is a real `systemd --user`, away from the caller's own. It runs where PID 1 is systemd and where it is something
else: all that systemd asks for is that /run/systemd/system exists, so it gets a mount namespace in which it does.
Everything else is ordinary: two temporary directories, and environment variables that lead glmctl and systemctl there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from deploy.errors import GlmError
from deploy.host import Host
from deploy.systemd.process import run
from deploy.systemd.units import Addresses, install

_PREFIX = "glm-sandbox-"
_MEMORY = Path("/dev/shm")  # noqa: S108  (tmpfs on every Linux)
_PATIENCE = 30.0
_CGROUPS = Path("/sys/fs/cgroup")
_MANAGERS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")

_BOOT = """\
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec "$0" --user
"""


class Sandbox:
    """A context manager; `env` is what a command needs in order to talk to it."""

    def __init__(self, *, root: Path | None = None) -> None:
        self._wanted_root = root

    def __enter__(self) -> Sandbox:
        _sweep()
        self.directory, self._lock = _directory(None)
        # a runtime directory lies in memory, always: its files are replaced by rename while requests wait
        self._runtime, self._runtime_lock = _directory(_MEMORY if os.access(_MEMORY, os.W_OK) else None)
        self._ports = [_reserve_port() for _ in range(2)]
        self.env = self._environment()
        try:
            self.host = self._host()
            listen, ui = (f"127.0.0.1:{port.getsockname()[1]}" for port in self._ports)
            self.addresses = Addresses(listen=listen, ui=ui)
            self._boot()
            install_env = {name: self.env[name] for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")}
            with _environment(install_env):
                install(self.host, self.addresses)
            run(["systemctl", "--user", "start", "glm.socket"], env=self.env)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        manager = getattr(self, "manager", None)
        if manager is not None:
            manager.terminate()  # systemd stops every unit and leaves
            try:
                manager.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                manager.kill()
                manager.wait()
        self._empty_cgroup()
        for port in self._ports:
            port.close()
        for lock, directory in ((self._lock, self.directory), (self._runtime_lock, self._runtime)):
            _remove(directory, lock)

    def lose_power(self) -> None:
        """End every process of this host at once and forget what lay in memory; `boot` begins again."""
        self.manager.kill()
        self.manager.wait()
        self._empty_cgroup()
        for path in self._runtime.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def boot(self) -> None:
        """Start the manager and what a host's boot starts of ours, the page left out."""
        self._boot()
        run(["systemctl", "--user", "start", "glm.socket"], env=self.env)
        run(["systemctl", "--user", "start", "--no-block", "glm-live.service"], env=self.env)

    @property
    def log(self) -> Path:
        """What the manager and all units wrote."""
        return self.directory / "log"

    def inside(self, command: Sequence[str]) -> list[str]:
        """The argv that runs `command`, from our working directory, where systemd looks booted to whoever asks."""
        enter = [
            "nsenter",
            f"--target={self.manager.pid}",
            "--mount",
            *(["--user", "--preserve-credentials"] if os.getuid() else []),
        ]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(Path.cwd()), *command]

    def _environment(self) -> dict[str, str]:
        here = str(Path(sys.executable).parent)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("GLM_", "NOTIFY_", "LISTEN_"))}
        own |= {
            "XDG_RUNTIME_DIR": str(self._runtime),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "XDG_DATA_HOME": str(self.directory / "data"),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "GLM_USER": "1",
            "PATH": f"{here}:{os.environ.get('PATH', os.defpath)}",
        }
        own.pop("DBUS_SESSION_BUS_ADDRESS", None)
        if self._wanted_root:
            own["GLM_ROOT"] = str(self._wanted_root.resolve())
        return own

    def _host(self) -> Host:
        for name in ("config", "data", "state"):
            (self.directory / name).mkdir(mode=0o700)
        with _environment({name: value for name, value in self.env.items() if name.startswith("XDG_")}):
            return Host.find(user=True, root=self._wanted_root.resolve() if self._wanted_root else None)

    def _boot(self) -> None:
        """Start the manager, and wait until it answers."""
        program = next((path for path in _MANAGERS if Path(path).exists()), None)
        if program is None:
            raise GlmError("systemd is not installed", hint="its binaries are enough; PID 1 may be something else")
        configuration = self.directory / "config/systemd/user.conf"
        configuration.parent.mkdir(exist_ok=True)
        configuration.write_text("[Manager]\nDefaultStandardOutput=inherit\nDefaultStandardError=inherit\n")
        unshare = ["unshare", "--mount", "--propagation=private"]
        if os.getuid() != 0:
            unshare += ["--user", "--map-root-user"]
        # should we be killed, it hears TERM, stops its units and leaves
        argv = ["setpriv", "--pdeathsig=TERM", *self._changes(), *unshare, "sh", "-c", _BOOT, program]
        log = self.log.open("ab")
        try:
            self.manager = subprocess.Popen(
                self._in_own_cgroup(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise GlmError(f"{error.filename} is not installed", hint="package util-linux") from error
        finally:
            log.close()
        deadline = time.monotonic() + _PATIENCE
        show = ["systemctl", "--user", "show", "--property=SystemState", "--value"]
        while run(show, check=False, env=self.env).strip() not in {"running", "degraded"}:
            if self.manager.poll() is not None or time.monotonic() > deadline:
                last = self.log.read_text(errors="replace").strip().splitlines()
                raise GlmError(
                    f"the private systemd did not start: {last[-1] if last else 'it said nothing'}",
                    hint="as root it works anywhere; otherwise user namespaces and a delegated cgroup are needed",
                )
            time.sleep(0.02)

    def _changes(self) -> list[str]:
        """An `env` command that makes our environment the sandbox's; what comes before it still needs the caller's."""
        gone = [word for name in os.environ.keys() - self.env.keys() for word in ("-u", name)]
        return ["env", *gone, *(f"{name}={value}" for name, value in self.env.items() if os.environ.get(name) != value)]

    def _in_own_cgroup(self, argv: list[str]) -> list[str]:
        """Two managers in one cgroup would take each other's units for their own."""
        if Path("/proc/1/comm").read_text().strip() == "systemd":
            scope = ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes"]
            return [*scope, *(["--user"] if os.getuid() != 0 else []), "--", *argv]
        enter = "".join(
            f'mkdir -p "{directory}" && echo $$ > "{directory}/cgroup.procs" && ' for directory in self._cgroups()
        )
        return ["sh", "-c", f'{enter} exec "$@"', "sh", *argv] if enter else argv

    def _cgroups(self) -> list[Path]:
        hierarchies = [_CGROUPS / "systemd", _CGROUPS / "unified"]
        found = [path for path in hierarchies if path.is_dir()] or [_CGROUPS]
        return [path / self.directory.name for path in found if os.access(path, os.W_OK)]

    def _empty_cgroup(self) -> None:
        for directory in self._cgroups():
            _remove_cgroup(directory)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Our own environment, changed for a moment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _reserve_port() -> socket.socket:
    """Bind a free port of 127.0.0.1 and do not listen.

    A server that sets SO_REUSEADDR, as systemd does, can listen on it; the kernel gives it to no other process.
    """
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # set earlier, the port might be taken already
    return reserved


def _remove_cgroup(directory: Path) -> None:
    """End whoever is left in there, then take it away, from the leaves up."""
    for procs in directory.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            for pid in procs.read_text().split():
                os.kill(int(pid), 9)
    deadline = time.monotonic() + 5
    while directory.exists() and time.monotonic() < deadline:
        _take_away(directory)
        time.sleep(0.01)


def _take_away(cgroup: Path) -> None:
    """Remove a cgroup and those below it, as far as they are empty."""
    for path in (*sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True), cgroup):
        with contextlib.suppress(OSError):
            path.rmdir()


def _sweep() -> None:
    """Take away what sandboxes left whose owner was killed."""
    for place in (Path(tempfile.gettempdir()), _MEMORY):
        for directory in place.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove(directory, _lock(directory))
    for cgroup in _CGROUPS.glob(f"*/{_PREFIX}*"):
        if (Path(tempfile.gettempdir()) / cgroup.name).exists():
            continue  # its owner lives, and may not have entered it yet
        with contextlib.suppress(OSError):
            if not any(procs.read_text() for procs in cgroup.rglob("cgroup.procs")):
                _take_away(cgroup)


def _directory(place: Path | None) -> tuple[Path, int]:
    """Make a temporary directory and lock it; another sandbox may sweep it away before it is locked."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # it is being swept, or was
            lock = _lock(directory)
            if directory.exists():
                return directory, lock
            os.close(lock)


def _lock(directory: Path) -> int:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove(directory: Path, lock: int) -> None:
    """Remove a directory, holding its lock until it is gone."""
    for path in directory.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)
