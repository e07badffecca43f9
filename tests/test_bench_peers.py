"""`make bench`: what its benchmarks record and print, how they time a switch, and that all of them run."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.loadtest import ClassReport, Latency, Report, Switch
from tests.bench import __main__ as bench
from tests.bench import growth, logs_and_metrics, plots, results, rollout, steady, switching, tables
from tests.bench.kept_connections import KeptConnections, Moved
from tests.bench.measurement import Measurement
from tests.bench.output import WIDTH, Output, read
from tests.bench.peers import haproxy
from tests.bench.peers.nginx import Nginx
from tests.bench.peers.peer import Missing, Peer, Process
from tests.bench.prompts import Kind

CODE = Path(__file__).resolve().parent.parent
CLASSES = ("busy", "pool", "silent", "upload", "stream", "pipelined", "one-shot", "http10")


def load_report(*, lost: int = 0, switches: tuple[Switch, ...] = ()) -> Report:
    """Return the report of a load with all classes of clients, of which `busy` saw these switches."""
    latency = Latency(p50_ms=1, p99_ms=20, p999_ms=30, max_ms=40)
    by_class = {
        name: ClassReport(
            clients=1, sent=123_456, ok=123_456 - lost, lost=lost, latency=latency, longest_pause_ms=1234.5,
            by_version={}, by_slot={}, connections=1, idle_closes=0, announced_closes=0,
            switches=list(switches) if name == "busy" else [],
        )
        for name in CLASSES
    }  # fmt: skip
    return Report(
        target="", started=0, seconds=60, sent=1_234_567, ok=1_234_567, lost=lost, requests_per_second=20_000,
        latency=latency, longest_pause_ms=1234.5, longest_pause_by="pool", longest_pause_at=0, own_lag_ms=1,
        by_version={}, by_slot={}, by_class=by_class, losses=[],
    )  # fmt: skip


Rows = list[dict[str, Any]]


def switching_rows() -> list[dict[str, Any]]:
    moved = (Moved(0.1, 20), Moved(12.3, 0), Moved(None, 3))
    return [
        switching.Result(peer.name, peer.how, "1.2.3", load_report(), load_report(lost=12_345), moved).document()
        for peer in switching.PEERS
    ]


def steady_rows() -> list[dict[str, Any]]:
    turns = {
        name: [steady.Turn(12_345.6, (1.0, 99.9), 0.0001)] * 3 for name in (steady.PLAIN, steady.OURS, "canary of 50 %")
    }
    return [{"request": kind, **row} for kind in steady.KINDS for row in steady.compare(turns, steady.PLAIN)]


def growth_rows() -> list[dict[str, Any]]:
    figures = {"lost": 0, "lost_connections": 10_000, "longest_pause_ms": 1234.5, "handoff_ms": 1234.5,
               "all_over_median_ms": 1234.5, "bytes_per_connection": 12_345}  # fmt: skip
    return [
        {"workers": workers, "connections": number, **figures, "all_over_ms": 1234.5 if number < 10_000 else None}
        for workers in growth.WORKERS
        for number in growth.CONNECTIONS
    ]


def rollout_rows() -> list[dict[str, Any]]:
    phases = dict.fromkeys(rollout.PHASES, 123.4)
    row = {"bare_load": 123.4, "moved": 234.5, "ours": 111.1, "phases": phases, "lost": 0}
    return [row, row | {"moved": None, "ours": None}]


def engine_results() -> results.Results:
    found = results.Results()
    slow = Measurement(12_345, 10.0, (11_254.6,) * 4, (68.7,) * 4, cpu=0.06)
    for kind, clients, system in itertools.product(get_args(Kind), (1, 16, 64), results.SYSTEMS):
        for _ in range(6):
            found.add(system, kind, clients, slow)
    for system in ("streamed", "whole"):
        found.add(system, "text", 16, slow)
    found.healthz = {"idle": [0.5, 12.3], "16 image streams": [100.9] * 3}
    found.equal = dict.fromkeys(results.SYSTEMS, (16, 16))
    return found


def show_engine(output: Output, _rows: Rows) -> None:
    tables.show(output, engine_results())


def logs_and_metrics_rows() -> Rows:
    figures = {"requests_per_second": 12_345.6, "rate_ratio": 0.98765, "cpu_us": 12_345.6, "cpu_ratio": 1.0345}
    names = (*logs_and_metrics.REQUESTS, "chat, 8 tokens, small model")
    return [{"request": name, **figures, "quartiles": [1.034, 1.078]} for name in names]


def show_logs_and_metrics(output: Output, rows: Rows) -> None:
    logs_and_metrics.show(output, rows, 20)


SHOWN: dict[str, tuple[Callable[[], Rows], Callable[[Output, Rows], None]]] = {
    "switching": (switching_rows, lambda output, rows: switching.show(output, rows, {"nginx": "it is not installed"})),
    "steady": (steady_rows, steady.show),
    "growth": (growth_rows, growth.show),
    "rollout": (rollout_rows, rollout.show),
    "logs_and_metrics": (logs_and_metrics_rows, show_logs_and_metrics),
    "engine": (lambda: [{"system": f"64, {name}"} for name in results.SYSTEMS], show_engine),
}


@pytest.mark.parametrize("name", SHOWN)
def test_tables_fit_80_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row is one line of at most 80 columns, and no figure is cut."""
    make, show = SHOWN[name]
    show(Output(name), make())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= WIDTH
    assert "…" not in out
    if name == "logs_and_metrics":
        assert out.count("1.03-1.08") == len(make())
    rows = make()
    key = {"switching": "peer", "steady": "system", "engine": "system"}.get(name)
    for row in rows:
        if key:
            assert sum(line.lstrip().startswith(row[key]) for line in out.splitlines()) >= 2, row[key]


