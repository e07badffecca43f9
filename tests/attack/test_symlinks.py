"""The user of the service plants symlinks wherever root reads or writes: no target is ever touched."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.display import Display
from deploy.host import Host
from deploy.journal.journal import Journal
from deploy.journal.record import Record
from deploy.rollout.plan import Context
from deploy.rollout.rollback_request import RollbackRequest
from deploy.systemd import systemctl, units
from service.contract import atomic, damage, directories, generations, regular_file
from service.contract.canary_file import Canary, CanaryFile
from service.contract.processes import control_groups
from service.contract.slots import Slots
from service.contract.weights_order import WeightsOrderFile, own_order, settle
from tests.attack.garbage import plant

CODE = Path(__file__).resolve().parent.parent.parent
SERVICE = 54321  # the uid of the service's user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be attacked by another user")


@contextmanager
def as_service() -> Iterator[None]:
    """Run the block as the service's user."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(SERVICE)
    os.seteuid(SERVICE)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@dataclass
class Attacked:
    """A host whose runtime directory belongs wholly to the service's user, as older units had it; and a victim."""

    host: Host
    victim: Path

    @property
    def generation(self) -> Path:
        return self.host.runtime / "blue/1"

    def content(self) -> dict[str, tuple[object, ...]]:
        """Everything about the victim's files."""
        found: dict[str, tuple[object, ...]] = {}
        for path in sorted([self.victim, *self.victim.rglob("*")]):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (
                content,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_ino,
                status.st_mtime_ns,
            )
        return found


@pytest.fixture
def attacked(tmp_path: Path) -> Attacked:
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o055)
    root = tmp_path / "root"
    host = Host(False, root, tmp_path / "run", tmp_path / "state", tmp_path / "units", tmp_path / "etc/glm.env")
    for path in (root, host.state / "history"):
        path.mkdir(parents=True)
    Slots(root).go_live("blue")
    victim = tmp_path / "victim"
    (victim / "1").mkdir(parents=True)
    order = own_order(id="1", before="1.0.0", after="1.1.0", workers=(), seconds=1)
    for path in (victim, victim / "1"):
        for name in ("file", "canary", "rollback", "weights_order.json"):
            (path / name).write_text(json.dumps(order.__dict__))
            (path / name).chmod(0o600)
    host.runtime.mkdir()
    os.chown(host.runtime, SERVICE, SERVICE)
    with as_service():
        (host.runtime / "blue/1").mkdir(parents=True)
    return Attacked(host, victim)


def write_canary(attacked: Attacked) -> None:
    file = CanaryFile(attacked.host.runtime)
    file.write(Canary("green", 10.0))
    file.promote()


def remove_canary(attacked: Attacked) -> None:
    CanaryFile(attacked.host.runtime).remove()


def request_rollback(attacked: Attacked) -> None:
    record = Record(id="1", kind="deploy", version="1.1.0", slot="green", started_at="2026-01-01T00:00:00Z")
    request = RollbackRequest(Context(attacked.host, Display()), record)
    request.make()
    assert request.is_made
    request.withdraw()


def order_weights(attacked: Attacked) -> None:
    file = WeightsOrderFile(attacked.host.root, "blue", attacked.generation)
    file.write(own_order(id="1", before="1.0.0", after="1.1.0", workers=(), seconds=1))


def settle_order(attacked: Attacked) -> None:
    settle(attacked.host.root, attacked.host.runtime, "blue", "1", "back")


WRITERS: dict[str, tuple[Callable[[Attacked], None], str]] = {
    "canary": (write_canary, "canary"),
    "abort": (remove_canary, "canary"),
    "rollback": (request_rollback, "rollback"),
    "order": (order_weights, "blue/1/weights_order.json"),
    "settle": (settle_order, "blue/1/weights_order.json"),
}


def names(path: Path) -> list[Path]:
    """Every name that a writer of `path` may create, follow or pass through, below the runtime directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    return [path, path.with_name(f"{path.name}.new"), temporary]


@pytest.mark.parametrize("target", ["file", "directory", "missing", "host"])
@pytest.mark.parametrize("which", ["name", "new", "temporary", "generation", "slot"])
@pytest.mark.parametrize("writer", WRITERS)
def test_planted_symlinks(attacked: Attacked, writer: str, which: str, target: str) -> None:
    """A symlink in place of a file, of its temporary file, or of a directory above it leads root nowhere."""
    write, relative = WRITERS[writer]
    path = attacked.host.runtime / relative
    if which in {"generation", "slot"}:
        planted = attacked.generation if which == "generation" else attacked.generation.parent
    else:
        planted = names(path)[["name", "new", "temporary"].index(which)]
    leads_to = {
        "file": attacked.victim / "file",
        "directory": attacked.victim,
        "missing": attacked.victim / "created",
        "host": attacked.host.root,
    }[target]
    with as_service():
        if planted.is_dir():
            planted.rename(attacked.host.runtime / "aside")
        planted.symlink_to(leads_to)
    before, live = attacked.content(), Slots(attacked.host.root).live
    with suppress(OSError):
        write(attacked)
    assert attacked.content() == before
    assert [path.name for path in attacked.host.root.iterdir()] == ["live"]
    assert Slots(attacked.host.root).live == live


def test_symlinks_that_come_and_go(attacked: Attacked) -> None:
    """While the service's user exchanges directories and symlinks as fast as it can, root writes nowhere else."""
    attack = f"""
import os
os.setgroups([]); os.setgid({SERVICE}); os.setuid({SERVICE})
here, victim = {str(attacked.generation)!r}, {str(attacked.victim)!r}
os.symlink(victim, here + ".link")
print(flush=True)
while True:
    os.rename(here, here + ".dir"); os.rename(here + ".link", here)
    os.rename(here, here + ".link"); os.rename(here + ".dir", here)
"""
    before = attacked.content()
    with subprocess.Popen([sys.executable, "-c", attack], stdout=subprocess.PIPE) as attacker:
        assert attacker.stdout
        attacker.stdout.readline()
        written, end = 0, time.monotonic() + 3
        while time.monotonic() < end:
            with suppress(OSError):
                order_weights(attacked)
                written += 1
            with suppress(OSError):
                settle_order(attacked)
        attacker.kill()
    assert attacked.content() == before
    assert written


