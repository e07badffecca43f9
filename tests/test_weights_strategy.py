"""`glmctl deploy V --strategy weights`: the running model gets other weights, and no request is lost."""

from __future__ import annotations

import base64
import io
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from deploy.errors import Refused
from deploy.host import Host
from deploy.journal.journal import Journal
from deploy.releases.compatibility import require_compatible
from deploy.releases.store import Releases
from service.demo_models import tiny
from tests.box import Box, kill, wait_for
from tests.test_zero_loss import assert_nothing_lost, assert_receipts_add_up

CHAT = "/v1/chat/completions"
WEIGHTS = ("--strategy", "weights")


def _picture() -> str:
    png = io.BytesIO()
    Image.new("RGB", (90, 60), "red").save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def _asked(content: Any, tokens: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0, **more}


SEEN = [{"type": "image_url", "image_url": {"url": _picture()}}, {"type": "text", "text": "What is it?"}]
ENDLESS = _asked("count", 4000, stream=True)  # for seconds, which a command needs to start
QUESTIONS = [
    _asked("Hello", 6),
    _asked("Hello", 90, stream=True),
    _asked("Where to?", 30, n=3),
    _asked(SEEN, 8),
    _asked(SEEN, 40, stream=True),
    _asked("Which?", 12, logprobs=True, top_logprobs=3),
]


@dataclass(frozen=True)
class Answer:
    """A response: its version by the header and by the body, and its text."""

    status: int
    header: str
    fingerprints: frozenset[str]
    text: str


def _read(response: httpx.Response) -> Answer:
    if response.headers["content-type"].startswith("text/event-stream"):
        lines = response.text.splitlines()
        assert "data: [DONE]" in lines, response.text[-300:]
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        text = "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])
    else:
        chunks = [response.json()]
        text = json.dumps([[one["message"]["content"], one["logprobs"]] for one in chunks[0].get("choices", [])])
    prints = frozenset(chunk.get("system_fingerprint", "none") for chunk in chunks)
    # The head of a stream that waited for the new weights was sent before their version was known.
    version = response.headers.get("x-model-version") or next(iter(prints))
    return Answer(response.status_code, version, prints, text)


def _ask(box: Box, body: dict[str, Any]) -> Answer:
    return _read(httpx.post(f"http://{box.listen}{CHAT}", json=body, timeout=60, trust_env=False))


def _texts(box: Box) -> dict[int, str]:
    """Return the reply of the live version to each question, sent one at a time."""
    return {number: _text(_ask(box, body)) for number, body in enumerate(QUESTIONS)}


def _text(answer: Answer) -> str:
    """Return the text without log probabilities, whose last digits depend on the batch."""
    assert answer.status == 200
    if answer.text.startswith("[["):
        return json.dumps([text for text, _ in json.loads(answer.text)])
    return answer.text


@dataclass
class Clients:
    """Clients that send requests without a pause, each on one connection, and keep every response."""

    box: Box
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    ports: list[set[int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def asking(self, many: int = 4) -> Iterator[Clients]:
        threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(many)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: len(self.answers) > 2 * many)
            yield self
            had = len(self.answers)
            wait_for(lambda: len(self.answers) > had + 4 * many or self.troubles)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _run(self, seed: int) -> None:
        draw, ports = random.Random(seed), set[int]()
        self.ports.append(ports)
        try:
            with httpx.Client(base_url=f"http://{self.box.listen}", trust_env=False, timeout=60) as client:
                while not self._stop.is_set():
                    number = draw.randrange(len(QUESTIONS))
                    response = client.post(CHAT, json=QUESTIONS[number])
                    ports.add(response.extensions["network_stream"].get_extra_info("client_addr")[1])
                    self.answers.append((number, _read(response)))
        except Exception as error:  # the test's own thread reports it
            self.troubles.append(repr(error))

    def judge(self, expected: dict[str, dict[int, str]]) -> set[str]:
        """Assert that every response is complete and of the version in its header; returns the versions."""
        assert not self.troubles
        for number, answer in self.answers:
            assert answer.status == 200, answer
            assert answer.fingerprints == {answer.header}, answer
            assert _text(answer) == expected[answer.header][number], (number, answer)
        assert all(len(ports) == 1 for ports in self.ports), "a connection was closed"
        return {answer.header for _, answer in self.answers}


@contextmanager
def _endless(box: Box) -> Iterator[list[Answer]]:
    """Keep a long stream in flight, which the new weights must wait for; the response is there after the block."""
    whole: list[Answer] = []
    began = threading.Event()

    def run() -> None:
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream("POST", f"http://{box.listen}{CHAT}", json=ENDLESS) as response,
        ):
            chunks = []
            for chunk in response.iter_bytes():
                began.set()
                chunks.append(chunk)
            headers = {
                name: response.headers[name] for name in response.headers if name in {"content-type", "x-model-version"}
            }
            whole.append(_read(httpx.Response(response.status_code, headers=headers, content=b"".join(chunks))))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert began.wait(30)
        yield whole
    finally:
        thread.join(60)


