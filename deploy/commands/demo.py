"""glmctl demo."""

from __future__ import annotations

import sys

import click

from deploy.demo import run


@click.command()
@click.option("--once", is_flag=True, help="Ask for no key and end after the rollout.")
def demo(once: bool) -> None:
    """Show a rollout under load on this machine.

    Starts a private systemd user manager, imports two small models, makes 1.0.0 live, starts clients of every kind,
    deploys 1.1.0 and prints the receipt. 1.0.0 was trained on colours, 1.1.0 on colours and shapes, so that the answers
    differ. Nothing is installed, and nothing is left behind. Exit code 0 only if no request was lost.

    \b
    Examples:
      glmctl demo            waits for a key before the rollout; Ctrl-C ends it
      glmctl demo --once
    """  # noqa: D301  (\b keeps line breaks)
    sys.exit(0 if run(once=once) else 1)
