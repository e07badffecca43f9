"""glmctl sandbox."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from deploy.systemd.sandbox import Sandbox


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--root", type=click.Path(path_type=Path), help="Directory of releases and links; kept.  [default: temporary]"
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def sandbox(root: Path | None, command: tuple[str, ...]) -> None:
    """Run COMMAND with a private systemd user manager.

    The manager has the units installed and an empty root. Inside, `glmctl` and `systemctl --user` use that manager;
    `glmctl status --json` prints the address of the model server. The exit code is that of COMMAND. When it ends,
    everything is stopped and removed.

    \b
    Examples:
      glmctl sandbox -- bash
      glmctl sandbox -- sh -c 'glmctl release add ./1.0.0 && glmctl deploy 1.0.0'
    """  # noqa: D301  (\b keeps line breaks)
    with Sandbox(root=root) as box:
        process = subprocess.Popen(box.inside(command), env=box.env)
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                process.terminate()
    sys.exit(status if status >= 0 else 128 - status)
