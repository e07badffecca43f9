"""Booted hosts for tests: a systemd of their own as PID 1, their own network, their own cgroup, and nothing to lose.

A host's disk is an overlay in memory over this machine's root, so that no image has to be made or kept. It is bare:
what Debian's packages brought is there; the checkout, homes, /opt and every unit that this machine enables are hidden.
Mounts and networks live in private namespaces and processes die with their parent: even a killed test run leaves
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

_TOOLS = ("systemd-nspawn", "ip", "nsenter", "unshare", "setpriv")
_DEBIANS = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "lost+found", "media", "proc", "run"}
)
_DEBIANS |= {"sbin", "sys", "tmp", "usr", "var"}
_HIDDEN = ("/etc/systemd/system", *(f"/etc/rc{level}.d" for level in "2345"))
_MASKED = ("console-getty.service", "systemd-networkd-wait-online.service", "systemd-update-utmp.service")
_DISK = "8g"  # an upper limit; memory is taken as it is written, about 2 GB for an environment with torch
_NETWORK = "10.77.0"
_BRIDGE = "glm0"
_PATIENCE = 60.0
_CGROUPS = Path("/sys/fs/cgroup")
_SERIALS = itertools.count(1)

T = TypeVar("T")

# Runs in a mount namespace of its own and becomes the container; $1 is an empty directory, then the host's name, its
# machine id and the size of its disk.
_BOOT = """
set -e
mount -t tmpfs -o "size=$4,mode=0755" tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
rm -f etc/machine-id etc/hostname etc/hosts etc/fstab etc/pip.conf
echo "$3" > etc/machine-id
echo "$2" > etc/hostname
echo "127.0.0.1 localhost $2" > etc/hosts
cd /
shift 4
exec "$@"
"""


class HostError(Exception):
    """A host could not be booted; the text says why and what to do."""


@dataclass(frozen=True)
class BootedHost:
    """A running host. `leader` is its PID 1 as this machine counts, `shell` a stand-in for ssh that leads into it."""

    name: str
    address: str
    leader: int
    shell: Path
    client: int

    def run(self, argv: Sequence[str], *, check: bool = True, seconds: float = 60.0) -> str:
        """Run `argv` inside as root and return its stdout; raises HostError with its last words when it fails."""
        return _run([str(self.shell), self.name, shlex.join(argv)], check=check, seconds=seconds)

    def outside(self, argv: Sequence[str], *, check: bool = True, seconds: float = 60.0) -> str:
        """Run `argv` on this machine's disk but on the host's network, as one of its clients."""
        return _run(["nsenter", f"--target={self.client}", "--net", *argv], check=check, seconds=seconds)

    def journal(self, unit: str, lines: int = 60) -> str:
        """The last lines of `unit`'s journal."""
        return self.run(["journalctl", "--no-pager", "-o", "cat", f"-n{lines}", f"--unit={unit}"], check=False)


@contextlib.contextmanager
def booted_host(*, readable: Sequence[Path] = ()) -> Iterator[BootedHost]:
    """One bare host; the directories `readable` are bound into it, under the same paths, read-only."""
    with booted_hosts(1, readable=readable) as hosts:
        yield hosts[0]


@contextlib.contextmanager
def booted_hosts(count: int, *, readable: Sequence[Path] = ()) -> Iterator[list[BootedHost]]:
    """`count` bare hosts on one network that nothing else is on; raises HostError when this machine cannot."""
    _require()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(_network())
        yield [stack.enter_context(_host(number, network, readable)) for number in range(1, count + 1)]


def _require() -> None:
    if os.geteuid() != 0:
        raise HostError("only root can boot hosts: run these tests with sudo")
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise HostError(f"{', '.join(missing)} missing: apt-get install systemd-container iproute2 util-linux")


@contextlib.contextmanager
def _network() -> Iterator[int]:
    """A network namespace with a bridge; yields the process that holds it, which is where clients enter."""
    with _dying_with_us(["unshare", "--net", "sleep", "infinity"]) as holder:
        ours = _namespace(os.getpid(), "net")
        _wait("the network namespace", lambda: _namespace(holder.pid, "net") not in {ours, ""})
        for words in (
            "link set lo up",
            f"link add {_BRIDGE} type bridge",
            f"addr add {_NETWORK}.1/24 dev {_BRIDGE}",
            f"link set {_BRIDGE} up",
        ):
            _run(["nsenter", f"--target={holder.pid}", "--net", "ip", *words.split()])
        yield holder.pid


