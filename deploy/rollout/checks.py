"""A release's own checks, asked from outside."""

from __future__ import annotations

from deploy.errors import NotReady
from deploy.releases.store import Release
from deploy.rollout.plan import Context
from deploy.rollout.slot_client import Door, data_url


def ask_checks(context: Context, release: Release, slot: str) -> None:
    """Ask a release's checks through the door of `slot`; raises NotReady naming the one that failed."""
    checks = release.manifest.checks or ({"question": "Are you there?", "max_tokens": 1},)
    door = Door(context.host, slot)
    for number, check in enumerate(checks, start=1):
        context.display.progress(f"check {number} of {len(checks)}")
        image = check.get("image")
        if image and not image.startswith("data:"):
            image = data_url(release.path / image)
        reply = door.answer(check["question"], image, check.get("max_tokens", 32))
        expected = check.get("answer")
        if expected is not None and expected.lower() not in reply.lower():
            name = check.get("name") or check["question"]
            raise NotReady(f"check {name!r} failed: expected {expected!r} in the answer, got {reply!r}")
