"""API keys: who is answered, how much of a key is in flight, and that no key gets anywhere else."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from deploy.display import Display
from deploy.reports import files
from deploy.rollout.plan import Context
from service.api import keys as module
from service.api.application import Application
from service.api.keys import ApiKeys, KeysError
from service.api.routes import Endpoint
from service.app import create_app
from service.batches.service import BatchService
from service.contract import keys_file
from service.contract.cached_file import CachedFile
from service.contract.slots import http_socket
from service.contract.successor import Successor
from service.identity import Identity
from service.settings import Settings
from tests.batch_fixtures import FakeChat
from tests.batch_fixtures import settings as batch_settings
from tests.box import Box
from tests.rollout_fixtures import directories
from tests.server_fixtures import App, Message, Receive, Send, running_host
from tests.test_app import CHAT, HELLO, IDENTITY, FakeEngine
from ui.client import ServiceClient

KEY = "alice-0123456789abcdef"
OTHER = "bob-0123456789abcdef"
SCRAPER = "scraper-0123456789abcdef"
OPEN = {"/healthz", "/health", "/readyz", "/version", "/openapi.json"}
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file with every request."""
    monkeypatch.setattr(module, "PERIOD", 0.0)


def replace(path: Path, text: str) -> Path:
    path.with_suffix(".new").write_text(text)
    return path.with_suffix(".new").replace(path)


def application(path: Path, engine: FakeEngine | None = None, **changes: Any) -> Application:
    app = create_app(
        engine or FakeEngine(), IDENTITY, Settings(slot="green", keys=path, **changes), serving=lambda: True
    )
    assert isinstance(app, Application)
    return app


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["type"], error["code"]


# the file

NAMES = st.from_regex(r"[A-Za-z0-9._@-]{1,20}", fullmatch=True)
SECRETS = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=keys_file.MIN_LENGTH, max_size=40).filter(
    lambda text: not text.startswith(("#", "sha256:"))
)
OPTIONS = st.one_of(
    st.just({"metrics": True}),
    st.fixed_dictionaries({}, optional={"requests": st.integers(1, 99), "tokens": st.integers(1, 99)}),
)


@given(
    entries=st.dictionaries(NAMES, st.tuples(st.lists(SECRETS, min_size=1, max_size=2), OPTIONS), min_size=1),
    hashed=st.booleans(),
    comment=st.sampled_from(("", "# a comment", "\n\t\n", "\r")),
)
def test_every_line_of_a_file_is_read(
    entries: dict[str, tuple[list[str], dict[str, int]]], hashed: bool, comment: str
) -> None:
    """A key is found by its text, plain or hashed, with its name and options; several keys may have one name."""
    owners = {secret: name for name, (secrets, _) in entries.items() for secret in secrets}
    lines = [comment]
    for secret, name in owners.items():
        text = f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}" if hashed else secret
        words = [f"{option}={value}" if option != "metrics" else "scope=metrics" for option, value in entries[name][1].items()]  # fmt: skip  # noqa: E501
        lines.append(" ".join([name, text, *words, comment]))
    keys = keys_file.parse("\n".join(lines).encode())
    assert len(keys) == len(owners)
    for secret, name in owners.items():
        key = keys[keys_file.digest_of(secret.encode())]
        found = {"requests": key.requests, "tokens": key.tokens, "metrics": key.metrics or None}
        assert (key.name, {one: value for one, value in found.items() if value}) == (name, entries[name][1])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alice", "the key is missing"),
        ("alice short-key", "fewer than 16 characters"),
        (f"al/ice {KEY}", "the name"),
        (f"{'a' * 65} {KEY}", "the name"),
        (f"alice sha256:{KEY}", "64 hexadecimal digits"),
        (f"alice sha256:{'é' * 64}", "not ASCII"),
        (f"alice {KEY}\x07", "cannot be sent"),
        (f"alice {KEY} {OTHER}", "an option is not one of"),
        (f"alice {KEY} rows=3", "an option is not one of"),
        (f"alice {KEY} requests=0", "requests is not a whole number"),
        (f"alice {KEY} tokens={OTHER}", "tokens is not a whole number"),
        (f"alice {KEY} tokens=1 tokens=2", "twice"),
        (f"alice {KEY} metrics requests=2", "no limits"),
        (f"carol {SCRAPER}", "an earlier line"),
        (f"first {KEY} requests=3", "the options of first"),
    ],
)
def test_a_wrong_line_is_named_without_its_key(line: str, reason: str) -> None:
    """The error has the number of the line and the reason, and no part of a key."""
    with pytest.raises(ValueError, match=rf"^line 3: .*{reason}") as error:
        keys_file.parse(f"# keys\nfirst {SCRAPER}\n{line}\n".encode())
    assert not any(secret in str(error.value) for secret in (KEY, OTHER, SCRAPER))