def _last(box: Box) -> dict[str, Any]:
    record: dict[str, Any] = box.json("history")["rollouts"][-1]
    return record


def _workers(box: Box, many: int) -> list[int]:
    """Return the pids of `many` ready workers of blue."""

    def ready() -> list[int]:
        return sorted(one.pid for one in box.generation("blue").alive_workers if one.phase == "ready")

    wait_for(lambda: len(ready()) == many, 60)
    return ready()


@pytest.mark.model
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_every_answer_is_of_the_version_it_names(stocked_box: Box, workers: int) -> None:
    """Under load all responses are 200, none mixes two weight sets, and the new weights are as freshly loaded."""
    box = stocked_box
    box.configure(threads=1, workers=workers)
    box.glmctl("deploy", "1.0.0")
    pids, expected = _workers(box, workers), {"1.0.0": _texts(box)}
    with Clients(box).asking() as clients:
        record = box.json("deploy", "1.1.0", *WEIGHTS)
    assert (record["outcome"], record["strategy"], record["slot"]) == ("done", "weights", "blue")
    assert [step["phase"] for step in record["steps"]] == ["preflight", "prepare", "vacate", "verify", "cutover"]
    assert record["pause_ms"] > 0
    assert _workers(box, workers) == pids
    expected["1.1.0"] = _texts(box)
    assert all(expected["1.0.0"][number] != text for number, text in expected["1.1.0"].items())
    assert clients.judge(expected) == {"1.0.0", "1.1.0"}
    assert clients.answers[-1][1].header == "1.1.0"
    lines = {line["version"]: line for line in record["receipt"]["lines"]}
    assert set(lines) == {"1.0.0", "1.1.0"}
    assert_receipts_add_up(box)

    box.glmctl("reload")  # the slot points to 1.1.0, which is loaded from its files
    assert _texts(box) == expected["1.1.0"]


@pytest.mark.model
@pytest.mark.alone
@pytest.mark.parametrize(
    ("workers", "changes"),
    [(2, 3), pytest.param(1, 8, marks=pytest.mark.long), pytest.param(2, 8, marks=pytest.mark.long)],
)
def test_changes_under_the_mixed_load_lose_nothing(
    stocked_box: Box, tmp_path: Path, workers: int, changes: int
) -> None:
    """Under every kind of client no request is lost, no process is replaced, and every receipt adds up."""
    box = stocked_box
    box.configure(threads=1, workers=workers)
    box.glmctl("deploy", "1.0.0")
    pids = _workers(box, workers)
    with box.load(tmp_path) as load:
        for number in range(changes):
            box.glmctl("deploy", ["1.1.0", "1.0.0"][number % 2], *WEIGHTS)
        report = load.stop()
    assert_nothing_lost(box, report)
    assert_receipts_add_up(box)
    assert set(report.by_version) == {"1.0.0", "1.1.0"}
    assert _workers(box, workers) == pids
    assert len(box.generations("blue")) == 1


