"""Calls of glmctl on the host, for the modules of this collection."""

from __future__ import annotations

import json
import os
import typing as t

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

OPTIONS: dict[str, dict[str, t.Any]] = {"executable": {"type": "path", "default": "/usr/local/bin/glmctl"}}
"""Arguments that both modules have."""


class Glmctl:
    """glmctl of one host. A call that fails ends the module with the message and the hint of glmctl."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self.path = module.params["executable"]
        if not os.access(self.path, os.X_OK):
            module.fail_json(msg=f"{self.path} is not installed on this host: site.yml installs it")

    def call(self, *words: str) -> tuple[int, dict[str, t.Any]]:
        """Run glmctl with --json; returns its exit code and document."""
        code, out, err = self._module.run_command([self.path, *words, "--json"])
        try:
            document = json.loads(out)
        except ValueError:
            last = ((err or out).strip() or "no output").splitlines()[-1]
            self._module.fail_json(msg=f"glmctl {words[0]} ended with {code}: {last}", rc=code)
        return code, document

    def require(self, *words: str, allow: tuple[int, ...] = ()) -> dict[str, t.Any]:
        """The same; another exit code than 0 and those in `allow` fails the module. Returns the document."""
        code, document = self.call(*words)
        if code != 0 and code not in allow:
            self._module.fail_json(msg=sentence(document), rc=code)
        return document

    def text(self, *words: str) -> str:
        """Return what glmctl prints without --json; empty if it fails."""
        code, out, _ = self._module.run_command([self.path, *words])
        return out.strip() if code == 0 else ""


def sentence(document: dict[str, t.Any]) -> str:
    """Return message and hint of an error document as one text."""
    error = document.get("error", {})
    return error.get("message", "no message") + (f" ({error['hint']})" if error.get("hint") else "")
