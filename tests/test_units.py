"""The unit files: rendered completely, accepted by systemd, and installed only where they differ."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.systemd.systemctl import Systemd
from deploy.systemd.units import CODE, TEMPLATES, UNITS, Addresses, install, installed, render
from tests.release_fixtures import host_in

ADDRESSES = Addresses(listen="127.0.0.1:18000", ui="[::1]:18501")


@pytest.fixture(params=[True, False], ids=["user", "system"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    return host_in(tmp_path, user=request.param)


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The calls of daemon-reload; True for the user manager."""
    reloads: list[bool] = []
    monkeypatch.setattr(Systemd, "daemon_reload", lambda systemd: reloads.append(systemd.user))
    return reloads


def contents(host: Host) -> dict[Path, tuple[str, int]]:
    return {path: (path.read_text(), path.stat().st_ino) for path in host.units.rglob("*") if path.is_file()}


def test_every_placeholder_has_a_value(host: Host) -> None:
    """No @PLACEHOLDER@ remains, for both managers; the @names of systemd itself are lower case."""
    files = render(host, ADDRESSES)
    assert {path.name for path in files} >= set(UNITS)
    for path, text in files.items():
        assert not re.search(r"@[A-Z_]+@", text), (path.name, re.findall(r"@[A-Z_]+@", text))


def test_rendered_values(host: Host) -> None:
    """Units contain the root of the host, the interpreter, the addresses and the manager's commands."""
    files = {path.name: text for path, text in render(host, ADDRESSES).items()}
    assert "ListenStream=127.0.0.1:18000\n" in files["glm.socket"]
    assert f"GLM_ROOT={host.root} GLM_RUNTIME={host.runtime} GLM_SLOT=%i\n" in files["glm@.service"]
    assert f"ExecStart={sys.executable} -m service\n" in files["glm@.service"]
    assert f"EnvironmentFile=-{host.settings}\n" in files["glm@.service"]
    assert f"readlink {host.root}/live" in files["glm-live.service"]
    assert ("systemctl --user start" in files["glm-live.service"]) is host.user
    assert f"WantedBy={'default' if host.user else 'multi-user'}.target\n" in files["glm.target"]
    assert "ListenStream=[::1]:18501\n" in files["glm-ui.socket"]
    assert f"ui.serve:app --app-dir {CODE} --fd 3 " in files["glm-ui.service"]
    assert f"ListenStream={host.runtime}/operate.sock\n" in files["glm-operate.socket"]
    assert f" --root {host.root} operate\n" in files["glm-operate@.service"]


def test_only_the_system_manager_gets_drop_ins(tmp_path: Path) -> None:
    """Both managers get the same unit files; only the system manager gets drop-ins that a user manager cannot apply."""
    user = render(host_in(tmp_path, user=True), ADDRESSES)
    system = render(host_in(tmp_path, user=False), ADDRESSES)
    assert {path.name for path in user} == set(UNITS)
    drop_ins = {str(path.relative_to(tmp_path / "units")) for path in set(system) - set(user)}
    assert drop_ins == {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.glob("*.d/*.conf")} != set()


def test_required_settings() -> None:
    """The units contain the settings that a cutover without loss requires."""
    slot = (TEMPLATES / "glm@.service").read_text()
    public = (TEMPLATES / "glm.socket").read_text()
    for line in ("Type=notify", "NotifyAccess=all", "Sockets=glm.socket", "NonBlocking=yes", "StartLimitIntervalSec=0",
                 "RuntimeDirectoryPreserve=yes", "ExecReload=@PYTHON@ -m service.process.reload"):  # fmt: skip
        assert f"\n{line}\n" in slot, line
    for line in ("Service=glm-live.service", "TriggerLimitIntervalSec=0"):
        assert f"\n{line}\n" in public, line


def problems(host: Host) -> list[str]:
    """Write the units and return the messages of `systemd-analyze verify` about them."""
    for path, text in render(host, ADDRESSES).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    runtime = host.units.with_name("runtime")
    runtime.mkdir(mode=0o700)
    env = os.environ | {"SYSTEMD_UNIT_PATH": f"{host.units}:", "XDG_RUNTIME_DIR": str(runtime)}
    names = ["glm.socket", "glm@blue.service", "glm@green.service", "glm-live.service", "glm.target"]
    names += ["glm-ui.socket", "glm-ui.service", "glm-operate.socket", "glm-operate@1.service"]
    manager = ["--user"] if host.user else []
    done = subprocess.run(
        ["systemd-analyze", *manager, "--man=no", "--generators=no", "verify", *names],
        env=env, cwd=host.units, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    messages = [line for line in done.stderr.splitlines() if "glm" in line]
    return messages or ([done.stderr] if done.returncode else [])


def test_systemd_accepts_the_units(host: Host) -> None:
    """systemd-analyze finds no problem, for a user manager and for the system manager with its hardening."""
    assert problems(host) == []


@pytest.mark.parametrize(("unit", "limit"), [("glm-ui.service", 1.5), ("glm@blue.service", 2.5)])
def test_exposure(tmp_path: Path, unit: str, limit: float) -> None:
    """What systemd-analyze finds open of what a unit could do without, from 0 to 10."""
    assert problems(host_in(tmp_path, user=False)) == []
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", unit],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path / 'units'}:"}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= limit


