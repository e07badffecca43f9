"""glmctl demo."""

from __future__ import annotations

import sys

import click

from deploy.demo import run


@click.command()
@click.option("--once", is_flag=True, help="End after the rollout; exit code 0 only if nothing was lost.")
def demo(once: bool) -> None:
    """Show it: two small models that tell colours and shapes, clients of every kind, a rollout, the receipt.

    It runs in a private service manager, so nothing has to be installed and nothing is left behind.
    """
    sys.exit(0 if run(once=once) else 1)