def test_links_are_not_read(attacked: Attacked) -> None:
    """Root's readers do not follow a symlink of the service's user, to a device or to a file of root."""
    secret = attacked.victim / "file"
    for name in ("generation.json", "5.json", "weights_order.json", "successor.json", "5.samples"):
        with as_service():
            (attacked.generation / name).symlink_to(secret)
        with pytest.raises(OSError):
            regular_file.read(attacked.generation / name)
    with as_service():
        (attacked.host.runtime / "green").symlink_to(attacked.victim)
    with pytest.raises(OSError):
        regular_file.read(attacked.host.runtime / "green/1/file")
    assert list(generations.all_generations(attacked.host.runtime)) == []
    assert {str(found.path.name) for found in damage.damaged(attacked.host.root, attacked.host.runtime)} >= {
        "generation.json", "5.json", "weights_order.json", "successor.json", "5.samples",
    }  # fmt: skip


def test_links_of_root_are_followed(attacked: Attacked) -> None:
    """An operator's symlink above the installation works, also one that leads over another."""
    real, link, second = attacked.victim / "real", attacked.victim / "link", attacked.victim / "second"
    real.mkdir()
    link.symlink_to("second")
    second.symlink_to(real)
    atomic.write_text(link / "x", "content")
    assert (real / "x").read_text() == "content"
    with directories.opened(link / "..") as descriptor:
        assert os.fstat(descriptor).st_ino == attacked.victim.stat().st_ino
    (attacked.victim / "loop").symlink_to("loop")
    for path in (attacked.victim / "loop", attacked.victim / "nothing", attacked.victim / "file"):
        with pytest.raises(OSError), directories.opened(path):
            pass


def test_the_units_give_away_no_directory_of_root() -> None:
    """The service owns its slot's directory and the metrics', and nothing in which root writes."""
    unit = (CODE / "systemd/glm@.service").read_text() + (CODE / "systemd/glm@.service.d/system.conf").read_text()
    owned = [f"/run/{name}" for line in unit.splitlines() if line.startswith("RuntimeDirectory=")
             for name in line.partition("=")[2].split()]  # fmt: skip
    owned += [f"/var/lib/{line.partition('=')[2]}" for line in unit.splitlines() if line.startswith("StateDirectory=")]
    assert owned == ["/run/glm/%i", "/run/glm/metrics", "/var/lib/glm/batches"]
    host = Host.find(user=False)
    written = {host.runtime / "canary", host.runtime / "rollback", host.state / "lock", host.root / "live"}
    assert not {str(path.parent) for path in written} & set(owned)
    rules = (CODE / "systemd/glm.tmpfiles.conf").read_text()
    owners = {line.split()[1]: line.split()[2:4] for line in rules.splitlines() if line.startswith("d ")}
    assert set(owners) == {"/srv/glm", "/srv/glm/releases", "/var/lib/glm", "/etc/glm", "/run/glm"}
    assert all(owner == "root" and mode == "2750" for mode, owner in owners.values())


def test_install_takes_the_runtime_directory(attacked: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation of an earlier version, whose runtime directory the service owned, is made safe."""
    with as_service():
        (attacked.host.runtime / "green").symlink_to(attacked.victim)
        plant(attacked.host.runtime / "canary", "link to a device")
    before = attacked.content()
    monkeypatch.setattr(systemctl.Systemd, "daemon_reload", lambda _: None)
    units.install(attacked.host, units.Addresses("127.0.0.1:8000", "127.0.0.1:8501"))
    status = attacked.host.runtime.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o755)
    assert [path.name for path in attacked.host.runtime.iterdir()] == ["blue"]
    assert attacked.content() == before
    with as_service(), pytest.raises(PermissionError):
        (attacked.host.runtime / "canary").symlink_to(attacked.victim)


def test_a_pid_in_a_state_file_is_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root signals a process that a state file names only if it belongs to the unit."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        group = "/system.slice/glm@blue.service"
        monkeypatch.setattr(systemctl.Systemd, "_show", lambda *_: {"ControlGroup": group})
        systemctl.Systemd(False).kill_process("glm@blue.service", stranger.pid, signal.SIGTERM)
        time.sleep(0.2)
        assert stranger.poll() is None
        group = next(iter(control_groups(stranger.pid)))
        systemctl.Systemd(False).kill_process("glm@blue.service", stranger.pid, signal.SIGTERM)
        assert stranger.wait(10) == -signal.SIGTERM
        systemctl.Systemd(False).kill_process("glm@blue.service", stranger.pid, signal.SIGTERM)


def test_the_journal_is_roots(attacked: Attacked) -> None:
    """A host's journal is written beside the directory of the service, never in it."""
    journal = Journal(attacked.host)
    with journal.lock(), as_service(), pytest.raises(PermissionError):
        (attacked.host.state / "history/x").symlink_to(attacked.victim)
