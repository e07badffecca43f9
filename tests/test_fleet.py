"""Three booted hosts behind HAProxy, under load: the fleet's playbooks as an operator runs them, nothing lost.

The clients and HAProxy are in a network namespace beside those of the hosts. The tests are one life, in the order they
stand in; `make test-fleet` runs them.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.loadtest import Report
from tests.fleet_fixtures import CODE, connection, playbook
from tests.hosts import BootedHost, booted_hosts, rebooted
from tests.wheelhouse import PACKAGES, can_stub, packages, real, stubs

pytestmark = pytest.mark.long

WHEELS = "/usr/local/lib/glm-wheels"  # on the hosts
BALANCER = ("10.77.0.1", 8000)  # in the namespace of the clients
IS_IN = """
import json, sys
rollout = json.load(sys.stdin)["rollout"]
sys.exit(not rollout or rollout["outcome"] is not None or rollout["phase"] != sys.argv[1])
"""
"""Whether the rollout that runs is in a phase; what has ended was in all of them."""
BAKE = ["--bake", "5"]
FORMER, NEW = "0.0.0.0:8000", "0.0.0.0:9000"
IMPOSSIBLE = "[analysis]\nmax_p95 = 0.000001\nmin_requests = 10\n"
"""A policy by which every version is worse."""

HAPROXY = """
global
    stats socket {directory}/haproxy.sock level admin
defaults
    mode tcp
    option redispatch 1
    retries 3
    timeout connect 2s
    timeout client 5m
    timeout server 5m
frontend model
    bind {address}:{port}
    default_backend hosts
backend hosts
    balance roundrobin
    option httpchk GET /readyz
    default-server check inter 200ms fall 2 rise 1
{servers}
"""


@dataclass
class Fleet:
    """The hosts, and what leads to them."""

    hosts: list[BootedHost]
    directory: Path
    variables: dict[str, dict[str, object]]
    checkpoints: dict[str, Path]
    code: Path

    @property
    def inventory(self) -> Path:
        """The inventory, as the variables are now."""
        path = self.directory / "hosts.json"
        path.write_text(json.dumps({"glm": {"hosts": self.variables}}))
        return path

    def play(self, name: str, *words: str, expect: int = 0, code: Path = CODE) -> str:
        """Run a playbook; returns what it said. `expect`: 0, or 2 for a host that failed."""
        done = playbook(code, self.inventory, name, *words, seconds=1800)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout

    def deploy(self, version: str, *words: str, expect: int = 0) -> str:
        source = f"glm_version={version} glm_checkpoint={self.checkpoints[version]}"
        return self.play("deploy.yml", "-e", source, *words, expect=expect)

    @property
    def versions(self) -> list[str]:
        """What is live on each host."""
        found = [json.loads(host.run(["glmctl", "status", "--json"])) for host in self.hosts]
        return [status["slots"][status["live"]]["version"] for status in found]

    @property
    def state(self) -> list[str]:
        """What is on each host: programs, units, settings, releases, slots and the history of rollouts."""
        places = "/opt/glm /usr/local/bin /etc/systemd/system /etc/glm /srv/glm /var/lib/glm/history /var/tmp"
        # in check mode glmctl is asked, and writes what it publishes
        listed = f"find {places} -maxdepth 2 -not -name '*.lock' -printf '%p %l %M %u %g %s\\n' | sort"
        return [host.run(["sh", "-c", f"{listed}; systemctl is-active 'glm*' || true"]) for host in self.hosts]

    def haproxy(self, command: str) -> str:
        """Send a command to the running HAProxy."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self.directory / "haproxy.sock"))
            channel.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: channel.recv(65536), b"")).decode()

    @contextmanager
    def load(self) -> Iterator[None]:
        """Clients of all classes through HAProxy; not one request is lost."""
        path = self.directory / "load.json"
        path.unlink(missing_ok=True)
        words = [*BALANCER, "--seconds", 0, "--scale", 0.5, "--think", 0.05, "--no-compare", "--json", path]
        command = ["nsenter", f"--target={self.hosts[0].client}", "--net", sys.executable, "-m", "deploy.loadtest"]
        with subprocess.Popen([*command, *map(str, words)], cwd=CODE, stderr=subprocess.DEVNULL) as clients:
            try:
                time.sleep(2)
                yield
            finally:
                clients.send_signal(signal.SIGINT)
                clients.wait(120)
        report = Report.model_validate_json(path.read_text())
        assert report.ok > 100
        assert report.lost == 0, report.losses


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Iterator[Fleet]:
    """Three bare hosts behind HAProxy."""
    wheels = tmp_path_factory.mktemp("wheels")
    wheels = stubs(wheels) if can_stub() else real(wheels)
    directory = tmp_path_factory.mktemp("fleet")
    with booted_hosts(3, readable={wheels: WHEELS, packages(): PACKAGES}) as hosts:
        shared = {
            "glm_wheelhouse": WHEELS, "glm_listen": FORMER, "glm_listen_overlap": 1,
            "glm_settings": {"GLM_THREADS": 1, "GLM_ENGINE": "dummy"}, "glm_policy": "# plain\n",
            "glm_deploy_options": BAKE, "glm_upgrade_options": BAKE,
        }  # fmt: skip
        variables = {host.name: {**connection(host), **shared} for host in hosts}
        fleet = Fleet(hosts, directory, variables, {"1.2.0": checkpoints["1.1.0"], **checkpoints}, CODE)
        with haproxy(fleet):
            yield fleet


