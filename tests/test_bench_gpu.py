"""`make bench-gpu`: what it records, how it judges, and that it measures everything, here with a small model."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from deploy.errors import GlmError
from deploy.journal.record import Record, Step
from deploy.loadtest import ClassReport, Latency, Switch
from deploy.loadtest import Report as LoadReport
from tests.bench.gpu import bandwidth, command, releases, rollouts
from tests.bench.gpu.figures import FIGURES, LOAD_PARTS, PARTS, STRATEGIES, Value
from tests.bench.gpu.goals import GOALS, judge, table
from tests.bench.gpu.releases import Plan
from tests.bench.gpu.report import Report, Run

CODE = Path(__file__).resolve().parent.parent
DOCUMENT = (CODE / "docs/DEVICE.md").read_text()

H200 = {"shape": "9b", "device": "cuda", "card": "NVIDIA H200"}
SEEN: dict[str, Value] = {
    "bandwidth.device": 3790.0, "bandwidth.pinned": 55.0,
    "engine.weights": 20.6, "engine.load_rate": 6.5, "engine.step_weights": 17.56, "engine.rate_1": 111.6,
    "engine.prompt_512": 50.0, "engine.step_256": 8.75, "engine.step_16384": 21.2, "digests.add": 36.0,
    "http.ready": 24.0, "http.ready_reading": 3.2, "http.rate_1": 94.0, "http.rate_16": 912.0, "http.rate_64": 648.0,
    "http.mixed_p50": 705.0, "rollouts.missing_program": 1, "rollouts.free": 20.46, "rollouts.overlap": "refused",
    "rollouts.overlap_preflight": 18.5, "rollouts.overlap_sent": 1500, "rollouts.overlap_lost": 0,
    "rollouts.weights_held": 2.9, "rollouts.weights_sent": 970, "rollouts.weights_lost": 0,
}  # fmt: skip
"""The figures of 2026-11-26, as far as the table needs them."""
REACHED: dict[str, Value] = SEEN | {
    "engine.load_rate": 27.5, "engine.rate_1": 162.0, "engine.prompt_512": 20.0, "engine.step_16384": 10.5,
    "http.ready": 11.2, "http.rate_64": 3500.0, "http.mixed_p50": 150.0, "rollouts.missing_program": 3,
    "rollouts.overlap": "done", "rollouts.overlap_preflight": 0.4, "rollouts.free": 60.0, "rollouts.weights_held": 0.1,
}  # fmt: skip


def judged(values: dict[str, Value], header: dict[str, Any] = H200) -> dict[str, Any]:
    """Return whether each row that has a goal met it."""
    rows = judge(Run(header=dict(header), values=values))
    return {row["what"]: row["met"] for row in rows if row["goal"]}


def test_what_was_seen_missed_every_goal() -> None:
    """The first figures of a GPU give the values of the issue's table, and meet no goal but that nothing was lost."""
    met = judged(SEEN)
    assert {what for what, is_met in met.items() if is_met is not False} == {"requests lost, all rollouts"}
    measured = {row["what"]: row["measured"] for row in judge(Run(header=H200, values=SEEN))}
    assert measured["one row, part of the memory limit"] == pytest.approx(0.52, abs=0.005)
    assert measured["step of 16,384 columns to one of 256"] == pytest.approx(2.42, abs=0.005)
    assert measured["load of the weights, part of the link"] == pytest.approx(0.12, abs=0.005)
    assert measured["start to READY without reading"] == pytest.approx(20.8)
    assert measured["requests lost, all rollouts"] == "0 of 2,470"


def test_figures_at_the_goals_meet_them() -> None:
    """A value at the bound meets the goal, and a lost request misses it."""
    assert set(judged(REACHED).values()) == {True}
    assert judged(REACHED | {"rollouts.swap_sent": 10, "rollouts.swap_lost": 1})["requests lost, all rollouts"] is False


@pytest.mark.parametrize(("free", "held", "is_met"), [(20.5, 0.6, True), (20.6, 0.6, False), (20.6, 0.1, True)])
def test_weights_may_be_held_longer_without_room(free: float, held: float, is_met: bool) -> None:
    """The bound depends on whether the new weights fit on the device beside the live slot."""
    values = REACHED | {"rollouts.free": free, "rollouts.weights_held": held}
    assert judged(values)["weights: requests are held"] is is_met


