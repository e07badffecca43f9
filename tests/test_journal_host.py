"""Lines of a server and of glmctl in a real journal, on a booted host: what journalctl and glmctl find there again."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.box import CODE
from tests.hosts import BootedHost, booted_host

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("systemd-nspawn"), reason="Debian: apt-get install systemd-container"),
]

SERVER = """
import logging
from service import logs
from service.contract.route import Route
from service.logs.access import AccessLog, Entry
from service.logs.gunicorn_logger import GunicornLogger
from gunicorn.config import Config

logs.describe_process(slot="green", generation=4)
GunicornLogger(Config())
log, access = logging.getLogger("service"), AccessLog(1, 100)
log.info("gate open (green 1.1.0)")
log.warning("refused with 400: 10.0.0.1 - -: Invalid method encountered")
entry = Entry("POST", "/v1/chat/completions", 200, 0.1, "10.0.0.1", "1.1.0", "my id", tokens=(7, 3))
access.add(entry._replace(route=Route("blue/3/77", "blue/3/77", 1, 0.0)))
access.add(entry._replace(status=404, request_id="other", reason="Not Found"))
access.add(entry._replace(status=500, request_id="bad", reason="RuntimeError"))
access.close()
try:
    raise RuntimeError("on purpose")
except RuntimeError:
    log.exception("request %s failed", "bad", extra={"request_id": "bad"})
"""
ROLLOUTS = """
from pathlib import Path
from deploy.host import Host
from deploy.journal.journal import Journal, begin

for outcome in ("done", "rolled back", "failed"):
    journal = Journal(Host.find(user=False))
    with journal.lock():
        entry = begin(journal, "deploy", "1.1.0", "green")
        for phase in ("preflight", "cutover"):
            entry.enter(phase)
        entry.end(outcome)
        print(entry.record.id)
"""


@pytest.fixture(scope="module")
def host() -> Iterator[BootedHost]:
    interpreter = Path(sys.base_prefix)  # /usr is that of this machine
    readable = {CODE, Path(sys.prefix), *([] if interpreter == Path("/usr") else [interpreter])}
    with booted_host(readable={path: str(path) for path in sorted(readable)}) as found:
        yield found


def test_each_line_is_found_again(host: BootedHost) -> None:
    """By unit, by request, by rollout and by priority: errors, and only errors, are `-p err`."""
    python, glmctl = sys.executable, str(Path(sys.executable).with_name("glmctl"))

    def messages(*words: str) -> list[str]:
        said = host.run(["journalctl", "--output=json", "--no-pager", *words])
        return [json.loads(line)["MESSAGE"].splitlines()[0] for line in said.splitlines()]

    unit = ["systemd-run", "--unit=glm@green.service", "--wait", "--collect", f"--working-directory={CODE}"]
    done, undone, failed = host.run(["sh", "-c", f"cd {CODE} && {python} -c '{ROLLOUTS}'"]).split()
    host.run([*unit, python, "-c", SERVER])
    host.run(["journalctl", "--sync"])
    errors = messages("-p", "err", "SYSLOG_IDENTIFIER=glm", "+", "SYSLOG_IDENTIFIER=glmctl")
    [failure] = messages(f"ROLLOUT={failed}", "OUTCOME=failed")
    assert errors[0] == failure
    assert sorted(text.partition(" ")[0] for text in errors[1:]) == ["POST", "request"]
    assert len(errors) == 3
    assert messages("REQUEST_ID=bad")[-1] == "request bad failed"
    assert len(messages("-p", "warning..warning", f"ROLLOUT={undone}")) == 1
    assert [text.rpartition(": ")[2].partition(" ")[0] for text in messages(f"ROLLOUT={done}")] == [
        "preflight,", "cutover", "done",
    ]  # fmt: skip

    [request] = json.loads(host.run([glmctl, "trace", "my id", "--json"]))["requests"]
    assert (request["accepted_by"], request["handed_over_by"], request["handovers"]) == ("blue/3/77", "blue/3/77", 1)
    assert request["answered_by"].startswith("green/4/")
    assert (request["completion_tokens"], request["outcome"]) == (3, "answered")
    shown = host.run([glmctl, "logs", "--rollout", done])
    assert f"rollout {done}: deploy of 1.1.0 into green (overlap): cutover" in shown
    assert failed not in shown
    missing = host.run(["sh", "-c", f"{glmctl} trace nobody 2>&1; echo $?"])
    assert "the log of the servers begins 20" in missing
    assert missing.split()[-1] == "3"
