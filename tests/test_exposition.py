"""The text of /metrics: what `promtool check metrics` asks of names, units and HELP lines, and sums that are exact."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.engine import Finish, Usage

PROGRAM = """
from service import metrics
from service.contract.worker_state import Ledger
from service.engine import Finish, Usage
one = metrics.Metrics("1.0.0", "blue")
one.observe_first_token(0.1); one.set_in_flight(1); one.count_mirrored("equal")
one.observe_finish(Finish("stop", 7, 3, 0.5), 0.2)
one.set_engine_usage(Usage(1, 2, 30, 400, 5, 6, 7, 8)); one.add_connections(Ledger(handed_out=1, adopted=2))
metrics.count_error("1.0.0", "blue", "queue_full")
metrics.count_request("1.0.0", "blue", "/x", "200", 0.1); metrics.flush()
metrics.set_load_seconds("1.0.0", "blue", {"reading": 2.5}); metrics.set_device("blue", "cuda:1")
print(metrics.render().decode(), end="")
"""
HOST = """
import sys
from pathlib import Path
from service import metrics
from service.host_metrics import HostCollector
from service.settings import Settings
from tests.host_files import new_host
root = Path(sys.argv[1])
new_host(root)
metrics.HOST.register(HostCollector(Settings(slot="blue", root=root, runtime=root, state=root / "batches")))
"""
OTHER_UNITS = "milliseconds|ms|minutes|hours|days|bits|kilobytes|kb|mib|megabytes|percent|tokens_per_second"


@pytest.fixture(scope="module", params=["alone", "shared", "after a worker that ended"])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a process shows that has every metric: without a directory, with one, and with the sums of another."""
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    if request.param != "alone":
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path_factory.mktemp("metrics"))
    for _ in range(1 + (request.param == "after a worker that ended")):
        done = subprocess.run(
            [sys.executable, "-c", HOST + PROGRAM, str(tmp_path_factory.mktemp("host"))],
            env=environment | {"FAKE_GPUS": "1", "PYTHONPATH": f"{Path(__file__).with_name('fake_nvml')}:."},
            cwd=Path(__file__).parent.parent,
            check=True,
            capture_output=True,
            text=True,
        )
    return done.stdout


def test_names_units_and_help(text: str) -> None:
    """Counters end in _total and nothing else does, units are base units, and every metric has a HELP line."""
    families = [one for one in text_string_to_metric_families(text) if re.fullmatch("glm_.*(?<!_created)", one.name)]
    assert len(families) == 40
    assert len({one.documentation for one in families}) == len(families)
    for one in families:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", one.name), one.name
        assert re.match(r"[A-Z].{15,}\.$", one.documentation), one
        assert not re.search(rf"_(total|count|sum|bucket|{OTHER_UNITS})(_|$)", one.name), one.name
        assert not re.search(r"(gauge|counter|histogram|summary|metric)", one.name), one.name
        expected = {"counter": {"_total"}, "gauge": {""}, "histogram": {"_bucket", "_sum", "_count"}}[one.type]
        assert {sample.name.removeprefix(one.name) for sample in one.samples} - {"_created"} == expected
        assert all(re.fullmatch("[a-z_]+", label) for sample in one.samples for label in sample.labels)


@pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed (Debian: apt-get install prometheus)"
)
def test_promtool_has_no_objection(text: str) -> None:
    """`promtool check metrics` finds nothing to improve."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@settings(deadline=None)
@given(durations=st.lists(st.floats(0, 1e6), min_size=2, max_size=30), at=st.integers(0, 29))
def test_sums_of_durations_do_not_depend_on_the_order(durations: list[float], at: int) -> None:
    """Otherwise a merge of two processes' sums could decrease the sum of all by its last bit."""
    name, labels = "glm_time_to_first_token_seconds_sum", {"version": "exact", "slot": "blue"}
    one = metrics.Metrics("exact", "blue")
    sums = []
    for order in (durations, durations[::-1], sorted(durations), durations[at:] + durations[:at]):
        metrics._of(metrics._first, "exact", "blue")._sum.set(0)
        for seconds in order:
            one.observe_first_token(seconds)
            metrics.flush()
        sums.append(REGISTRY.get_sample_value(name, labels))
    assert sums == sums[:1] * 4
    assert sums[0] == pytest.approx(sum(durations), abs=len(durations) / metrics._TICKS)


def value(name: str, version: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"version": version, "slot": "blue"})


def test_an_answer_is_measured_once_it_is_complete() -> None:
    """Its tokens, its wait for a row, and the time between two of its tokens, which one alone does not have."""
    one = metrics.Metrics("measured", "blue")
    one.observe_finish(Finish("stop", 7, 3, 0.5), 0.25)
    one.observe_finish(Finish("stop", 7, 1, 0.25), 0.125)
    assert value("glm_prompt_tokens_total", "measured") is None
    metrics.flush()
    assert value("glm_prompt_tokens_total", "measured") == 14
    assert value("glm_generated_tokens_total", "measured") == 4
    assert value("glm_queue_wait_seconds_sum", "measured") == 0.75
    assert value("glm_time_per_output_token_seconds_sum", "measured") == 0.125
    assert value("glm_time_per_output_token_seconds_count", "measured") == 1


def test_the_usage_of_the_engine_is_in_its_gauges() -> None:
    """As it is now, whatever it was before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_counted", {})
        for usage in (Usage(9, 9, 9, 9), Usage(1, 2, 30, 400)):
            metrics.Metrics("used", "blue").set_engine_usage(usage)
    gauges = ("running", "waiting", "kv_tokens", "kv_capacity_tokens")
    assert [value(f"glm_engine_{name}", "used") for name in gauges] == [1, 2, 30, 400]


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["first", "second"]), st.integers(0, 5)), min_size=1, max_size=20))
def test_counts_of_the_engine_are_added_as_they_grow(steps: list[tuple[str, int]]) -> None:
    """Each step counts once, for the version at its time; the zeros that a weight swap sets take nothing away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_counted", {})
        total = 0
        before = sum(value("glm_engine_steps_total", version) or 0 for version in ("first", "second"))
        for version, more in steps:
            total += more
            metrics.Metrics(version, "blue").set_engine_usage(Usage(0, 0, 0, 0, total))
            metrics.Metrics(version, "blue").set_engine_usage(Usage(0, 0, 0, 0))
        after = sum(value("glm_engine_steps_total", version) or 0 for version in ("first", "second"))
        assert after - before == total


def test_files_of_a_process_that_was_killed_are_merged_by_a_scrape(tmp_path: Path) -> None:
    """Also if its master was killed too: what it counted stays, and nothing of it is left but in the sums."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    kill = PROGRAM + "import os, sys; sys.stdout.flush(); os.kill(os.getpid(), 9)"
    for count in (1, 2, 3):
        done = subprocess.run([sys.executable, "-c", kill], env=environment, capture_output=True, text=True)
        assert done.returncode == -9
        assert f'glm_generated_tokens_total{{slot="blue",version="1.0.0"}} {3 * count}.0' in done.stdout
        assert f'glm_request_seconds_count{{route="/x",slot="blue",version="1.0.0"}} {count}.0' in done.stdout
        assert 'glm_requests_in_flight{slot="blue",version="1.0.0"} 1.0' in done.stdout
        assert len(list(tmp_path.iterdir())) == (4 if count == 1 else 6)