@pytest.mark.parametrize("header", [H200 | {"shape": "small"}, H200 | {"device": "cpu"}, {}])
def test_a_check_of_the_tool_is_not_judged(header: dict[str, Any]) -> None:
    """Figures of another shape, or of a CPU, neither meet nor miss a goal, and the table says so."""
    assert set(judged(REACHED, header).values()) == {None}
    assert "no goal is judged" in " ".join(printed(Run(header=header, values=REACHED)).split())
    assert "no goal is judged" not in " ".join(printed(Run(header=H200, values=REACHED)).split())


def test_what_was_not_measured_is_not_judged() -> None:
    """A run of some parts has a table too."""
    assert set(judged({}).values()) == {None}
    assert judged(SEEN | {"rollouts.weights_held": None})["weights: requests are held"] is None


def printed(run: Run) -> str:
    """Return the table of a run as text."""
    out = io.StringIO()
    Console(file=out, width=80).print(table(run))
    return out.getvalue()


def test_the_table_fits_80_columns() -> None:
    """Every row is one line of at most 80 columns."""
    lines = printed(Run(header=H200, values=REACHED)).splitlines()
    assert max(map(len, lines)) <= 80
    for goal in GOALS:
        assert sum(goal.what in line and goal.goal in line for line in lines) == 1, goal.what


def test_the_document_has_the_table_of_the_goals() -> None:
    """docs/DEVICE.md names each goal, with what was seen."""
    rows = [re.sub(r"[*`]", "", line) for line in DOCUMENT.splitlines() if line.startswith("| ")]
    for goal in GOALS:
        unit = f", {goal.unit}" if goal.unit else ""
        row = f"| {goal.what}{unit} | {goal.seen} | {goal.goal} |".replace("|  |", "| |")
        assert sum(line.startswith(row) for line in rows) == 1, row


def test_the_readme_has_no_other_figure_of_a_gpu() -> None:
    """Each number in a paragraph of the README that names a kind of GPU, or CUDA, is in docs/DEVICE.md."""
    paragraphs = re.split(r"\n\s*\n|\n- ", (CODE / "README.md").read_text())
    figure = re.compile(r"\d[\d,.]*(?= (?:ms|s|tokens/s|tok/s|GB|GB/s|TB/s)\b)")
    found = [
        number
        for paragraph in paragraphs
        if re.search(r"\b(H100|H200|A100|L40S|CUDA|On a GPU)\b", paragraph)
        for number in figure.findall(paragraph)
    ]
    assert [number for number in found if number not in DOCUMENT] == []


# the record of a run


def test_an_interrupted_run_keeps_its_figures(tmp_path: Path) -> None:
    """Each figure is in the file at once; a line that was cut short is left out."""
    report = Report(tmp_path / "run.jsonl")
    report.begin(H200)
    report.figure("engine.rate_1", 100.0)
    with suppress(KeyboardInterrupt), report.part("engine"):
        report.figure("engine.rate_16", None, "no room")
        raise KeyboardInterrupt
    with report.path.open("a") as file:
        file.write('{"figure": "engine.rate_64", "va')
    run = Run.read(report.path)
    assert run.values == {"engine.rate_1": 100.0, "engine.rate_16": None}
    assert run.parts == {"engine": {"outcome": "interrupted"}}
    document = run.document(list(judge(run)))
    assert document["figures"]["engine.rate_16"]["note"] == "no room"
    assert document["card"] == "NVIDIA H200"
    assert document["started"] <= document["ended"]


def test_an_error_ends_its_part_alone(tmp_path: Path) -> None:
    """A part that raises has failed, one that lacks a program is skipped with what to do, and the run goes on."""
    report = Report(tmp_path / "run.jsonl")
    report.begin({})
    with report.part("engine"):
        raise ValueError("too small\nand more")
    with report.part("rollouts"):
        raise GlmError("systemd is not installed", hint="install it")
    with report.part("http"):
        pass
    assert Run.read(report.path).parts == {
        "engine": {"outcome": "failed", "why": "ValueError: too small"},
        "rollouts": {"outcome": "skipped", "why": "systemd is not installed; install it"},
        "http": {"outcome": "done"},
    }


def killed(plan: Plan, report: Report) -> None:
    """Measure one figure, then die as if the kernel had killed the process for its memory."""
    report.figure("engine.rate_1", 1.0)
    os.kill(os.getpid(), 9)


def test_a_killed_process_fails_its_part_alone(tmp_path: Path) -> None:
    """What it had measured is kept."""
    report = Report(tmp_path / "run.jsonl")
    report.begin({})
    command.measure_in_child(killed, "engine", Plan("small", "cpu", tmp_path), report)
    run = Run.read(report.path)
    assert run.values == {"engine.rate_1": 1.0}
    assert run.parts == {"engine": {"outcome": "failed", "why": "its process ended with -9"}}