@contextmanager
def haproxy(fleet: Fleet) -> Iterator[None]:
    """HAProxy in the namespace of the clients, with both addresses of each host."""
    servers = "".join(
        f"    server {kind}{number} {host.address}:{address.rpartition(':')[2]}\n"
        for kind, address in (("former", FORMER), ("new", NEW))
        for number, host in enumerate(fleet.hosts)
    )
    file = fleet.directory / "haproxy.cfg"
    file.write_text(HAPROXY.format(directory=fleet.directory, address=BALANCER[0], port=BALANCER[1], servers=servers))
    command = ["setpriv", "--pdeathsig=KILL", "nsenter", f"--target={fleet.hosts[0].client}", "--net"]
    with subprocess.Popen([*command, "haproxy", "-db", "-f", file], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def test_three_bare_hosts_serve_after_two_playbooks(fleet: Fleet) -> None:
    """Installed at once and deployed one after the other; a second run of both changes nothing."""
    fleet.play("site.yml", "--check", "--diff")
    fleet.play("site.yml")
    fleet.deploy("1.0.0")
    assert fleet.versions == ["1.0.0"] * 3
    for said in (fleet.play("site.yml"), fleet.play("site.yml", "--check", "--diff"), fleet.deploy("1.0.0")):
        assert set(re.findall(r"changed=(\d+)", said)) == {"0"}, said
        assert "ignoring" not in said


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ("glm_keep=3", "glm_version"),
        ("glm_version=../x", "../x is not a version"),
        ("glm_version=9.9.9", "neither glm_checkpoint nor glm_mirror tells where to take it from"),
        ("glm_version=9.9.9 glm_checkpoint=/nowhere", "neither on the host nor on the controller"),
        ("glm_version=9.9.9 glm_mirror=http://10.77.0.1:9", "http://10.77.0.1:9/SHA256SUMS cannot be read"),
    ],
)
def test_what_cannot_succeed_touches_no_host(variables: str, sentence: str, fleet: Fleet) -> None:
    """One sentence says what is missing, before the canary host is changed."""
    said = fleet.play("deploy.yml", "-e", variables, expect=2)
    assert sentence in " ".join(said.split())
    assert "Deploy a version" not in said
    assert fleet.versions == ["1.0.0"] * 3


