"""The command `python -m deploy.monitoring`: the demo with a Prometheus beside it (`make monitoring`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import click

from deploy import interrupts
from deploy.demo import Demo
from deploy.errors import GlmError
from deploy.monitoring.prometheus import Prometheus, require
from deploy.systemd.sandbox import Sandbox

GRAPHS = {
    "requests/s": "glm:requests:rate5m",
    "p95": "glm:request_seconds:p95_5m",
    "first token, p95": "glm:time_to_first_token_seconds:p95_5m",
    "errors": "glm:errors:ratio_rate5m",
}
"""What the addresses of graphs show: recorded series, by their title."""


def main() -> int:
    """Run the demo and Prometheus until Ctrl-C; returns the exit code."""
    interrupts.handle()
    try:
        _run()
    except KeyboardInterrupt:
        return 130
    except GlmError as error:
        click.echo(f"{error}" + (f"\n        {error.hint}" if error.hint else ""), err=True)
        return error.exit_code
    return 0


def places(address: str) -> str:
    """Return where to look at a Prometheus, as text; an address has a line of its own, so that few wrap."""
    found = {"alerts": "/alerts", "targets": "/targets"}
    found |= {
        name: f"/graph?{urlencode({'g0.expr': expression, 'g0.tab': 0}, safe=':')}"
        for name, expression in GRAPHS.items()
    }
    return "".join(f"\n  {name}\n    http://{address}{path}" for name, path in found.items())


def _run() -> None:
    require()
    with Sandbox() as box, tempfile.TemporaryDirectory(prefix="glm-monitoring-") as scratch:
        directory = Path(scratch)
        with Prometheus(box.addresses.listen, directory / "prometheus") as prometheus:
            click.echo(f"Prometheus scrapes the demo, every 2 s: http://{prometheus.address}")
            demo = Demo(box, directory)
            demo.play(interactive=False)
            with _load(box):
                click.echo(f"\nClients go on asking. Where to look:\n{places(prometheus.address)}")
                demo.stay()


@contextmanager
def _load(box: Sandbox) -> Iterator[None]:
    """Let a few clients ask until the end of the block."""
    words = [box.addresses.listen, "--seconds", "0", "--scale", "0.2", "--think", "0.5"]
    argv = ["setpriv", "--pdeathsig=TERM", sys.executable, "-m", "deploy.loadtest", *words]
    load = subprocess.Popen(argv, env=box.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
    try:
        yield
    finally:
        load.terminate()
        load.wait()


if __name__ == "__main__":
    sys.exit(main())
