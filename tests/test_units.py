"""Our unit files: rendered without a gap, understood by systemd, installed once."""

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
from deploy.systemd.units import CODE, TEMPLATES, UNITS, Addresses, install, render

ADDRESSES = Addresses(listen="127.0.0.1:18000", ui="[::1]:18501")


def host_in(directory: Path, *, user: bool) -> Host:
    return Host(
        user=user,
        root=directory / "root",
        runtime=directory / "run",
        state=directory / "state",
        units=directory / "units",
        settings=directory / "glm.env",
    )


@pytest.fixture(params=[True, False], ids=["user", "system"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    return host_in(tmp_path, user=request.param)


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """How often the manager was told, and which."""
    reloads: list[bool] = []
    monkeypatch.setattr(Systemd, "daemon_reload", lambda systemd: reloads.append(systemd.user))
    return reloads


def contents(host: Host) -> dict[Path, tuple[str, int]]:
    return {path: (path.read_text(), path.stat().st_ino) for path in host.units.rglob("*") if path.is_file()}


def test_nothing_is_left_to_fill_in(host: Host) -> None:
    """Every @PLACEHOLDER@ has a value, for both managers; what systemd itself calls @word is lower case."""
    files = render(host, ADDRESSES)
    assert {path.name for path in files} >= set(UNITS)
    for path, text in files.items():
        assert not re.search(r"@[A-Z_]+@", text), (path.name, re.findall(r"@[A-Z_]+@", text))


def test_values_stand_where_they_belong(host: Host) -> None:
    """Units speak of this host's root, this interpreter, these addresses and the right manager."""
    files = {path.name: text for path, text in render(host, ADDRESSES).items()}
    assert "ListenStream=127.0.0.1:18000\n" in files["glm.socket"]
    assert f"GLM_ROOT={host.root} GLM_RUNTIME={host.runtime} GLM_SLOT=%i\n" in files["glm@.service"]
    assert f"ExecStart={sys.executable} -m service\n" in files["glm@.service"]
    assert f"EnvironmentFile=-{host.settings}\n" in files["glm@.service"]
    assert f"readlink {host.root}/live" in files["glm-live.service"]
    assert ("systemctl --user start" in files["glm-live.service"]) is host.user
    assert f"WantedBy={'default' if host.user else 'multi-user'}.target\n" in files["glm.target"]
    assert f"{CODE}/ui/page.py --server.address " in files["glm-ui.service"]
    assert "--server.port 18501\n" in files["glm-ui.service"]


def test_only_the_system_manager_gets_drop_ins(tmp_path: Path) -> None:
    """What a user manager could not apply is written for the system manager alone, beside the same unit files."""
    user = render(host_in(tmp_path, user=True), ADDRESSES)
    system = render(host_in(tmp_path, user=False), ADDRESSES)
    assert {path.name for path in user} == set(UNITS)
    more = {str(path.relative_to(tmp_path / "units")) for path in set(system) - set(user)}
    assert more == {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.glob("*.d/*.conf")} != set()


def test_what_the_promises_rest_on() -> None:
    """The lines without which a cutover would lose something are there."""
    slot = (TEMPLATES / "glm@.service").read_text()
    public = (TEMPLATES / "glm.socket").read_text()
    for line in ("Type=notify", "NotifyAccess=all", "Sockets=glm.socket", "NonBlocking=yes", "StartLimitIntervalSec=0",
                 "RuntimeDirectoryPreserve=yes", "ExecReload=@PYTHON@ -m service.process.reload"):  # fmt: skip
        assert f"\n{line}\n" in slot, line
    for line in ("Service=glm-live.service", "TriggerLimitIntervalSec=0"):
        assert f"\n{line}\n" in public, line


def complaints(host: Host) -> list[str]:
    """Write the units and let systemd-analyze read them; returns what it says of them."""
    for path, text in render(host, ADDRESSES).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    runtime = host.units.with_name("runtime")
    runtime.mkdir(mode=0o700)
    env = os.environ | {"SYSTEMD_UNIT_PATH": f"{host.units}:", "XDG_RUNTIME_DIR": str(runtime)}
    names = ["glm.socket", "glm@blue.service", "glm@green.service", "glm-live.service", "glm-ui.service", "glm.target"]
    manager = ["--user"] if host.user else []
    done = subprocess.run(
        ["systemd-analyze", *manager, "--man=no", "--generators=no", "verify", *names],
        env=env, cwd=host.units, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "glm" in line]
    return said or ([done.stderr] if done.returncode else [])


def test_systemd_understands_the_units(host: Host) -> None:
    """systemd-analyze finds nothing to complain of, for a user's manager or for the system's with its hardening."""
    assert complaints(host) == []


@pytest.mark.parametrize("name", ["with space", "per%cent"])
def test_paths_that_systemd_would_read_otherwise(tmp_path: Path, name: str) -> None:
    """A root whose name means something to systemd is quoted or refused, never misunderstood."""
    host = replace(host_in(tmp_path, user=True), root=tmp_path / name)
    try:
        said = complaints(host)
    except Refused:
        said = []
    assert said == []


def test_second_install_changes_nothing(host: Host, reloads: list[bool]) -> None:
    """Installed again, no file is written; the manager is told again, for the last time it may not have heard."""
    written = install(host, ADDRESSES)
    assert set(written) == set(render(host, ADDRESSES))
    assert reloads == [host.user]
    before = contents(host)
    assert install(host, ADDRESSES) == []
    assert contents(host) == before
    assert reloads == [host.user] * 2
    assert host.releases.is_dir()
    assert host.state.is_dir()


def test_install_mends_what_differs_and_nothing_else(host: Host, reloads: list[bool]) -> None:
    """A unit that was edited, or went missing, is written again, whole; an operator's own drop-in is left alone."""
    install(host, ADDRESSES)
    before = contents(host)
    own = host.units / "glm@.service.d/mine.conf"
    own.parent.mkdir(exist_ok=True)
    own.write_text("[Service]\nNice=1\n")
    (host.units / "glm.socket").write_text("[Socket]\n")
    (host.units / "glm.target").unlink()
    assert {path.name for path in install(host, ADDRESSES)} == {"glm.socket", "glm.target"}
    assert own.read_text() == "[Service]\nNice=1\n"
    assert {path: text for path, (text, _) in contents(host).items() if path != own} == {
        path: text for path, (text, _) in before.items()
    }
    assert list(host.units.glob(".*")) == []
    assert len(reloads) == 2


def test_new_address_is_installed(host: Host, reloads: list[bool]) -> None:
    """Another address changes the units that name it."""
    install(host, ADDRESSES)
    changed = install(host, Addresses(listen="127.0.0.1:19000", ui=ADDRESSES.ui))
    assert {path.name for path in changed} == {"glm.socket", "glm-ui.service"}


def test_manager_that_did_not_hear_is_told_again(
    host: Host, reloads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the manager could not be told, the next install tells it, though every file is in place already."""

    def deaf(systemd: Systemd) -> None:
        raise GlmError("no bus")

    hearing: Callable[[Systemd], None] = Systemd.daemon_reload
    monkeypatch.setattr(Systemd, "daemon_reload", deaf)
    with pytest.raises(GlmError, match="no bus"):
        install(host, ADDRESSES)
    monkeypatch.setattr(Systemd, "daemon_reload", hearing)
    install(host, ADDRESSES)
    assert reloads == [host.user]


def test_place_that_cannot_be_written_is_a_plain_fact(tmp_path: Path, reloads: list[bool]) -> None:
    """Units cannot be written where a file stands in the way: said with its path and a hint, and no manager is told."""
    host = host_in(tmp_path, user=True)
    host.units.write_text("")
    with pytest.raises(GlmError, match=str(host.units)) as error:
        install(host, ADDRESSES)
    assert "--user" in str(error.value.hint)
    assert reloads == []
