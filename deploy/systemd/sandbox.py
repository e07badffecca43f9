"""A private systemd user manager with the units installed and an empty root; everything is removed at the end.

It is a real `systemd --user`, separate from the caller's. PID 1 may be another program: systemd requires only that
/run/systemd/system exists, so the manager gets a mount namespace in which it does. Its state is in two temporary
directories, and environment variables direct glmctl and systemctl to them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from deploy.errors import GlmError
from deploy.host import Host
from deploy.systemd import programs
from deploy.systemd.process import end, run, start_daemon
from deploy.systemd.units import Addresses, install

LOG_VARIABLE = "GLM_SANDBOX_LOG"
"""Names the log of all units of a sandbox, which has no journal."""

_PREFIX = "glm-sandbox-"
_MEMORY = Path("/dev/shm")  # noqa: S108  (tmpfs on every Linux)
_TIMEOUT = 30.0  # seconds for the manager to start, and to stop
_CGROUPS = Path("/sys/fs/cgroup")
_MANAGERS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")

_BOOT_SCRIPT = """\
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec "$0" --user
"""


class Sandbox:
    """A context manager. A command reaches the private manager with the environment `env`.

    `root`: the directory of releases and symlinks, kept at the end; a temporary one by default.
    """

    def __init__(self, *, root: Path | None = None) -> None:
        self._root = root

    def __enter__(self) -> Sandbox:
        programs.require(programs.SANDBOX)
        _sweep()
        self.directory, self._lock = _directory(None)
        # in memory, as on a real host: its files are replaced by rename while requests wait
        self._runtime, self._runtime_lock = _directory(_MEMORY if os.access(_MEMORY, os.W_OK) else None)
        self._ports = [reserve_port() for _ in range(2)]
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
            end(manager, _TIMEOUT)  # systemd stops every unit and exits
        self._empty_cgroup()
        for port in self._ports:
            port.close()
        for lock, directory in ((self._lock, self.directory), (self._runtime_lock, self._runtime)):
            _remove(directory, lock)

    def lose_power(self) -> None:
        """Kill every process of this host and clear its runtime directory; `boot` starts it again."""
        self.manager.kill()
        self.manager.wait()
        self._empty_cgroup()
        for path in self._runtime.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def boot(self) -> None:
        """Start the manager and the units that a host's boot starts, without the page."""
        self._boot()
        run(["systemctl", "--user", "start", "glm.socket"], env=self.env)
        run(["systemctl", "--user", "start", "--no-block", "glm-live.service"], env=self.env)

    @property
    def log(self) -> Path:
        """The output of the manager and of all units."""
        return self.directory / "log"

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the argv that runs `command` in the mount namespace of the manager, from the present directory."""
        enter = [
            "nsenter",
            f"--target={self.manager.pid}",
            "--mount",
            *(["--user", "--preserve-credentials"] if os.getuid() else []),
        ]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(Path.cwd()), *command]

    def _environment(self) -> dict[str, str]:
        scripts = str(Path(sys.executable).parent)
        values = {
            name: value for name, value in os.environ.items() if not name.startswith(("GLM_", "NOTIFY_", "LISTEN_"))
        }
        values |= {
            "XDG_RUNTIME_DIR": str(self._runtime),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "XDG_DATA_HOME": str(self.directory / "data"),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "GLM_USER": "1",
            LOG_VARIABLE: str(self.log),
            "PATH": f"{scripts}:{os.environ.get('PATH', os.defpath)}",
        }
        values.pop("DBUS_SESSION_BUS_ADDRESS", None)
        if self._root:
            values["GLM_ROOT"] = str(self._root.resolve())
        return values

    def _host(self) -> Host:
        for name in ("config", "data", "state"):
            (self.directory / name).mkdir(mode=0o700)
        with _environment({name: value for name, value in self.env.items() if name.startswith("XDG_")}):
            return Host.find(user=True, root=self._root.resolve() if self._root else None)

    def _boot(self) -> None:
        """Start the manager and wait until it is running; raises GlmError."""
        program = next((path for path in _MANAGERS if Path(path).exists()), None)
        if program is None:
            raise GlmError("systemd is not installed", hint="install it; PID 1 may be another program")
        configuration = self.directory / "config/systemd/user.conf"
        configuration.parent.mkdir(exist_ok=True)
        configuration.write_text("[Manager]\nDefaultStandardOutput=inherit\nDefaultStandardError=inherit\n")
        unshare = ["unshare", "--mount", "--propagation=private"]
        if os.getuid() != 0:
            unshare += ["--user", "--map-root-user"]
        # if this process is killed, the manager gets SIGTERM, stops its units and exits
        argv = ["setpriv", "--pdeathsig=TERM", *self._env_command(), *unshare, "sh", "-c", _BOOT_SCRIPT, program]
        self.manager = start_daemon(self._in_own_cgroup(argv), self.log)
        deadline = time.monotonic() + _TIMEOUT
        show = ["systemctl", "--user", "show", "--property=SystemState", "--value"]
        while run(show, check=False, env=self.env).strip() not in {"running", "degraded"}:
            if self.manager.poll() is not None or time.monotonic() > deadline:
                last = self.log.read_text(errors="replace").strip().splitlines()
                raise GlmError(
                    f"the private systemd did not start: {last[-1] if last else 'no message'}",
                    hint="without root, user namespaces and a delegated cgroup are required",
                )
            time.sleep(0.02)

    def _env_command(self) -> list[str]:
        """Return the `env` command that sets the sandbox's environment. Commands before it need the caller's."""
        unset = [word for name in os.environ.keys() - self.env.keys() for word in ("-u", name)]
        return [
            "env",
            *unset,
            *(f"{name}={value}" for name, value in self.env.items() if os.environ.get(name) != value),
        ]

    def _in_own_cgroup(self, argv: list[str]) -> list[str]:
        """Return the argv that runs `argv` in a new cgroup: managers in one cgroup would stop each other's units."""
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
    """Set environment variables of this process for the duration of a block."""
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


def reserve_port() -> socket.socket:
    """Bind a free port of 127.0.0.1 and do not listen.

    A server that sets SO_REUSEADDR, as systemd does, can listen on it; the kernel gives it to no other process.
    """
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # set earlier, the port might be taken already
    return reserved


def _remove_cgroup(directory: Path) -> None:
    """Kill the processes in a cgroup and those below it, then remove them."""
    for procs in directory.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            for pid in procs.read_text().split():
                os.kill(int(pid), 9)
    deadline = time.monotonic() + 5
    while directory.exists() and time.monotonic() < deadline:
        _remove_empty_cgroup(directory)
        time.sleep(0.01)


def _remove_empty_cgroup(cgroup: Path) -> None:
    """Remove a cgroup and those below it, leaves first, as far as they are empty."""
    for path in (*sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True), cgroup):
        with contextlib.suppress(OSError):
            path.rmdir()


def _sweep() -> None:
    """Remove the directories and cgroups of sandboxes whose process was killed."""
    for place in (Path(tempfile.gettempdir()), _MEMORY):
        for directory in place.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove(directory, _lock(directory))
    for cgroup in _CGROUPS.glob(f"*/{_PREFIX}*"):
        if (Path(tempfile.gettempdir()) / cgroup.name).exists():
            continue  # its sandbox is running and may not have entered it yet
        with contextlib.suppress(OSError):
            if not any(procs.read_text() for procs in cgroup.rglob("cgroup.procs")):
                _remove_empty_cgroup(cgroup)


def _directory(place: Path | None) -> tuple[Path, int]:
    """Create a temporary directory and lock it; retry if another sandbox removed it before it was locked."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # being removed, or removed
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
