"""The modules of the collection, with a glmctl that the test writes: what they call, report, and foretell."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from deploy.host import Host
from deploy.systemd import units
from deploy.systemd.host_files import HostFiles

COLLECTIONS = Path(__file__).resolve().parent.parent / "deploy/ansible/collections"
SCRIPT = """#!/bin/sh
cd "$(dirname "$0")" && echo "$*" >> calls
case "$*" in
*--dry-run*) cat dry-run; exit "$(cat code)" ;;
"release list"*) cat releases ;;
status*) cat status ;;
"history --json") cat history ;;
history*) echo "the receipt" ;;
*) for file in after-*; do test ! -e "$file" || cp "$file" "${file#after-}"; done; cat answer; exit "$(cat code)" ;;
esac
"""


class Fake:
    """A glmctl in a code directory, and calls of the modules that use it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.directory = home / ".venv/bin"
        self.directory.mkdir(parents=True)
        self.path = self.directory / "glmctl"
        self.path.write_text(SCRIPT)
        self.path.chmod(0o755)
        self.write("code", 0)
        self.write("status", status("1.0.0"))
        self.write("history", {"rollouts": []})
        self.write("releases", releases("1.0.0", "1.1.0"))
        self.write("answer", {"outcome": "done"})
        self.write("dry-run", {"outcome": "dry run", "version": "0.9.0"})

    def write(self, name: str, document: object) -> None:
        (self.directory / name).write_text(json.dumps(document))

    def leaves(self, live: str, *, code: int = 0, error: str = "") -> None:
        """What the next deploy or rollback leaves: the live version, a record, and an exit code."""
        self.write("after-status", status(live))
        self.write("after-history", {"rollouts": [{"id": "7", "version": live, "outcome": "done"}]})
        self.write("code", code)
        if error:
            self.write("answer", {"error": {"message": error, "hint": "do that", "exit_code": code}})

    @property
    def changes(self) -> list[str]:
        """The calls that change a host."""
        path = self.directory / "calls"
        calls = path.read_text().splitlines() if path.exists() else []
        reads = ("status", "history", "release list")
        return [call.removesuffix(" --json") for call in calls if not call.startswith(reads)]

    def run(self, name: str, capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: object) -> Any:
        """Run a module; returns what it reports."""
        module = importlib.import_module(f"ansible_collections.glm.handover.plugins.modules.{name}")
        arguments = {"executable": str(self.path), "_ansible_check_mode": check, **options}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)


def status(live: str, state: str = "ready") -> dict[str, Any]:
    return {"live": "blue", "slots": {"blue": {"version": live, "state": state}, "green": {"version": None}}}


def releases(*versions: str) -> dict[str, Any]:
    return {"releases": [{"version": each, "slots": ["blue"] if each == "1.0.0" else []} for each in versions]}


@pytest.fixture(autouse=True, scope="module")
def _collection() -> Iterator[None]:
    sys.path.insert(0, str(COLLECTIONS))
    yield
    sys.path.remove(str(COLLECTIONS))


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path / "home")


