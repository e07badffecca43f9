"""The whole thing on this machine, with two tiny models and nothing installed."""

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

from deploy.errors import GlmError
from deploy.sandbox import Sandbox

_WARM = 2.0  # seconds of load before the rollout, so that there are connections to move

_WORDS = 64  # a model that was never trained has nothing to say; on the page this much of it will do


class Demo:
    """Plays a rollout under load; every step is a command that a person could type."""

    def __init__(self, box: Sandbox, scratch: Path) -> None:
        self._box = box
        self._scratch = scratch

    def play(self) -> bool:
        """Go live with 1.0.0, deploy 1.1.0 under load; whether nothing was lost."""
        for version, seed in (("1.0.0", 1), ("1.1.0", 2)):
            checkpoint = self._scratch / version
            self._do(f"python -m service.tiny {checkpoint} --seed {seed}")
            (checkpoint / "engine.json").write_text(json.dumps({"max_new_tokens": _WORDS}))
            self._do(f"glmctl release add {checkpoint}")
        self._do("glmctl deploy 1.0.0")
        report = self._scratch / "load.json"
        load = self._begin(
            f"python -m deploy.load {self._box.addresses.listen} --seconds 600 --think 0.05 --json {report}"
        )
        try:
            time.sleep(_WARM)
            self._do("glmctl deploy 1.1.0 --bake 3s")
        finally:
            load.send_signal(signal.SIGTERM)
            load.wait()
        self._do("glmctl status")
        return self._verdict(json.loads(report.read_text()))

    def stay(self) -> None:
        """Keep everything up until Ctrl-C."""
        self._do("systemctl --user start glm-ui.service")
        address = self._box.addresses
        click.echo(
            f"\n  service   http://{address.listen}/v1   (OpenAI-compatible)"
            f"\n  page      http://{address.ui}"
            f"\n  log       {self._box.log}"
            "\n  in another terminal:"
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
        click.secho(f"\n$ {command.replace(str(self._scratch), '.')}", bold=True)
        argv = shlex.split(command)
        if argv[0] == "python":
            argv[0] = sys.executable
        return subprocess.Popen(argv, env=self._box.env, cwd=self._scratch)

    def _save_log(self) -> Path:
        kept = Path(tempfile.gettempdir()) / "glm-demo.log"
        kept.write_bytes(self._box.log.read_bytes())
        return kept


def run(*, once: bool) -> bool:
    """Play the demo; whether nothing was lost."""
    click.echo("Starting a private systemd user manager: nothing is installed, and nothing will be left behind.")
    with Sandbox() as box, tempfile.TemporaryDirectory(prefix="glm-demo-") as scratch:
        demo = Demo(box, Path(scratch))
        good = demo.play()
        if not once:
            demo.stay()
        return good