@pytest.mark.long
@pytest.mark.model
def test_requests_in_flight_end_with_the_old_weights_and_new_ones_wait(box: Box) -> None:
    """A stream in flight is of the old version throughout; a request meanwhile waits for the new version."""
    alone = _ask(box, ENDLESS)
    with _endless(box) as whole:
        deploy = box.begin("deploy", "1.1.0", *WEIGHTS)
        box.await_phase(deploy, "vacate")
        late = _ask(box, QUESTIONS[0])
        if late.header == "1.1.0":  # the thread may read the end a little later; the stream had seconds left
            wait_for(lambda: whole, 2, "the end of the answer with the old weights, before one with the new weights")
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, out
    assert "the longest wait was" in out
    assert whole == [alone]
    assert late == _ask(box, QUESTIONS[0])
    assert late.header == "1.1.0"


@pytest.mark.model
def test_rollback_uses_the_weights_strategy_again(box: Box) -> None:
    """The idle slot is empty: `rollback` replaces the weights, twice in a row too, and so does a deploy."""
    before = _texts(box)
    box.glmctl("deploy", "1.1.0", *WEIGHTS)
    after = _texts(box)
    pids = _workers(box, 1)
    for words, version, texts in (
        (("rollback",), "1.0.0", before),
        (("rollback",), "1.1.0", after),
        (("deploy", "1.0.0", *WEIGHTS), "1.0.0", before),
        (("rollback", "1.1.0"), "1.1.0", after),
    ):
        record = box.json(*words)
        assert (record["strategy"], record["version"], record["slot"]) == ("weights", version, "blue")
        assert _texts(box) == texts
    assert _workers(box, 1) == pids
    assert box.json("status")["slots"]["blue"]["version"] == "1.1.0"


@pytest.mark.long
def test_an_overlap_deploy_after_it_uses_the_other_slot(box: Box) -> None:
    """Afterwards an overlap deploy goes to green, and a warm rollback to blue."""
    box.glmctl("deploy", "1.1.0", *WEIGHTS)
    with box.baking("1.0.0"):
        box.glmctl("rollback")
    answer = box.get("/version")
    assert (answer.json()["version"], answer.headers["x-slot"]) == ("1.1.0", "blue")
    box.systemctl("restart", "glm@blue.service")
    assert box.get("/version").json()["version"] == "1.1.0"


@pytest.mark.long
@pytest.mark.model
def test_checks_that_fail_change_nothing(box: Box, add_release: Callable[..., None]) -> None:
    """Exit code 4; the old weights are in use, and no client was answered by the others."""
    checks = [{"name": "rain", "question": "What?", "answer": "purple rain"}]
    add_release(box, "2.0.0", change=lambda path: (path / "checks.json").write_text(json.dumps(checks)))
    expected = {"1.0.0": _texts(box)}
    with Clients(box).asking() as clients:
        stderr = box.glmctl("deploy", "2.0.0", *WEIGHTS, expect=4).stderr
    assert "check 'rain' failed" in stderr
    assert clients.judge(expected) == {"1.0.0"}
    assert box.slots.version("blue") == "1.0.0"
    record = _last(box)
    assert (record["outcome"], record["receipt"]["adds_up"], record["receipt"]["lost"]) == ("not ready", True, 0)
    assert _texts(box) == expected["1.0.0"]
    assert box.json("deploy", "1.1.0", *WEIGHTS)["outcome"] == "done"


def test_a_hook_that_refuses_lets_no_request_wait(box: Box) -> None:
    """`pre_cutover` runs after the weights were read and before any request waits."""
    box.host.policy.write_text('[hooks]\npre_cutover = ["/bin/false"]\n')
    assert "/bin/false" in box.glmctl("deploy", "1.1.0", *WEIGHTS, expect=4).stderr
    record = _last(box)
    assert (record["outcome"], record["pause_ms"]) == ("not ready", None)
    assert [step["phase"] for step in record["steps"]] == ["preflight", "prepare"]
    assert _ask(box, QUESTIONS[0]).header == "1.0.0"
    box.host.policy.write_text('[hooks]\npost_cutover = ["/bin/true"]\n')
    assert [run["code"] for run in box.json("deploy", "1.1.0", *WEIGHTS)["hooks"]] == [0]


