"""The service itself: two warm slots and one symlink."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from types import MappingProxyType

from tests.bench.peers.peer import VERSIONS, Peer
from tests.box import empty_host

__all__ = ["Ours"]


class Ours(Peer):
    """A live slot and a warm one under a private systemd; `live` is renamed."""

    name = "this service"
    how = "rename of the symlink live"
    settings: Mapping[str, object] = MappingProxyType({})
    """Further GLM_* settings."""

    def versions(self) -> str:
        """Those of Gunicorn and Uvicorn, which the service is built on."""
        return f"Gunicorn {version('gunicorn')}, Uvicorn {version('uvicorn')}, Linux {platform.release()}"

    def start(self, stack: ExitStack) -> None:
        """See Peer."""
        self.box = stack.enter_context(empty_host("dummy"))
        self.box.configure(threads=1, **self.settings)
        for number in VERSIONS:
            self.box.stock({number: self.release(number) / "model"})
        self.box.glmctl("deploy", VERSIONS[0])
        self.box.slots.point("green", f"releases/{VERSIONS[1]}")
        self.box.systemctl("start", "glm@green.service")
        self.address = self.box.listen

    def switch(self) -> None:
        """See Peer."""
        self.box.slots.go_live(self.box.slots.idle)
        self.live = 1 - self.live
