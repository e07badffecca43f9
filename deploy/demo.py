"""A rollout under load in a private service manager, with two small trained models."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import click
import httpx

from deploy.display import count
from deploy.errors import GlmError
from deploy.rollout.slot_client import data_url
from deploy.systemd.sandbox import Sandbox

_LOAD_BEFORE = 2.0  # seconds of load before the rollout, so that there are connections to hand over
_RELEASES = Path(__file__).resolve().parent.parent / "service" / "demo_models" / "shapes" / "releases"
_BEFORE, _AFTER = "1.0.0", "1.1.0"  # trained on colours; on colours and shapes
_PICTURES = ("red circle", "blue square", "yellow triangle", "green circle")
_ENVIRONMENT = ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "GLM_USER")
_QUESTION = "What is in this picture?"


class Demo:
    """Runs a rollout under load. Every step is a command line that is printed before it runs."""

    def __init__(self, box: Sandbox, scratch: Path) -> None:
        self._box = box
        self._scratch = scratch
        self._has_page = False

    def play(self, *, interactive: bool) -> bool:
        """Make 1.0.0 live and deploy 1.1.0 under load; returns whether no request was lost.

        If `interactive`, the page is started and a key press is awaited before the deploy. Raises GlmError.
        """
        for version in (_BEFORE, _AFTER):
            self._run(f"glmctl release add {_RELEASES / version}")
        self._run(f"glmctl deploy {_BEFORE}")
        for drawing in _PICTURES:
            self._run(f"python -m service.demo_models.shapes {_file(drawing)} --draw {drawing}")
        self._print_answer(_PICTURES[0])
        if interactive:
            self._show_page()
        report, log = self._scratch / "load.json", self._scratch / "load.log"
        with log.open("wb") as out:  # two programs that draw on one terminal draw over each other
            load = self._start(
                f"python -m deploy.loadtest {self._box.addresses.listen} --seconds 600 --think 0.05 --json {report}",
                out,
            )
        click.echo(f"  its progress is in {log}")
        try:
            time.sleep(_LOAD_BEFORE)
            self._run(f"glmctl deploy {_AFTER} --bake 3s")
            self._print_answer(_PICTURES[0])
        finally:
            load.send_signal(signal.SIGTERM)
            load.wait()
        self._run("glmctl status")
        return self._verdict(json.loads(report.read_text()))

    def stay(self) -> None:
        """Print the addresses, with the page started, and wait for Ctrl-C; raises GlmError."""
        self._start_page()
        address = self._box.addresses
        click.echo(
            f"\n  Ask again on the page with {_file(_PICTURES[0])}: the answer now names the shape."
            f"\n\n  service   http://{address.listen}/v1   (OpenAI-compatible)"
            f"\n  page      http://{address.ui}"
            f"\n  pictures  {self._scratch}"
            f"\n  log       {self._box.log}"
            "\n\n  To go back to 1.0.0, in a second terminal:"
            f"\n\n    . {self._write_environment()}"
            "\n    glmctl rollback"
            "\n\n  Ctrl-C stops and removes everything."
        )
        try:
            signal.pause()
        except KeyboardInterrupt:
            click.echo()

    def _start_page(self) -> None:
        if not self._has_page:
            self._run("systemctl --user start glm-ui.service")
        self._has_page = True

    def _show_page(self) -> None:
        self._start_page()
        click.echo(
            f"\n  Open      http://{self._box.addresses.ui}"
            f"\n  upload    {self._scratch / _file(_PICTURES[0])}   (or another picture)"
            f"\n  and ask   {_QUESTION}"
            f"\n\n  {_BEFORE} names colours only. Keep the page open and ask again after the deploy."
            "\n\n  To watch the rollout from a second terminal:"
            f"\n\n    . {self._write_environment()}"
            "\n    glmctl status --watch\n"
        )
        click.pause(f"  Press any key to start the load and deploy {_AFTER} …")

    def _print_answer(self, drawing: str) -> None:
        """Ask the live version about a picture and print its answer; raises GlmError."""
        picture = {"type": "image_url", "image_url": {"url": data_url(self._scratch / _file(drawing))}}
        message = {"role": "user", "content": [picture, {"type": "text", "text": _QUESTION}]}
        try:
            response = httpx.post(
                f"http://{self._box.addresses.listen}/v1/chat/completions",
                json={"messages": [message], "temperature": 0},
                timeout=60,
                trust_env=False,
            ).raise_for_status()
        except httpx.HTTPError as error:
            raise GlmError(f"the live version did not answer: {error}", hint=f"the log: {self._save_log()}") from error
        answer = response.json()["choices"][0]["message"]["content"].strip()
        click.secho(f"\n{_file(drawing)}: {_QUESTION}", bold=True)
        click.echo(f"{response.headers['x-model-version']}: {answer}")

    def _verdict(self, load: dict[str, Any]) -> bool:
        history = subprocess.run(
            ["glmctl", "history", "--json"], env=self._box.env, capture_output=True, text=True, check=True
        )
        receipt = json.loads(history.stdout)["rollouts"][-1]["receipt"]
        good = bool(load["lost"] == 0 and receipt["lost"] == 0 and receipt["adds_up"])
        click.secho(
            f"\nThe clients sent {count(load['sent'], 'request')} and lost {load['lost']}."
            f" The longest pause of a client was {load['longest_pause_ms']:.0f} ms.",
            bold=True,
            fg="green" if good else "red",
        )
        for loss in load.get("losses", []):
            click.echo(f"  lost: {loss}")
        return good

    def _run(self, command: str) -> None:
        """Print a command and run it to its end; raises GlmError if it fails."""
        if self._start(command).wait() != 0:
            raise GlmError(f"{command} failed", hint=f"the log: {self._save_log()}")

    def _start(self, command: str, output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Print a command and start it; it writes on the terminal, or into the file `output`."""
        click.secho(f"\n$ {command.replace(f'{self._scratch}/', '')}", bold=True)
        argv = shlex.split(command)
        if argv[0] == "python":
            argv[0] = sys.executable
        return subprocess.Popen(argv, env=self._box.env, cwd=self._scratch, stdout=output, stderr=output)

    def _write_environment(self) -> Path:
        """Write a file that makes `glmctl` in another shell use this host, and return its path."""
        lines = [f"export {name}={shlex.quote(self._box.env[name])}" for name in _ENVIRONMENT]
        path = self._scratch / "env"
        path.write_text("\n".join([*lines, f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"\n']))
        return path

    def _save_log(self) -> Path:
        kept = Path(tempfile.gettempdir()) / "glm-demo.log"
        kept.write_bytes(self._box.log.read_bytes())
        return kept


def _file(drawing: str) -> str:
    return f"{drawing.replace(' ', '-')}.png"


def run(*, once: bool) -> bool:
    """Run the demo; returns whether no request was lost."""
    click.echo("Starting a private systemd user manager. Nothing is installed, and nothing is left behind.")
    with Sandbox() as box, tempfile.TemporaryDirectory(prefix="glm-demo-") as scratch:
        demo = Demo(box, Path(scratch))
        good = demo.play(interactive=not once)
        if not once:
            demo.stay()
        return good
