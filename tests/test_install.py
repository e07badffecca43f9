"""Installation for the system manager: what is checked, what is written, who may, and how it is undone."""

from __future__ import annotations

import importlib.metadata
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from deploy.cli import glmctl, glmctl_operator
from deploy.commands import access
from deploy.commands.options import Options
from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.journal import locks
from deploy.journal.journal import Journal, begin
from deploy.releases.store import Releases
from deploy.systemd import host_files, placement, removal, torch_build, units
from deploy.systemd.host_files import HostFiles
from deploy.systemd.systemctl import Systemd
from deploy.systemd.torch_build import TorchBuild
from service.contract.slots import Slots
from tests.release_fixtures import host_in, make_checkpoint

GROUP = 4242  # stands for glm
NOBODY = 65534


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostFiles:
    """A host of the system manager, whose programs are not run."""
    for name in ("etc/sudoers.d", "etc/polkit-1/rules.d", "bin", "units"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(host_files, "run", lambda argv, **_: "")
    monkeypatch.setattr(removal, "run", lambda argv, **_: "")
    monkeypatch.setattr(Systemd, "daemon_reload", lambda _: None)
    monkeypatch.setattr(Systemd, "state", lambda _, unit: SimpleNamespace(active="active" if "blue" in unit else ""))
    monkeypatch.setattr(Systemd, "stop", lambda _, unit: None)
    host = replace(host_in(tmp_path, user=False), settings=tmp_path / "etc/glm/glm.env")
    return HostFiles(host, tmp_path / "etc", tmp_path / "bin")


@pytest.mark.parametrize("place", ["/root/glm", "/home/anna/glm", "/run/user/1000/glm", "/tmp/glm", "/var/tmp/x/y"])
def test_code_that_the_units_hide_is_refused(place: str) -> None:
    """The message names the setting of the units that hides it."""
    with pytest.raises(Refused, match=r"which Pr\w+= of the units hides") as error:
        placement.require_visible({"the code": Path(place)})
    assert "/opt/glm" in str(error.value.hint)


def test_code_behind_a_symlink_or_a_closed_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is not what counts, but where it leads, and whether others may go there."""
    monkeypatch.setattr(placement, "_HIDDEN", {str(tmp_path / "home"): "ProtectHome="})
    for directory in [*tmp_path.parents, tmp_path]:
        if directory.is_relative_to("/tmp/") and directory.owner() == "root":
            directory.chmod(directory.stat().st_mode | 0o011)
    (tmp_path / "home/glm").mkdir(parents=True)
    (tmp_path / "opt").symlink_to(tmp_path / "home")
    with pytest.raises(Refused, match="hides"):
        placement.require_visible({"the code": tmp_path / "opt/glm"})
    (tmp_path / "srv/glm").mkdir(parents=True)
    placement.require_visible({"the code": tmp_path / "srv/glm"})
    (tmp_path / "srv").chmod(0o700)
    with pytest.raises(Refused, match=f"cannot enter {tmp_path}/srv$"):
        placement.require_visible({"the code": tmp_path / "srv/glm"})


def test_every_directory_that_the_units_hide_is_known() -> None:
    """The drop-ins hide nothing of which the check does not know."""
    hiding = re.findall(
        r"^(Protect(?:Home)|PrivateTmp|InaccessiblePaths|TemporaryFileSystem)=", units_text(), re.MULTILINE
    )
    assert set(hiding) == {setting.rstrip("=") for setting in placement._HIDDEN.values()}


def units_text() -> str:
    return "".join(path.read_text() for path in units.TEMPLATES.rglob("*.conf"))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (TorchBuild("2.13.0+cpu", None, has_driver=True), "whl/cu"),
        (TorchBuild("2.13.0", "12.8", has_driver=False), "whl/cpu"),
        (TorchBuild("2.13.0+cpu", None, has_driver=False), None),
        (TorchBuild("2.13.0", "12.8", has_driver=True), None),
    ],
)
def test_torch_for_another_device_is_noted(build: TorchBuild, says: str | None) -> None:
    """With the command that installs the other build."""
    assert (build.complaint is None) == (says is None)
    assert (says or "") in (build.complaint or "")


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("cuda: Optional[str] = None", None),
        ("cuda: Optional[str] = '12.8'", "12.8"),
        ("cuda = '13.0'\nhip = None", "13.0"),
    ],
)
def test_the_build_of_torch_is_read_without_importing_it(text: str, cuda: str | None, tmp_path: Path) -> None:
    """From the file that says what it was built for."""
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{text}\n")
    (tmp_path / "__init__.py").write_text("raise RuntimeError('it was imported')")
    found = torch_build.installed(driver=tmp_path, package=tmp_path / "__init__.py")
    assert found == TorchBuild(importlib.metadata.version("torch"), cuda, has_driver=True)


def test_installing_twice_changes_nothing_and_removal_leaves_nothing(system: HostFiles) -> None:
    """All files are found again by the removal; what root or an operator added beside them stays."""
    before = set(system.etc.parent.rglob("*"))
    written = [*system.install(), *units.install(system.host, units.Addresses())]
    assert (system.commands / "glmctl-operator").is_symlink()
    assert [*system.install(), *units.install(system.host, units.Addresses())] == []
    operators = system.host.units / "glm@.service.d/operator.conf"
    operators.write_text("[Service]\nNice=1\n")
    plan = removal.of(system.host, purge=False, files=system)
    assert plan.units == ("glm@blue.service",)
    assert set(written) <= set(plan.paths)
    plan.carry_out()
    left = set(system.etc.parent.rglob("*")) - before
    kept = {system.host.root, system.host.releases, system.host.state, operators, operators.parent}
    assert {path for path in left if path.parent.name != "etc"} == kept
    assert removal.of(system.host, purge=False, files=system).paths == ()


def test_removal_stops_every_unit_and_the_sockets_first(system: HostFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit that `install` writes goes on, and no service is stopped before the sockets that would start it again."""
    monkeypatch.setattr(Systemd, "state", lambda _, unit: SimpleNamespace(active="active"))
    stopped = removal.of(system.host, purge=False, files=system).units
    assert {name for name in units.UNITS if "@" not in name} < set(stopped)
    kinds = [unit.rpartition(".")[2] for unit in stopped if unit != "glm.target"]
    assert kinds == sorted(kinds, key="socket service".index)


def test_purge_deletes_what_is_its_own(system: HostFiles, tmp_path: Path) -> None:
    """Releases, links, state and settings; a file that somebody put into the root stays."""
    system.install()
    units.install(system.host, units.Addresses())
    Releases(system.host).add(make_checkpoint(tmp_path / "1.0.0"))
    Slots(system.host.root).point("blue", "releases/1.0.0")
    (system.host.root / "notes").write_text("mine")
    system.host.keys.parent.mkdir()
    system.host.keys.write_text("alice KEY")
    removal.of(system.host, purge=True, files=system).carry_out()
    assert [path.name for path in system.host.root.rglob("*")] == ["notes"]
    assert not system.host.state.exists()
    assert not system.host.keys.parent.exists()


def test_a_command_of_somebody_else_is_not_replaced(system: HostFiles) -> None:
    """A program in the path that is no link of ours is refused, and nothing is written; nor is it removed."""
    (system.commands / "glmctl").write_text("#!/bin/sh\n")
    with pytest.raises(Refused, match="is no symlink"):
        system.install()
    assert not (system.etc / "sysusers.d").exists()
    assert system.commands / "glmctl" not in removal.of(system.host, purge=False, files=system).paths


def test_an_error_names_the_file(system: HostFiles) -> None:
    """Where /etc cannot be written."""
    (system.etc / "sysusers.d").write_text("")
    with pytest.raises(GlmError, match="cannot write"):
        system.install()


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077, 0o777])
def test_what_root_writes_is_readable_to_the_group_and_to_nobody_else(mask: int, tmp_path: Path) -> None:
    """Releases, stamps, links, records, locks and reports, whatever the umask of root's shell is."""
    host = host_in(tmp_path, user=False)
    for path in (host.root, host.releases, host.state, host.runtime):
        path.mkdir()
        os.chown(path, 0, GROUP)
        path.chmod(0o2750)  # as systemd-tmpfiles makes them
    source = make_checkpoint(tmp_path / "1.0.0")
    os.umask(mask)
    write_all(host, source)
    written = [path for top in (host.root, host.state, host.runtime) for path in top.rglob("*")]
    assert {"release.json", "1.0.0.json", "lock", "live"} <= {path.name for path in written}
    for path in (path for path in written if not path.is_symlink()):
        status = path.stat()
        needed = stat.S_IRGRP | (stat.S_IXGRP if path.is_dir() else 0)
        assert (status.st_uid, status.st_gid) == (0, GROUP), path
        assert status.st_mode & needed == needed, path
        assert not status.st_mode & (stat.S_IRWXO | stat.S_IWGRP), path


