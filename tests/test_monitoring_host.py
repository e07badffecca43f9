"""A real Prometheus beside a real host: the alerts fire there too, and the dashboard shows what it should."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.monitoring import prometheus
from deploy.monitoring.prometheus import Prometheus
from tests.box import CODE, Box, wait_for
from tests.test_faulty_releases import make_faulty, traffic
from tests.test_monitoring import expressions

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="Debian: apt-get install prometheus"),
]
WITHOUT_DATA = {
    "alerts": r"ALERTS",
    "other exporters": r"DCGM_|container_|node_",
    "GPUs": r"glm_gpu_",
    "a rollout that runs": r"glm_rollout_(running|phase)",
    "a mirror": r"glm_mirrored",
    "the dummy engine": r"glm_(image_cache|engine_step|model_load_part)",
    "the last minute alone": r"offset 1m",
    "failed requests": r'status=~"5\.\."',
}
"""Why an expression of the dashboard has no data on a host of these tests."""


@pytest.fixture
def watched(box: Box, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the box; minutes in the rules are seconds."""
    rules = tmp_path / "rules"
    rules.mkdir()
    for path in prometheus.RULES.glob("*.yml"):
        (rules / path.name).write_text(re.sub(r"\b(\d+)m\b", r"\1s", path.read_text()))
    with Prometheus(box.listen, tmp_path / "prometheus", interval=1, rules=rules) as found:
        wait_for(lambda: found.query('up{job="glm"} == 1'), what="a scrape")
        yield found


def leave(box: Box) -> None:
    """Begin to read an answer and close the connection."""
    host, port = box.listen.split(":")
    body = b'{"stream": true, "max_tokens": 500, "messages": [{"role": "user", "content": "Hello"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(head % len(body) + body)
        client.recv(1)


def has_fired(watched: Prometheus, alert: str) -> Callable[[], bool]:
    return lambda: alert in watched.firing()


def test_no_live_slot(box: Box, watched: Prometheus) -> None:
    """It fires when the slot, and what would start it again, are stopped; it ends when the slot serves again."""
    assert not has_fired(watched, "GlmNoLiveSlot")()
    box.systemctl("stop", "glm.socket", "glm-live.service", "glm@blue.service")
    wait_for(has_fired(watched, "GlmNoLiveSlot"), what="the alert")
    box.systemctl("start", "glm.socket", "glm@blue.service")
    wait_for(lambda: not has_fired(watched, "GlmNoLiveSlot")(), what="its end")


def test_error_rate(box: Box, watched: Prometheus, tmp_path: Path) -> None:
    """Requests that are answered do not fire the alert, and failing ones do."""
    make_faulty(box, tmp_path, tmp_path / "begin", "fails always")
    box.glmctl("deploy", "1.1.0", "--no-analysis")
    with traffic(box):
        wait_for(lambda: watched.query("glm:errors:ratio_rate5m == 0"), what="a ratio")
        assert not has_fired(watched, "GlmErrorRate")()
        (tmp_path / "begin").touch()
        wait_for(has_fired(watched, "GlmErrorRate"), what="the alert")


def test_failed_rollout(box: Box, watched: Prometheus) -> None:
    """A deploy that a hook refuses fires it; a deploy that succeeds does not."""
    box.glmctl("deploy", "1.1.0")
    wait_for(lambda: watched.query('up{job="glm"} offset 15s == 1'), what="a scrape 15 s ago")
    assert watched.query('glm_rollouts_total{outcome="done"} > 0')
    assert not has_fired(watched, "GlmRolloutFailed")()
    box.host.policy.parent.mkdir(parents=True, exist_ok=True)
    box.host.policy.write_text('[hooks]\npre_cutover = ["false"]\n')
    box.glmctl("deploy", "1.0.0", expect=4)
    wait_for(has_fired(watched, "GlmRolloutFailed"), what="the alert")


def test_panels_have_data(box: Box, watched: Prometheus) -> None:
    """Each expression of the dashboard has samples after a deploy under traffic, but for those that cannot."""
    with traffic(box):
        box.glmctl("deploy", "1.1.0", "--no-analysis")
        box.get("/v1/unknown")
        wait_for(lambda: watched.query("glm:errors:ratio_rate5m == 0"), what="a ratio")
        assert box.get("/v1/models/unknown").status_code == 404
        empty = dict[str, str]()

        def is_complete() -> bool:
            leave(box)
            empty.clear()
            for place, expression in expressions().items():
                query = re.sub(r"\$__(rate_interval|range)", "10s", expression).replace("$instance", ".*")
                if not any(re.search(why, query) for why in WITHOUT_DATA.values()) and not watched.query(query):
                    empty[place] = query
            return not empty

        try:
            wait_for(is_complete, seconds=40)
        finally:
            assert empty == {}


@pytest.mark.model
def test_make_monitoring(tmp_path: Path) -> None:
    """It plays the demo, says where to look, and ends with Ctrl-C, Prometheus too."""
    argv = [sys.executable, "-m", "deploy.monitoring"]
    with subprocess.Popen(argv, cwd=CODE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as command:
        assert command.stdout is not None
        lines = []
        for line in command.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        said = "".join(lines)
        assert "Nothing was lost" in said
        [server] = re.findall(r"http://(\S+)/alerts", said)[:1]
        found = Prometheus("", tmp_path)
        found.address = server
        assert found.query('up{job="glm"} == 1'), said
        wait_for(lambda: found.query("glm:requests:rate5m > 0"), what="the load")
        command.send_signal(signal.SIGINT)
        rest, _ = command.communicate(timeout=90)
    assert command.returncode == 0, rest
    assert "Traceback" not in rest
    done = subprocess.run(["ss", "-ltn"], capture_output=True, text=True)
    assert server not in done.stdout