def test_kinds_of_requests_exist() -> None:
    """Steady state is measured with the requests of the cost of log and metrics."""
    assert set(steady.KINDS) <= logs_and_metrics.REQUESTS.keys()


def test_switching_says_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """A peer that is missing has its reason below the tables, also when it was the only one."""
    for rows in ([], switching_rows()):
        switching.show(Output("switching"), rows, {"some proxy": "it is not installed"})
        assert "not measured: some proxy: it is not installed" in capsys.readouterr().out


def test_lost_requests_are_given_by_class() -> None:
    """The document of a peer has every class of clients, and the pause that is allowed beside the one that was seen."""
    result = switching.Result("x", "", "", load_report(), load_report(lost=2), (Moved(0.25, 1), Moved(None, 2)))
    document = result.document()
    assert document["lost_by_class"] == dict.fromkeys(CLASSES, 2)
    assert document["allowed_pause_ms"] == 50 + 1.5 * 30
    assert document["all_over_ms"] == {"median": 250.0, "max": 250.0}
    assert (document["unfinished"], document["kept_closed"]) == (1, 3)


def test_measurements_survive_an_interruption(tmp_path: Path) -> None:
    """Each row is in the file at once, after those of earlier runs; a line that was cut short is left out."""
    path = tmp_path / "bench.jsonl"
    for number in range(2):
        Output("x", path, quick=True).row("peer", number=number)
    with path.open("a") as file:
        file.write('{"benchmark": "x", "ki')
    assert [(row["benchmark"], row["quick"], row["number"]) for row in read(path)] == [("x", True, 0), ("x", True, 1)]


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says what to install."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    for peer in (Nginx, haproxy.HAProxy):
        with pytest.raises(Missing, match="apt-get install"):
            peer(tmp_path, tmp_path).versions()


@given(st.lists(st.tuples(st.floats(1, 1e5), st.floats(0.01, 100)), min_size=1, max_size=9))
def test_ratios_are_those_of_turns_side_by_side(turns: list[tuple[float, float]]) -> None:
    """A system that answers half as many requests in each turn has the ratio 0.5 at any speed of the machine."""
    plain = [steady.Turn(rate, (latency,), 1 / rate) for rate, latency in turns]
    slower = [steady.Turn(rate / 2, (3 * latency,), 2 / rate) for rate, latency in turns]
    rows = {row["system"]: row for row in steady.compare({"plain": plain, "slower": slower}, "plain")}
    assert rows["plain"]["rate_ratio"] == rows["plain"]["p50_ratio"] == 1
    assert rows["slower"]["rate_ratio"] == pytest.approx(0.5)
    assert rows["slower"]["p50_ratio"] == pytest.approx(3)
    assert rows["slower"]["cpu_ratio"] == pytest.approx(2)


def test_a_rollout_is_over_with_the_last_answer_of_the_old_version() -> None:
    """The clock runs to it, or to the first answer of the new version if that came later; without one there is none."""
    old, new = Switch(11.9, 12.0, "1.0.0"), Switch(11.0, 11.5, "1.1.0")
    assert rollout.moved_after(load_report(switches=(old, new)), "1.0.0", 10.0) == 2.0
    assert rollout.moved_after(load_report(switches=(new,)), "1.0.0", 10.0) == 1.5
    assert rollout.moved_after(load_report(switches=(old,)), "1.0.0", 10.0) is None


