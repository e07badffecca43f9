"""TLS in front: the example configurations are valid, keep their connections, and lose nothing through rollouts."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from tests.box import CODE, Box, wait_for

EXAMPLES = CODE / "docs/proxies"
SBIN = "/usr/sbin:/usr/bin"
HOSTS = ("10.0.0.11:8000", "10.0.0.12:8000")
CLIENTS = 12
NGINX = """
daemon off; pid {directory}/pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    include {directory}/glm.conf;
}}
"""

proxies = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(not shutil.which(name, path=SBIN), reason=f"{name} is not installed")
        )
        for name in ("haproxy", "nginx")
    ],
)


def configure(name: str, directory: Path, listen: str, port: int, authority: trustme.CA) -> list[str]:
    """Write the example for one host, and return the command that runs it."""
    certificate = authority.issue_cert("127.0.0.1")
    program = shutil.which(name, path=SBIN)
    assert program
    if name == "haproxy":
        certificate.private_key_and_cert_chain_pem.write_to_path(directory / "glm.pem")
        text = (EXAMPLES / "haproxy.cfg").read_text().replace("/etc/haproxy", str(directory))
        text = text.replace("maxconn 20000", "maxconn 500")  # within the limit of descriptors of the tests
        command = [program, "-db", "-f", str(directory / "haproxy.cfg")]
        file = directory / "haproxy.cfg"
    else:
        certificate.private_key_pem.write_to_path(directory / "glm.key")
        chain = b"".join(one.bytes() for one in certificate.cert_chain_pems)
        (directory / "glm.crt").write_bytes(chain)
        text = (EXAMPLES / "nginx.conf").read_text().replace("/etc/nginx", str(directory))
        (directory / "nginx.conf").write_text(NGINX.format(directory=directory))
        command = [program, "-c", str(directory / "nginx.conf"), "-p", str(directory)]
        file = directory / "glm.conf"
    for host in HOSTS:
        assert host in text
        text = text.replace(host, listen)
    file.write_text(text.replace("0.0.0.0:443", f"127.0.0.1:{port}"))
    return command


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@proxies
def test_the_example_is_valid(name: str, tmp_path: Path) -> None:
    """The proxy itself accepts it, and the timeouts suit those of the service."""
    command = configure(name, tmp_path, "127.0.0.1:8000", free_port(), trustme.CA())
    check = {"haproxy": ["-c", "-V"], "nginx": ["-t"]}[name]
    done = subprocess.run(
        [*(word for word in command if word != "-db"), *check], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


@pytest.mark.skipif(not shutil.which("keepalived", path=SBIN), reason="keepalived is not installed")
def test_the_example_of_keepalived_is_valid(tmp_path: Path) -> None:
    """Its own check prints nothing beside such an interface; its exit code says nothing: it ends by SIGTERM."""
    link = "ip link add eth0 type veth peer name eth1"
    said = []
    for number, nonsense in enumerate(("", "nonsense")):
        file = tmp_path / f"{number}.conf"
        file.write_text((EXAMPLES / "keepalived.conf").read_text().replace("nopreempt", f"{nonsense}nopreempt"))
        command = ["unshare", "--net", "sh", "-ec", f"{link}; exec keepalived -t -f {file}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, start_new_session=True, check=False)
        said.append(done.stdout + done.stderr)
    assert said[0] == ""
    assert "Unknown keyword" in said[1]


@contextmanager
def running(name: str, box: Box, directory: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    """A proxy in front of the host; yields its URL and how to trust it."""
    authority, port = trustme.CA(), free_port()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    url = f"https://127.0.0.1:{port}"
    process = subprocess.Popen(configure(name, directory, box.listen, port, authority))
    try:
        wait_for(lambda: answers(url, trust), what=name)
        yield url, trust
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str, trust: ssl.SSLContext) -> bool:
    try:
        return httpx.get(f"{url}/readyz", verify=trust, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


class Clients:
    """Clients that ask until they are stopped: with kept and with new connections, streamed and not."""

    def __init__(self, url: str, trust: ssl.SSLContext) -> None:
        self._url, self._trust = url, trust
        self._stopped = threading.Event()
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]

    @contextmanager
    def asking(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in self._threads:
                thread.join()

    def _ask(self, number: int) -> None:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "stream": number % 2 == 0}
        headers = {"Connection": "close"} if number % 4 == 3 else {}
        with httpx.Client(
            base_url=self._url, verify=self._trust, trust_env=False, timeout=120, headers=headers
        ) as client:
            while not self._stopped.is_set():
                try:
                    answer = client.post("/v1/chat/completions", json=body)
                    is_whole = not body["stream"] or answer.text.rstrip().endswith("data: [DONE]")
                    if answer.status_code != 200 or not is_whole:
                        self.failures.append(f"{answer.status_code}: {answer.text[-200:]}")
                    self.versions[answer.headers["x-model-version"]] += 1
                except (httpx.HTTPError, KeyError) as error:
                    self.failures.append(repr(error))
                time.sleep(0.02)


@pytest.mark.long
@proxies
def test_nothing_is_lost_behind_tls(name: str, box: Box, tmp_path: Path) -> None:
    """Through an overlap, a rollback and a swap, and the connections that the proxy keeps change hands."""
    with running(name, box, tmp_path) as (url, trust):
        clients = Clients(url, trust)
        with clients.asking():
            time.sleep(2)
            receipt = box.json("deploy", "1.1.0", "--bake", "2")["receipt"]
            assert receipt["lost"] == 0
            assert receipt["adopted"] > 0, "no connection was kept"
            box.glmctl("rollback")
            box.json("deploy", "1.1.0", "--strategy", "swap", "--bake", "0")
            time.sleep(2)
    assert clients.failures == []
    assert set(clients.versions) == {"1.0.0", "1.1.0"}
    assert clients.versions.total() > 10 * CLIENTS