@pytest.mark.long
def test_requests_beyond_the_drain_time_are_not_cut(box: Box) -> None:
    """After --drain the order is ended: the stream completes, waiting requests are answered, exit code 4."""
    with _endless(box) as whole:
        stderr = box.glmctl("deploy", "1.1.0", *WEIGHTS, "--drain", "200ms", expect=4).stderr
        assert "still in flight" in stderr
        assert _ask(box, QUESTIONS[0]).header == "1.0.0"
    assert whole[0].header == "1.0.0"
    assert _last(box)["outcome"] == "not ready"


def test_it_is_refused_without_a_suitable_model(box: Box, add_release: Callable[..., None]) -> None:
    """Another architecture or no running model: exit code 3 with a hint; a canary: 2. Nothing is changed."""
    add_release(box, "3.0.0", change=lambda path: tiny.make(path, seed=3, size="small", dtype="float32"))
    box.glmctl("deploy", "1.1.0", "--canary", "10", *WEIGHTS, expect=2)
    for words in (("3.0.0",), ("3.0.0", "--dry-run")):
        stderr = box.glmctl("deploy", *words, *WEIGHTS, expect=3).stderr
        assert "--strategy overlap" in stderr
    rehearsed = box.glmctl("deploy", "1.1.0", *WEIGHTS, "--bake", "1s", "--drain", "9s", "--dry-run")
    assert "could be put into the model in blue" in rehearsed.stdout
    assert "--bake has no effect with --strategy weights" in rehearsed.stderr
    assert rehearsed.stderr.count("note") == 1
    assert box.slots.version("blue") == "1.0.0"
    assert not list(box.host.runtime.glob("blue/*/weights_order.json"))
    box.systemctl("stop", "glm@blue.service", "glm.socket")
    assert "--strategy overlap" in box.glmctl("deploy", "1.1.0", *WEIGHTS, expect=3).stderr


@pytest.mark.long
@pytest.mark.model
def test_one_of_two_workers_killed(stocked_box: Box) -> None:
    """The other worker returns to the old weights, and the replacement loads them too."""
    box = stocked_box
    box.configure(threads=1, workers=2)
    box.glmctl("deploy", "1.0.0")
    expected = _texts(box)
    with _endless(box) as whole:
        deploy = box.begin("deploy", "1.1.0", *WEIGHTS)
        box.await_phase(deploy, "vacate")
        busy = {one.pid: one.in_flight for one in box.generation("blue").alive_workers}
        kill(min(busy, key=lambda pid: busy[pid]))
        out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 4, out
    assert "ended meanwhile" in out
    assert whole[0].header == "1.0.0"
    _workers(box, 2)
    assert {one.version for one in box.generation("blue").alive_workers} == {"1.0.0"}
    assert _texts(box) == expected
    assert box.json("deploy", "1.1.0", *WEIGHTS)["outcome"] == "done"
    assert _last(box)["receipt"]["lost"] == 0


@pytest.mark.long
@pytest.mark.model
def test_a_worker_killed_afterwards_is_replaced_with_the_new_weights(box: Box) -> None:
    """After a worker, and after the master: the replacement has the live weights."""
    box.glmctl("deploy", "1.1.0", *WEIGHTS)
    expected = _texts(box)
    before = _workers(box, 1)[0]
    kill(before)
    wait_for(lambda: before not in {one.pid for one in box.generation("blue").alive_workers})
    assert _texts(box) == expected
    kill(box.generation("blue").master)
    wait_for(lambda: any(one.is_alive and one.ready for one in box.generations("blue")[1:]))
    assert _texts(box) == expected