def test_deploy_makes_a_version_live(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """It reports the change, both versions as a diff, and the receipt."""
    fake.leaves("1.1.0")
    found = fake.run("glm_deploy", capsys, version="1.1.0", options=["--bake", "1"])
    assert fake.changes == ["deploy 1.1.0 --bake 1"]
    assert (found["changed"], found["outcome"], found["receipt"]) == (True, "done", "the receipt")
    assert found["diff"] == {"before": "live: 1.0.0\n", "after": "live: 1.1.0\n"}


def test_what_is_live_is_left_alone(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """Deployed or rolled back to: nothing is called, and nothing is reported as changed."""
    for state in ("deployed", "rolled_back"):
        assert not fake.run("glm_deploy", capsys, version="1.0.0", state=state)["changed"]
    assert fake.changes == []


def test_a_live_slot_that_does_not_serve_is_deployed_to(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """The version is the wanted one, but its slot failed: glmctl decides."""
    fake.write("status", status("1.0.0", "failed"))
    fake.leaves("1.0.0")
    assert fake.run("glm_deploy", capsys, version="1.0.0")["changed"]
    assert fake.changes == ["deploy 1.0.0"]


@pytest.mark.parametrize(("live", "changed"), [("1.0.0", False), ("1.1.0", True)])
def test_a_rollout_that_fails_says_why(
    live: str, changed: bool, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reason, hint, what serves now and the receipt; `changed` tells whether another version is live."""
    fake.leaves(live, code=5, error="1.1.0 was rolled back: p95 0.77 s")
    found = fake.run("glm_deploy", capsys, version="1.1.0")
    assert found["failed"]
    assert (found["rc"], found["changed"]) == (5, changed)
    for text in ("p95 0.77 s", "do that", f"{live} is live", "the receipt"):
        assert text in found["msg"]


def test_a_drain_cut_is_a_warning(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """The rollout is done: the play goes on, and says that requests were cut."""
    fake.leaves("1.1.0", code=6, error="the drain deadline cut 2 requests")
    found = fake.run("glm_deploy", capsys, version="1.1.0")
    assert found["changed"]
    assert "cut 2 requests" in found["warnings"][0]["event"]["msg"]


def test_check_mode_asks_the_preflight(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run decides; without the release it cannot, and says so."""
    found = fake.run("glm_deploy", capsys, check=True, version="1.1.0")
    assert (found["changed"], found["after"]) == (True, "1.1.0")
    assert "not checked" in fake.run("glm_deploy", capsys, check=True, version="9.9.9")["outcome"]
    fake.write("code", 3)
    fake.write("dry-run", {"error": {"message": "no memory", "hint": None, "exit_code": 3}})
    assert fake.run("glm_deploy", capsys, check=True, version="1.1.0")["msg"] == "no memory"
    assert fake.changes == ["deploy 1.1.0 --dry-run"] * 2


def test_rollback_asks_the_host_for_the_version(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a version the host's history decides, also in check mode, which changes nothing."""
    found = fake.run("glm_deploy", capsys, check=True, state="rolled_back")
    assert (found["changed"], found["before"], found["after"]) == (True, "1.0.0", "0.9.0")
    fake.leaves("0.9.0")
    assert fake.run("glm_deploy", capsys, state="rolled_back")["after"] == "0.9.0"
    assert fake.changes == ["rollback --dry-run", "rollback --dry-run", "rollback 0.9.0"]


@pytest.mark.parametrize("is_current", [True, False])
def test_renewal_looks_at_the_process(
    is_current: bool, fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live version that runs the installed code is left alone; one that runs other code is loaded again."""
    program = (fake.home if is_current else fake.home.parent / "former") / ".venv/bin/python"
    systemctl = fake.directory / "systemctl"
    with subprocess.Popen([program, "60"], executable="/bin/sleep") as process:
        systemctl.write_text(f"#!/bin/sh\necho {process.pid}\n")
        systemctl.chmod(0o755)
        monkeypatch.setenv("PATH", f"{fake.directory}:{os.environ['PATH']}")
        fake.leaves("1.0.0")
        found = fake.run("glm_deploy", capsys, state="renewed", options=["--bake", "1"])
        process.kill()
    assert found["changed"] is not is_current
    assert fake.changes == ([] if is_current else ["deploy 1.0.0 --again --bake 1"])


def test_a_release_is_added_once(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there stays; what is missing is added from its directory, and foretold in check mode."""
    assert not fake.run("glm_release", capsys, version="1.1.0")["changed"]
    assert "no path" in fake.run("glm_release", capsys, version="1.2.0")["msg"]
    assert "no config.json" in fake.run("glm_release", capsys, version="1.2.0", path=str(tmp_path))["msg"]
    (tmp_path / "config.json").touch()
    foretold = fake.run("glm_release", capsys, check=True, version="1.2.0", path=str(tmp_path))
    assert foretold["changed"]
    assert fake.changes == []
    fake.write("after-releases", releases("1.0.0", "1.1.0", "1.2.0"))
    found = fake.run("glm_release", capsys, version="1.2.0", path=str(tmp_path))
    assert fake.changes == [f"release add {tmp_path} --version=1.2.0"]
    assert found["releases"] == foretold["releases"] == ["1.0.0", "1.1.0", "1.2.0"]
    assert found["diff"] == foretold["diff"]


def test_releases_in_use_stay(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """The one that a slot leads to is not removed, and not foretold as pruned."""
    assert "in use" in fake.run("glm_release", capsys, version="1.0.0", state="absent")["msg"]
    assert fake.run("glm_release", capsys, check=True, state="pruned", keep=0)["changes"] == ["1.1.0"]
    assert not fake.run("glm_release", capsys, state="pruned", keep=1)["changed"]
    assert not fake.run("glm_release", capsys, version="9.9.9", state="absent")["changed"]
    assert fake.changes == []
    fake.run("glm_release", capsys, version="1.1.0", state="absent")
    assert fake.changes == ["release remove 1.1.0"]


@pytest.mark.parametrize("name", ["glm_release", "glm_deploy"])
def test_a_bare_host_is_named_as_such(name: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """Without glmctl one sentence says what to run."""
    fake.path.unlink()
    assert "site.yml installs it" in fake.run(name, capsys, version="1.0.0")["msg"]


def tasks(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tasks, with those of blocks."""
    for entry in entries:
        yield entry
        for key in ("block", "rescue", "always"):
            yield from tasks(entry.get(key, []))


def test_what_glmctl_installs_is_left_to_it() -> None:
    """No task of the role writes or removes a unit, rule or link of `glmctl install`: one place knows them."""
    host = Host.find(user=False)
    files = HostFiles(host)
    known = {str(path) for path in (*units.paths(host), *files.render(), *files.links())}
    role = COLLECTIONS.parent / "roles/glm_host/tasks"
    for file in role.glob("*.yml"):
        for task in tasks(yaml.safe_load(file.read_text())):
            for name in ("file", "copy", "template"):
                words = task.get(f"ansible.builtin.{name}", {})
                written = {words.get("path"), words.get("dest"), *task.get("loop", [])}
                assert not known & written, f"{file.name}: {task['name']}"
            assert "systemd-sysusers" not in str(task)
            assert "systemd-tmpfiles" not in str(task)