@contextlib.contextmanager
def _host(number: int, network: int, readable: Sequence[Path]) -> Iterator[BootedHost]:
    # its name is also its cgroup's: no two hosts of this machine may share one
    serial = next(_SERIALS)
    name = f"glm-{os.getpid()}-{serial}"
    address = f"{_NETWORK}.{10 + number}"
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-", dir="/run")))
        (place / "disk").mkdir()
        cgroups = stack.enter_context(_cgroup(name))
        console = stack.enter_context((place / "console").open("wb"))
        boot = ["sh", "-c", _BOOT, "sh", str(place / "disk"), name, f"{os.getpid():024x}{serial:08x}", _DISK]
        enter = "".join(f"echo $$ > {directory}/cgroup.procs; " for directory in cgroups) + 'exec "$@"'
        container = stack.enter_context(
            _dying_with_us(
                [
                    *("nsenter", f"--target={network}", "--net", "sh", "-ec", enter, "sh"),
                    # the container's PID 1 outlives nspawn, but not the process namespace around both
                    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private", *boot),
                    *_nspawn(place / "disk/root", name, readable),
                ],
                console,
            )
        )
        leader = _leader(container, place / "console")
        shell = place / "ssh"
        shell.write_text(
            "#!/bin/sh\n# Called as ssh is, with a host and a command last; options do not matter here.\n"
            "for command; do :; done\nexec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root "
            f'LANG=C.UTF-8 nsenter --target={leader} --all --wdns=/root sh -c "$command"\n'
        )
        shell.chmod(0o700)
        host = BootedHost(name, address, leader, shell, network)
        for words in ("link set lo up", f"addr add {address}/24 dev host0", "link set host0 up"):
            host.run(["ip", *words.split()])
        state = host.run(["systemctl", "is-system-running", "--wait"], check=False).strip()
        if state != "running":
            raise HostError(f"{name} is {state}: {host.run(['systemctl', '--failed', '--plain'], check=False)}")
        yield host


def _nspawn(root: Path, name: str, readable: Sequence[Path]) -> list[str]:
    foreign = (str(path) for path in Path("/").iterdir() if path.is_dir() and path.name not in _DEBIANS)
    hidden = dict.fromkeys([*foreign, *_HIDDEN])
    return [
        *("systemd-nspawn", "--quiet", "--boot", f"--directory={root}", f"--machine={name}"),
        # whoever runs the tests may have no systemd that could be asked to register it
        *("--register=no", "--keep-unit", f"--network-bridge={_BRIDGE}"),
        *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
        *(f"--tmpfs={path}:mode=0755,size={_DISK}" for path in hidden),
        *(f"--bind-ro={path}" for path in readable),
        # in a container systemd reads its own arguments as it would the kernel's
        *("--", "systemd.unit=multi-user.target", *(f"systemd.mask={unit}" for unit in _MASKED)),
    ]


@contextlib.contextmanager
def _cgroup(name: str) -> Iterator[list[Path]]:
    """A cgroup of the host's own in each hierarchy that systemd uses; else units of the same name share one."""
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
def _dying_with_us(argv: Sequence[str], output: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed when the block ends, or when we die."""
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
    """Wait until the host's PID 1 takes calls."""

    def listens() -> list[int]:
        if container.poll() is not None:
            raise HostError(f"the host did not boot: {console.read_text(errors='replace')[-2000:]}")
        boots = [pid for nspawn in _children(container.pid) for pid in _children(nspawn)]
        return [pid for pid in boots if Path(f"/proc/{pid}/root/run/systemd/private").exists()]

    return _wait("the host to boot", listens)[0]


def _children(pid: int) -> list[int]:
    return [int(child) for child in _run(["ps", "-o", "pid=", "--ppid", str(pid)], check=False).split()]


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")  # noqa: PTH115  (no path, a name)
    except OSError:
        return ""


def _wait(what: str, condition: Callable[[], T]) -> T:
    deadline = time.monotonic() + _PATIENCE
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise HostError(f"waited {_PATIENCE:.0f} s in vain for {what}")
        time.sleep(0.02)
    return result


def _run(argv: Sequence[str], *, check: bool = True, seconds: float = 60.0) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False)
    if check and done.returncode != 0:
        raise HostError(f"{shlex.join(argv)} failed ({done.returncode}): {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
