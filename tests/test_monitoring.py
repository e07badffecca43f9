"""deploy/monitoring: rules that fire when they should, and no panel on a series that nobody writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.errors import Refused
from deploy.monitoring import __main__ as command
from deploy.monitoring import dashboard, prometheus
from tests.monitoring.promql import CODE, exported, names, others

DIRECTORY = CODE / "deploy/monitoring"
RULE_TESTS = CODE / "tests/monitoring/alerts.test.yml"
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def rules() -> Iterator[dict[str, Any]]:
    for path in sorted(prometheus.RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in rules() if "record" in rule}


def expressions() -> dict[str, str]:
    """The expressions of the dashboard by where they are."""
    document = json.loads(dashboard.FILE.read_text())
    found = {f"annotation {one['name']}": one["expr"] for one in document["annotations"]["list"]}
    for panel in document["panels"]:
        for target in panel.get("targets", []):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_names_of_series_are_found() -> None:
    """Neither labels nor functions, keywords, strings and durations are taken for a series."""
    expression = (
        'sum by (le, slot) (rate(a_bucket{slot="b", c=~"d e"}[5m])) / on (slot) group_left (f) up offset 15m'
        ' or time() - glm:x:p95_5m > 1e3 and {__name__="g"} unless 0 * h_total'
    )
    assert names(expression) == {"a_bucket", "up", "glm:x:p95_5m", "h_total"}


def test_every_series_is_written_by_somebody() -> None:
    """No panel, annotation, rule or address of a graph reads a series that neither a program nor a rule writes."""
    known = exported() | others() | RECORDED.keys()
    used = expressions() | {name: rule["expr"] for name, rule in (ALERTS | RECORDED).items()} | command.GRAPHS
    unknown = {where: names(expression) - known for where, expression in used.items()}
    assert {where: found for where, found in unknown.items() if found} == {}
    assert set(command.GRAPHS.values()) <= RECORDED.keys()


def test_no_name_of_another_program_is_left_over() -> None:
    """The list has what is used, no more."""
    used = [*expressions().values(), *(rule["expr"] for rule in rules())]
    assert others() <= set().union(*map(names, used))


def test_the_dashboard_is_that_of_its_source() -> None:
    """`python -m deploy.monitoring.dashboard` writes the same file; no panel overlaps another or leaves the grid."""
    assert dashboard.FILE.read_text() == dashboard.text()
    cells = set[tuple[int, int]]()
    for panel in dashboard.document()["panels"]:
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        assert max(covered)[0] < 24
        cells |= covered


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """Nothing is lost in Grafana's own types, but for what its schema leaves to the data source."""
    plugins.register_default_plugins()
    document = json.loads(dashboard.FILE.read_text())
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    lost = {re.sub(r"\d+", "N", place) for place in differences(document, known)}
    annotation = {f"/annotations/list/N/{name}" for name in ("titleFormat", "textFormat", "step")}
    assert lost == annotation | {"/templating/list/N/definition"}


def differences(expected: object, found: object, place: str = "") -> Iterator[str]:
    """Where `found` lacks a part of `expected`; it may have more."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name, value in expected.items():
            yield from differences(value, found.get(name), f"{place}/{name}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif expected != found:
        yield place


def test_every_panel_explains_itself() -> None:
    """It has a description, a unit, and a name for each series; a version has the same colour in all of them."""
    names = set[str]()
    for panel in dashboard.document()["panels"]:
        if panel["type"] == "row":
            continue
        assert re.fullmatch(r"[A-Z0-9].{10,}\.", panel["description"]), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in {unit for unit in vars(units).values() if isinstance(unit, str)}, panel["title"]
        assert defaults["color"] == {"mode": "palette-classic-by-name"}
        assert all(target["legendFormat"] for target in panel["targets"])
        if panel["type"] != "stat":
            assert panel["options"]["legend"]["showLegend"]
        names.add(panel["title"])
    assert {"Receipt", "Live", "Requests", "Latency, p95", "First token, p95", "Utilisation"} <= names
    assert {one["name"] for one in dashboard.document()["annotations"]["list"]} >= {"Rollouts", "Cutovers", "Outcomes"}


@needs_promtool
def test_configuration_rules_and_queries_are_valid(tmp_path: Path) -> None:
    """For promtool; the dashboard's expressions are checked as rules."""
    promtool("check", "config", DIRECTORY / "prometheus.yml")
    found = [
        {"record": "x", "expr": re.sub(r"\$__(rate_interval|range)", "5m", expression), "labels": {"place": place}}
        for place, expression in expressions().items()
    ]
    assert len(found) > 40
    queries = tmp_path / "queries.yml"
    queries.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": found}]}))
    promtool("check", "rules", queries)


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    """Each fires for its cause and not on a healthy host, with the summary that is expected."""
    promtool("test", "rules", RULE_TESTS)


def test_every_alert_is_tested_both_ways() -> None:
    """Each has a case in which it fires, and is silent on the healthy host and all through a normal rollout."""
    fires, silent = set[str](), dict[str, set[str]]()
    for group in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for case in group["alert_rule_test"]:
            where = fires if case["exp_alerts"] else silent.setdefault(group["name"].split(",")[0], set())
            where.add(case["alertname"])
    assert fires == set(ALERTS)
    assert silent["a healthy host"] == silent["a normal rollout with a canary"] == set(ALERTS)


def test_without_prometheus_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refused, match="prometheus is not on PATH") as caught:
        prometheus.require()
    assert "apt-get install" in (caught.value.hint or "")


def test_the_places_to_look_at() -> None:
    """Alerts, targets, and a graph of each recorded series."""
    found = re.findall(r"http://127.0.0.1:1(\S+)", command.places("127.0.0.1:1"))
    assert found[:2] == ["/alerts", "/targets"]
    shown = [parse_qs(urlsplit(place).query)["g0.expr"] for place in found[2:]]
    assert shown == [[expression] for expression in command.GRAPHS.values()]
