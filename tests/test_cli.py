"""glmctl as a person types it, on a host without a service manager: plain facts, right codes, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.box import CODE

VERBS = (
    "release add", "release list", "release verify", "release remove", "release prune", "release",
    "deploy", "rollback", "reload", "status", "history", "doctor", "install", "demo", "sandbox",
)  # fmt: skip
EXAMPLES = {
    "": ("glmctl install --user", "glmctl release add ./my-checkpoint --version 1.0.0", "glmctl deploy 1.0.0 "),
    "release add": ('[{"name": "red", "image": "red.png", "question": "Which colour?", "answer": "red", ',),
    "sandbox": ("glmctl sandbox -- bash", "glmctl sandbox -- sh -c '"),
}


# glmctl, imported once and forked for every call: a process of its own each time, without the half second of imports.
_GLMCTL = """
import json, os, sys, traceback
from deploy.cli import main

for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in enumerate(["/dev/null", call["out"], call["err"]]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(call["env"])
        if call["uid"]:
            os.setgroups([])
            os.setresgid(*[call["uid"]] * 3)
            os.setresuid(*[call["uid"]] * 3)
        sys.argv = ["glmctl", *call["words"]]
        code = 1
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def glmctl() -> Iterator[subprocess.Popen[str]]:
    """The process that is forked for every call."""
    with subprocess.Popen(
        [sys.executable, "-c", _GLMCTL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CODE
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


class Person:
    """Somebody with an account on a host, and nothing installed."""

    def __init__(self, home: Path, glmctl: subprocess.Popen[str]) -> None:
        self.home = home
        self.root = home / "data/glm"
        self.history = home / "state/glm/history"
        self._glmctl = glmctl
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

    def types(
        self, *words: str, expect: int | None = None, uid: int = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run glmctl; whatever comes of it, it is no traceback."""
        out, err = self.home.with_name("out"), self.home.with_name("err")
        call = {"words": words, "env": self.env | env, "out": str(out), "err": str(err), "uid": uid}
        assert self._glmctl.stdin is not None
        assert self._glmctl.stdout is not None
        self._glmctl.stdin.write(json.dumps(call) + "\n")
        self._glmctl.stdin.flush()
        code = int(self._glmctl.stdout.readline())
        done = subprocess.CompletedProcess(["glmctl", *words], code, out.read_text(), err.read_text())
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert expect is None or done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def gets(self, *words: str, expect: int, uid: int = 0) -> Any:
        """Run glmctl with --json; stdout is one document and nothing else."""
        return json.loads(self.types(*words, "--json", expect=expect, uid=uid).stdout)


@pytest.fixture
def person(tmp_path: Path, glmctl: subprocess.Popen[str]) -> Person:
    return Person(tmp_path / "home", glmctl)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(person: Person, verb: str) -> None:
    """Every verb explains itself, and examples are printed line by line as they stand in the source."""
    done = person.types(*verb.split(), "--help", expect=0)
    assert done.stdout.startswith(f"Usage: glmctl {verb}".rstrip())
    assert "\\b" not in done.stdout
    lines = [line.strip() for line in done.stdout.splitlines()]
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
        "sandbox",
    ],
)
def test_usage_errors(person: Person, words: str) -> None:
    """What was mistyped ends with 2, says what was wrong on stderr, and touches nothing."""
    done = person.types(*words.split(), expect=2)
    assert "Error: " in done.stderr
    assert done.stdout == ""
    assert [path.name for path in person.home.iterdir()] == ["run"]


@pytest.mark.parametrize("words", ["deploy", "deploy 1.0.0 --bake soon", "frobnicate", "install --listen nonsense"])
def test_usage_errors_in_json(person: Person, words: str) -> None:
    """A program that asks for JSON gets a document for usage errors too."""
    error = json.loads(person.types("--json", *words.split(), expect=2).stdout)["error"]
    assert error["exit_code"] == 2
    assert error["message"]


@pytest.mark.parametrize("words", ["deploy 1.0.0", "deploy 1.0.0 --dry-run", "reload"])
def test_without_units_nothing_is_begun(person: Person, words: str) -> None:
    """Without our units a rollout is refused with 3, a reason and a hint; in words and in JSON."""
    done = person.types(*words.split(), expect=3)
    assert "glmctl: " in done.stderr
    assert "install" in done.stderr
    assert done.stdout == ""
    error = person.gets(*words.split(), expect=3)["error"]
    assert error["exit_code"] == 3
    assert error["message"]
    assert error["hint"]
    assert not (person.root / "live").is_symlink()


def test_refusals_stand_in_the_history(person: Person) -> None:
    """A deploy that preflight refused is told by history, and is not under way for ever."""
    person.types("deploy", "1.0.0", expect=3)
    (record,) = person.gets("history", expect=0)["rollouts"]
    assert (record["version"], record["outcome"]) == ("1.0.0", "refused")
    assert record["id"] in person.types("history", expect=0).stdout
    assert person.gets("history", record["id"], expect=0)["id"] == record["id"]
    assert person.types("history", "nonsense", expect=3).stderr.startswith("glmctl: there is no rollout nonsense")
    assert person.gets("status", expect=0)["rollout"]["outcome"] == "refused"


def test_nothing_to_go_back_to(person: Person) -> None:
    """On an empty host a rollback is refused."""
    assert "nothing to go back to" in person.types("rollback", expect=3).stderr


def test_empty_host_can_be_looked_at(person: Person) -> None:
    """Looking needs no units, no root and no manager, and creates none."""
    status = person.gets("status", expect=0)
    assert status["live"] is None
    assert status["rollout"] is None
    assert {slot["state"] for slot in status["slots"].values()} == {"empty"}
    assert set(status["slots"]) == {"blue", "green"}
    assert {"version", "state", "gate", "generation", "in_flight"} <= set(status["slots"]["blue"])
    assert person.gets("release", "list", expect=0) == {"releases": []}
    assert person.gets("history", expect=0) == {"rollouts": []}
    assert "no releases yet" in person.types("release", "list", expect=0).stdout
    assert "empty" in person.types("status", expect=0).stdout
    assert [path.name for path in person.home.iterdir()] == ["run"]


def test_doctor_says_what_is_missing(person: Person) -> None:
    """An examination that finds something ends with 1, and each finding says how to fix it."""
    findings = person.gets("doctor", expect=1)["findings"]
    assert any(not one["good"] and one["fix"] for one in findings)
    assert "BAD" in person.types("doctor", expect=1).stdout


def test_global_options_before_and_after_the_verb(person: Person, tmp_path: Path) -> None:
    """--root, --user and --json mean the same wherever they stand, and so do their environment variables."""
    other = tmp_path / "other"
    (other / "releases/9.9").mkdir(parents=True)
    manifest = {"version": "9.9", "created_at": "2025-01-01T00:00:00+00:00", "files": []}
    (other / "releases/9.9/release.json").write_text(json.dumps(manifest))
    shown = [
        person.types("--user", "--root", str(other), "--json", "release", "list", expect=0, GLM_USER="").stdout,
        person.types("release", "list", "--json", "--root", str(other), "--user", expect=0, GLM_USER="0").stdout,
        person.types("--json", "release", "list", expect=0, GLM_ROOT=str(other)).stdout,
        person.types("--root", str(other), "release", "list", "--json", expect=0, GLM_ROOT="/nowhere").stdout,
    ]
    assert len(set(shown)) == 1
    (release,) = json.loads(shown[0])["releases"]
    assert release["version"] == "9.9"
    assert set(release) == {"version", "path", "size", "created_at", "slots"}


def test_relative_root_is_taken_from_here(person: Person, tmp_path: Path) -> None:
    """A root given relative to the working directory is that directory."""
    done = subprocess.run(
        ["glmctl", "--root", "here", "deploy", "1"], env=person.env, cwd=tmp_path, capture_output=True, timeout=30
    )
    assert done.returncode == 3
    assert not (tmp_path / "here").exists()


def test_garbage_in_the_history_is_passed_over(person: Person) -> None:
    """A damaged journal keeps nobody from looking or working."""
    person.history.mkdir(parents=True)
    for number, content in enumerate([b"", b"{", b"\xff\xfe", b"[]", b'{"id": 1}', b"null"], start=1):
        (person.history / f"20250101-000000-{number:02}.json").write_bytes(content)
    (person.history / "20250101-000000-99.json").mkdir()
    assert person.gets("history", expect=0) == {"rollouts": []}
    assert person.gets("status", expect=0)["rollout"] is None
    person.types("deploy", "1.0.0", expect=3)
    assert len(person.gets("history", expect=0)["rollouts"]) == 1


def test_garbage_in_the_runtime_directory_is_passed_over(person: Person) -> None:
    """State files that a full disk or a crash left half written keep nobody from looking."""
    directory = person.home / "run/glm/blue/1"
    directory.mkdir(parents=True)
    (directory / "generation.json").write_text("{")
    (directory / "17.json").write_text("[]")
    (person.home / "run/glm/blue/2").write_text("")
    (person.home / "run/glm/green").write_text("")
    assert person.gets("status", expect=0)["slots"]["blue"]["generation"] is None


@pytest.mark.parametrize("links", ["file", "directory", "loop", "foreign", "dangling"])
def test_garbage_in_the_root_is_said_or_passed_over(person: Person, links: str) -> None:
    """Whatever lies where `live` and the slots should be, status answers and a deploy is refused."""
    person.root.mkdir(parents=True)
    for name in ("live", "blue", "green"):
        path = person.root / name
        match links:
            case "file":
                path.write_text("")
            case "directory":
                path.mkdir()
            case _:
                path.symlink_to({"loop": name, "foreign": "/etc", "dangling": "releases/9"}[links])
    assert person.gets("status", expect=0)["live"] is None
    person.gets("release", "list", expect=0)
    person.types("doctor", expect=1)
    person.types("deploy", "1.0.0", expect=3)


@pytest.mark.parametrize("root", ["a file", "/proc/nowhere", "/dev/null", "dangling"])
def test_root_that_is_no_directory(person: Person, tmp_path: Path, root: str) -> None:
    """A root where nothing can be kept is a plain fact: looking works, adding says why not."""
    path = Path(root) if root.startswith("/") else tmp_path / root
    if root == "a file":
        path.write_text("")
    elif root == "dangling":
        path.symlink_to("nowhere/else")
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    person.types("status", "--root", str(path), expect=0)
    person.types("release", "list", "--root", str(path), expect=0)
    if root == "dangling":
        return  # may be made
    error = person.gets("release", "add", str(source), "--version", "1", "--root", str(path), expect=1)["error"]
    assert str(path) in error["message"]
    assert error["hint"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("unfinished", [False, True])
def test_others_may_look(person: Person, tmp_path: Path, unfinished: bool) -> None:
    """Who may read the journal may see the state of a host, also while or after somebody else's rollout."""
    person.types("deploy", "1.0.0", expect=3)
    (path,) = person.history.glob("*.json")
    if unfinished:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"outcome": None}))
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    assert person.gets("status", expect=0, uid=65534)["rollout"]["version"] == "1.0.0"
    assert len(person.gets("history", expect=0, uid=65534)["rollouts"]) == 1


def test_unreadable_release_source(person: Person) -> None:
    """A path that leads nowhere is refused and named."""
    error = person.gets("release", "add", "/nowhere/at/all", expect=3)["error"]
    assert "/nowhere/at/all" in error["message"]


def test_release_verbs(person: Person, tmp_path: Path) -> None:
    """Add, list, verify, prune and remove: one document each on stdout, progress beside it."""
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    added = person.gets("release", "add", str(source), "-V", "1.0.0", expect=0)
    assert added["version"] == "1.0.0"
    assert person.gets("release", "list", expect=0)["releases"] == [added]
    assert person.gets("release", "verify", "1.0.0", expect=0) == added
    assert person.gets("release", "add", str(source), "-V", "1.0.0", expect=3)["error"]["message"]
    assert person.gets("release", "prune", "--keep", "1", expect=0) == {"removed": []}
    assert person.gets("release", "remove", "1.0.0", expect=0) == {"removed": ["1.0.0"]}
    assert person.gets("release", "remove", "1.0.0", expect=3)["error"]["exit_code"] == 3


def test_manager_that_cannot_be_reached_is_said(person: Person) -> None:
    """With units written and no manager to run them, nobody is sent back to `install`, which says all is well."""
    installed = person.types("install")
    again = person.types("install")
    deployed = person.types("deploy", "1.0.0", expect=3)
    assert installed.returncode == again.returncode == 1
    assert "bus" in again.stderr
    assert "not installed" not in deployed.stderr


def test_reader_that_leaves_is_no_error_to_show(person: Person) -> None:
    """A pipe that is closed before all was written, as by `head`, ends glmctl quietly."""
    done = subprocess.run(
        ["sh", "-c", "glmctl --help | true"], env=person.env, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
