"""glmctl on a host without a service manager: its messages and exit codes; never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import forkserver
from tests.box import CODE

VERBS = (
    "release add", "release list", "release verify", "release remove", "release prune", "release",
    "deploy", "promote", "abort", "rollback", "resume", "reload", "retire", "status", "history", "doctor", "logs",
    "install", "uninstall", "listen add", "listen remove", "listen list", "listen", "demo", "sandbox", "completion",
)  # fmt: skip
EXAMPLES = {
    "": ("glmctl install --user", "glmctl release add ./my-checkpoint --version 1.0.0", "glmctl deploy 1.0.0 "),
    "release add": ('[{"name": "red", "image": "red.png",', '"question": "Which colour?", "answer": "red", '),
    "sandbox": ("glmctl sandbox -- bash", "glmctl sandbox -- sh -c '"),
}


class Account:
    """A user account on a host on which nothing is installed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "data/glm"
        self.history = home / "state/glm/history"
        (home / "run").mkdir(parents=True)
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "GLM_USER": "1",
            "COLUMNS": "200",
        }

    def run(self, *words: str, expect: int | None = None, uid: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run glmctl; fails on a traceback, or if the exit code is not `expect`."""
        done = forkserver.glmctl(words, self.env | env, timeout=60, uid=uid)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert expect is None or done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def run_json(self, *words: str, expect: int, uid: int = 0) -> Any:
        """Run glmctl with --json and return its document; stdout must hold nothing else."""
        return json.loads(self.run(*words, "--json", expect=expect, uid=uid).stdout)


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path / "home")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(account: Account, verb: str) -> None:
    """The help of every verb fits 80 columns, and its examples keep their lines."""
    done = account.run(*verb.split(), "--help", expect=0, COLUMNS="80")
    assert done.stdout.startswith(f"Usage: glmctl {verb}".rstrip())
    assert "\\b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    summaries = done.stdout.partition("Commands:")[2].splitlines()
    assert not any(line.endswith("...") for line in summaries), "a summary was cut off"
    lines = [line.strip() for line in done.stdout.splitlines()]
    if verb != "release":
        assert any(line.startswith(f"glmctl {verb}".rstrip()) for line in lines), "an example is missing"
    for example in EXAMPLES.get(verb, ()):
        assert any(line.startswith(example) for line in lines), example


@pytest.mark.parametrize(
    "words",
    [
        "frobnicate",
        "release frobnicate",
        "deploy",
        "release add",
        "release prune --keep -1",
        "release prune --keep many",
        "deploy 1.0.0 --bake soon",
        "deploy 1.0.0 --bake -5s",
        "deploy 1.0.0 --drain nan",
        "deploy 1.0.0 --drain 1d",
        "deploy 1.0.0 2.0.0",
        "deploy 1.0.0 --nonsense",
        "status --root",
        "install --listen nonsense",
        "install --ui 127.0.0.1:99999",
        "install --ui localhost:8501",
        "sandbox",
    ],
)
def test_usage_errors(account: Account, words: str) -> None:
    """A usage error has exit code 2 and a message on stderr, and changes nothing."""
    done = account.run(*words.split(), expect=2)
    assert "Error: " in done.stderr
    assert done.stdout == ""
    assert [path.name for path in account.home.iterdir()] == ["run"]


@pytest.mark.parametrize("words", ["deploy", "deploy 1.0.0 --bake soon", "frobnicate", "install --listen nonsense"])
def test_usage_errors_in_json(account: Account, words: str) -> None:
    """With --json, usage errors are a JSON document, too."""
    error = json.loads(account.run("--json", *words.split(), expect=2).stdout)["error"]
    assert error["exit_code"] == 2
    assert error["message"]


@pytest.mark.parametrize("words", ["deploy 1.0.0", "deploy 1.0.0 --dry-run", "reload"])
def test_rollouts_need_units(account: Account, words: str) -> None:
    """Without installed units a rollout is refused with exit code 3, a reason and a hint, as text and as JSON."""
    done = account.run(*words.split(), expect=3)
    assert "glmctl: " in done.stderr
    assert "install" in done.stderr
    assert done.stdout == ""
    error = account.run_json(*words.split(), expect=3)["error"]
    assert error["exit_code"] == 3
    assert error["message"]
    assert error["hint"]
    assert not (account.root / "live").is_symlink()


def test_refusals_are_recorded(account: Account) -> None:
    """A deploy that preflight refused is in the history, with an outcome."""
    account.run("deploy", "1.0.0", expect=3)
    (record,) = account.run_json("history", expect=0)["rollouts"]
    assert (record["version"], record["outcome"]) == ("1.0.0", "refused")
    assert record["id"] in account.run("history", expect=0).stdout
    assert account.run_json("history", record["id"], expect=0)["id"] == record["id"]
    assert account.run("history", "nonsense", expect=3).stderr.startswith("glmctl: there is no rollout nonsense")
    assert account.run_json("status", expect=0)["rollout"]["outcome"] == "refused"


def test_rollback_needs_a_previous_version(account: Account) -> None:
    """On an empty host a rollback is refused."""
    assert "nothing to go back to" in account.run("rollback", expect=3).stderr


def test_reading_an_empty_host(account: Account) -> None:
    """Reading verbs need no units, root or manager, and create nothing."""
    status = account.run_json("status", expect=0)
    assert status["live"] is None
    assert status["rollout"] is None
    assert {slot["state"] for slot in status["slots"].values()} == {"empty"}
    assert set(status["slots"]) == {"blue", "green"}
    assert {"version", "state", "gate", "generation", "in_flight"} <= set(status["slots"]["blue"])
    assert account.run_json("release", "list", expect=0) == {"releases": []}
    assert account.run_json("history", expect=0) == {"rollouts": []}
    assert "no releases yet" in account.run("release", "list", expect=0).stdout
    assert "empty" in account.run("status", expect=0).stdout
    assert [path.name for path in account.home.iterdir()] == ["run"]


def test_doctor_names_a_fix(account: Account) -> None:
    """With a bad finding, doctor has exit code 1, and the finding has a fix and its section of the runbook."""
    findings = account.run_json("doctor", expect=1)["findings"]
    assert "units" in {finding["kind"] for finding in findings if not finding["good"]}
    assert any(not finding["good"] and finding["fix"] for finding in findings)
    assert "BAD" in account.run("doctor", expect=1).stdout


def test_global_options_before_and_after_the_verb(account: Account, tmp_path: Path) -> None:
    """--root, --user and --json have the same effect before and after the verb, and as environment variables."""
    other = tmp_path / "other"
    (other / "releases/9.9").mkdir(parents=True)
    manifest = {"version": "9.9", "created_at": "2025-01-01T00:00:00+00:00", "files": []}
    (other / "releases/9.9/release.json").write_text(json.dumps(manifest))
    shown = [
        account.run("--user", "--root", str(other), "--json", "release", "list", expect=0, GLM_USER="").stdout,
        account.run("release", "list", "--json", "--root", str(other), "--user", expect=0, GLM_USER="0").stdout,
        account.run("--json", "release", "list", expect=0, GLM_ROOT=str(other)).stdout,
        account.run("--root", str(other), "release", "list", "--json", expect=0, GLM_ROOT="/nowhere").stdout,
    ]
    assert len(set(shown)) == 1
    (release,) = json.loads(shown[0])["releases"]
    assert release["version"] == "9.9"
    assert set(release) == {"version", "path", "size", "created_at", "slots"}


def test_relative_root(account: Account, tmp_path: Path) -> None:
    """A relative root is relative to the working directory."""
    done = subprocess.run(
        ["glmctl", "--root", "here", "deploy", "1"], env=account.env, cwd=tmp_path, capture_output=True, timeout=30
    )
    assert done.returncode == 3
    assert not (tmp_path / "here").exists()


def test_damaged_records_are_skipped(account: Account) -> None:
    """Damaged records do not hinder other verbs."""
    account.history.mkdir(parents=True)
    for number, content in enumerate([b"", b"{", b"\xff\xfe", b"[]", b'{"id": 1}', b"null"], start=1):
        (account.history / f"20250101-000000-{number:02}.json").write_bytes(content)
    (account.history / "20250101-000000-99.json").mkdir()
    assert account.run_json("history", expect=0) == {"rollouts": []}
    assert account.run_json("status", expect=0)["rollout"] is None
    account.run("deploy", "1.0.0", expect=3)
    assert len(account.run_json("history", expect=0)["rollouts"]) == 1


def test_damaged_state_files_are_skipped(account: Account) -> None:
    """Truncated state files do not hinder `status`."""
    directory = account.home / "run/glm/blue/1"
    directory.mkdir(parents=True)
    (directory / "generation.json").write_text("{")
    (directory / "17.json").write_text("[]")
    (account.home / "run/glm/blue/2").write_text("")
    (account.home / "run/glm/green").write_text("")
    assert account.run_json("status", expect=0)["slots"]["blue"]["generation"] is None


@pytest.mark.parametrize("links", ["file", "directory", "loop", "foreign", "dangling"])
def test_wrong_links_in_the_root(account: Account, links: str) -> None:
    """With anything else in place of the links `live`, `blue` and `green`, status works and a deploy is refused."""
    account.root.mkdir(parents=True)
    for name in ("live", "blue", "green"):
        path = account.root / name
        match links:
            case "file":
                path.write_text("")
            case "directory":
                path.mkdir()
            case _:
                path.symlink_to({"loop": name, "foreign": "/etc", "dangling": "releases/9"}[links])
    assert account.run_json("status", expect=0)["live"] is None
    account.run_json("release", "list", expect=0)
    account.run("doctor", expect=1)
    account.run("deploy", "1.0.0", expect=3)


@pytest.mark.parametrize("root", ["a file", "/proc/nowhere", "/dev/null", "dangling"])
def test_unusable_root(account: Account, tmp_path: Path, root: str) -> None:
    """With a root that is not a directory, reading verbs work, and `release add` names the path and a hint."""
    path = Path(root) if root.startswith("/") else tmp_path / root
    if root == "a file":
        path.write_text("")
    elif root == "dangling":
        path.symlink_to("nowhere/else")
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    account.run("status", "--root", str(path), expect=0)
    account.run("release", "list", "--root", str(path), expect=0)
    if root == "dangling":
        return  # the directory can be created
    error = account.run_json("release", "add", str(source), "--version", "1", "--root", str(path), expect=1)["error"]
    assert str(path) in error["message"]
    assert error["hint"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its uid")
@pytest.mark.parametrize("unfinished", [False, True])
def test_other_users_can_read(account: Account, tmp_path: Path, unfinished: bool) -> None:
    """A user who may read the journal can see status and history, also with another user's unfinished rollout."""
    account.run("deploy", "1.0.0", expect=3)
    (path,) = account.history.glob("*.json")
    if unfinished:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"outcome": None}))
    for directory in (tmp_path, *(path for path in tmp_path.parents if path.name.startswith(("pytest-", "popen-")))):
        directory.chmod(0o755)
    assert account.run_json("status", expect=0, uid=65534)["rollout"]["version"] == "1.0.0"
    assert len(account.run_json("history", expect=0, uid=65534)["rollouts"]) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its uid")
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda policy: policy.parent.chmod(0o750), "this user may not read"),
        (lambda policy: (policy.touch(), policy.chmod(0o600)), "this user may not read"),
        (lambda policy: (policy.parent.rmdir(), policy.parent.touch()), None),
        (lambda policy: policy.mkdir(), "cannot be read: Is a directory"),
    ],
    ids=["directory not searchable", "file not readable", "no directory", "a directory"],
)
def test_unreadable_policy(
    account: Account, tmp_path: Path, prepare: Callable[[Path], object], message: str | None
) -> None:
    """Reading verbs work without the policy; a deploy is refused with the reason, which is never the file's syntax."""
    account.run("deploy", "1.0.0", expect=3)
    for directory in (tmp_path, *(path for path in tmp_path.parents if path.name.startswith(("pytest-", "popen-")))):
        directory.chmod(0o755)
    policy = account.home / "config/glm/glm.toml"
    policy.parent.mkdir(parents=True)
    prepare(policy)
    for verb, code in (("status", 0), ("history", 0), ("release list", 0), ("doctor", 1)):
        done = account.run(*verb.split(), expect=code, uid=65534)
        assert "glm.toml" not in done.stdout + done.stderr
    account.history.parent.chmod(0o777)  # else it is refused because this user may not change anything
    error = account.run_json("deploy", "1.0.0", "--dry-run", expect=3, uid=65534)["error"]
    assert "TOML" not in error["message"] + (error["hint"] or "")
    assert (str(policy) in error["message"]) is (message is not None)
    assert (message or "") in error["message"]