@pytest.mark.parametrize("text", ["", "\n", "# alice 0123456789abcdef\n"])
def test_a_file_without_a_key_is_refused(text: str) -> None:
    """An empty file, which an editor may leave for a moment, does not end the need of keys, and locks nobody out."""
    with pytest.raises(ValueError, match="no key"):
        keys_file.parse(text.encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_keys_or_a_value_error(content: bytes) -> None:
    """The parser raises nothing else."""
    with suppress(ValueError):
        assert keys_file.parse(content)


def test_a_file_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed file, and one that cannot be read, do not mean that no request needs a key; a missing one does."""
    assert ApiKeys(tmp_path / "keys").admit({"type": "http"}, "key") is module._OFF
    replace(tmp_path / "keys", f"alice {KEY} rows=1\n")
    with pytest.raises(KeysError, match="keys cannot be used: line 1: ") as error:
        ApiKeys(tmp_path / "keys")
    assert KEY not in str(error.value)
    with pytest.raises(KeysError, match="directory"):
        ApiKeys(tmp_path)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KeysError, match="enter its directory"):
        ApiKeys(tmp_path / "keys")


def test_the_credential_of_the_unit_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The credential `glm-keys` is used in place of the file that the settings name."""
    replace(tmp_path / "keys", f"alice {KEY}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    (tmp_path / "credentials").mkdir()
    assert TestClient(application(tmp_path / "keys")).get("/v1/models", headers=BEARER).status_code == 200
    replace(tmp_path / "credentials/glm-keys", f"alice {OTHER}\n")
    assert TestClient(application(tmp_path / "keys")).get("/v1/models", headers=BEARER).status_code == 401


# requests


def ask(app: Starlette, headers: list[tuple[bytes, bytes]], method: str = "POST", path: str = CHAT) -> list[Message]:
    """Send a head alone; the test fails if the application reads the body."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "client": ("10.0.0.1", 1), "server": ("10.0.0.2", 2),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


@pytest.fixture(scope="module")
def locked() -> Iterator[Application]:
    with TemporaryDirectory() as directory:
        yield application(replace(Path(directory, "keys"), f"alice {KEY}\nbob {OTHER}\n"))


WRONG = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode()),
    st.sampled_from([KEY[:-1], KEY + "x", KEY.upper(), "alice", f"{KEY} {KEY}", f"{KEY},{OTHER}", f'"{KEY}"', ""]).map(
        str.encode
    ),
    st.integers(0, len(KEY) - 1).map(lambda at: KEY[:at].encode() + b"\xff" + KEY[at + 1 :].encode()),
    st.just(hashlib.sha256(KEY.encode()).hexdigest().encode()),
).filter(lambda text: text.strip(b" \t").decode("latin-1") not in (KEY, OTHER))
WRONG_HEADER = st.one_of(
    st.tuples(st.sampled_from([b"authorization"]), WRONG.map(lambda text: b"Bearer " + text)),
    st.tuples(st.sampled_from([b"x-api-key", b"api-key"]), WRONG),
    st.tuples(
        st.just(b"authorization"),
        st.one_of(
            st.sampled_from([b"Basic ", b"Token ", b"Bearer\xa0", b"Bearer\t", b"Bearer: ", b""]).map(
                lambda scheme: scheme + KEY.encode()
            ),
            st.binary(max_size=40).filter(lambda value: not value.strip(b" \t").lower().startswith(b"bearer ")),
        ),
    ),
)
RIGHT_HEADER = st.sampled_from([(b"authorization", b"Bearer " + KEY.encode()), (b"x-api-key", KEY.encode())])


@settings(max_examples=150, deadline=None)
@given(wrong=st.lists(WRONG_HEADER, max_size=3), right=st.lists(RIGHT_HEADER, max_size=1), data=st.data())
@example(wrong=[], right=[], data=None)
@example(wrong=[(b"x-api-key", OTHER.encode())], right=[(b"authorization", b"Bearer " + KEY.encode())], data=None)
def test_anything_but_one_key_is_a_401(
    locked: Application, wrong: list[tuple[bytes, bytes]], right: list[tuple[bytes, bytes]], data: st.DataObject | None
) -> None:
    """Any headers without a key, or with a key and something else in the place of one, are refused unread."""
    headers = [*wrong, *(right if wrong else [])]
    if data is not None:
        headers = data.draw(st.permutations(headers))
    start, body = ask(locked, headers)
    error = json.loads(body["body"])["error"]
    assert (start["status"], error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    sent = dict(start["headers"])
    assert sent[b"www-authenticate"] == b"Bearer"
    assert b"connection" not in sent
    assert KEY not in str(error)


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {KEY}")],
        [("authorization", f"bEARER   {KEY} ")],
        [("X-Api-Key", KEY)],
        [("api-key", KEY)],
        [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY), ("api-key", KEY)],
    ],
)
def test_a_key_is_accepted_in_each_header(locked: Application, headers: list[tuple[str, str]]) -> None:
    """The scheme is written in any case, and the same key may be there several times."""
    assert TestClient(locked).post(CHAT, json=HELLO, headers=httpx.Headers(headers)).status_code == 200


def test_all_routes_but_a_few_need_a_key(locked: Application) -> None:
    """Without a key every route is a 401, also a new one, except those of health, version, schema and metrics."""
    open_routes = set()
    for route in locked.routes:
        assert isinstance(route, Endpoint)
        for method in route.methods or ():
            path = route.path.replace(":path", "").format(id="x")
            answer = TestClient(locked).request(method, path)
            if answer.status_code != 401:
                open_routes.add(path)
    assert open_routes == OPEN | {"/metrics"}


def test_metrics_need_a_key_of_their_own_if_there_is_one(tmp_path: Path) -> None:
    """With a key for metrics, /metrics needs it, and it opens nothing else; without one /metrics stays open."""
    path = replace(tmp_path / "keys", f"alice {KEY}\nprometheus {SCRAPER} scope=metrics\n")
    http = TestClient(application(path))

    def status(url: str, key: str) -> int:
        return http.get(url, headers={"x-api-key": key} if key else {}).status_code

    assert [status("/metrics", key) for key in ("", KEY, SCRAPER, "x")] == [401, 403, 200, 401]
    assert [status("/v1/models", key) for key in ("", KEY, SCRAPER)] == [401, 200, 403]
    assert [status("/healthz", key) for key in ("", KEY, SCRAPER, "x")] == [200] * 4
    replace(path, f"alice {KEY}\n")
    assert [status("/metrics", key) for key in ("", KEY, SCRAPER)] == [200] * 3


def test_nothing_changes_without_a_file(tmp_path: Path) -> None:
    """Without a file any key, and none, is answered."""
    http = TestClient(application(tmp_path / "keys"))
    for headers in ({}, BEARER, {"x-api-key": "x"}, {"authorization": "Basic x"}):
        assert http.post(CHAT, json=HELLO, headers=headers).status_code == 200


# changes of the file


def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    """Keys that are added are accepted, those that are removed are refused, without a restart."""
    path = tmp_path / "keys"
    http = TestClient(application(path))

    def accepted() -> list[bool]:
        sent = ({"x-api-key": key} for key in (KEY, OTHER))
        return [http.get("/v1/models", headers=headers).status_code == 200 for headers in sent]

    assert accepted() == [True, True]
    for text, expected in (
        (f"alice {KEY}\n", [True, False]),
        (f"alice {KEY}\nalice {OTHER}\n", [True, True]),
        (f"alice {OTHER}\n", [False, True]),
    ):
        replace(path, text)
        assert accepted() == expected
    target = replace(tmp_path / "target", f"alice {KEY}\n")  # an operator's symlink, and a change of what it leads to
    path.unlink()
    path.symlink_to(target)
    assert accepted() == [True, False]
    target.write_text(f"alice {OTHER}  # new\n")
    assert accepted() == [False, True]


def test_a_file_that_gets_lost_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Removed, malformed, empty, a directory: the keys before stay valid, which is logged once each time."""
    path = replace(tmp_path / "keys", f"alice {KEY}\n")
    http = TestClient(application(path))

    def spoil(how: str) -> None:
        path.unlink()
        if how == "directory":
            path.mkdir()
        elif how != "removed":
            path.write_text({"empty": "", "malformed": f"alice {OTHER} x=1\n"}[how])

    for how in ("removed", "malformed", "empty", "directory"):
        caplog.clear()
        spoil(how)
        for _ in range(3):
            assert http.get("/v1/models", headers=BEARER).status_code == 200
            assert http.get("/v1/models", headers={"x-api-key": OTHER}).status_code == 401
        logged = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(logged) == 1, how
        assert str(path) in logged[0].message
        if path.is_dir():
            path.rmdir()
        replace(path, f"alice {KEY}\n")
        assert http.get("/v1/models", headers=BEARER).status_code == 200


def test_the_file_is_looked_at_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests come, the file is looked at once in a period."""
    monkeypatch.setattr(module, "PERIOD", 3600.0)
    looks: list[Path] = []
    read = CachedFile.read

    def count(self: CachedFile[Any]) -> Any:
        looks.append(self.path)
        return read(self)

    monkeypatch.setattr(CachedFile, "read", count)
    path = replace(tmp_path / "keys", f"alice {KEY}\n")
    http = TestClient(application(path))
    assert {http.get("/v1/models", headers=BEARER).status_code for _ in range(20)} == {200}
    assert looks == [path]


# limits


class Requests:
    """Requests to one application, each with an end of its own."""

    def __init__(self, app: Application, engine: FakeEngine) -> None:
        self.app = app
        self.engine = engine

    async def begin(self, key: str, **fields: Any) -> tuple[asyncio.Task[list[Message]], asyncio.Event]:
        """Begin a chat; returns its task, which waits in the engine, and the event that disconnects its client."""
        disconnect = asyncio.Event()
        task = asyncio.create_task(self.chat(key, disconnect, **fields))
        async with asyncio.timeout(10):
            await self.engine.started.get()
        return task, disconnect

    async def chat(self, key: str, disconnect: asyncio.Event | None = None, **fields: Any) -> list[Message]:
        sent: list[Message] = []
        body = iter([{"type": "http.request", "body": json.dumps(HELLO | fields).encode()}])

        async def receive() -> Message:
            for message in body:
                return message
            await (disconnect or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
            "headers": [(b"x-api-key", key.encode())], "client": ("10.0.0.1", 1), "server": ("10.0.0.2", 2),
        }  # fmt: skip
        async with asyncio.timeout(10):
            await self.app(scope, receive, send)
        return sent


def refusal(sent: list[Message]) -> tuple[int, str | None, bytes | None]:
    """Status, code and Retry-After of an answer."""
    error = json.loads(sent[1]["body"]).get("error") if sent[0]["status"] >= 400 else None
    return sent[0]["status"], error and error["code"], dict(sent[0]["headers"]).get(b"retry-after")


BUSY = (429, "rate_limit_exceeded", b"1")
LIMITED = f"alice {KEY} requests=2 tokens=60\nalice {SCRAPER} requests=2 tokens=60\nbob {OTHER}\n"


def limited(directory: Path, **engine: Any) -> Requests:
    """FakeEngine's prompts have 7 tokens."""
    fake = FakeEngine(**engine)
    return Requests(application(replace(directory / "keys", LIMITED), fake), fake)


def test_requests_in_flight_are_limited(tmp_path: Path) -> None:
    """All keys of a name together have `requests` in flight; a further one is a 429 before its body is read."""

    async def scenario() -> None:
        requests = limited(tmp_path, wait_at=1)
        for key in (KEY, SCRAPER):
            await requests.begin(key, max_tokens=1)
        for key in (KEY, SCRAPER):
            assert refusal(await requests.chat(key, max_tokens=1)) == BUSY
        for _ in range(3):
            await requests.begin(OTHER)
        assert requests.app.keys.requests == {"alice": 2, "bob": 3}

    asyncio.run(scenario())


def test_tokens_in_flight_are_limited(tmp_path: Path) -> None:
    """Prompt and largest answer of each choice count; a request for more than the limit is a 400."""

    async def scenario() -> None:
        requests = limited(tmp_path, wait_at=1)
        assert refusal(await requests.chat(KEY, max_tokens=54))[:2] == (400, "too_many_tokens")
        assert refusal(await requests.chat(KEY, max_tokens=24, n=2))[:2] == (400, "too_many_tokens")
        assert refusal(await requests.chat(KEY))[:2] == (400, "too_many_tokens")  # the engine's own limit counts
        task, disconnect = await requests.begin(KEY, max_tokens=20)
        assert requests.app.keys.tokens == {"alice": 27}
        assert refusal(await requests.chat(KEY, max_tokens=27)) == BUSY
        assert requests.app.keys.tokens == {"alice": 27}
        await requests.begin(KEY, max_tokens=26)
        assert requests.app.keys.tokens == {"alice": 60}
        disconnect.set()
        await task
        assert requests.app.keys.tokens == {"alice": 33}
        await requests.begin(KEY, max_tokens=20)

    asyncio.run(scenario())


ENDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "finished": ({}, {}),
    "streamed": ({}, {"stream": True}),
    "choices": ({}, {"n": 2}),
    "refused body": ({}, {"messages": "x"}),
    "refused tokens": ({}, {"max_tokens": 1000}),
    "failed": ({"fail_at": 0}, {}),
    "failed stream": ({"fail_at": 1}, {"stream": True}),
    "disconnected": ({"wait_at": 1}, {}),
    "disconnected stream": ({"wait_at": 1}, {"stream": True}),
    "cancelled": ({"wait_at": 1}, {}),
    "cancelled stream": ({"wait_at": 1}, {"stream": True}),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_gives_back_what_was_counted(tmp_path: Path, end: str) -> None:
    """However a request ends, nothing of it is in flight any more."""

    async def scenario() -> None:
        engine, fields = ENDS[end]
        requests = limited(tmp_path, **engine)
        for _ in range(4):  # more than the limit
            if "wait_at" in engine:
                task, disconnect = await requests.begin(KEY, **{"max_tokens": 1} | fields)
                assert requests.app.keys.requests == {"alice": 1}
                assert requests.app.keys.tokens == {"alice": 8}
                if end.startswith("cancelled"):
                    task.cancel()
                disconnect.set()
                await asyncio.wait([task])
            else:
                sent = await requests.chat(KEY, **{"max_tokens": 1} | fields)
                assert sent[0]["status"] != 429
            assert not requests.app.keys.requests
            assert not requests.app.keys.tokens

    asyncio.run(scenario())


# owners


@contextmanager
def stored(state: Path, keys: Path) -> Iterator[TestClient]:
    service = BatchService(FakeChat(), IDENTITY, batch_settings(state, batch_rows=0), serving=lambda: True)
    app = Application(service.routes, IDENTITY, service.lifespan, keys=ApiKeys(keys))
    with TestClient(app) as client:
        yield client


def test_files_belong_to_the_name_of_a_key(tmp_path: Path) -> None:
    """Another key of the same name, in any header, sees the files; another name does not."""
    path = replace(tmp_path / "keys", f"alice {KEY}\nbob {OTHER}\n")
    with stored(tmp_path, path) as http:
        answer = http.post("/v1/files", headers=BEARER, files={"file": ("a", b"{}\n")}, data={"purpose": "batch"})
        url = f"/v1/files/{answer.json()['id']}"
        assert [http.get(url, headers={"api-key": key}).status_code for key in (KEY, OTHER)] == [200, 404]
        replace(path, f"alice {SCRAPER}\nbob {OTHER}\n")
        assert [http.get(url, headers={"api-key": key}).status_code for key in (KEY, SCRAPER)] == [401, 200]
        assert len(http.get("/v1/files", headers={"api-key": SCRAPER}).json()["data"]) == 1
    path.unlink()
    with stored(tmp_path, path) as http:
        for headers in (BEARER, {"authorization": "key:alice"}, {}):
            assert http.get(url, headers=headers).status_code == 404
    assert not any(
        secret.encode() in one.read_bytes() for one in tmp_path.rglob("*") if one.is_file() for secret in (KEY, SCRAPER)
    )


# where keys must not be


def test_keys_are_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens to a request or to the file, no line of any level has a key that was sent or is stored."""
    caplog.set_level(logging.DEBUG)
    path = replace(tmp_path / "keys", f"alice {KEY} requests=1 tokens=60\n")
    http = TestClient(application(path, FakeEngine(fail_at=0)), raise_server_exceptions=False)
    for headers in (BEARER, {"x-api-key": OTHER}, {"authorization": f"Basic {OTHER}"}, {**BEARER, "api-key": OTHER}):
        for body in (HELLO | {"max_tokens": 1}, HELLO | {"max_tokens": 99}, {}):
            http.post(CHAT, headers=headers, json=body)
        http.get("/v1/nothing", headers=headers)
    replace(path, f"alice {KEY} {OTHER}\n")
    http.get("/v1/models", headers=BEARER)
    text = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "invalid_api_key" in text or "API key is not valid" in text
    for secret in (KEY, OTHER, hashlib.sha256(KEY.encode()).hexdigest()):
        assert secret not in text


def test_the_next_generation_does_not_get_the_key_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file with the settings of the next generation, which a group can read, has no API key."""
    monkeypatch.setenv("GLM_API_KEY", KEY)
    monkeypatch.setenv("GLM_KEYS", "/keys")
    settings_of_next = Successor.of_this_process().settings
    assert settings_of_next["GLM_KEYS"] == "/keys"
    assert KEY not in settings_of_next.values()


def test_doctor_names_a_file_that_is_open_or_damaged(tmp_path: Path) -> None:
    """A file that everybody can read, or that cannot be used, is a finding; the cure of the first one works."""

    def found() -> list[files.Finding]:
        return [one for one in files.examine(Context(host, Display(quiet=True))) if str(host.keys) in one.what]

    with directories(tmp_path) as host:
        assert found() == []
        host.keys.write_text(f"alice {KEY}\n")
        host.keys.chmod(0o644)
        [finding] = found()
        assert finding.fix
        assert os.system(finding.fix) == 0
        assert found() == []
        host.keys.write_text(f"alice {KEY} {OTHER}\n")
        [finding] = found()
        assert "line 1" in finding.what
        assert KEY not in finding.what


# servers


class KeyedApp(App):
    """The service's application, with keys."""

    path: Path

    def __init__(self, slot: str) -> None:
        super().__init__(slot)
        parsed = Settings.model_validate({"slot": slot, "keys": self.path})
        self.service = create_app(FakeEngine(), Identity("1.0.0", slot, 1), parsed, serving=lambda: True)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self.service(scope, receive, send)


BODY = json.dumps(HELLO).encode()


def post(*headers: str, chunked: bool = False) -> bytes:
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(BODY)}"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    head = "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: x", framing, *headers, "", ""])
    return head.encode() + body


def test_the_public_socket_needs_a_key_and_the_internal_one_does_not(tmp_path: Path) -> None:
    """A refused request leaves the connection usable, with its body unread; so does one that was handed over."""

    class Keyed(KeyedApp):
        path = replace(tmp_path / "keys", f"alice {KEY} requests=1\n")

    async def scenario() -> None:
        async with running_host(tmp_path, tmp_path / "run", app=Keyed) as host:
            client = await host.client()
            for slot in ("blue", "green"):
                for chunked in (False, True):
                    refused = await client.ask(post(chunked=chunked))
                    assert (refused.status, refused.slot) == (401, slot)
                    assert "connection" not in refused.headers
                    answer = await client.ask(post(f"Authorization: Bearer {KEY}", chunked=chunked))
                    assert (answer.status, answer.slot) == (200, slot)
                client.send(post() + post(f"X-Api-Key: {KEY}") + post(f"X-Api-Key: {OTHER}"))
                assert [(await client.reply()).status for _ in range(3)] == [401, 200, 401]
                transport = httpx.AsyncHTTPTransport(uds=str(http_socket(host.runtime, slot)))
                async with httpx.AsyncClient(transport=transport, base_url="http://slot") as inside:
                    for headers in ({}, {"x-api-key": KEY}, {"x-api-key": OTHER}):
                        assert (await inside.post(CHAT, json=HELLO, headers=headers)).status_code == 200
                if slot == "blue":
                    host.cut_over()

    asyncio.run(scenario())


@pytest.mark.long
def test_a_rollout_with_keys(stocked_box: Box, tmp_path: Path, add_release: Callable[..., None]) -> None:
    """Checks, probe, load and page work with keys, and a version that cannot read them does not go live."""
    box = stocked_box
    box.host.keys.write_text(f"alice {KEY}\n")
    box.env["GLM_API_KEY"] = KEY
    box.glmctl("deploy", "1.0.0")
    assert box.get("/v1/models").status_code == 401
    with box.load(tmp_path) as load:
        box.glmctl("deploy", "1.1.0", "--mirror", "100", "--step", "2s", "--bake", "1s")
    report = load.stop()
    assert report.lost == 0
    page = ServiceClient(box.listen, KEY)
    with page.ask([{"role": "user", "content": "hello"}]) as answer:
        assert "".join(delta.text for delta in answer)
        assert answer.live.version == "1.1.0"
    page.close()
    box.host.keys.write_text(f"alice {KEY} {OTHER}\n")
    refused = box.glmctl("deploy", "1.0.0", expect=4)
    assert "line 1: an option" in refused.stdout + refused.stderr
    assert box.get("/v1/models", headers=BEARER).status_code == 200
    assert not any(secret in box.log() + refused.stdout + refused.stderr for secret in (KEY, OTHER))
    for path in (*box.host.runtime.rglob("*.json"), *box.host.state.rglob("*.json")):
        assert KEY not in path.read_text()