@pytest.mark.parametrize(
    "phase",
    [
        "vacate",
        *(pytest.param(phase, marks=pytest.mark.long) for phase in ("preflight", "prepare", "verify", "cutover")),
    ],
)
def test_the_controller_killed(box: Box, phase: str) -> None:
    """Kill -9 in each phase: all requests are answered, one version serves, and `resume` ends the rollout."""
    expected = {"1.0.0": _texts(box)}
    with Clients(box).asking() as clients:
        deploy = box.begin("deploy", "1.1.0", *WEIGHTS)
        box.await_phase(deploy, phase)
        kill(deploy.pid)
        deploy.communicate(timeout=60)
        done = box.glmctl("resume")
    assert "deploy of 1.1.0 was interrupted in" in done.stdout
    record, holds = _last(box), box.slots.version("blue")
    assert (record["outcome"], holds) in {("interrupted", "1.0.0"), ("done", "1.1.0")}
    assert box.get("/version").json()["version"] == holds
    assert "interrupted" not in box.glmctl("status").stderr
    other = "1.0.0" if holds == "1.1.0" else "1.1.0"
    box.glmctl("deploy", other, *WEIGHTS)
    expected["1.1.0"] = _texts(box) if other == "1.1.0" else {}
    if other == "1.0.0":
        box.glmctl("deploy", "1.1.0", *WEIGHTS)
        expected["1.1.0"] = _texts(box)
    clients.judge(expected)


@pytest.mark.long
def test_the_controller_killed_while_requests_wait(box: Box) -> None:
    """The workers detect that the controller is dead, and answer; no command is needed."""
    with _endless(box) as whole:
        deploy = box.begin("deploy", "1.1.0", *WEIGHTS)
        box.await_phase(deploy, "vacate")
        kill(deploy.pid)
        assert _ask(box, QUESTIONS[0]).header == "1.0.0"
        assert not whole, "they waited for the stream to end"
        deploy.communicate(timeout=60)
    assert whole[0].header == "1.0.0"
    assert Journal(box.host).unfinished()


def test_ctrl_c_while_requests_wait(box: Box) -> None:
    """The order is ended at once, and waiting requests are answered."""
    with _endless(box) as whole:
        deploy = box.begin("deploy", "1.1.0", *WEIGHTS)
        box.await_phase(deploy, "vacate")
        deploy.send_signal(signal.SIGINT)
        out, _ = deploy.communicate(timeout=60)
        assert _ask(box, QUESTIONS[0]).header == "1.0.0"
        assert not whole
    assert deploy.returncode == 130, out
    assert _last(box)["outcome"] == "interrupted"
    assert box.json("deploy", "1.1.0", *WEIGHTS)["outcome"] == "done"


@pytest.mark.long
def test_a_rollback_after_a_killed_controller(box: Box) -> None:
    """Kill -9 after the symlink was renamed, then `rollback`: the old weights are live again."""
    deploy = box.begin("deploy", "1.1.0", *WEIGHTS)
    wait_for(lambda: box.slots.version("blue") == "1.1.0")
    kill(deploy.pid)
    deploy.communicate(timeout=60)
    record = box.json("rollback")
    assert (record["version"], record["strategy"], record["outcome"]) == ("1.0.0", "weights", "done")
    assert _ask(box, QUESTIONS[0]).header == "1.0.0"


@pytest.mark.long
@pytest.mark.model
def test_metrics_count_for_the_version_that_answered(box: Box) -> None:
    """Requests are counted under their own version, and nothing is left in flight under the other."""
    _texts(box)
    box.glmctl("deploy", "1.1.0", *WEIGHTS)
    _texts(box)

    def count(name: str, version: str) -> float:
        lines = box.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and f'"{version}"' in line)

    chat = f'glm_requests_total{{route="{CHAT}"'
    assert count(chat, "1.0.0") == len(QUESTIONS)  # the first deploy's check used the internal socket
    assert count(chat, "1.1.0") == len(QUESTIONS)
    for gauge in ("glm_requests_in_flight", "glm_engine_running", "glm_engine_kv_capacity_tokens"):
        assert count(gauge, "1.0.0") == 0, gauge
    assert count("glm_engine_kv_capacity_tokens", "1.1.0") > 0