def test_unreadable_release_source(account: Account) -> None:
    """A missing path is refused and named."""
    error = account.run_json("release", "add", "/nowhere/at/all", expect=3)["error"]
    assert "/nowhere/at/all" in error["message"]


def test_release_verbs(account: Account, tmp_path: Path) -> None:
    """Add, list, verify, prune and remove print one JSON document each."""
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    added = account.run_json("release", "add", str(source), "-V", "1.0.0", expect=0)
    assert added["version"] == "1.0.0"
    assert account.run_json("release", "list", expect=0)["releases"] == [added]
    assert account.run_json("release", "verify", "1.0.0", expect=0) == added
    assert account.run_json("release", "add", str(source), "-V", "1.0.0", expect=3)["error"]["message"]
    assert account.run_json("release", "prune", "--keep", "1", expect=0) == {"removed": []}
    assert account.run_json("release", "remove", "1.0.0", expect=0) == {"removed": ["1.0.0"]}
    assert account.run_json("release", "remove", "1.0.0", expect=3)["error"]["exit_code"] == 3


def test_unreachable_service_manager(account: Account) -> None:
    """With unit files but no service manager, the message does not claim that the units are not installed."""
    installed = account.run("install")
    again = account.run("install")
    deployed = account.run("deploy", "1.0.0", expect=3)
    assert installed.returncode == again.returncode == 1
    assert "bus" in again.stderr
    assert "not installed" not in deployed.stderr


def test_closed_pipe(account: Account) -> None:
    """If the reader closes the pipe early, as `head` does, glmctl prints no error."""
    done = subprocess.run(
        ["sh", "-c", "glmctl --help | true"], env=account.env, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""


@pytest.mark.parametrize(("words", "env"), [((), {}), (("--debug",), {}), ((), {"GLM_DEBUG": "1"})])
def test_unexpected_errors(account: Account, words: tuple[str, ...], env: dict[str, str]) -> None:
    """Exit code 1 and one line with a hint; the traceback on request."""
    program = (
        "import deploy.commands.deploy as command\n"
        "def fail(*_): raise ZeroDivisionError('three of none')\n"
        "command.rollout.deploy = fail\n"
        "from deploy.cli import main\n"
        "main()\n"
    )
    argv = [sys.executable, "-c", program, "deploy", "1.0.0", "--json", *words]
    done = subprocess.run(argv, env=account.env | env, cwd=CODE, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["message"].startswith("unexpected error: ZeroDivisionError: three of none (fail, line ")
    assert error["exit_code"] == 1
    lines = done.stderr.splitlines()
    assert lines[-2:] == [f"glmctl: {error['message']}", f"        {error['hint']}"]
    assert ("Traceback (most recent call last):" in lines) == (len(lines) > 2) == bool(words or env)
