#!/usr/bin/python
# Apache-2.0
"""Ansible module: the live version of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: glm_deploy
short_description: Make a version live on a host of the model server, or go back to the one that served before
version_added: "1.0.0"
description:
  - Runs C(glmctl deploy) or C(glmctl rollback). No request is lost, and a version that fails or is worse is rolled back
    by the host itself, which fails the module with the reason and the receipt.
options:
  state:
    description:
      - V(deployed) makes O(version) live. Nothing changes where it is live already.
      - V(rolled_back) goes back to O(version); without it to what served last and was not rolled back itself.
      - V(renewed) loads the live version again in the other slot if it does not run the installed code.
    type: str
    choices: [deployed, rolled_back, renewed]
    default: deployed
  version:
    description: The version. Required for V(deployed).
    type: str
  options:
    description: Further options of C(glmctl deploy) or C(glmctl rollback), each word an element.
    type: list
    elements: str
    default: []
  executable:
    description: The path of glmctl.
    type: path
    default: /usr/local/bin/glmctl
attributes:
  check_mode:
    description: Runs the preflight of glmctl where the release is present, or tells the version to go back to.
    support: full
  diff_mode:
    description: The live version before and after.
    support: full
author: the glm-handover authors (@glm-handover)
"""

EXAMPLES = r"""
- name: Move every client to a version, with a canary
  glm.handover.glm_deploy:
    version: 1.2.0-20250405
    options: [--canary, "10,50", --bake, 10m]

- name: Go back
  glm.handover.glm_deploy:
    state: rolled_back
"""

RETURN = r"""
outcome:
  description: What glmctl recorded, or C(unchanged).
  returned: success
  type: str
before:
  description: The version that was live; empty without one.
  returned: always
  type: str
after:
  description: The version that is live, or would be.
  returned: success
  type: str
receipt:
  description: The account of every request during the rollout, as C(glmctl history) prints it.
  returned: after a rollout
  type: str
"""

import os
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.glm.handover.plugins.module_utils.glmctl import OPTIONS, Glmctl, sentence

_UNIT = Path("/etc/systemd/system/glm@.service")
_DRAIN_CUT = 6  # done, with requests cut at the drain deadline


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["deployed", "rolled_back", "renewed"], "default": "deployed"},
            "version": {"type": "str"},
            "options": {"type": "list", "elements": "str", "default": []},
            **OPTIONS,
        },
        required_if=[("state", "deployed", ["version"])],
        supports_check_mode=True,
    )
    glmctl = Glmctl(module)
    status = glmctl.require("status")
    slot = status["live"]
    live = (status["slots"][slot]["version"] if slot else None) or ""
    target = _target(module, glmctl, live)
    answer = {"before": live, "after": target, "diff": {"before": f"live: {live}\n", "after": f"live: {target}\n"}}
    is_idle = slot is None or status["slots"][slot]["state"] != "ready"
    if module.params["state"] == "renewed":
        if not live or _is_current(module, glmctl, slot):
            module.exit_json(changed=False, outcome="unchanged", **answer)
    elif target == live and (not is_idle or module.params["state"] == "rolled_back"):
        module.exit_json(changed=False, outcome="unchanged", **answer)
    if module.check_mode:
        _rehearse(module, glmctl, target, answer)
    _roll(module, glmctl, target, answer)


def _target(module: AnsibleModule, glmctl: Glmctl, live: str) -> str:
    version = module.params["version"]
    if module.params["state"] == "renewed":
        return live
    if module.params["state"] == "deployed" or version == live:
        return version
    words = ["rollback", *([version] if version else []), "--dry-run", *_forced(module)]
    return glmctl.require(*words)["version"]


def _forced(module: AnsibleModule) -> list[str]:
    return [word for word in module.params["options"] if word == "--force"]


def _rehearse(module: AnsibleModule, glmctl: Glmctl, target: str, answer: dict[str, t.Any]) -> None:
    """End check mode: the preflight of the host decides, as far as it can."""
    if module.params["state"] == "deployed":
        known = [release["version"] for release in glmctl.require("release", "list")["releases"]]
        if target not in known:
            module.exit_json(changed=True, outcome="not checked: the host does not have the release yet", **answer)
        glmctl.require("deploy", target, *module.params["options"], "--dry-run")
    module.exit_json(changed=True, outcome="dry run", **answer)


def _roll(module: AnsibleModule, glmctl: Glmctl, target: str, answer: dict[str, t.Any]) -> None:
    options = module.params["options"]
    if module.params["state"] == "rolled_back":
        words = ["rollback", target, *options]
    else:
        words = ["deploy", target, *(["--again"] if module.params["state"] == "renewed" else []), *options]
    newest = _newest(glmctl)
    code, document = glmctl.call(*words)
    record = _newest(glmctl)
    if record == newest:
        record = None
    answer["receipt"] = glmctl.text("history", record["id"]) if record else ""
    if code not in (0, _DRAIN_CUT):
        live = _live(glmctl)
        reason = sentence(document)
        text = f"{reason}; {live or 'nothing'} is live on this host\n{answer['receipt']}".rstrip()
        answer["after"] = live
        module.fail_json(msg=text, rc=code, changed=live != answer["before"], **answer)
    if code == _DRAIN_CUT:
        module.warn(sentence(document))
    outcome = document.get("outcome") or (record or {}).get("outcome") or "done"
    module.exit_json(changed=outcome != "unchanged", outcome=outcome, **answer)


def _newest(glmctl: Glmctl) -> dict[str, t.Any] | None:
    rollouts = glmctl.require("history")["rollouts"]
    return rollouts[-1] if rollouts else None


def _live(glmctl: Glmctl) -> str:
    status = glmctl.require("status")
    return (status["slots"][status["live"]]["version"] if status["live"] else None) or ""


def _is_current(module: AnsibleModule, glmctl: Glmctl, slot: str) -> bool:
    """Return whether the live slot runs the installed code: from its directory, and started after it was installed."""
    unit = f"glm@{slot}.service"
    _, out, _ = module.run_command(["systemctl", "show", "--property=MainPID", "--value", unit])
    process = Path("/proc") / out.strip()
    program = Path(glmctl.path).resolve()
    home = program.parent.parent.parent  # HOME/.venv/bin/glmctl
    try:
        words = (process / "cmdline").read_text().split("\0")
        installed = max(path.stat().st_ctime for path in (program, _UNIT) if path.exists())
        return any(word.startswith(f"{home}/") for word in words) and _started(process) >= installed - 1
    except (OSError, ValueError):
        return False


def _started(process: Path) -> float:
    """Return when a process was started, in seconds since 1970."""
    lines = Path("/proc/stat").read_text().splitlines()
    boot = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])
    return boot + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
