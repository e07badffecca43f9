"""Playbooks against booted hosts, which Ansible reaches as through ssh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.hosts import BootedHost

CODE = Path(__file__).resolve().parent.parent


def connection(host: BootedHost) -> dict[str, object]:
    """The variables of a host in an inventory."""
    return {
        "ansible_host": host.address,
        "ansible_user": "root",
        "ansible_ssh_executable": str(host.shell),
        "ansible_ssh_transfer_method": "piped",
        "ansible_python_interpreter": "/usr/bin/python3",
    }


def playbook(
    checkout: Path, inventory: Path, name: str, *words: str, seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a playbook of a checkout to its end, in the directory of the collection."""
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, name, *words],
        cwd=checkout / "deploy/ansible", stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip
