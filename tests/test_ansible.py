"""The fleet's playbooks, against a booted host that starts bare: the tests are its life, in the order they stand in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import wheelhouse as wheels
from tests.fleet_fixtures import CODE, connection, playbook
from tests.hosts import BootedHost, HostError, booted_host, booted_hosts

WHEELHOUSE = "/usr/local/lib/glm-wheels"  # on the hosts

GLMCTL = "/usr/local/bin/glmctl"
STAND_IN = """#!/bin/sh
case "$1" in
    release) echo '{"releases": [{"version": "1.0.0"}]}' ;;
    status) echo '{"live": null, "slots": {}}' ;;
    history) echo '{"rollouts": []}' ;;
    deploy) touch /deployed; echo '{"outcome": "done", "id": "1"}'; exit "$(cat /code)" ;;
esac
"""

POLICY = """[hooks]
post_cutover = ["touch /run/glm/moved"]
"""

BAKE = json.dumps({"glm_deploy_options": ["--bake", "1"]})


@dataclass(frozen=True)
class Recap:
    """What a playbook's run did to the host, and what it said."""

    changed: int
    failed: int
    said: str


@dataclass(frozen=True)
class Fleet:
    """One host, the checkout it is given, and the inventory that leads to it."""

    host: BootedHost
    checkout: Path
    inventory: Path

    def play(self, name: str, *words: str, seconds: float = 300) -> Recap:
        """Run a playbook as an operator does; raises HostError when it fails."""
        recap = self.try_to_play(name, *words, seconds=seconds)
        if recap.failed:
            raise HostError(f"{name} failed:\n{recap.said}\n{self.host.journal('glm*')}")
        return recap

    def try_to_play(self, name: str, *words: str, seconds: float = 300) -> Recap:
        """Run a playbook, whatever comes of it."""
        done = playbook(self.checkout, self.inventory, name, *words, seconds=seconds)
        said = done.stdout + done.stderr
        counts = re.search(r"changed=(\d+) +unreachable=(\d+) +failed=(\d+)", said)
        assert counts, said
        changed, unreachable, failed = map(int, counts.groups())
        assert (done.returncode == 0) == (unreachable + failed == 0), said
        return Recap(changed, unreachable + failed, said)

    def ask(self) -> tuple[str, str]:
        """Ask the model as a client on the network; returns the version and the slot that answered."""
        question = {"model": "glm-4.6v-flash", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
        said = self.host.outside(
            ["curl", "-sS", "-D-", "--max-time", "20", "--json", json.dumps(question),
             f"http://{self.host.address}:8000/v1/chat/completions"]
        )  # fmt: skip
        head, _, body = said.partition("\n\n")
        assert json.loads(body)["choices"][0]["message"]["role"] == "assistant"
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.splitlines())}
        return headers["x-model-version"], headers["x-slot"]

    def shown(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.host.run(["systemctl", "show", "--value", f"--property={name}", unit]).strip()


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The wheels of a host without internet: real ones in the long tests, else stand-ins where those can be used."""
    directory = tmp_path_factory.mktemp("wheels")
    if request.config.getoption("--long") or not wheels.can_stub():
        return wheels.real(directory)
    return wheels.stubs(directory)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code as it is now: hosts are given new code whenever it changes, and it may while tests run."""
    return wheels.copy_code(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def fleet(checkout: Path, wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A bare host, reached as through ssh."""
    with booted_host(readable={wheelhouse: WHEELHOUSE, wheels.packages(): wheels.PACKAGES}) as host:
        inventory = tmp_path_factory.mktemp("inventory") / "hosts.json"
        variables = {
            **connection(host),
            "glm_wheelhouse": WHEELHOUSE,
            "glm_listen": "0.0.0.0:8000",
            "glm_settings": {"GLM_THREADS": 1},
            "glm_policy": POLICY,
        }
        inventory.write_text(json.dumps({"glm": {"hosts": {host.name: variables}}}))
        yield Fleet(host, checkout, inventory)


@pytest.fixture(scope="module")
def installed(fleet: Fleet) -> Fleet:
    """The host after site.yml, which --check could foretell without touching anything.

    Like many a bare host it has no python3-apt and no lists of packages.
    """
    fleet.host.run(["sh", "-ec", "rm -r /usr/lib/python3/dist-packages/apt /var/lib/apt/lists"])
    assert fleet.play("site.yml", "--check", "--diff").changed > 0
    assert fleet.host.run(["ls", "/opt"]) == ""
    assert fleet.play("site.yml", seconds=600).changed > 0
    return fleet


@pytest.fixture(scope="module")
def serving(installed: Fleet, checkpoints: dict[str, Path]) -> Fleet:
    """The host after its first release, 1.0.0."""
    recap = installed.play("deploy.yml", *_release(checkpoints, "1.0.0"))
    assert "1.0.0 is live in" in recap.said
    return installed


def test_a_bare_host_serves_after_two_playbooks(serving: Fleet) -> None:
    """site.yml and deploy.yml take a host from nothing to an answer over the network."""
    assert serving.ask()[0] == "1.0.0"


def test_a_second_run_changes_nothing(serving: Fleet, checkpoints: dict[str, Path]) -> None:
    """Both playbooks are idempotent: what is there already is left alone, and reported so."""
    assert serving.play("site.yml").changed == 0
    assert serving.play("deploy.yml", *_release(checkpoints, "1.0.0")).changed == 0


@pytest.mark.long
def test_check_mode_understands_a_finished_host(serving: Fleet, checkpoints: dict[str, Path]) -> None:
    """--check runs through and finds nothing to change, and for a version that is not there it touches nothing."""
    assert serving.play("site.yml", "--check", "--diff").changed == 0
    assert serving.play("site.yml", "--check", "-e", '{"glm_packages": ["python3-venv", "absent"]}').changed == 1
    assert serving.play("deploy.yml", "--check", "--diff", *_release(checkpoints, "1.0.0")).changed == 0
    serving.play("deploy.yml", "--check", "--diff", *_release(checkpoints, "1.1.0"))
    assert serving.ask()[0] == "1.0.0"


def test_the_service_has_no_more_rights_than_it_needs(serving: Fleet) -> None:
    """Server and page run as a user of their own, hardened, and do their work; every unit is sound."""
    _, slot = serving.ask()
    unit = f"glm@{slot}.service"
    main_pid = serving.shown(unit, "MainPID")
    assert set(serving.host.run(["ps", "-o", "user=", "-p", main_pid, "--ppid", main_pid]).split()) == {"glm"}
    for name in (unit, "glm-ui.service", "glm-live.service"):
        assert _exposure(serving, name) <= 1.5
    for name in (unit, "glm-ui.service"):
        assert serving.shown(name, "User") == "glm"
    owners = serving.host.run(["stat", "--format=%U %a", "/run/glm", f"/run/glm/{slot}", "/run/glm/metrics"])
    assert owners.splitlines() == ["root 2750", "glm 750", "glm 750"]
    assert "<title>" in serving.host.run(["curl", "-sS", "--max-time", "20", "http://127.0.0.1:8501/"])
    serving.host.run(["systemd-analyze", "verify", f"/etc/systemd/system/{unit}", "/etc/systemd/system/glm.target"])


def test_a_slot_reloads_in_place_under_the_hardening(serving: Fleet) -> None:
    """`systemctl reload` begets the next generation with the rights that the unit leaves it."""
    version, slot = serving.ask()
    before = serving.shown(f"glm@{slot}", "MainPID")
    serving.host.run(["systemctl", "reload", f"glm@{slot}"])
    assert serving.shown(f"glm@{slot}", "MainPID") not in {before, "0"}
    assert serving.ask() == (version, slot)


def test_a_bad_version_is_refused_and_the_old_one_serves(serving: Fleet, tmp_path: Path) -> None:
    """A host that refuses ends the playbook with an error, and its clients notice nothing."""
    (tmp_path / "config.json").write_text("{}")
    recap = serving.try_to_play("deploy.yml", "-e", f"glm_version=0.0.1 glm_checkpoint={tmp_path}")
    assert recap.failed
    assert "no .safetensors" in recap.said
    assert serving.ask()[0] == "1.0.0"


def test_a_rollout_and_its_rollback(serving: Fleet, checkpoints: dict[str, Path]) -> None:
    """deploy.yml moves the host to 1.1.0, rollback.yml back to 1.0.0, and asked for it again changes nothing."""
    recap = serving.play("deploy.yml", *_release(checkpoints, "1.1.0"))
    assert "those of glmctl itself" in recap.said
    assert "accounted for" in recap.said
    assert serving.ask()[0] == "1.1.0"
    assert serving.host.run(["ls", "/run/glm/moved"]), "the policy of the fleet reached the host"
    serving.play("rollback.yml")
    assert serving.ask()[0] == "1.0.0"
    assert serving.play("rollback.yml", "-e", "glm_version=1.0.0").changed == 0


def test_a_stopped_slot_is_inactive_not_failed(serving: Fleet) -> None:
    """After rollouts and a reload in place `systemctl stop` still ends the slot in order."""
    _, slot = serving.ask()
    serving.host.run(["systemctl", "stop", "glm.socket", "glm-live.service", f"glm@{slot}"])
    assert serving.shown(f"glm@{slot}", "ActiveState") == "inactive"
    assert serving.shown(f"glm@{slot}", "Result") == "success"


@pytest.mark.parametrize(
    ("batches", "expected"), [([], ["yes", "yes", "no", "no"]), ([1, 2, 1], ["yes", "yes", "yes", "no"])]
)
def test_the_batch_of_the_first_host_that_fails_is_the_last_one_touched(
    batches: list[int], expected: list[str], tmp_path: Path
) -> None:
    """deploy.yml takes one batch after the other and stops; glmctl is a stand-in that fails on the second host."""
    with booted_hosts(4) as hosts:
        for host, code in zip(hosts, (0, 5, 0, 0), strict=True):
            write = f"printf %s {shlex.quote(STAND_IN)} > {GLMCTL}; chmod 755 {GLMCTL}; echo {code} > /code"
            host.run(["sh", "-c", write])
        inventory = tmp_path / "hosts.json"
        inventory.write_text(json.dumps({"glm": {"hosts": {host.name: connection(host) for host in hosts}}}))
        words = ["-e", json.dumps({"glm_batches": batches})] if batches else []
        release = f"glm_version=1.0.0 glm_run_file={tmp_path}/run.json"
        done = playbook(CODE, inventory, "deploy.yml", "-e", release, *words)
        assert done.returncode != 0
        touched = [host.run(["sh", "-c", "test -e /deployed && echo yes || echo no"]).strip() for host in hosts]
        assert touched == expected, done.stdout


def _release(checkpoints: dict[str, Path], version: str) -> list[str]:
    return ["-e", f"glm_version={version} glm_checkpoint={checkpoints[version]}", "-e", BAKE]


def _exposure(fleet: Fleet, unit: str) -> float:
    said = fleet.host.run(["systemd-analyze", "security", "--no-pager", unit])
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    return float(found[1])


@pytest.mark.long
def test_the_demo_plays_for_somebody_who_is_not_root(installed: Fleet) -> None:
    """Without root, where a user manager exists, the demo runs in a private one beside it and loses nothing."""
    installed.host.run(["useradd", "--create-home", "somebody"])
    installed.host.run(["loginctl", "enable-linger", "somebody"])
    said = installed.host.run(
        ["runuser", "--login", "somebody", "--command",
         "export XDG_RUNTIME_DIR=/run/user/$(id -u); systemctl --user is-system-running --wait; glmctl demo --once"],
        seconds=180,
    )  # fmt: skip
    assert "requests and lost 0" in said
