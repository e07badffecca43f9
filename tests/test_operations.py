"""What an operator asks for from the page: whose key it is, the command that runs, and what stays of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.display import Display
from deploy.errors import Refused
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Strategy
from deploy.operate import request, running
from deploy.operate.operators import operator_of
from deploy.rollout.plan import Context
from service.contract import operations
from service.contract.operations import STRATEGIES, VERBS, Request, command, newest, output
from tests.operate_fixtures import KEY, OperateService, write_operators
from tests.page_fixtures import wait_until
from tests.release_fixtures import host_in
from ui.operator import Attempts, OperateError, Operator, WrongKeyError

DEPLOY = {"version": "1.1.0", "strategy": "auto", "canary": "10,50", "step": "pause", "bake": "60s"}
BEGINNINGS = ["", "-", "--", "--root=", "/", "1", "1.0.0\n", "auto", "pause"]
FIELDS = sorted({(verb, name) for verb, rules in VERBS.items() for name in rules.options})
FIELDS += sorted((verb, rules.argument[0]) for verb, rules in VERBS.items() if rules.argument)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OperateService]:
    monkeypatch.setattr(request, "_DELAY", 0.0)
    with OperateService(tmp_path) as service:
        yield service


def refused_key(service: OperateService, key: str) -> None:
    with pytest.raises(WrongKeyError):
        service.operator.begin(key, "promote", {})


def test_commands() -> None:
    """Options come before `--`, the argument after it, and empty values are left out."""
    words = ["deploy", "--strategy=auto", "--canary=10,50", "--step=pause", "--bake=60s", "--", "1.1.0"]
    assert command("deploy", DEPLOY) == words
    assert command("deploy", {"version": "2", "canary": "", "dry-run": "yes"}) == ["deploy", "--dry-run", "--", "2"]
    assert command("release add", {"path": "/a b", "version": "2"}) == ["release", "add", "--version=2", "--", "/a b"]
    assert command("rollback", {"version": ""}) == ["rollback"]
    assert set(STRATEGIES) == {"auto", *get_args(Strategy)}


@given(field=st.sampled_from(FIELDS), value=st.builds("{}{}".format, st.sampled_from(BEGINNINGS), st.text(max_size=9)))
def test_no_value_becomes_another_option(field: tuple[str, str], value: str) -> None:
    """Whatever is sent, it is the value of its own option or the argument, in one word; or it is refused."""
    verb, name = field
    required = {"deploy": {"version": "1"}, "release add": {"path": "/x"}, "release verify": {"version": "1"}}
    plain = command(verb, required.get(verb, {}))
    try:
        words = command(verb, {**required.get(verb, {}), name: value})
    except ValueError:
        return
    separator = words.index("--") if "--" in words else len(words)
    known = {f"--{option}=" for option in VERBS[verb].options}
    assert all(any(word.startswith(option) for option in known) for word in words[len(verb.split()) : separator])
    assert words[separator + 1 :] in ([value], plain[plain.index("--") + 1 :] if "--" in plain else [])
    assert not any(character in word for word in words for character in "\0\n\r")


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("deploy", {}),
        ("deploy", {"version": "--root=/tmp"}),
        ("deploy", {"version": "1.0.0\n"}),
        ("deploy", {"version": "../1.0.0"}),
        ("deploy", {"version": "1", "canary": "10;50"}),
        ("deploy", {"version": "1", "dry-run": "no"}),
        ("deploy", {"version": "1", "root": "/tmp"}),
        ("release add", {"path": "relative"}),
        ("retire", {"slot": "red"}),
        ("release remove", {"version": "1"}),
        ("sandbox", {}),
        ("", {}),
    ],
)
def test_what_is_no_command_is_refused(service: OperateService, verb: str, values: dict[str, str]) -> None:
    """By the page before it is sent, and by the server whoever sends it; nothing runs."""
    with pytest.raises(OperateError):
        service.operator.begin(KEY, verb, values)
    if verb:
        assert "error" in service.send(Request(KEY, verb, values).line())
    assert newest(service.host.state, 9) == []


def test_an_operation(service: OperateService) -> None:
    """Glmctl gets the words and the name of the operator; its output is readable while it runs, its end afterwards."""
    identifier = service.operator.begin(KEY, "deploy", DEPLOY)
    wait_until(lambda: "began" in output(service.host.state, newest(service.host.state, 1)[0])[0])
    [operation] = newest(service.host.state, 9)
    assert (operation.id, operation.operator, operation.code) == (identifier, "alice", None)
    assert list(operation.arguments) == command("deploy", DEPLOY)
    text, is_running = output(service.host.state, operation)
    assert is_running
    assert text == f"alice began: {' '.join(operation.arguments)}\n"
    service.finish(5)
    wait_until(lambda: newest(service.host.state, 1)[0].code == 5)
    wait_until(lambda: output(service.host.state, operation) == (f"{text}ended\n", False))
    assert newest(service.host.state, 1)[0].ended_at


def test_an_operation_survives_who_asked_for_it(service: OperateService) -> None:
    """A page that closes its connection at once ends nothing."""
    service.send(Request(KEY, "promote", {}).line(), listen=False)
    wait_until(lambda: bool(newest(service.host.state, 1)))
    service.finish(0)
    wait_until(lambda: newest(service.host.state, 1)[0].code == 0)


@pytest.mark.parametrize("key", ["", "0123456789abcde", f"{KEY}0", "ключ", f"sha256:{'0' * 64}"])
def test_a_wrong_key_does_nothing(service: OperateService, key: str) -> None:
    """Not even to tell whether the rest of the request is right."""
    refused_key(service, key)
    assert service.send(Request(key, "nonsense", {}).line()) == {"error": "key"}
    assert newest(service.host.state, 9) == []


def test_keys_are_read_for_each_request(service: OperateService) -> None:
    """A key that is taken from the file does not work any more; also digests are keys."""
    assert service.operator.name_of(KEY) == "alice"
    write_operators(service.host, f"bob sha256:{operations_digest('another-key-of-bob')}\n")
    refused_key(service, KEY)
    assert service.operator.name_of("another-key-of-bob") == "bob"


def operations_digest(key: str) -> str:
    import hashlib

    return hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "mode"), [(None, 0o600), (f"alice {KEY}\n", 0o640), (f"alice {KEY}\n", 0o604), ("alice short\n", 0o600)]
)
def test_a_file_of_keys_that_is_not_safe_turns_operating_off(tmp_path: Path, content: str | None, mode: int) -> None:
    """Missing, damaged, or readable by others: no key is right, and the reason has no part of a key."""
    host = host_in(tmp_path)
    if content is not None:
        write_operators(host, content, mode)
    with pytest.raises(Refused) as refused:
        operator_of(host.operators, KEY)
    assert KEY not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"[]\n", b"{\n", b'{"key": 1, "verb": "", "values": {}}\n', b"x" * operations.MAX_REQUEST * 2]
)
def test_malformed_requests(service: OperateService, line: bytes) -> None:
    """They are refused, and nothing more of them is read than a request may have."""
    assert set(service.send(line)) == {"error"}
    assert newest(service.host.state, 9) == []


def test_a_silent_client_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a request that never arrives ends."""
    monkeypatch.setattr(request, "_TIMEOUT", 0.05)
    ours, theirs = socket.socketpair()
    with ours:
        assert request.answer(Context(host_in(tmp_path), Display(quiet=True)), theirs, []) is None
        assert set(json.loads(ours.makefile().readline())) == {"error"}


