"""README's install lines on a bare host, and the life of what they install: the tests are its life, in this order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deploy.loadtest import Report
from tests.hosts import BootedHost, HostError, booted_host, rebooted
from tests.wheelhouse import CODE, copy_code, real

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("sudo"), reason="sudo is not installed"),
]

README = (CODE / "README.md").read_text()
USERS = {"anna": "glm-operators", "ben": "glm", "carl": ""}
DIRECTORIES = ("/srv/glm", "/var/lib/glm", "/run/glm", "/etc/glm")


@dataclass(frozen=True)
class Installed:
    """A host, and the checkout that it was installed from."""

    host: BootedHost
    checkout: Path
    wheels: Path

    def sh(self, script: str, *, check: bool = True, seconds: float = 120) -> str:
        """Run a shell script as root."""
        return self.host.run(["sh", "-ec", script], check=check, seconds=seconds)

    def as_user(self, name: str, command: str) -> tuple[int, str]:
        """Run a command as a user who has just logged in; returns the exit code and what it said."""
        login = f"runuser --login {name} --command {shlex.quote(command)}"
        said = self.sh(f'code=0; {login} 2>&1 || code=$?; echo "$code"', check=False)
        lines = said.rstrip("\n").split("\n")
        return int(lines[-1]), "\n".join(lines[:-1])

    def version(self) -> str:
        """The version that a client on the network is answered by."""
        url = f"http://{self.host.address}:8000/version"
        return str(json.loads(self.host.outside(["curl", "-sS", "--max-time", "30", url]))["version"])

    def shown(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.sh(f"systemctl show --value --property={name} {unit}").strip()


def readme_lines() -> list[str]:
    """The lines that install, without their comments."""
    block = re.search(r"```console\n(# cp -r .*?)```", README, re.DOTALL)
    assert block
    return [re.sub(r"   +.*", "", line.removeprefix("# ")) for line in block[1].splitlines()]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """A bare host with the checkout, and the wheels that it would download."""
    wheels = real(tmp_path_factory.mktemp("pip"))
    checkout = copy_code(tmp_path_factory.mktemp("checkout"))
    checkout.chmod(0o755)
    with booted_host(readable={wheels: str(wheels), checkout: str(checkout)}) as host:
        yield Installed(host, checkout, wheels)


@pytest.fixture(scope="module")
def installed(bare: Installed) -> Installed:
    """The host after README's lines, in README's order; then it listens on its own address."""
    script = "\n".join(readme_lines())
    offline = f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={bare.wheels} PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1"
    bare.sh(f"cd {bare.checkout}; {offline}; {script}", seconds=1500)
    return bare


@pytest.fixture(scope="module")
def serving(installed: Installed, checkpoints: dict[str, Path]) -> Installed:
    """Both releases are on it and 1.0.0 is live, without a model; each user has logged in."""
    installed.sh("systemctl stop 'glm*'; glmctl install --listen 0.0.0.0:8000")
    installed.sh("umask 077; printf 'GLM_ENGINE=dummy\\nGLM_THREADS=1\\n' > /etc/glm/glm.env")
    installed.sh("systemctl start glm.target")
    for version, path in checkpoints.items():
        tar = f"tar --create --directory={shlex.quote(str(path))} ."
        installed.host.outside(
            [
                "sh",
                "-ec",
                f"{tar} | {installed.host.shell} host 'mkdir -p /var/tmp/{version}; tar -xC /var/tmp/{version}'",
            ]
        )
        installed.sh(f"umask 077; glmctl release add /var/tmp/{version}")
    installed.sh("umask 077; glmctl deploy 1.0.0")
    for name, group in USERS.items():
        installed.sh(f"useradd --create-home {f'--groups {group}' if group else ''} {name}")
    return installed


def test_the_lines_install_a_host_that_waits_for_its_first_release(installed: Installed) -> None:
    """Glmctl is on the path, the units are enabled, and a second `install` changes nothing."""
    assert installed.sh("systemctl is-enabled glm.target; systemctl is-active glm.socket").split() == [
        "enabled",
        "active",
    ]
    assert json.loads(installed.sh("glmctl install --json"))["changed"] == []
    assert installed.sh("visudo -cq && getent group glm glm-operators | wc -l").strip() == "2"


def test_code_in_the_home_of_root_is_refused(installed: Installed) -> None:
    """With the reason, and nothing is written."""
    run = "/opt/glm/.venv/bin/python -c 'from deploy.cli import main; main()' install"
    said = installed.sh(f"cp -r {installed.checkout} /root/glm; cd /root/glm; {run} 2>&1 || echo code $?")
    assert "below /root, which ProtectHome= of the units hides" in said
    assert "code 3" in said
    assert json.loads(installed.sh("glmctl install --json"))["changed"] == []


def test_an_operator_deploys_and_does_nothing_else(serving: Installed) -> None:
    """By sudo the verbs of a rollout, by polkit the units; not glmctl itself, another root, a shell, or other units."""
    assert serving.version() == "1.0.0"
    assert serving.as_user("anna", "sudo -n glmctl-operator deploy 1.1.0 --bake 0")[0] == 0
    assert serving.version() == "1.1.0"
    assert serving.as_user("anna", "systemctl --no-ask-password start glm@green.service glm.target") == (0, "")
    assert serving.as_user("anna", "systemctl --no-ask-password restart glm-live.service") == (0, "")
    assert serving.as_user("anna", "sudo -n glmctl-operator logs | cat")[0] == 0
    for command in (
        "sudo -n glmctl deploy 1.0.0",
        "sudo -n glmctl-operator sandbox -- id",
        "sudo -n glmctl-operator release add /etc",
        "sudo -n glmctl-operator status --root /tmp",
        "sudo -n GLM_ROOT=/tmp glmctl-operator status",
        "sudo -n sh -c id",
        "systemctl --no-ask-password stop cron.service systemd-logind.service",
        "systemctl --no-ask-password disable glm.target",
        "systemd-run --no-ask-password true",
    ):
        code, said = serving.as_user("anna", command)
        assert code != 0, (command, said)
    assert serving.version() == "1.1.0"


def test_the_group_reads_and_does_nothing_else(serving: Installed) -> None:
    """Status, history and doctor work; logs say which group is missing; a deploy is refused with a clear word."""
    assert json.loads(serving.as_user("ben", "glmctl status --json")[1])["live"] == "green"
    assert len(json.loads(serving.as_user("ben", "glmctl history --json")[1])["rollouts"]) == 2
    code, said = serving.as_user("ben", "glmctl doctor")
    assert (code, "units are installed" in said) == (0, True), said
    code, said = serving.as_user("ben", "glmctl logs")
    assert (code, "usermod -aG systemd-journal ben" in said) == (3, True), said
    for words in ("deploy 1.0.0", "rollback", "release remove 1.0.0", "retire", "promote", "resume"):
        code, said = serving.as_user("ben", f"glmctl {words}")
        assert (code, "sudo glmctl-operator" in said) == (3, True), said
    assert serving.as_user("ben", "sudo -n glmctl-operator deploy 1.0.0")[0] != 0
    assert serving.as_user("ben", "systemctl --no-ask-password stop glm@green")[0] != 0
    serving.sh("usermod -aG systemd-journal ben")
    code, said = serving.as_user("ben", "glmctl logs | tail -3")
    assert (code, len(said.splitlines())) == (0, 3)


def test_anybody_else_sees_nothing(serving: Installed) -> None:
    """No verb that reads shows an empty host, and no file below the host's directories can be reached."""
    for words in ("status", "history", "doctor", "logs", "release list"):
        code, said = serving.as_user("carl", f"glmctl {words}")
        assert (code, "members of the group glm may" in said) == (3, True), (words, said)
    for directory in DIRECTORIES:
        assert serving.as_user("carl", f"ls {directory} {directory}/*")[0] != 0
    assert serving.as_user("carl", "systemctl --no-ask-password stop glm@green")[0] != 0


def test_what_root_has_written_is_for_the_group_alone(serving: Installed) -> None:
    """All of it, though root's umask was 077; settings are root's alone, because they may hold the page's key."""
    listed = serving.sh(f"find {' '.join(DIRECTORIES)} ! -type l ! -user glm -printf '%M %u %g %p\\n'").splitlines()
    assert len(listed) > 20
    for line in listed:
        mode, user, group, path = line.split(" ", 3)
        assert (user, mode[7:]) == ("root", "---"), line
        if path != "/etc/glm/glm.env":
            assert (group, mode[4]) == ("glm", "r"), line
            assert mode[5] == "-", line


def test_the_units_are_hardened_and_work(serving: Installed) -> None:
    """Exposure is at most 1.5, and glm-live.service starts the live slot under it."""
    assert serving.shown("glm-live.service", "Result") == "success"
    serving.sh("systemctl stop glm@green; systemctl restart glm-live.service")
    assert serving.version() == "1.1.0"
    for unit in ("glm@green.service", "glm-live.service"):
        found = re.search(r"level for \S+: ([\d.]+)", serving.sh(f"systemd-analyze security --no-pager {unit}"))
        assert found
        assert float(found[1]) <= 1.5


@contextmanager
def load(serving: Installed, directory: Path) -> Iterator[Callable[[], Report]]:
    """The mixed load from outside; what is yielded ends it and returns its report."""
    file, host = directory / "load.json", serving.host
    with subprocess.Popen(
        ["nsenter", f"--target={host.client}", "--net", sys.executable, "-m", "deploy.loadtest", host.address, "8000",
         "--seconds", "600", "--scale", "0.3", "--json", file],
        cwd=CODE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip

        def end() -> Report:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
            return Report.model_validate_json(file.read_text())

        try:
            time.sleep(3)
            yield end
        finally:
            process.kill()


def test_an_upgrade_of_systemd_in_a_rollout_loses_nothing(serving: Installed, tmp_path: Path) -> None:
    """The manager executes itself anew while a version bakes and a slot loads, and journald is restarted."""
    upgrade = "systemctl daemon-reexec; systemctl restart systemd-journald.service; systemctl daemon-reload"
    ended = "systemctl show --value --property=SubState rollout | grep -qE 'exited|failed'"
    with load(serving, tmp_path) as end:
        serving.sh("systemd-run --quiet --unit=rollout --property=RemainAfterExit=yes "
                   "/usr/local/bin/glmctl deploy 1.0.0 --bake 30 --no-analysis")  # fmt: skip
        for phase in ("start", "bake"):
            missed = f"{ended} && {{ journalctl --no-pager --output=cat --unit=rollout >&2; exit 1; }}"
            serving.sh(
                f'until glmctl status --json | grep -q \'"phase": "{phase}"\'; do {missed}; sleep 0.1; done; {upgrade}'
            )
        serving.sh(f"until {ended}; do sleep 0.2; done")
        report = end()
    assert serving.shown("rollout.service", "Result") == "success"
    assert (report.lost, set(report.by_version)) == (0, {"1.0.0", "1.1.0"})
    url = f"http://{serving.host.address}:8000/v1/models"
    time.sleep(2)  # in the second of the load, the lines that its rate allows are written already
    head = serving.host.outside(["curl", "-sSD-", "-o/dev/null", url])
    [identifier] = re.findall(r"(?mi)^x-request-id: (\S+)", head)
    serving.sh(f"until glmctl logs --request {identifier} | grep -q v1/models; do sleep 0.2; done", seconds=30)


def test_a_full_disk_refuses_a_deploy_and_chat_goes_on(serving: Installed) -> None:
    """Nothing is changed before it is recorded; with room again the same command succeeds."""
    version = serving.version()
    assert version == "1.0.0"
    history = "/var/lib/glm/history"
    serving.sh(f"cp -a {history} /var/tmp/; mount -t tmpfs -o size=256k,mode=2750,gid=glm tmpfs {history}; "
               f"cp -a /var/tmp/history/. {history}; dd if=/dev/zero of={history}/fill bs=4k || true")  # fmt: skip
    try:
        said = serving.sh("glmctl deploy 1.1.0 --bake 0 2>&1 || echo code $?")
        assert ("code 1" in said, "No space left" in said) == (True, True), said
        assert serving.version() == version
        serving.sh(f"rm {history}/fill; glmctl deploy 1.1.0 --bake 0 --no-analysis")
        assert serving.version() == "1.1.0"
    finally:
        serving.sh(f"umount {history}")


CLIENTS = """
import asyncio, json, sys

async def ask():
    is_down = False
    while True:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], 8000), 1)
        except (OSError, TimeoutError):
            is_down = True
            await asyncio.sleep(0.02)
            continue
        if not is_down:
            writer.close()
            await asyncio.sleep(0.02)
            continue
        writer.write(b"GET /version HTTP/1.1\\r\\nHost: glm\\r\\nConnection: close\\r\\n\\r\\n")
        head, _, body = (await reader.read()).partition(b"\\r\\n\\r\\n")
        return json.loads(body)["version"] if body else "lost"

async def main():
    print(json.dumps(await asyncio.gather(*(ask() for _ in range(50)))))

asyncio.run(main())
"""


def test_clients_that_wait_for_a_reboot_are_answered(serving: Installed) -> None:
    """50 clients connect as soon as the socket listens, before a slot is ready: each is answered by what was live."""
    host = serving.host
    command = ["nsenter", f"--target={host.client}", "--net", sys.executable, "-c", CLIENTS, host.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
        try:
            again = replace(serving, host=rebooted(host))
            said, _ = clients.communicate(timeout=180)
        finally:
            clients.kill()
    assert json.loads(said) == ["1.1.0"] * 50
    assert again.version() == "1.1.0"
    assert again.sh("stat --format='%U %G %a' /run/glm").split() == ["root", "glm", "2750"]
    assert again.shown("glm-live.service", "Result") == "success"


def test_uninstall_keeps_what_was_deployed(serving: Installed) -> None:
    """Units and files are gone; after another `install` the same version is live, from the same history."""
    said = serving.sh("glmctl uninstall --dry-run")
    assert "stop glm@green.service" in said
    with pytest.raises(HostError, match="--yes"):
        serving.sh("glmctl uninstall")
    assert serving.version() == "1.1.0"
    serving.sh("glmctl uninstall --yes")
    assert serving.sh("find /etc /usr/local/bin /run -name '*glm*' | sort").split() == ["/etc/glm", "/etc/glm/glm.env"]
    assert serving.sh("systemctl list-units --all --plain --no-legend 'glm*'") == ""
    serving.sh("/opt/glm/.venv/bin/glmctl install --listen 0.0.0.0:8000; systemctl enable --now glm.target")
    assert serving.version() == "1.1.0"
    assert len(json.loads(serving.sh("glmctl history --json"))["rollouts"]) >= 2


def test_purge_leaves_nothing(serving: Installed) -> None:
    """No file, and no process; a second call finds nothing installed."""
    serving.sh("glmctl uninstall --yes --purge")
    left = serving.sh("find /etc /usr/local/bin /run /srv /var/lib /var/cache -name '*glm*'").split()
    assert left == []
    assert serving.sh("pgrep -u glm || true") == ""
    assert "nothing is installed" in serving.sh("/opt/glm/.venv/bin/glmctl uninstall --yes")
