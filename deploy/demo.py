"""The whole thing on this machine, with two small models that answer truly, and nothing installed."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import httpx

from deploy.errors import GlmError
from deploy.rollout.slot_client import data_url
from deploy.systemd.sandbox import Sandbox

_WARM = 2.0  # seconds of load before the rollout, so that there are connections to move
_RELEASES = Path(__file__).resolve().parent.parent / "service" / "demo_models" / "shapes" / "releases"
_BEFORE, _AFTER = "1.0.0", "1.1.0"  # the first knows colours, the second colours and shapes
_PICTURES = ("red circle", "blue square", "yellow triangle", "green circle")
_QUESTION = "What is in this picture?"


class Demo:
    """Plays a rollout under load; every step is a command that a person could type."""

    def __init__(self, box: Sandbox, scratch: Path) -> None:
        self._box = box
        self._scratch = scratch

    def play(self, *, watched: bool) -> bool:
        """Go live with 1.0.0, deploy 1.1.0 under load; whether nothing was lost.

        When it is `watched`, the page is up before the upgrade, which then waits for a key.
        """
        for version in (_BEFORE, _AFTER):
            self._do(f"glmctl release add {_RELEASES / version}")
        self._do(f"glmctl deploy {_BEFORE}")
        for thing in _PICTURES:
            self._do(f"python -m service.demo_models.shapes {_file(thing)} --draw {thing}")
        self._ask(_PICTURES[0])
        if watched:
            self._show_page()
        report = self._scratch / "load.json"
        load = self._begin(
            f"python -m deploy.loadtest {self._box.addresses.listen} --seconds 600 --think 0.05 --json {report}"
        )
        try:
            time.sleep(_WARM)
            self._do(f"glmctl deploy {_AFTER} --bake 3s")
            self._ask(_PICTURES[0])
        finally:
            load.send_signal(signal.SIGTERM)
            load.wait()
        self._do("glmctl status")
        return self._verdict(json.loads(report.read_text()))

    def stay(self) -> None:
        """Keep everything up until Ctrl-C."""
        address = self._box.addresses
        click.echo(
            f"\n  Ask again on the page with {_file(_PICTURES[0])}: now it says the shape too."
            f"\n\n  service   http://{address.listen}/v1   (OpenAI-compatible)"
            f"\n  page      http://{address.ui}"
            f"\n  pictures  {self._scratch}"
            f"\n  log       {self._box.log}"
            "\n  in another terminal, to go back to colours alone:"
            f"\n            export XDG_RUNTIME_DIR={self._box.env['XDG_RUNTIME_DIR']}"
            f" XDG_CONFIG_HOME={self._box.env['XDG_CONFIG_HOME']}"
            f" XDG_DATA_HOME={self._box.env['XDG_DATA_HOME']}"
            f" XDG_STATE_HOME={self._box.env['XDG_STATE_HOME']} GLM_USER=1"
            f"\n            {Path(sys.executable).with_name('glmctl')} rollback"
            "\n\n  Ctrl-C ends it, and nothing is left behind."
        )
        try:
            signal.pause()
        except KeyboardInterrupt:
            click.echo()

    def _show_page(self) -> None:
        self._do("systemctl --user start glm-ui.service")
        click.echo(
            f"\n  Open      http://{self._box.addresses.ui}"
            f"\n  upload    {self._scratch / _file(_PICTURES[0])}   (or another from there, or your own)"
            f"\n  and ask   {_QUESTION}"
            f"\n\n  {_BEFORE} knows colours alone. Keep the page open and ask again after the upgrade."
        )
        click.pause("  Press any key to upgrade under load …")

    def _ask(self, thing: str) -> None:
        """Show the live version a picture and print what it says of it; raises GlmError."""
        picture = {"type": "image_url", "image_url": {"url": data_url(self._scratch / _file(thing))}}
        message = {"role": "user", "content": [picture, {"type": "text", "text": _QUESTION}]}
        try:
            response = httpx.post(
                f"http://{self._box.addresses.listen}/v1/chat/completions",
                json={"messages": [message], "temperature": 0},
                timeout=60,
                trust_env=False,
            ).raise_for_status()
        except httpx.HTTPError as error:
            raise GlmError(f"the live version does not answer: {error}", hint=f"the log: {self._save_log()}") from error
        said = response.json()["choices"][0]["message"]["content"].strip()
        click.secho(f"\n{_file(thing)}: {_QUESTION}", bold=True)
        click.echo(f"{response.headers['x-model-version']} says: {said}")

    def _verdict(self, load: dict[str, Any]) -> bool:
        history = subprocess.run(
            ["glmctl", "history", "--json"], env=self._box.env, capture_output=True, text=True, check=True
        )
        receipt = json.loads(history.stdout)["rollouts"][-1]["receipt"]
        good = bool(load["lost"] == 0 and receipt["lost"] == 0 and receipt["adds_up"])
        click.secho(
            f"\nThe clients sent {load['sent']} requests and lost {load['lost']}."
            f" The longest pause that one of them saw was {load['longest_pause_ms']:.0f} ms.",
            bold=True,
            fg="green" if good else "red",
        )
        for loss in load.get("losses", []):
            click.echo(f"  lost: {loss}")
        return good

    def _do(self, command: str) -> None:
        """Type a command and show what it says; raises GlmError if it fails."""
        if self._begin(command).wait() != 0:
            raise GlmError(f"{command} failed", hint=f"the log: {self._save_log()}")

    def _begin(self, command: str) -> subprocess.Popen[bytes]:
        click.secho(f"\n$ {command.replace(f'{self._scratch}/', '')}", bold=True)
        argv = shlex.split(command)
        if argv[0] == "python":
            argv[0] = sys.executable
        return subprocess.Popen(argv, env=self._box.env, cwd=self._scratch)

    def _save_log(self) -> Path:
        kept = Path(tempfile.gettempdir()) / "glm-demo.log"
        kept.write_bytes(self._box.log.read_bytes())
        return kept


def _file(thing: str) -> str:
    return f"{thing.replace(' ', '-')}.png"


def run(*, once: bool) -> bool:
    """Play the demo; whether nothing was lost."""
    click.echo("Starting a private systemd user manager: nothing is installed, and nothing will be left behind.")
    with Sandbox() as box, tempfile.TemporaryDirectory(prefix="glm-demo-") as scratch:
        demo = Demo(box, Path(scratch))
        good = demo.play(watched=not once)
        if not once:
            demo.stay()
        return good
