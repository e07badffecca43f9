#!/usr/bin/python
# Apache-2.0
"""Ansible module: the releases of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: glm_release
short_description: Add, remove or prune the releases of a host of the model server
version_added: "1.0.0"
description:
  - Adds a checkpoint directory of the host as a release, removes a release, or prunes old ones, with C(glmctl release).
  - A release never changes once it was added. One that is there already is left as it is.
options:
  state:
    description:
      - V(present) adds O(version) from O(path). V(absent) removes it; refused while a slot uses it.
      - V(pruned) removes all but the O(keep) newest releases and those in use. V(listed) changes nothing.
    type: str
    choices: [present, absent, pruned, listed]
    default: present
  version:
    description: The release. Required for V(present) and V(absent).
    type: str
  path:
    description: The checkpoint directory on the host. Required if the release is to be added.
    type: path
  env:
    description: The Python environment that runs it, by name or as a directory; with V(present).
    type: str
  keep:
    description: How many releases stay, with V(pruned).
    type: int
    default: 3
  executable:
    description: The path of glmctl.
    type: path
    default: /usr/local/bin/glmctl
attributes:
  check_mode:
    description: Tells what would change, and changes nothing.
    support: full
  diff_mode:
    description: The list of releases before and after.
    support: full
author: the glm-handover authors (@glm-handover)
"""

EXAMPLES = r"""
- name: Add a release
  glm.handover.glm_release:
    version: 1.2.0-20250405
    path: /models/1.2.0-20250405

- name: Keep the two newest releases, and those in use
  glm.handover.glm_release:
    state: pruned
    keep: 2
"""

RETURN = r"""
releases:
  description: The versions on the host afterwards, the lowest first.
  returned: success
  type: list
  elements: str
changes:
  description: The versions that were added or removed.
  returned: success
  type: list
  elements: str
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.glm.handover.plugins.module_utils.glmctl import OPTIONS, Glmctl


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "pruned", "listed"], "default": "present"},
            "version": {"type": "str"},
            "path": {"type": "path"},
            "env": {"type": "str"},
            "keep": {"type": "int", "default": 3},
            **OPTIONS,
        },
        required_if=[("state", "present", ["version"]), ("state", "absent", ["version"])],
        supports_check_mode=True,
    )
    glmctl = Glmctl(module)
    listed = glmctl.require("release", "list")["releases"]
    before = [release["version"] for release in listed]
    changes = {
        "present": _missing,
        "absent": _present,
        "pruned": _superfluous,
        "listed": lambda *_: [],
    }[module.params["state"]](module, listed)
    after = before
    if changes and not module.check_mode:
        changes = _apply(module, glmctl, changes)
        after = [release["version"] for release in glmctl.require("release", "list")["releases"]]
    elif changes and module.params["state"] == "present":
        after = [*before, *changes]
    elif changes:
        after = [version for version in before if version not in changes]
    diff = {name: "".join(f"{each}\n" for each in found) for name, found in (("before", before), ("after", after))}
    module.exit_json(changed=bool(changes), changes=changes, releases=after, diff=diff)


def _missing(module: AnsibleModule, releases: list[dict[str, t.Any]]) -> list[str]:
    version, path = module.params["version"], module.params["path"]
    known = [release["version"] for release in releases]
    if version in known:
        return []
    if path is None:
        module.fail_json(
            msg=f"the host has no release {version}, and no path of a checkpoint was given; "
            f"its releases: {', '.join(known) or 'none'}"
        )
    if not (Path(path) / "config.json").is_file() and not module.check_mode:
        module.fail_json(msg=f"{path} on the host is not a checkpoint: it has no config.json")
    return [version]


def _present(module: AnsibleModule, releases: list[dict[str, t.Any]]) -> list[str]:
    version = module.params["version"]
    for release in releases:
        if release["version"] == version:
            if release["slots"]:
                module.fail_json(msg=f"{version} is in use: slot {' and '.join(release['slots'])} leads to it")
            return [version]
    return []


def _superfluous(module: AnsibleModule, releases: list[dict[str, t.Any]]) -> list[str]:
    old = releases[: -module.params["keep"] or None]
    return [release["version"] for release in old if not release["slots"]]


def _apply(module: AnsibleModule, glmctl: Glmctl, changes: list[str]) -> list[str]:
    if module.params["state"] == "present":
        env = [f"--env={module.params['env']}"] if module.params["env"] else []
        glmctl.require("release", "add", module.params["path"], f"--version={changes[0]}", *env)
    elif module.params["state"] == "absent":
        glmctl.require("release", "remove", changes[0])
    else:
        return list(glmctl.require("release", "prune", f"--keep={module.params['keep']}")["removed"])
    return changes


if __name__ == "__main__":
    main()
