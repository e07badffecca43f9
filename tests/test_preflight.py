"""What a rollout needs is looked for before anything is touched: programs, unit files, hooks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.host import Host
from deploy.systemd import process, programs
from deploy.systemd.units import Addresses, outdated, render
from tests import forkserver
from tests.box import Box

COMMANDS = (
    "deploy 1.1.0", "deploy 1.1.0 --canary 10", "deploy 1.1.0 --strategy swap", "deploy 1.1.0 --strategy weights",
    "deploy 1.1.0 --keep-warm 10m", "rollback 1.1.0", "reload", "retire", "resume",
)  # fmt: skip


def state(box: Box) -> dict[str, object]:
    """Every file of the host but the logs, and the processes of both slots."""
    places = (box.host.root, box.host.state, box.host.runtime, box.host.units)
    paths = [path for place in places for path in place.rglob("[!.]*")]  # a name with a dot is being written
    links = {path: path.is_symlink() and path.readlink() for path in paths}
    units = {
        slot: box.show(f"glm@{slot}.service", "ActiveState,MainPID,ActiveEnterTimestamp") for slot in ("blue", "green")
    }
    return {**{str(path): target for path, target in links.items()}, **units}


@pytest.mark.parametrize("hidden", programs.ROLLOUT)
def test_a_program_that_is_missing_is_refused(stocked_live: Box, tmp_path: Path, hidden: str) -> None:
    """Each program that a rollout may run is hidden in turn: exit code 3, its name in the message, nothing changed."""
    box = stocked_live
    for program in programs.ROLLOUT:
        found = shutil.which(program)
        assert found
        if program != hidden:
            (tmp_path / program).symlink_to(found)
    before = state(box)
    for command in COMMANDS:
        done = forkserver.glmctl(command.split(), box.env | {"PATH": str(tmp_path)}, timeout=60)
        assert done.returncode == 3, (command, done.stderr)
        assert f"{hidden} is not on PATH" in done.stderr, (command, done.stderr)
    assert state(box) == before


def test_no_other_program_is_run() -> None:
    """A program that the preflight does not look for cannot be started by a rollout."""
    for start in (process.run, process.start):
        with pytest.raises(ValueError, match="ROLLOUT"):
            start(["true"])


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host of the system manager whose unit files are installed."""
    found = Host(
        False, tmp_path / "root", tmp_path / "run", tmp_path / "state", tmp_path / "units", tmp_path / "glm.env"
    )
    for path, text in render(found, Addresses("0.0.0.0:80", "10.0.0.1:81")).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return found


def test_unit_files_of_this_version(host: Host) -> None:
    """Other paths, addresses and comments are no difference, and files that are elsewhere are not looked at."""
    assert outdated(host) == []
    path = host.units / "glm@.service"
    path.write_text("# ours\n" + path.read_text().replace(str(host.root), "/elsewhere"))
    (host.units / "glm.target").unlink()
    assert outdated(host) == []


@pytest.mark.parametrize("name", ["glm@.service", "glm.socket", "glm-live.service", "glm@.service.d/system.conf"])
def test_unit_files_of_another_version(host: Host, name: str) -> None:
    """A line that is missing, was added, or differs is found."""
    path = host.units / name
    whole = path.read_text()
    settings = [line for line in whole.splitlines() if "=" in line and not line.startswith("#")]
    for text in (whole + "Environment=MORE=1\n", *(whole.replace(f"{line}\n", "", 1) for line in settings)):
        path.write_text(text)
        assert outdated(host) == [name]
    path.write_text(whole.replace(settings[-1], settings[-1] + "x", 1))
    assert outdated(host) in ([name], [])  # a value that is a path may differ


def test_a_deploy_with_unit_files_of_another_version_is_refused(stocked_live: Box) -> None:
    """Exit code 3, the file and the command that writes it anew; `doctor` finds it too, and `rollback` still works."""
    box = stocked_live
    path = box.host.units / "glm@.service"
    text = path.read_text()
    path.write_text(text.replace("service.process.reload", "service.reload"))
    try:
        stderr = box.glmctl("deploy", "1.1.0", expect=3).stderr
        assert "glm@.service" in stderr
        assert "glmctl install" in stderr
        assert "glm@.service" in box.glmctl("doctor", expect=1).stdout
    finally:
        path.write_text(text)
    assert box.slots.version("green") is None


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["overlap", "swap", "weights"])
def test_tampered_weights_do_not_go_live(stocked_live: Box, strategy: str) -> None:
    """One bit differs: the candidate is stopped again, and the live version serves as before (test_digests.py)."""
    box = stocked_live
    file = box.host.releases / "1.1.0/model/model.safetensors"
    kept, mode = file.with_name("kept"), file.parent.stat().st_mode
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.parent.chmod(0o755)
    file.rename(kept)
    try:
        file.write_bytes(content)
        file.chmod(0o444)
        stderr = box.glmctl("deploy", "1.1.0", "--strategy", strategy, expect=3 if strategy == "swap" else 4).stderr
        assert "model/model.safetensors: its contents changed" in stderr
        assert box.show("glm@green.service", "ActiveState") == "inactive"
        answer = box.get("/version")
        assert (answer.json()["version"], answer.headers["x-slot"]) == ("1.0.0", "blue")
        record = box.json("history")["rollouts"][-1]
        assert record["receipt"]["lost"] == 0
    finally:
        kept.rename(file)
        file.parent.chmod(mode)


@pytest.mark.parametrize(
    ("command", "reason"),
    [("/nowhere/at-all --loud", "there is no program /nowhere/at-all"), ("sh -c 'half", "is not a command")],
)
def test_a_hook_that_cannot_be_run_is_refused(stocked_live: Box, command: str, reason: str) -> None:
    """A pre_cutover hook without a program would fail after the load: it is refused before anything is touched."""
    box = stocked_live
    box.host.policy.write_text(f'[hooks]\npre_cutover = ["{command}"]\n')
    try:
        assert reason in box.glmctl("deploy", "1.1.0", expect=3).stderr
    finally:
        box.host.policy.unlink()
    assert box.slots.version("green") is None