def test_without_systemd_rollouts_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part names what to install."""
    monkeypatch.setenv("PATH", "")
    report = Report(tmp_path / "run.jsonl")
    report.begin({})
    plan = Plan("small", "cpu", tmp_path)
    plan.root.mkdir()
    with report.part("rollouts"):
        rollouts.measure(plan, report)
    [part] = Run.read(report.path).parts.values()
    assert part["outcome"] == "skipped"
    assert "install systemd and util-linux" in part["why"]


def test_releases_of_another_kind_are_not_measured(tmp_path: Path) -> None:
    """A directory that was kept is used for the shape and the cache that its releases were made with."""
    (tmp_path / "releases.json").write_text('{"shape": "small", "device": "cpu", "kv_tokens": 0}')
    releases.require_space(Plan("small", "cpu", tmp_path))
    others = (
        Plan("9b", "cpu", tmp_path),
        Plan("small", "cuda", tmp_path),
        Plan("small", "cpu", tmp_path, kv_tokens=4096),
    )
    for plan in others:
        with pytest.raises(GlmError, match="the shape small for cpu with default KV tokens"):
            releases.require_space(plan)


class Usage(NamedTuple):
    """As shutil.disk_usage returns it."""

    total: int
    used: int
    free: int


@pytest.mark.parametrize(("made", "needed"), [(0, 62.8), (1, 42.2), (2, 1.0)])
def test_the_disk_must_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int, needed: float) -> None:
    """The releases that are missing need room, and the checkpoint of which the last one is made."""
    plan = Plan("9b", "cpu", tmp_path)
    for version in releases.VERSIONS[:made]:
        (plan.root / "releases" / version).mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 40, int((needed + 0.1) * 1e9)))
    releases.require_space(plan)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 40, int((needed - 0.1) * 1e9)))
    with pytest.raises(GlmError, match=f"the releases of the shape 9b need {needed + 0.1:.1f} GB"):
        releases.require_space(plan)


def test_nothing_is_written_to_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is refused like one with a wrong option."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 100, 0))
    with pytest.raises(SystemExit) as exit_:
        command.main(["--shape", "small", "--dir", str(tmp_path), "--json", str(tmp_path / "x.json")])
    assert exit_.value.code == 2
    assert "--dir names another directory" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


# what is measured


def test_the_checkpoint_is_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine loads it, no file is larger than a shard unless a tensor is, and another seed gives other weights."""
    import torch

    from service.model import checkpoint_files
    from tests.bench import device

    monkeypatch.setattr(releases, "_SHARD", 2 << 20)
    done: list[float] = []
    plan = Plan("small", "cpu", tmp_path, kv_tokens=4096)
    for seed in (1, 2):
        releases.write_checkpoint(tmp_path / str(seed), plan, seed, done.append)
    assert done == sorted(done[: len(done) // 2]) * 2
    assert done[-1] == 1.0
    models = [device.load(tmp_path / str(seed), "small", torch.device("cpu"))[0] for seed in (1, 2)]
    first, second = (model.state_dict() for model in models)
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name], second[name]) for name in first if first[name].ndim > 1)
    largest = max(tensor.nbytes for tensor in first.values())
    files = sorted((tmp_path / "1").glob("*.safetensors"))
    assert len(files) > 2
    assert checkpoint_files.shards(tmp_path / "1") == files
    assert all(file.stat().st_size < (2 << 20) + largest for file in files)
    assert json.loads((tmp_path / "1/engine.json").read_text()) == {"device": "cpu", "kv_tokens": 4096}