# kept connections


class FakeServer:
    """Answers GET /version; `version` may change, but on its `stuck` connection, and `close_all` ends every one."""

    def __init__(self) -> None:
        self.version = "1.0.0"
        self.stuck: asyncio.StreamWriter | None = None
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> FakeServer:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.close_all()

    def close_all(self) -> None:
        for writer in self.writers:
            writer.close()
        self.writers.clear()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        while (await reader.readline()).strip():
            await reader.readuntil(b"\r\n\r\n")
            version = "1.0.0" if writer is self.stuck else self.version
            head = f"HTTP/1.1 200 OK\r\nx-model-version: {version}\r\ncontent-length: 2\r\n\r\nok"
            writer.write(head.encode())


def test_kept_connections_are_timed_until_the_last_one() -> None:
    """They are over when the new version has answered each; those that the server closed are counted."""

    async def run() -> tuple[Moved, Moved, Moved, tuple[dict[str, int], int]]:
        async with FakeServer() as server, KeptConnections(server.address, 7) as kept:
            began = asyncio.get_running_loop().time()
            asyncio.get_running_loop().call_later(0.05, setattr, server, "version", "1.1.0")
            over = await kept.until("1.1.0", began=began, limit=10)
            server.version, server.stuck = "1.2.0", server.writers[3]
            never = await kept.until("1.2.0", began=began, limit=0.1)
            server.version = "1.1.0"
            server.close_all()
            await asyncio.sleep(0.01)
            lost = await kept.ask()
            server.close_all()
            await asyncio.sleep(0.01)
            closed = await kept.until("1.1.0", began=began, limit=10)
            return over, never, closed, lost

    over, never, closed, lost = asyncio.run(run())
    assert over.seconds is not None
    assert over.seconds >= 0.05
    assert over.closed == 0
    assert never == Moved(None, 0)
    assert lost == ({}, 7)
    assert closed.closed == 7
    assert closed.seconds is not None


# processes


class Sleeper(Peer):
    """Starts a process at the start, and another one before each switch."""

    name = how = "sleep"
    fails = False

    def versions(self) -> str:
        return ""

    def start(self, stack: ExitStack) -> None:
        self.processes = [self._run()]
        if self.fails:
            raise RuntimeError("it does not start")

    def prepare(self) -> None:
        self.processes.append(self._run())

    def switch(self) -> None:
        self.live = 1 - self.live

    def _run(self) -> Process:
        process = Process(["sleep", "600"], self.scratch / "log")
        self._stack.callback(process.end)
        return process


def test_a_peer_ends_all_that_it_started(tmp_path: Path) -> None:
    """No process is left at the end of the block, also of those that were started for a switch."""
    with Sleeper(tmp_path, tmp_path) as peer:
        peer.prepare()
        assert all(process.is_running for process in peer.processes)
    assert not any(psutil.pid_exists(process.pid) for process in peer.processes)


def test_a_peer_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    """What ran already is ended."""
    peer = Sleeper(tmp_path, tmp_path)
    peer.fails = True
    with pytest.raises(RuntimeError, match="does not start"), peer:
        pass
    assert not any(psutil.pid_exists(process.pid) for process in peer.processes)


def test_refused_commands_of_haproxy_are_errors(tmp_path: Path) -> None:
    """A switch that HAProxy did not take must not be measured as one."""
    path = tmp_path / "haproxy.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            for text in (b"\n", b"No such server.\n"):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(text)

        thread = threading.Thread(target=answer)
        thread.start()
        proxy = SimpleNamespace(_socket=path)
        haproxy.HAProxyProxy.command(proxy, "set server glm/s0 weight 0")  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="No such server"):
            haproxy.HAProxyProxy.command(proxy, "set server glm/s9 weight 0")  # type: ignore[arg-type]
        thread.join()


