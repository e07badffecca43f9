"""Booted hosts for tests, each with systemd as PID 1, a network and a cgroup of its own.

The disk of a host is an overlay in memory over the root of this machine, so that no image is needed. It is bare: it has
the files of Debian packages, but not the checkout, home directories, /opt, or the units that this machine enables.
Mounts and networks are in private namespaces, and processes are killed with their parent: a killed test run leaves
nothing mounted and nothing running.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

_TOOLS = ("systemd-nspawn", "ip", "nsenter", "unshare", "setpriv")
_PACKAGED = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "lost+found", "media", "proc", "run"}
)
_PACKAGED |= {"sbin", "sys", "tmp", "usr", "var"}
_HIDDEN = ("/etc/systemd/system", *(f"/etc/rc{level}.d" for level in "2345"))
_MASKED = ("console-getty.service", "systemd-networkd-wait-online.service", "systemd-update-utmp.service")
_DISK = "8g"  # an upper limit; an environment with torch uses about 2 GB of memory
_NETWORK = "10.77.0"
_BRIDGE = "glm0"
_TIMEOUT = 60.0  # seconds
_CGROUPS = Path("/sys/fs/cgroup")
_SERIALS = itertools.count(1)

T = TypeVar("T")

# Run in a mount namespace of its own. Arguments: an empty directory, the host's name, its machine id, the size of its
# disk, the names of its empty directories, and the command of the container.
_BOOT_SCRIPT = """
set -e
mount -t tmpfs -o "size=$4,mode=0755" tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
for empty in $5; do mkdir -p "$1/empty/$empty"; done
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
rm -f etc/machine-id etc/hostname etc/hosts etc/fstab etc/pip.conf
echo "$3" > etc/machine-id
echo "$2" > etc/hostname
echo "127.0.0.1 localhost $2" > etc/hosts
cd /
shift 5
# a host that reboots ends systemd-nspawn with code 133
while "$@"; [ $? -eq 133 ]; do :; done
"""


class HostError(Exception):
    """A host could not be booted, or a command failed."""


@dataclass(frozen=True)
class BootedHost:
    """A running host. `leader` is the pid of its PID 1 on this machine, `shell` a replacement for ssh that enters it.

    `client`: a process in the network namespace of the hosts, from which clients connect.
    """

    name: str
    address: str
    leader: int
    shell: Path
    client: int

    def run(self, argv: Sequence[str], *, check: bool = True, seconds: float = 60.0) -> str:
        """Run `argv` on the host as root and return its stdout; raises HostError with its output if it fails."""
        return _run([str(self.shell), self.name, shlex.join(argv)], check=check, seconds=seconds)

    def outside(self, argv: Sequence[str], *, check: bool = True, seconds: float = 60.0) -> str:
        """Run `argv` with the files of this machine in the network of the hosts, as a client."""
        return _run(["nsenter", f"--target={self.client}", "--net", *argv], check=check, seconds=seconds)

    def journal(self, unit: str, lines: int = 60) -> str:
        """Return the last lines of the journal of `unit`."""
        return self.run(["journalctl", "--no-pager", "-o", "cat", f"-n{lines}", f"--unit={unit}"], check=False)


def rebooted(host: BootedHost, *, is_power_off: bool = False) -> BootedHost:
    """Reboot a host, and return it once it runs; its disk is kept, and its network is new.

    `is_power_off`: all of its processes are killed at once, as when its power goes off and comes back.
    """
    shell = _parent(_parent(host.leader))
    host.run(["systemctl", "reboot", *(["--force", "--force"] if is_power_off else [])], check=False)
    _wait("the host to go down", lambda: not Path(f"/proc/{host.leader}").exists())
    again = replace(host, leader=_wait("the host to boot again", lambda: _accepting(shell))[0])
    _connect(again)
    return again


@contextlib.contextmanager
def booted_host(*, readable: Mapping[Path, str]) -> Iterator[BootedHost]:
    """Boot one bare host; the directories `readable` are mounted in it, read-only, at the paths that they map to."""
    with booted_hosts(1, readable=readable) as hosts:
        yield hosts[0]


@contextlib.contextmanager
def booted_hosts(count: int, *, readable: Mapping[Path, str] | None = None) -> Iterator[list[BootedHost]]:
    """Boot `count` bare hosts in one private network; raises HostError if this machine cannot."""
    _require()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(_network())
        yield [stack.enter_context(_host(number, network, readable or {})) for number in range(1, count + 1)]


def _require() -> None:
    if os.geteuid() != 0:
        raise HostError("booting hosts requires root: run these tests with sudo")
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise HostError(f"{', '.join(missing)} not installed: apt-get install systemd-container iproute2 util-linux")


@contextlib.contextmanager
def _network() -> Iterator[int]:
    """Create a network namespace with a bridge; yields the pid of the process that holds it."""
    with _child(["unshare", "--net", "sleep", "infinity"]) as holder:
        own = _namespace(os.getpid(), "net")
        _wait("the network namespace", lambda: _namespace(holder.pid, "net") not in {own, ""})
        for words in (
            "link set lo up",
            f"link add {_BRIDGE} type bridge",
            f"addr add {_NETWORK}.1/24 dev {_BRIDGE}",
            f"link set {_BRIDGE} up",
        ):
            _run(["nsenter", f"--target={holder.pid}", "--net", "ip", *words.split()])
        yield holder.pid


@contextlib.contextmanager
def _host(number: int, network: int, readable: Mapping[Path, str]) -> Iterator[BootedHost]:
    # also the name of its cgroup, so that it must be unique on this machine
    serial = next(_SERIALS)
    name = f"glm-{os.getpid()}-{serial}"
    address = f"{_NETWORK}.{10 + number}"
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-", dir="/run")))
        (directory / "disk").mkdir()
        cgroups = stack.enter_context(_cgroup(name))
        console = stack.enter_context((directory / "console").open("wb"))
        machine = f"{os.getpid():024x}{serial:08x}"
        empty = " ".join(map(_empty, _hidden()))
        boot = ["sh", "-c", _BOOT_SCRIPT, "sh", str(directory / "disk"), name, machine, _DISK, empty]
        enter = "".join(f"echo $$ > {cgroup}/cgroup.procs; " for cgroup in cgroups) + 'exec "$@"'
        container = stack.enter_context(
            _child(
                [
                    *("nsenter", f"--target={network}", "--net", "sh", "-ec", enter, "sh"),
                    # PID 1 of the container survives nspawn, but not the pid namespace around both
                    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private", *boot),
                    *_nspawn(directory / "disk", name, readable),
                ],
                console,
            )
        )
        leader = _leader(container, directory / "console")
        host = BootedHost(name, address, leader, directory / "ssh", network)
        _connect(host)
        yield host


def _connect(host: BootedHost) -> None:
    """Write the shell of a host that has booted, give the host its address, and wait until all its units run."""
    host.shell.write_text(
        "#!/bin/sh\n# Called like ssh, with a host and a command as the last arguments; options are ignored.\n"
        "for command; do :; done\nexec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root "
        f'LANG=C.UTF-8 nsenter --target={host.leader} --all --wdns=/root sh -c "$command"\n'
    )
    host.shell.chmod(0o700)
    for words in ("link set lo up", f"addr add {host.address}/24 dev host0", "link set host0 up"):
        host.run(["ip", *words.split()])
    state = host.run(["systemctl", "is-system-running", "--wait"], check=False).strip()
    if state != "running":
        raise HostError(f"{host.name} is {state}: {host.run(['systemctl', '--failed', '--plain'], check=False)}")


def _hidden() -> list[str]:
    """Return the directories of this machine that are empty ones of the disk on a host."""
    foreign = (str(path) for path in Path("/").iterdir() if path.is_dir() and path.name not in _PACKAGED)
    return list(dict.fromkeys([*foreign, *_HIDDEN]))


def _empty(path: str) -> str:
    return path.strip("/").replace("/", "-")


def _nspawn(disk: Path, name: str, readable: Mapping[Path, str]) -> list[str]:
    return [
        *("systemd-nspawn", "--quiet", "--boot", f"--directory={disk / 'root'}", f"--machine={name}"),
        # this machine may run no systemd that could register it
        *("--register=no", "--keep-unit", f"--network-bridge={_BRIDGE}"),
        *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
        *(f"--bind={disk / 'empty' / _empty(path)}:{path}" for path in _hidden()),
        *(f"--bind-ro={path}:{target}" for path, target in readable.items()),
        # in a container systemd reads its arguments like a kernel command line
        *("--", "systemd.unit=multi-user.target", *(f"systemd.mask={unit}" for unit in _MASKED)),
    ]


@contextlib.contextmanager
def _cgroup(name: str) -> Iterator[list[Path]]:
    """Create a cgroup for the host in each hierarchy that systemd uses, so that hosts do not share those of units."""
    is_unified = (_CGROUPS / "cgroup.controllers").exists()
    roots = [_CGROUPS] if is_unified else [_CGROUPS / "systemd", _CGROUPS / "unified"]
    directories = [root / name for root in roots if root.is_dir()]
    for directory in directories:
        directory.mkdir()
    try:
        yield directories
    finally:
        for directory in directories:
            _wait(f"the cgroup {directory} to empty", partial(_removed, directory))


def _removed(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        for path, _, _ in os.walk(directory, topdown=False):
            Path(path).rmdir()
    return not directory.exists()


@contextlib.contextmanager
def _child(argv: Sequence[str], output: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that is killed at the end of the block, or with this process."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", *argv],
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _leader(container: subprocess.Popen[bytes], console: Path) -> int:
    """Wait until PID 1 of the host accepts commands; returns its pid on this machine."""

    def accepting() -> list[int]:
        if container.poll() is not None:
            raise HostError(f"the host did not boot: {console.read_text(errors='replace')[-2000:]}")
        return [pid for shell in _children(container.pid) for pid in _accepting(shell)]

    return _wait("the host to boot", accepting)[0]


def _accepting(shell: int) -> list[int]:
    """Return the pid of PID 1 of the host below the shell of `_BOOT_SCRIPT`, if it accepts commands."""
    boots = [pid for nspawn in _children(shell) for pid in _children(nspawn)]
    return [pid for pid in boots if Path(f"/proc/{pid}/root/run/systemd/private").exists()]


def _parent(pid: int) -> int:
    return int(_run(["ps", "-o", "ppid=", "-p", str(pid)]))


def _children(pid: int) -> list[int]:
    return [int(child) for child in _run(["ps", "-o", "pid=", "--ppid", str(pid)], check=False).split()]


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")  # noqa: PTH115  (a name, not a path)
    except OSError:
        return ""


def _wait(what: str, condition: Callable[[], T]) -> T:
    deadline = time.monotonic() + _TIMEOUT
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise HostError(f"timed out after {_TIMEOUT:.0f} s waiting for {what}")
        time.sleep(0.02)
    return result


def _run(argv: Sequence[str], *, check: bool = True, seconds: float = 60.0) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False)
    if check and done.returncode != 0:
        raise HostError(f"{shlex.join(argv)} failed ({done.returncode}): {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