def test_old_operations_are_removed(service: OperateService, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their output, the oldest first, and none that still runs."""
    monkeypatch.setattr(running, "_KEPT", 2)
    begun = [service.operator.begin(KEY, "promote", {}) for _ in range(3)]
    place = operations.directory(service.host.state)
    assert {path.stem for path in place.iterdir()} == set(begun)
    service.finish(0)
    wait_until(lambda: all(one.code == 0 for one in newest(service.host.state, 3)))
    begun.append(service.operator.begin(KEY, "promote", {}))
    assert {path.stem for path in place.iterdir()} == set(begun[2:])


def test_who_began_a_rollout_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator of the page, else who used sudo; and no name that a terminal would interpret."""
    journal = Journal(host_in(tmp_path))
    monkeypatch.setenv("SUDO_USER", "carol")
    assert begin(journal, "deploy", "1.0.0", "blue").record.operator == "carol"
    monkeypatch.setenv("GLM_OPERATOR", "alice")
    assert begin(journal, "deploy", "1.0.0", "blue").record.operator == "alice"
    monkeypatch.setenv("GLM_OPERATOR", "\x1b[31m")
    assert begin(journal, "deploy", "1.0.0", "blue").record.operator == "carol"


def test_wrong_keys_are_limited() -> None:
    """Of each address for itself, until the time is over; a right key does not count, and no address stays for ever."""
    now = 0.0
    attempts = Attempts(limit=2, seconds=60, clock=lambda: now)
    for _ in range(9):
        assert attempts.begin("a")
        attempts.forget("a")
    assert [attempts.begin("a") for _ in range(4)] == [True, True, False, False]
    assert attempts.begin("b")
    now = 61.0
    assert attempts.begin("a")
    for number in range(5000):
        attempts.begin(str(number))
    assert len(attempts._wrong) <= 1000


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operating is off without the socket; a socket that nobody serves is an error in words."""
    monkeypatch.setenv("GLM_RUNTIME", str(tmp_path))
    assert Operator.of_host() is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(operations.socket_path(tmp_path)))
        found = Operator.of_host()
        assert found
        with pytest.raises(OperateError, match=r"glm-operate\.socket"):
            found.name_of(KEY)
