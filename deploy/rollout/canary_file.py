"""The canary's file, by which the controller tells the workers what share of the requests the candidate answers."""

from __future__ import annotations

import json
from typing import Any

from deploy.host import Host


class Share:
    """`<runtime>/canary`: there while a canary holds, replaced by rename, gone after a reboot."""

    def __init__(self, host: Host) -> None:
        self._path = host.runtime / "canary"

    def give(self, slot: str, weight: float, step: int, sticky: str | None = None, mirror: float = 0.0) -> None:
        """Let `slot` answer `weight` percent of the requests, and be asked `mirror` percent of the others' too.

        `step` counts from 1, `sticky` names a header.
        """
        named = {"slot": slot, "weight": weight, "step": step, "sticky": sticky, "mirror": mirror}
        self._write(named | {"promoted": False})

    def promote(self) -> float | None:
        """End the step that is under way; returns its weight, None where there is none."""
        document = self._read()
        if document is None:
            return None
        self._write(document | {"promoted": True})
        return float(document["weight"])

    def end(self) -> float | None:
        """Let `live` alone rule again, at once; returns the weight that ended, None where there was none."""
        weight = self.weight
        self._path.unlink(missing_ok=True)
        return weight

    @property
    def promoted(self) -> bool:
        """Whether somebody wants the rollout to go on before its time."""
        document = self._read()
        return bool(document and document.get("promoted"))

    @property
    def weight(self) -> float | None:
        """The candidate's share in percent; None without a canary."""
        document = self._read()
        return float(document["weight"]) if document else None

    @property
    def mirror(self) -> float:
        """Of the live slot's requests, the share in percent that the candidate is asked too."""
        document = self._read()
        return float(document.get("mirror", 0)) if document else 0.0

    @property
    def slot(self) -> str | None:
        """Whose share it is."""
        document = self._read()
        return str(document["slot"]) if document else None

    def _read(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        return document

    def _write(self, document: dict[str, Any]) -> None:
        temporary = self._path.with_name("canary.new")
        temporary.write_text(json.dumps(document))
        temporary.replace(self._path)
