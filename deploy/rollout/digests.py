"""The digests of a release during a rollout: compared beside the load, unless they were before and nothing changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from deploy.display import Display
from deploy.releases import digests
from deploy.releases.release import File, Release, damaged
from deploy.releases.stamps import Stamps, States, states
from deploy.rollout.question import Question

__all__ = ["DigestCheck"]

_WEIGHTS = ".safetensors"
_POLL = 0.05  # seconds between two looks


class DigestCheck:
    """What is loaded between `begin` and the end of `finish` has the digests of the release's manifest."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        """How long the comparison took; None if it was not needed, or has not ended."""
        self._release: Release | None = None
        self._stamps: Stamps | None = None
        self._before: States = {}
        self._comparison: Question[float] | None = None
        self._stop = threading.Event()
        self._done = 0

    def begin(self, release: Release, stamps: Stamps) -> None:
        """Begin to compare the weights in threads of their own; the other files, which are small, at once.

        If the release's stamp holds, only sizes are compared. Raises Refused if a file is missing or differs.
        """
        digests.require_sizes(release)
        self._release, self._stamps, self._before = release, stamps, states(release)
        if not stamps.hold(release):
            files = release.manifest.files
            weights = [file for file in files if file.path.endswith(_WEIGHTS)]
            digests.compare(release, self._advance, files=[file for file in files if file not in weights])
            self._comparison = Question(lambda: self._compare(release, weights))

    def finish(self, display: Display, watch: Callable[[], object] = lambda: None) -> None:
        """Wait for the comparison; does nothing before `begin`. `watch` is called several times a second meanwhile.

        Raises Refused if a file differs, or was changed since `begin`.
        """
        if self._release is None or self._stamps is None:
            return
        if self._comparison is not None:
            while not self._comparison.wait(_POLL):
                watch()
                share = self._done / max(self._release.manifest.size, 1)
                display.progress(f"digests of {self._release.version}: {share:.0%}")
            self.seconds = self._comparison.answer
            self._comparison = None
            self._stamps.write(self._release, self._before)
        after = states(self._release)
        for name, state in self._before.items():
            if after.get(name) != state:
                raise damaged(self._release.version, name, "it was changed during the rollout")

    def stop(self) -> None:
        """End the comparison if it still runs."""
        self._stop.set()

    def _compare(self, release: Release, weights: Sequence[File]) -> float:
        began = time.monotonic()
        digests.compare(release, self._advance, files=weights, stop=self._stop)
        return round(time.monotonic() - began, 3)

    def _advance(self, count: int) -> None:
        self._done += count
