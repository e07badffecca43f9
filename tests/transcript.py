"""Write docs/images/deploy.txt, the transcript of a deploy that both READMEs show: `python -m tests.transcript`.

The host is a sandbox with the two models of the demo, under a light load.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

import click

from tests.box import CODE
from tests.browser_fixtures import page_host
from tests.page_tour import load

FILE = CODE / "docs/images/deploy.txt"
DEPLOY = ("glmctl", "deploy", "1.1.0", "--canary", "10,50", "--step", "10s", "--bake", "10s")


def phases(printed: str) -> str:
    """Return what was printed without the lines that a terminal replaces by the next one: the progress of a phase."""
    return "".join(line for line in printed.splitlines(keepends=True) if not re.match(r" {21}\S", line))


def main() -> None:
    """Start the host and its load, deploy, and write what that prints."""
    click.echo("starting a host with 1.0.0 live …")
    with page_host() as box, load(box):
        time.sleep(2)
        # in a pipe, so that the receipt has its wide form
        done = subprocess.run(DEPLOY, env=box.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout)
    FILE.write_text(f"$ {' '.join(DEPLOY)}\n{phases(done.stdout)}")
    click.echo(FILE.read_text())


if __name__ == "__main__":
    main()
