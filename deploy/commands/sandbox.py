"""glmctl sandbox."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from deploy.systemd.sandbox import Sandbox


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--root", type=click.Path(path_type=Path), help="Releases are kept here instead, and stay.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def sandbox(root: Path | None, command: tuple[str, ...]) -> None:
    """Run COMMAND with a private systemd user manager that holds our units and an empty root.

    Inside, plain `glmctl` and `systemctl --user` address that manager, and `glmctl status --json` names the port on
    which the service listens. The exit code is COMMAND's, and nothing is left behind.

    \b
      glmctl sandbox -- bash
      glmctl sandbox -- sh -c 'glmctl release add ./checkpoint -V 1.0.0 && glmctl deploy 1.0.0'
    """  # noqa: D301  (click reads \b as "keep these lines")
    with Sandbox(root=root) as box:
        process = subprocess.Popen(box.inside(command), env=box.env)
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                process.terminate()
    sys.exit(status if status >= 0 else 128 - status)