def test_operating_is_off_until_it_is_turned_on() -> None:
    """Nothing that is started at boot wants its socket, and the page has no right that it would need."""
    assert "operate" not in "".join((TEMPLATES / name).read_text() for name in UNITS if "operate" not in name)
    socket = (TEMPLATES / "glm-operate.socket").read_text() + (
        TEMPLATES / "glm-operate.socket.d/system.conf"
    ).read_text()
    assert re.findall(r"SocketMode=(\d+)", socket) == ["0600", "0660"]
    assert "NoNewPrivileges=yes\n" in (TEMPLATES / "glm-ui.service.d/system.conf").read_text()


def test_the_address_of_a_page_before_it_had_a_socket(host: Host, reloads: list[bool]) -> None:
    """An installation of an earlier version keeps it."""
    host.units.mkdir()
    (host.units / "glm-ui.service").write_text("ExecStart=x --server.address 10.0.0.1 --server.port 9501\n")
    assert installed(host).ui == "10.0.0.1:9501"
    install(host, installed(host))
    assert installed(host).ui == "10.0.0.1:9501"


@pytest.mark.parametrize("name", ["with space", "per%cent"])
def test_paths_with_special_characters(tmp_path: Path, name: str) -> None:
    """A root with characters that systemd interprets is quoted or refused, never misread."""
    host = replace(host_in(tmp_path, user=True), root=tmp_path / name)
    try:
        found = problems(host)
    except Refused:
        found = []
    assert found == []


def test_second_install_changes_nothing(host: Host, reloads: list[bool]) -> None:
    """A second installation writes no file, but makes the manager read them again: the first call may have failed."""
    written = install(host, ADDRESSES)
    assert set(written) == set(render(host, ADDRESSES))
    assert reloads == [host.user]
    before = contents(host)
    assert install(host, ADDRESSES) == []
    assert contents(host) == before
    assert reloads == [host.user] * 2
    assert host.releases.is_dir()
    assert host.state.is_dir()


def test_install_restores_changed_files_alone(host: Host, reloads: list[bool]) -> None:
    """A unit that was edited or removed is written again; an operator's own drop-in is not touched."""
    install(host, ADDRESSES)
    before = contents(host)
    drop_in = host.units / "glm@.service.d/operator.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Service]\nNice=1\n")
    (host.units / "glm.socket").write_text("[Socket]\n")
    (host.units / "glm.target").unlink()
    assert {path.name for path in install(host, ADDRESSES)} == {"glm.socket", "glm.target"}
    assert drop_in.read_text() == "[Service]\nNice=1\n"
    assert {path: text for path, (text, _) in contents(host).items() if path != drop_in} == {
        path: text for path, (text, _) in before.items()
    }
    assert list(host.units.glob(".*")) == []
    assert len(reloads) == 2


def test_changed_address(host: Host, reloads: list[bool]) -> None:
    """Only the units with the changed address are written."""
    install(host, ADDRESSES)
    changed = install(host, Addresses(listen="127.0.0.1:19000", ui=ADDRESSES.ui))
    assert {path.name for path in changed} == {"glm.socket", "glm-ui.service"}


def test_failed_daemon_reload_is_repeated(host: Host, reloads: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """If daemon-reload failed, the next install repeats it, though every file is up to date."""

    def fail(systemd: Systemd) -> None:
        raise GlmError("no bus")

    original: Callable[[Systemd], None] = Systemd.daemon_reload
    monkeypatch.setattr(Systemd, "daemon_reload", fail)
    with pytest.raises(GlmError, match="no bus"):
        install(host, ADDRESSES)
    monkeypatch.setattr(Systemd, "daemon_reload", original)
    install(host, ADDRESSES)
    assert reloads == [host.user]


def test_unwritable_directory(tmp_path: Path, reloads: list[bool]) -> None:
    """A unit directory that cannot be written is reported with its path and a hint, and no manager is reloaded."""
    host = host_in(tmp_path, user=True)
    host.units.write_text("")
    with pytest.raises(GlmError, match=str(host.units)) as error:
        install(host, ADDRESSES)
    assert "--user" in str(error.value.hint)
    assert reloads == []