def test_a_terminated_benchmark_ends_what_it_started(tmp_path: Path) -> None:
    """SIGTERM unwinds the blocks, as Ctrl-C does."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        Output.of("x", argparse.Namespace(json=None, quick=True))
        with pytest.raises(SystemExit) as exit_, Sleeper(tmp_path, tmp_path) as peer:
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert exit_.value.code == 128 + signal.SIGTERM
    assert not any(psutil.pid_exists(process.pid) for process in peer.processes)


# the whole


@pytest.mark.parametrize("name", sorted(set(bench.BENCHMARKS) - bench.WHOLE))  # `engine` imports transformers
def test_every_benchmark_has_a_short_form(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make bench` gives each --quick and a file, and each knows them."""
    argv = bench.command(name, quick=True, path=tmp_path / "bench.jsonl")
    assert "--quick" in argv
    assert "--json" in argv
    with pytest.raises(SystemExit):
        importlib.import_module(argv[2]).main(["--help"])
    out = capsys.readouterr().out
    assert "--quick" in out
    assert "--json" in out


def test_a_failed_benchmark_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are run, and the command ends with what failed."""
    ran: list[str] = []

    def run(argv: list[str]) -> str | None:
        ran.append(argv[2].rpartition(".")[2])
        return "it ended with 1" if ran[-1] == "steady" else None

    monkeypatch.setattr(bench, "run", run)
    with pytest.raises(SystemExit) as exit_:
        bench.main(["--only", "switching,steady,growth", "--json", str(tmp_path / "x")])
    assert ran == ["switching", "steady", "growth"]
    assert exit_.value.code == "steady: it ended with 1"


def recorded(path: Path, name: str) -> Rows:
    """Write two runs with a peer that was skipped, and return the rows of one."""
    rows = SHOWN[name][0]()
    for run in range(2):
        output = Output(name, path)
        output.row("run")
        output.row("skipped", peer="nginx")
        for row in rows:
            output.row(name, run=run, **row)
    return rows


def test_the_last_run_is_drawn(tmp_path: Path) -> None:
    """A file may have several runs of a benchmark, and other benchmarks."""
    path = tmp_path / "bench.jsonl"
    rows = {name: recorded(path, name) for name in plots.PLOTS}
    found = plots.latest(path)
    assert {name: len(some) for name, some in found.items()} == {name: len(some) for name, some in rows.items()}
    assert {row["run"] for some in found.values() for row in some} == {1}


@pytest.mark.long  # matplotlib looks for all fonts of the machine when it is first imported
@pytest.mark.parametrize("name", plots.PLOTS)
def test_pictures_depend_on_the_figures_alone(name: str, tmp_path: Path) -> None:
    """The same figures give the same SVG, also those that lack a value."""
    path = tmp_path / "bench.jsonl"
    recorded(path, name)
    found = plots.latest(path)
    first, second = (plots.draw(found, tmp_path / directory) for directory in ("a", "b"))
    assert [one.name for one in first] == [f"{name}.svg"]
    assert first[0].read_bytes() == second[0].read_bytes()
    assert b"<svg" in first[0].read_bytes()
    for row in found[name]:
        row.update({key: None for key in ("all_over_ms", "ours") if key in row})
    plots.draw(found, tmp_path / "c")


def left_behind() -> list[str]:
    """Return the commands of peers that run from this checkout."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = " ".join(process.info["cmdline"] or [])
        if "tests.bench.peers.application" in command and process.info["cwd"] == str(CODE):
            found.append(command)
    return found


@pytest.mark.long
@pytest.mark.alone
def test_all_benchmarks_run(tmp_path: Path) -> None:
    """`make bench ARGS=--quick` measures every peer, loses nothing here, leaves no process, and has its pictures."""
    path = tmp_path / "bench.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--json", str(path)],
        cwd=CODE, capture_output=True, text=True, timeout=2400, env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert left_behind() == []
    found = plots.latest(path)
    assert found.keys() | {"engine"} == set(bench.BENCHMARKS)
    peers = {row["peer"]: row for row in found["switching"]}
    installed = {peer.name for peer in switching.PEERS if shutil.which(peer.name.split()[0].lower(), path=_PATH)}
    assert peers.keys() >= installed | {"this service"}
    assert set(peers["this service"]["lost_by_class"].values()) == {0}
    assert peers["this service"]["unfinished"] == 0
    assert all(row["lost"] == row["lost_connections"] == 0 for row in found["growth"])
    assert all(row["lost"] == 0 and row["ours"] is not None for row in found["rollout"])
    assert json.loads((tmp_path / "bench-engine.json").read_text())["ratios"]
    assert {one.stem for one in (tmp_path / "bench-pictures").iterdir()} == plots.PLOTS.keys()


_PATH = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:{os.environ.get('PATH', '')}"
