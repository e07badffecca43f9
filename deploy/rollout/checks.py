"""The release's checks, as requests to a slot."""

from __future__ import annotations

from deploy.errors import NotReady
from deploy.host import Host
from deploy.releases.store import Release
from deploy.rollout.slot_client import SlotClient, data_url
from service.contract import checks
from service.contract.checks import DEFAULT_CHECKS, Check

__all__ = ["checks_of", "run_checks"]


def checks_of(release: Release) -> tuple[Check, ...]:
    """Return the checks of a release, or the default one."""
    return checks.parse(release.manifest.checks) or DEFAULT_CHECKS


def run_checks(host: Host, release: Release, slot: str) -> None:
    """Send the checks through the internal socket of `slot`; raises NotReady with the first failure."""
    client = SlotClient(host, slot)
    for check in checks_of(release):
        image = check.image
        if image and not image.startswith("data:"):
            image = data_url(release.path / image)
        if failure := check.judge(client.chat(check.question, image, check.max_tokens)):
            raise NotReady(failure)