def write_all(host: Host, source: Path) -> None:
    """Write every kind of file that glmctl writes on a host."""
    options = Options()
    options.close_files()
    releases = Releases(host)
    releases.add(source)
    releases.verify("1.0.0")
    slots = Slots(host.root)
    slots.point("blue", "releases/1.0.0")
    slots.go_live("blue")
    journal = Journal(host)
    with journal.lock(), journal.switching():
        entry = begin(journal, "deploy", "1.0.0", "blue")
        entry.keep({})
        entry.enter("preflight")
        entry.end("done")
    assert not locks.is_held(host.state / "lock")


def as_user(uid: int, call: str, host: Host) -> str:
    """Return what a check says to another user: the message and the hint, or nothing."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        try:
            getattr(access, call)(host)
        except Refused as error:
            os.write(write, f"{error}; {error.hint}".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as answer:
        return answer.read()


def test_who_may_not_read_or_change_is_told_who_may(tmp_path: Path) -> None:
    """A stranger is not shown an empty host, and who only reads is told before anything is begun."""
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.is_relative_to("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    host = host_in(tmp_path, user=False)
    for path in (host.root, host.state, host.runtime):
        path.mkdir(mode=0o750)
    assert "members of the group glm may" in as_user(NOBODY, "require_read", host)
    assert "sudo glmctl-operator" in as_user(NOBODY, "require_change", host)
    for path in (host.root, host.state, host.runtime):
        path.chmod(0o755)
    assert as_user(NOBODY, "require_read", host) == ""
    assert "sudo glmctl-operator" in as_user(NOBODY, "require_change", host)
    assert as_user(0, "require_change", host) == ""


def paths_of(group: click.Group, ctx: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", each) for below, each in paths_of(command, ctx))
        else:
            yield name, command


def test_operators_have_the_verbs_of_a_rollout() -> None:
    """A verb is theirs only if it is listed here: with the others they could read, write or run anything as root."""
    ctx = click.Context(glmctl)
    all_verbs = {name for name, _ in paths_of(glmctl, ctx)}
    theirs = {name for name, _ in paths_of(glmctl_operator, ctx)}
    assert all_verbs - theirs == {
        *("install", "uninstall", "sandbox", "demo", "release add", "operate", "completion"),
        *("listen add", "listen remove", "listen list", "env make", "env list", "env remove"),
    }


def test_operators_stay_on_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """No verb of theirs opens a file that they name, or has another root, also by the environment."""
    for name, command in paths_of(glmctl_operator, click.Context(glmctl)):
        opened = [one.name for one in command.params if isinstance(one.type, click.Path | click.File)]
        assert opened == ["root"], name
    for words in (["--root", "/tmp/x", "status"], ["status", "--root=/tmp/x"], ["--user", "deploy", "1.0.0"]):
        with pytest.raises(Refused, match="neither --root nor --user"):
            glmctl_operator.main(words, standalone_mode=False, obj=Options(is_operator=True))
    monkeypatch.setenv("GLM_ROOT", "/tmp/x")
    with pytest.raises(Refused, match="neither"):
        glmctl_operator.main(["status"], standalone_mode=False, obj=Options(is_operator=True))


def test_the_rule_of_sudo_is_valid(tmp_path: Path) -> None:
    """It names one program, without arguments that a wildcard could widen."""
    file = tmp_path / "glm"
    file.write_text((units.TEMPLATES / "glm.sudoers").read_text())
    rules = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert rules == ["%glm-operators ALL=(root) NOPASSWD: /usr/local/bin/glmctl-operator"]
    visudo = Path("/usr/sbin/visudo")
    if visudo.exists():
        subprocess.run([visudo, "-cqf", file], check=True, timeout=10)


UNITS = ("glm@blue.service", "glm-live.service")


def test_the_units_are_hardened(system: HostFiles) -> None:
    """systemd-analyze finds an exposure of at most 1.5 for what meets clients, and for what runs as root."""
    for path, text in units.render(system.host, units.Addresses()).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", *UNITS],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{system.host.units}:"},
        cwd=system.host.units, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    exposures = {unit: float(level) for unit, level in re.findall(r"level for (\S+): ([\d.]+)", done.stdout)}
    assert exposures.keys() == set(UNITS), done.stdout + done.stderr
    assert max(exposures.values()) <= 1.5, exposures