def test_a_host_that_cannot_be_reached_ends_the_run_before_any_change(fleet: Fleet, tmp_path: Path) -> None:
    """The last host of the inventory is down: the canary host is not changed."""
    shell = tmp_path / "ssh"
    shell.write_text("#!/bin/sh\necho 'No route to host' >&2\nexit 255\n")
    shell.chmod(0o755)
    fleet.variables["down"] = {**next(iter(fleet.variables.values())), "ansible_ssh_executable": str(shell)}
    try:
        said = fleet.deploy("1.1.0", expect=4)
        assert "No route to host" in said
        assert "down: unreachable" in " ".join(fleet.play("status.yml").split())
    finally:
        del fleet.variables["down"]
    assert "Add the release" not in said
    assert fleet.versions == ["1.0.0"] * 3


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"glm_listen": "10.0.0.5"}, "glm_listen or glm_ui has 10.0.0.5, which is not IP:PORT"),
        ({"glm_listen": ["0.0.0.0:8000", "gpu-1:9000"]}, "has gpu-1:9000, which is not IP:PORT"),
        ({"glm_listen": []}, "glm_listen has no address"),
        ({"glm_source": "/nowhere"}, "is not a checkout"),
    ],
)
def test_what_cannot_be_installed_touches_no_host(variables: dict[str, object], sentence: str, fleet: Fleet) -> None:
    """site.yml says in one sentence what is wrong with its variables, before it changes a host."""
    before = fleet.state
    said = fleet.play("site.yml", "-e", json.dumps(variables), expect=2)
    assert sentence in " ".join(said.split())
    assert fleet.state == before


def test_a_good_release_reaches_every_host(fleet: Fleet) -> None:
    """Canary host, then the others; each shows its receipt."""
    with fleet.load():
        said = fleet.deploy("1.1.0")
    assert fleet.versions == ["1.1.0"] * 3
    assert said.count("accounted for") >= 3


def test_rollback_goes_back_on_every_host(fleet: Fleet) -> None:
    """--check says to which version, and changes nothing; without it every host goes there."""
    said = fleet.play("rollback.yml", "--check")
    assert said.count("from 1.1.0 back to 1.0.0") == 3
    assert fleet.versions == ["1.1.0"] * 3
    with fleet.load():
        fleet.play("rollback.yml")
    assert fleet.versions == ["1.0.0"] * 3


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("site.yml", ""),
        ("deploy.yml", "glm_version=1.0.0"),
        ("deploy.yml", "glm_version=1.2.0 glm_checkpoint={checkpoint}"),
        ("rollback.yml", ""),
        ("undo.yml", ""),
        ("upgrade.yml", ""),
        ("prune.yml", "glm_keep=0"),
        ("remove.yml", "glm_confirm=remove glm_purge=true"),
    ],
)
def test_check_mode_runs_through_and_touches_nothing(name: str, variables: str, fleet: Fleet) -> None:
    """Each playbook says what it would do on installed hosts, without an error."""
    before = fleet.state
    words = variables.format(checkpoint=fleet.checkpoints["1.2.0"])
    said = fleet.play(name, "--check", "--diff", *(["-e", words] if words else []))
    assert set(re.findall(r"(?:failed|unreachable|rescued|ignored)=(\d+)", said)) == {"0"}, said
    assert fleet.state == before


def test_a_bad_release_stops_at_its_host(fleet: Fleet) -> None:
    """It is worse on the second host, which rolls back: the run fails there with the reason, the third is not touched.

    Afterwards rollback.yml does not lead to what was rolled back.
    """
    second = fleet.hosts[1].name
    # the bake ends as soon as there are enough answers, of which a busy machine gives few
    fleet.variables[second].update(glm_policy=IMPOSSIBLE, glm_deploy_options=["--bake", "120"])
    fleet.play("site.yml", "--limit", second)
    with fleet.load():
        said = fleet.deploy("1.2.0", expect=2)
    assert fleet.versions == ["1.2.0", "1.0.0", "1.0.0"]
    assert "p95" in said
    assert "accounted for" in said
    history = json.loads(fleet.hosts[1].run(["glmctl", "history", "--json"]))["rollouts"]
    assert (history[-1]["outcome"], history[-1]["version"]) == ("rolled back", "1.2.0")
    assert "back to 1.2.0" not in fleet.play("rollback.yml", "--check", "--limit", second)
    undo = " ".join(fleet.play("undo.yml", "--check").split())
    assert f"{fleet.hosts[0].name}: 1.2.0 would go back to 1.0.0" in undo
    assert undo.count("1.0.0 serves, as before the run") == 2


def test_a_second_run_heals(fleet: Fleet) -> None:
    """Once its cause is gone, the same command continues where it stopped."""
    fleet.variables[fleet.hosts[1].name].update(glm_policy="# plain\n", glm_deploy_options=BAKE)
    fleet.play("site.yml", "--limit", fleet.hosts[1].name)
    with fleet.load():
        fleet.deploy("1.2.0")
    assert fleet.versions == ["1.2.0"] * 3


def test_undo_takes_the_hosts_of_the_run_back(fleet: Fleet) -> None:
    """Both parts of the run count; a second undo changes nothing."""
    with fleet.load():
        fleet.play("undo.yml")
    assert fleet.versions == ["1.0.0"] * 3
    assert set(re.findall(r"changed=(\d+)", fleet.play("undo.yml"))) == {"0"}


def test_an_upgrade_replaces_the_code(fleet: Fleet, tmp_path: Path) -> None:
    """New code serves the same version on every host; a second run changes nothing."""
    code = tmp_path / "code"
    for folder in ("deploy", "service", "ui", "systemd"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CODE / folder, code / folder, ignore=ignored, symlinks=True)
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(CODE / file, code)
    (code / "service/__init__.py").touch()
    with (code / "service/app.py").open("a") as app:
        app.write("# newer\n")
    before = [host.run(["readlink", "-f", "/usr/local/bin/glmctl"]) for host in fleet.hosts]
    with fleet.load():
        fleet.play("upgrade.yml", code=code)
    after = [host.run(["readlink", "-f", "/usr/local/bin/glmctl"]) for host in fleet.hosts]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert fleet.versions == ["1.0.0"] * 3
    for host, program in zip(fleet.hosts, after, strict=True):
        live = json.loads(host.run(["glmctl", "status", "--json"]))["live"]
        pid = host.run(["systemctl", "show", "--value", "--property=MainPID", f"glm@{live}.service"]).strip()
        assert host.run(["cat", f"/proc/{pid}/cmdline"]).startswith(program.removesuffix("glmctl\n"))
    assert set(re.findall(r"changed=(\d+)", fleet.play("upgrade.yml", code=code))) == {"0"}


def test_the_address_changes_while_clients_are_served(fleet: Fleet) -> None:
    """The new address beside the former one, HAProxy changes over, the former one goes: nothing is lost."""
    with fleet.load():
        for variables in fleet.variables.values():
            variables["glm_listen"] = [FORMER, NEW]
        fleet.play("site.yml")
        for number in range(3):
            fleet.haproxy(f"set server hosts/former{number} state drain")
        for variables in fleet.variables.values():
            variables["glm_listen"] = NEW
        fleet.play("site.yml")
    for host in fleet.hosts:
        found = json.loads(host.run(["glmctl", "listen", "list", "--json"]))
        assert found == {"addresses": [NEW]}
    assert set(re.findall(r"changed=(\d+)", fleet.play("site.yml"))) == {"0"}


def test_status_and_prune_cover_the_fleet(fleet: Fleet) -> None:
    """One line tells what serves on each host; old releases go, those in use stay."""
    said = fleet.play("status.yml")
    assert all(f"{host.name}: 1.0.0 in " in said for host in fleet.hosts)
    fleet.play("prune.yml", "-e", "glm_keep=1")
    for host in fleet.hosts:
        releases = json.loads(host.run(["glmctl", "release", "list", "--json"]))["releases"]
        assert "1.0.0" in [release["version"] for release in releases]
    assert set(re.findall(r"changed=(\d+)", fleet.play("prune.yml", "-e", "glm_keep=1"))) == {"0"}


@pytest.mark.parametrize(("phase", "version"), [("start", "1.1.0"), ("bake", "1.2.0")])
def test_a_second_run_heals_a_host_whose_power_went_off(phase: str, version: str, fleet: Fleet) -> None:
    """The run ends there, and the third host is not touched. Before cutover the host returns with the former version,
    afterwards with the new one; the second run takes the others there.
    """
    before = fleet.versions[0]
    variables = fleet.variables[fleet.hosts[1].name]
    variables["glm_deploy_options"] = ["--bake", "60"]
    with ThreadPoolExecutor() as pool:
        run = pool.submit(fleet.deploy, version, expect=2)  # ssh would say that the host is unreachable, and 4
        until = f"until glmctl status --json | python3 -c '{IS_IN}' {phase}; do sleep 0.1; done"
        fleet.hosts[1].run(["sh", "-c", until], seconds=180)
        fleet.hosts[1] = rebooted(fleet.hosts[1], is_power_off=True)
        run.result()
    assert fleet.versions == [version, {"start": before, "bake": version}[phase], before]
    variables["glm_deploy_options"] = BAKE
    fleet.deploy(version)
    assert fleet.versions == [version] * 3


def test_a_checkpoint_comes_from_a_mirror(fleet: Fleet, tmp_path: Path) -> None:
    """Every file is compared with its digest, and what is there already is not sent again; a wrong list is refused."""
    first = fleet.hosts[0]
    digest = subprocess.check_output(
        [CODE / "deploy/ci/package", fleet.checkpoints["1.1.0"], "1.3.0", tmp_path / "mirror"], text=True
    ).strip()
    words = ["--limit", first.name, "-e", f"glm_version=1.3.0 glm_mirror=http://{BALANCER[0]}:8080/1.3.0"]
    serve = [sys.executable, "-m", "http.server", "8080", "--directory", str(tmp_path / "mirror")]
    command = ["setpriv", "--pdeathsig=KILL", "nsenter", f"--target={first.client}", "--net", *serve]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as mirror:
        try:
            time.sleep(2)
            refused = fleet.play("deploy.yml", *words, "-e", f"glm_mirror_digest={'0' * 64}", expect=2)
            assert "is not the file with the digest" in " ".join(refused.split())
            present = "/var/tmp/glm-incoming-1.3.0"
            url = f"http://{BALANCER[0]}:8080/1.3.0/config.json"
            first.run(["sh", "-c", f"mkdir -p {present} && curl -sS -o {present}/config.json {url}"])
            fleet.play("deploy.yml", *words, "-e", f"glm_mirror_digest={digest}")
        finally:
            mirror.kill()
        assert mirror.stderr
        assert mirror.stderr.read().count("/config.json HTTP") == 1, "only the test has asked for it"
    assert fleet.versions[0] == "1.3.0"
    first.run(["glmctl", "release", "verify", "1.3.0"])
    assert first.run(["sh", "-c", "ls -d /var/tmp/glm-incoming* || true"]) == ""


def test_a_checkpoint_comes_by_rsync(fleet: Fleet, tmp_path: Path) -> None:
    """The files arrive as they are; rsync runs over the connection of the host."""
    second = fleet.hosts[1]
    shell = tmp_path / "ssh"
    shell.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/words\n'
        f'while [ "$1" != {second.address} ]; do shift; done\nshift\nexec {second.shell} host "$*"\n'
    )
    shell.chmod(0o755)
    key, options = str(tmp_path / "a key"), "-o ProxyJump=jump.example.org -o 'User=root'"
    fleet.variables[second.name].update(
        ansible_ssh_executable=str(shell), ansible_ssh_private_key_file=key, ansible_ssh_common_args=options
    )
    fleet.checkpoints["1.3.0"] = fleet.checkpoints["1.1.0"]
    fleet.deploy("1.3.0", "--limit", second.name, "-e", "glm_transfer=rsync")
    assert fleet.versions[1] == "1.3.0"
    [words] = [line for line in (tmp_path / "words").read_text().splitlines() if "rsync --server" in line]
    assert words.startswith(f"-p 22 -i {key} -o ProxyJump=jump.example.org -o User=root ")


def test_remove_leaves_releases_and_nothing_that_runs(fleet: Fleet) -> None:
    """Without the word it refuses and touches nothing; with it units and code are gone, and releases stay."""
    third = fleet.hosts[2]
    assert "glm_confirm=remove" in fleet.play("remove.yml", "--limit", third.name, expect=2)
    fleet.play("remove.yml", "--limit", third.name, "-e", "glm_confirm=remove")
    assert third.run(["systemctl", "list-units", "--plain", "--no-legend", "glm*"]).strip() == ""
    assert third.run(["sh", "-c", "ls /opt /etc/systemd/system | grep -c glm || true"]).strip() == "0"
    assert "1.0.0" in third.run(["ls", "/srv/glm/releases"])
    said = fleet.play("remove.yml", "--limit", third.name, "-e", "glm_confirm=remove")
    assert set(re.findall(r"changed=(\d+)", said)) == {"0"}
    fleet.play("remove.yml", "--limit", third.name, "-e", "glm_confirm=remove glm_purge=true")
    assert third.run(["sh", "-c", "ls -d /srv/glm /etc/glm /var/lib/glm /var/cache/glm* || true"]) == ""
