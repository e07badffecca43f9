"""glmctl operate."""

from __future__ import annotations

import socket
import stat
import sys
from os import fstat

import click

from deploy.commands.options import Options, shared
from deploy.errors import Refused
from deploy.operate.request import answer
from deploy.systemd.units import glmctl


@click.command(hidden=True)
@shared
def operate(options: Options) -> None:
    """Serve one request of an operator, on the connection that is standard input; glm-operate.socket runs it.

    The request has an operator's key and a verb with its values. Its record and its output are in the directory
    `operations` of the state directory.
    """
    if not stat.S_ISSOCK(fstat(0).st_mode):
        raise Refused(
            "standard input is not a connection",
            hint="`systemctl enable --now glm-operate.socket` lets operators use the page",
        )
    running = answer(options.context, socket.socket(fileno=0), glmctl(options.host))
    if running is not None:
        sys.exit(running.wait())