def test_the_9b_shape_is_the_true_one() -> None:
    """10.29 G parameters, of which the space on the disk is computed, in shards of 4 GiB at most."""
    from tests.bench import device

    shapes = releases.tensor_shapes(device.config("9b"))
    groups = list(releases.shard_names(shapes))
    assert [name for names in groups for name in names] == list(shapes)
    sizes = [sum(2 * math.prod(shapes[name]) for name in names) for names in groups]
    assert sum(sizes) == pytest.approx(2 * 10.29e9, rel=0.001)
    assert sum(sizes) < releases.SIZES["9b"]
    assert max(sizes) <= 4 << 30


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth counts every byte of every file."""
    monkeypatch.setattr(bandwidth, "_CHUNK", 10)
    sizes = (0, 9, 10, 11, 100)
    for size in sizes:
        (tmp_path / str(size)).write_bytes(bytes(size))
    assert bandwidth.read_all(sorted(tmp_path.iterdir())) == sum(sizes)


def load_report(*, last: float = 12.5, first: float = 12.4) -> LoadReport:
    """Return the report of a load that got the last answer of 1.0.0 and the first of 1.1.0 at these times."""
    latency = Latency(p50_ms=1, p99_ms=1, p999_ms=1, max_ms=1)
    switches = [Switch(9.0, 9.1, "1.0.0"), Switch(12.0, last, "1.0.0"), Switch(12.0, first, "1.1.0")]
    busy = ClassReport(
        clients=1, sent=100, ok=99, lost=1, latency=latency, longest_pause_ms=250, by_version={}, by_slot={},
        connections=1, idle_closes=0, announced_closes=0, switches=switches,
    )  # fmt: skip
    return LoadReport(
        target="", started=8, seconds=5, sent=100, ok=99, lost=1, requests_per_second=20, latency=latency,
        longest_pause_ms=250, longest_pause_by="busy", longest_pause_at=0, own_lag_ms=0, by_version={}, by_slot={},
        by_class={"busy": busy}, losses=[],
    )  # fmt: skip


RECORD = Record(
    id="1", kind="deploy", strategy="weights", version="1.1.0", slot="green", started_at="2026-11-26T10:00:00+00:00",
    steps=[
        Step(phase="preflight", at="2026-11-26T10:00:00+00:00"),
        Step(phase="prepare", at="2026-11-26T10:00:18+00:00"),
    ],
    pause_ms=2900,
)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "outcome", "switch", "held"),
    [
        (0, "done", 2.5, 2.9),
        (3, "refused", None, None),
        (5, "rolled back", None, None),
        (9, "failed with 9", None, None),
    ],
)
def test_figures_of_a_rollout(code: int, outcome: str, switch: float | None, held: float | None) -> None:
    """Times are from the command, which began at 10 s; without a cutover there are no times of one."""
    figures = rollouts.rollout_figures("weights", code, 10.0, 30.0, "1.0.0", RECORD, load_report())
    assert figures == {
        "rollouts.weights": outcome, "rollouts.weights_seconds": 30.0, "rollouts.weights_preflight": 18.0,
        "rollouts.weights_switch": switch, "rollouts.weights_wait": 0.25, "rollouts.weights_sent": 100,
        "rollouts.weights_lost": 1, "rollouts.weights_held": held,
    }  # fmt: skip


def test_a_swap_is_over_with_the_first_answer_of_the_new_version() -> None:
    """While it loads no version answers."""
    figures = rollouts.rollout_figures("swap", 0, 10.0, 30.0, "1.0.0", RECORD, load_report(last=11.0, first=25.0))
    assert figures["rollouts.swap_switch"] == 15.0


def test_a_rollout_has_all_its_figures() -> None:
    """Those of every strategy are in the list, with a unit for each time."""
    for strategy in STRATEGIES:
        figures = rollouts.rollout_figures(strategy, 3, 0.0, 0.0, None, None, load_report())
        listed = {name for name in FIGURES if re.match(rf"rollouts\.{strategy}(_|$)", name)}
        assert figures.keys() == listed


@pytest.mark.long
@pytest.mark.alone
def test_every_figure_is_measured(tmp_path: Path) -> None:
    """The whole command, with a small model and one repetition: all parts end well, and the document has everything."""
    argv = [sys.executable, "-m", "tests.bench.gpu", "--shape", "small", "--device", "cpu", "--quick",
            "--dir", str(tmp_path / "d"), "--json", str(tmp_path / "run.json")]  # fmt: skip
    done = subprocess.run(argv, cwd=CODE, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "run.json").read_text())
    assert {name: part["outcome"] for name, part in document["parts"].items()} == dict.fromkeys(
        ["releases", *PARTS], "done"
    )
    assert document["figures"].keys() == FIGURES.keys()
    unmeasured = {name for name, figure in document["figures"].items() if figure["value"] is None}
    assert unmeasured == set()
    assert all(document["figures"][f"rollouts.{strategy}"]["value"] == "done" for strategy in STRATEGIES)
    assert sum(document["figures"][f"http.ready_{part.replace(' ', '_')}"]["value"] for part in LOAD_PARTS) > 0
    assert [row["what"] for row in document["goals"]] == [goal.what for goal in GOALS]
    assert {"card", "driver", "torch", "transformers", "commit", "command", "started", "ended"} <= document.keys()
    lines = [line for line in done.stdout.splitlines() if str(tmp_path) not in line and "…" not in line]
    assert max(map(len, lines)) <= 80
    again = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu", "--table", str(tmp_path / "run.jsonl")],
        cwd=CODE, capture_output=True, text=True,
    )  # fmt: skip
    assert again.stdout.strip() in done.stdout