CHANGES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "other weights alone": (lambda path: None, None),
    "another library wrote it": (lambda path: _edit(path, "config.json", transformers_version="0.1"), None),
    "a word to people": (lambda path: (path / "README.md").write_text("new"), None),
    "another epsilon": (lambda path: _edit(path, "config.json", eps=1), "config.json differ"),
    "other ends": (
        lambda path: _edit(path, "generation_config.json", eos_token_id=[1]),
        "generation_config.json",
    ),
    "another tokenizer": (lambda path: _edit(path, "tokenizer.json", more=1), "tokenizer.json differ"),
    "another template": (lambda path: (path / "chat_template.jinja").write_text("x"), "chat_template.jinja differ"),
    "other pictures": (lambda path: _edit(path, "preprocessor_config.json", size=1), "preprocessor_config.json differ"),
    "one file more": (lambda path: (path / "added_tokens.json").write_text("{}"), "only one of them has added_tokens"),
    "other engine settings": (lambda path: (path / "engine.json").write_text('{"rows": 3}'), "engine settings differ"),
    "another dtype": (lambda path: tiny.make(path, seed=2), "config.json differ"),
    "one tensor of another dtype": (lambda path: _rewrite(path, lambda one: one.half()), "F16 .* instead of F32"),
    "one tensor of another shape": (lambda path: _rewrite(path, lambda one: one[:-1]), "instead of F32"),
    "one tensor less": (lambda path: _rewrite(path, lambda _: None), "only one of them has the tensor"),
}


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the last tensor of the file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    name = max(tensors)
    tensors[name] = change(tensors[name])
    kept = {name: one.contiguous() for name, one in tensors.items() if one is not None}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


def _edit(path: Path, name: str, **more: Any) -> None:
    document = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(document | more))


@pytest.mark.parametrize(("change", "why"), CHANGES.values(), ids=CHANGES.keys())
def test_compatible_releases(
    checkpoints: dict[str, Path], tmp_path: Path, change: Callable[[Path], object], why: str | None
) -> None:
    """Everything that the model was built from must be equal, except weights, library versions and texts for people."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(checkpoints["1.1.0"], copy)
    change(copy)
    releases = Releases(Host(True, tmp_path, tmp_path / "run", tmp_path, tmp_path, tmp_path))
    old = releases.add(checkpoints["1.0.0"], version="1")
    new = releases.add(copy, version="2")
    if why is None:
        require_compatible(old, new)
        return
    with pytest.raises(Refused, match=why) as refused:
        require_compatible(old, new)
    assert refused.value.hint
    assert "--strategy overlap" in refused.value.hint


def test_releases_with_another_environment_are_incompatible(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A release with its own Python cannot be served by the processes of another one."""
    releases = Releases(Host(True, tmp_path, tmp_path / "run", tmp_path, tmp_path, tmp_path))
    old, new = (releases.add(path, version=version) for version, path in checkpoints.items())
    new.path.chmod(0o755)
    (new.path / "env").symlink_to("/usr")
    with pytest.raises(Refused, match="Python environments"):
        require_compatible(old, new)


def test_the_pause_is_reported(box: Box) -> None:
    """It is in the summary, the history and the record."""
    record = box.json("deploy", "1.1.0", *WEIGHTS)
    began = time.monotonic()
    pause = f"{record['pause_ms']:.0f} ms"
    assert pause in box.glmctl("history").stdout
    assert f"the longest wait was {pause}; the new weights came from memory" in box.json("status")["summary"]
    assert record["staged"] == "memory"
    assert record["pause_ms"] < (time.monotonic() - began + record["seconds"]) * 1000
