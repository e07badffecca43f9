"""Lines of a server and of glmctl in a real journal, on a booted host: what journalctl and glmctl find there again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.box import CODE, wait_for
from tests.hosts import BootedHost, booted_host
from tests.wheelhouse import PACKAGES, can_stub, packages

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


INSTALLED = "/usr/local/lib/glm-code"  # beside PACKAGES: there is no room for a mount in a mount that is read-only
CHECKPOINTS = "/usr/local/lib/glm-checkpoints"
INSTALL = f"""
python3 -m venv --without-pip /opt/glm
printf '%s\\n' {INSTALLED} {PACKAGES} > "$(echo /opt/glm/lib/python3.*/site-packages)/glm.pth"
printf '#!/opt/glm/bin/python\\nfrom deploy.cli import main\\nmain()\\n' > /opt/glm/bin/glmctl
printf '#!/opt/glm/bin/python\\nfrom gunicorn.app.wsgiapp import run\\nrun()\\n' > /opt/glm/bin/gunicorn
chmod +x /opt/glm/bin/glmctl /opt/glm/bin/gunicorn
/opt/glm/bin/glmctl install --listen 0.0.0.0:8000
printf 'GLM_ENGINE=dummy\\nGLM_THREADS=1\\n' > /etc/glm/glm.env
systemctl enable --now glm.target
glmctl release add {CHECKPOINTS}/1.0.0
glmctl release add {CHECKPOINTS}/1.1.0
glmctl deploy 1.0.0
"""
CLIENT = """
import http.client, json, sys
connection = http.client.HTTPConnection(sys.argv[1], 8000, timeout=60)
question = json.dumps({"max_tokens": 4, "messages": [{"role": "user", "content": "the-secret-of-a-client"}]})
for name in ("before", "after"):
    connection.request("POST", "/v1/chat/completions", question, {"X-Request-Id": name})
    response = connection.getresponse()
    response.read()
    print(response.status, flush=True)
    sys.stdin.readline()
"""
"""It asks twice on one connection, the second time when it is told to."""


@pytest.fixture(scope="module")
def host() -> Iterator[BootedHost]:
    interpreter = Path(sys.base_prefix)  # /usr is that of this machine
    readable = {CODE, Path(sys.prefix), *([] if interpreter == Path("/usr") else [interpreter])}
    with booted_host(readable={path: str(path) for path in sorted(readable)}) as found:
        yield found


@pytest.fixture(scope="module")
def serving(checkpoints: dict[str, Path]) -> Iterator[BootedHost]:
    """Its units run, 1.0.0 is live, and 1.1.0 was added; there is no model."""
    if not can_stub():
        pytest.skip("the Python of the hosts is another version than this one")
    mounts = {CODE: INSTALLED, packages(): PACKAGES, checkpoints["1.0.0"].parent: CHECKPOINTS}
    with booted_host(readable=mounts) as found:
        found.run(["sh", "-ec", INSTALL], seconds=300)
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


# a real server


def entries(host: BootedHost, *words: str) -> list[dict[str, str]]:
    """The entries of the server and of glmctl."""
    host.run(["journalctl", "--sync"])
    said = host.run(
        ["journalctl", "--output=json", "--no-pager", *words, "SYSLOG_IDENTIFIER=glm", "+", "SYSLOG_IDENTIFIER=glmctl"]
    )
    return [json.loads(line) for line in said.splitlines()]


def live(host: BootedHost) -> str:
    """The slot that answers clients."""
    head = host.outside(["curl", "-sSI", "--max-time", "30", f"http://{host.address}:8000/version", "-X", "GET"])
    return next(line for line in head.splitlines() if line.lower().startswith("x-slot")).split()[1]


def test_a_request_is_followed_from_its_line_to_the_receipt(serving: BootedHost) -> None:
    """Across a handover in a rollout: which worker accepted it, which answered, and that the receipt has both."""
    host = serving
    slot = live(host)
    begin = entries(host)[-1]["__CURSOR"]
    argv = ["nsenter", f"--target={host.client}", "--net", sys.executable, "-c", CLIENT, host.address]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin
        assert client.stdout
        assert client.stdout.readline() == "200\n"
        deploy = [str(host.shell), host.name, "glmctl deploy 1.1.0 --no-analysis --bake 15s --json"]
        with subprocess.Popen(deploy, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as rollout:
            try:
                while live(host) == slot:
                    assert rollout.poll() is None
                client.stdin.write("\n\n")
                client.stdin.flush()
                assert client.stdout.readline() == "200\n"
                record = json.loads(rollout.communicate(timeout=300)[0])
            finally:
                client.kill()
                rollout.kill()
    [before], [after] = (
        json.loads(host.run(["glmctl", "trace", name, "--json"]))["requests"] for name in ("before", "after")
    )
    assert before["accepted_by"] == before["answered_by"] == after["accepted_by"] == after["handed_over_by"]
    assert (before["handovers"], after["handovers"]) == (0, 1)
    assert (after["version"], after["rollout"], after["outcome"]) == ("1.1.0", record["id"], "answered")
    lines = {f"{line['slot']}/{line['generation']}": line for line in record["receipt"]["lines"]}
    old, new = (after[name].rpartition("/")[0] for name in ("accepted_by", "answered_by"))
    assert (old.partition("/")[0], new.partition("/")[0]) == (slot, {"blue": "green", "green": "blue"}[slot])
    assert lines[old]["handed_out"] >= 1
    assert lines[new]["adopted"] >= 1
    assert lines[new]["completed"] >= 1
    assert (record["receipt"]["lost"], record["receipt"]["adds_up"]) == (0, True)
    shown = host.run(["glmctl", "logs", "--rollout", record["id"]])
    assert f"rollout {record['id']}: deploy of 1.1.0" in shown
    assert ", id after" in shown
    assert shown.index("preflight, begun by root") < shown.index(": cutover") < shown.index(": done")
    found = entries(host, f"--after-cursor={begin}")
    assert "the-secret-of-a-client" not in json.dumps(found)
    assert {one["PHASE"] for one in found if one.get("ROLLOUT") == record["id"]} >= {"preflight", "cutover", "retire"}


def test_errors_of_the_journal_are_errors(serving: BootedHost) -> None:
    """What clients do wrong, and a rollout that is done, are none; a worker that was killed is one, and all are."""
    host, address = serving, f"http://{serving.address}:8000"
    begin = entries(host)[-1]["__CURSOR"]
    host.outside(["curl", "-sS", f"{address}/nothing", f"{address}/v1/models", "--json", "{}"])
    nonsense = "import socket, sys; s = socket.create_connection((sys.argv[1], 8000)); s.send(b'no\\n\\n'); s.recv(99)"
    host.outside([sys.executable, "-c", nonsense, host.address])
    version = json.loads(host.outside(["curl", "-sS", f"{address}/version"]))["version"]
    other = {"1.0.0": "1.1.0", "1.1.0": "1.0.0"}[version]
    host.run(["glmctl", "deploy", other, "--no-analysis", "--bake", "0"], seconds=300)
    told = entries(host, f"--after-cursor={begin}")
    assert {one["PRIORITY"] for one in told} == {"4", "6"}
    assert [one for one in told if "refused with 400" in one["MESSAGE"]]
    master = host.run(["systemctl", "show", "--value", "--property=MainPID", f"glm@{live(host)}"]).strip()
    host.run(["pkill", "-KILL", "-P", master, "--oldest"])
    found = list[dict[str, str]]()

    def is_told() -> bool:
        # not by --priority: after a cursor whose own entry does not match, journalctl leaves out the first that does
        found[:] = [one for one in entries(host, f"--after-cursor={begin}") if one["PRIORITY"] <= "3"]
        return bool(found)

    wait_for(is_told, what="the error")
    assert all("SIGKILL" in one["MESSAGE"] for one in found), found
