"""A real Prometheus scrapes a real host through rollouts and kills. What it has then are all samples, and no others."""

from __future__ import annotations

import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.journal.receipt import compute, snapshot
from deploy.monitoring.prometheus import Prometheus
from service.contract.generations import all_generations
from service.contract.samples import CLIENT_GONE
from tests.box import Box, kill, wait_for
from tests.test_faulty_releases import traffic

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="Debian: apt-get install prometheus"),
]
INTERVAL = 15.0
"""Seconds between the scrapes of a scraper, and ..."""
TIMEOUT = 10.0
"""... for which it waits, as in deploy/monitoring/prometheus.yml."""
SCRAPERS = 15
"""Targets that are all the same host, so that one of them scrapes about each second."""

BAKE = ("--bake", "2s")
OUTCOMES = ("completed", "failed", "client_aborted")

Key = tuple[tuple[str, str], ...]
Values = dict[float, float]  # by time


class Outages(threading.Thread):
    """Notes the times in which no worker takes requests of clients: in a swap, and after a kill."""

    def __init__(self, box: Box) -> None:
        super().__init__(daemon=True)
        self._box = box
        self.found: list[tuple[float, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        began: float | None = None
        while not self.over.wait(0.1):
            if any(one.gate == "open" for one in all_generations(self._box.host.runtime)):
                if began:
                    self.found.append((began, time.time()))
                began = None
            else:
                began = began or time.time()


class Scraped:
    """A host, and the Prometheus that scrapes it."""

    def __init__(self, box: Box, prometheus: Prometheus) -> None:
        self.box, self._prometheus = box, prometheus
        self.outages = Outages(box)

    def series(self, selector: str, seconds: float = 3600) -> dict[Key, Values]:
        """The samples of the last seconds as they were scraped, by their labels."""
        found = self._prometheus.query(f"{selector}[{seconds:.0f}s]")
        return {
            tuple(sorted(one["metric"].items())): {float(at): float(value) for at, value in one["values"]}
            for one in found
        }

    def scrapes(self, seconds: float = 3600) -> dict[str, Values]:
        """When each scraper scraped, and whether it succeeded."""
        return {dict(labels)["scraper"]: values for labels, values in self.series("up", seconds).items()}

    def await_scrapes(self, count: int) -> float:
        """Wait for so many scrapes that begin from now on; returns the time of now."""
        now = time.time()
        wait_for(
            lambda: sum(at > now for times in self.scrapes().values() for at in times) >= count,
            what="scrapes",
        )
        return now

    def check_what_is_left(self) -> None:
        """Two scrapes after the end of a rollout or a kill, all gauges are those of the generation that serves."""
        began = self.await_scrapes(2)
        live = self.box.generation(str(self.box.slots.live))
        expected = {"slot": live.slot, "version": live.version, "generation": str(live.generation)}
        found = defaultdict[str, list[tuple[dict[str, str], float]]](list)
        for key, values in self.series(f'{{__name__=~"{"|".join(sorted(gauges(self.box)))}"}}', 60).items():
            labels = dict(key)
            if (last := max(values)) > began:
                found[labels["__name__"]].append((labels, values[last]))
        assert {"glm_requests_in_flight", "glm_release_info", "glm_workers", "glm_model_load_seconds"} <= set(found)
        for name, samples in found.items():
            if not name.startswith(("glm_slot_", "glm_build_")):  # both slots always have these; the program's version
                shown = [{name: labels[name] for name in expected if name in labels} for labels, _ in samples]
                assert [one for one in shown if not one.items() <= expected.items()] == [], name
        for name in ("glm_workers", "glm_generation_workers"):
            assert {value for _, value in found[name]} == {len(live.alive_workers)}, found[name]
        assert "glm_rollout_running" not in found


def gauges(box: Box) -> set[str]:
    """The names of the gauges of a scrape."""
    families = text_string_to_metric_families(box.get("/metrics").text)
    return {one.name for one in families if one.type == "gauge" and one.name.startswith("glm_")}


@pytest.fixture
def scraped(box: Box, tmp_path: Path) -> Iterator[Scraped]:
    prometheus = Prometheus(box.listen, tmp_path / "prometheus", interval=INTERVAL, rules=tmp_path)
    configuration: dict[str, Any] = prometheus._configuration
    configuration["global"]["scrape_timeout"] = f"{TIMEOUT:.0f}s"
    configuration["scrape_configs"][0]["static_configs"] = [
        {"targets": [box.listen], "labels": {"scraper": str(number)}} for number in range(SCRAPERS)
    ]
    with prometheus:
        found = Scraped(box, prometheus)
        wait_for(lambda: len(found.scrapes()) == SCRAPERS, what="a scrape by each")
        found.outages.start()
        yield found
        found.outages.over.set()
        found.outages.join()


def await_pause(box: Box) -> int:
    """Wait until a scrape has just been answered, and nothing is in flight; returns the pid of the live worker."""
    live = str(box.slots.live)
    before = box.generation(live).alive_workers[0].ledger.accepted
    while True:
        [worker] = box.generation(live).alive_workers
        if worker.ledger.accepted > before and not worker.in_flight:
            return worker.pid
        time.sleep(0.005)


def is_served_by_another(box: Box, pid: int) -> bool:
    live = [one for one in all_generations(box.host.runtime) if one.slot == box.slots.live and one.is_serving]
    return any(worker.pid != pid for one in live for worker in one.alive_workers if worker.phase == "ready")


def outcomes(box: Box) -> dict[tuple[str, str], dict[str, int]]:
    """Requests of clients by slot and version, as the metrics count them, asked on the socket that counts none."""
    path = box.host.runtime / str(box.slots.live) / "http.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x", timeout=30) as client:
        text = client.get("/metrics").text
    found = defaultdict[tuple[str, str], dict[str, int]](lambda: dict.fromkeys(OUTCOMES, 0))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "glm_requests_total" and sample.labels["route"] != "internal":
                status = int(sample.labels["status"])
                name = "client_aborted" if status == CLIENT_GONE else "failed" if status >= 500 else "completed"
                found[sample.labels["slot"], sample.labels["version"]][name] += int(sample.value)
    return dict(found)


def receipts(box: Box) -> dict[tuple[str, str], dict[str, int]]:
    """The same, as a receipt of all that the host has done counts them."""
    found = defaultdict[tuple[str, str], dict[str, int]](lambda: dict.fromkeys(OUTCOMES, 0))
    receipt = compute({}, snapshot(box.host))
    assert receipt.adds_up, receipt
    for line in receipt.lines:
        for name in OUTCOMES:
            found[line.slot, line.version][name] += getattr(line, name)
    return dict(found)


def test_nothing_is_missing_and_nothing_is_left(scraped: Scraped) -> None:
    """Five cutovers, a canary, a swap, and a kill -9 of a worker and of a master, each scraped all the time."""
    box = scraped.box
    versions = ("1.1.0", "1.0.0", "1.1.0", "1.0.0", "1.1.0")
    rollouts: list[tuple[str, ...]] = [("deploy", version, *BAKE) for version in versions]
    rollouts.append(("deploy", "1.0.0", "--canary", "50", "--step", "3s", *BAKE))
    rollouts.append(("deploy", "1.1.0", "--strategy", "swap"))
    for words in rollouts:
        with traffic(box):
            box.glmctl(*words, "--no-analysis")
        scraped.check_what_is_left()
    for victim in ("worker", "master"):
        worker = await_pause(box)
        kill(worker if victim == "worker" else box.generation(str(box.slots.live)).master)
        wait_for(lambda pid=worker: is_served_by_another(box, pid), what="another worker")  # type: ignore[misc]
        with traffic(box):
            time.sleep(1)
        scraped.check_what_is_left()
    check_scrapes(scraped)
    check_counters(scraped)
    wait_for(lambda: outcomes(box) == receipts(box), seconds=10, what=f"{outcomes(box)} == {receipts(box)}")


def check_scrapes(scraped: Scraped) -> None:
    """None is missing, and each has shown both slots. One fails only if nobody could answer for all of its time."""
    scrapes = scraped.scrapes()
    for scraper, found in scrapes.items():
        times = sorted(found)
        assert max(after - before for before, after in pairwise(times)) < 1.5 * INTERVAL
        for at in times:
            explained = any(began - 1 < at and at + TIMEOUT < end + 1 for began, end in scraped.outages.found)
            assert found[at] or explained, (scraper, at, scraped.outages.found)
    for labels, values in scraped.series("glm_slot_live").items():
        assert values.keys() == {at for at, is_up in scrapes[dict(labels)["scraper"]].items() if is_up}


def check_counters(scraped: Scraped) -> None:
    """None decreases, and one that was there once is in each later scrape."""
    scrapes = scraped.scrapes()
    names = set[str]()
    for labels, values in scraped.series('{__name__=~"glm_.*(_total|_count|_sum|_bucket)"}').items():
        times = sorted(values)
        names.add(dict(labels)["__name__"])
        ups = scrapes[dict(labels)["scraper"]]
        assert times == [at for at in sorted(ups) if at >= times[0] and ups[at]], labels
        decreases = [at for before, at in pairwise(times) if values[at] < values[before]]
        assert decreases == [], (labels, values)
    assert {"glm_requests_total", "glm_request_seconds_bucket", "glm_connections_adopted_total"} <= names
