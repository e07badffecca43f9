"""Options of all verbs (--user, --root, --json, --debug, before or after the verb), and types of option values."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, cast, get_args

import click
from pydantic import BaseModel
from rich.markup import escape

from deploy.commands import access
from deploy.display import Display
from deploy.errors import Refused
from deploy.host import Host
from deploy.journal.journal import Journal
from deploy.journal.record import Strategy
from deploy.reports.report import interruption
from deploy.rollout.plan import Context
from deploy.rollout.recovery import Ended, recover
from deploy.rollout.strategy import Choice, choose
from deploy.systemd import programs

STRATEGIES = ("auto", *get_args(Strategy))
"""The values of --strategy."""

_UMASK = 0o027  # the directories of a host have the group that may read what is written there


class Duration(click.ParamType[float]):
    """A duration in seconds: a number, or 500ms, 60s, 10m, 2h."""

    name = "duration"
    _units = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds; negative and infinite values are usage errors."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a duration such as 500ms, 60s, 10m or 2h", param, ctx)
        return float(match[1]) * self._units[match[2]]


class StepDuration(click.ParamType["float | None"]):
    """A duration, or `pause`, which becomes None."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return seconds, or None for `pause`."""
        return None if value in (None, "pause") else Duration().convert(value, param, ctx)


class Shares(click.ParamType[tuple[float, ...]]):
    """Percentages separated by commas."""

    name = "percent,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return them; they are above 0, at most 100 and ascending."""
        if isinstance(value, tuple):
            return value
        try:
            shares = tuple(float(part.strip().removesuffix("%")) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of percentages such as 10,50", param, ctx)
        if not all(before < share <= 100 for before, share in pairwise((0.0, *shares))):  # also false for NaN
            self.fail(f"{value!r}: percentages must be above 0, at most 100 and ascending", param, ctx)
        return shares


def require_address(address: str) -> None:
    """Raise a usage error for what is not IP:PORT. A name is none either: systemd resolves no names."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"{address!r} is not HOST:PORT")
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        raise click.BadParameter(f"{address!r} is not IP:PORT; systemd resolves no names") from None


class Options:
    """The values of the options that all verbs share."""

    def __init__(self, *, is_operator: bool = False) -> None:
        self.is_operator = is_operator
        """Whether sudo runs it for a member of glm-operators, who may not choose another installation."""
        self.user = os.environ.get("GLM_USER", "") not in {"", "0"}
        self.root: Path | None = Path(os.environ["GLM_ROOT"]) if os.environ.get("GLM_ROOT") else None
        self.json = False
        self.debug = os.environ.get("GLM_DEBUG", "") not in {"", "0"}
        self.display = Display()

    @property
    def host(self) -> Host:
        """The installation that the options select; raises Refused for an operator who selects another one."""
        if self.is_operator and (self.user or self.root):
            raise Refused("glmctl-operator takes neither --root nor --user", hint="leave them out")
        return Host.find(user=self.user, root=self.root.absolute() if self.root else None)

    @property
    def context(self) -> Context:
        """The host and the display, for the rooms that do the work."""
        return Context(self.host, self.display)

    def recover(self, *, bake_of: str | None = None) -> list[Ended]:
        """End the rollouts of killed controllers and print a note on each. Verbs that change the host begin with it.

        `bake_of`: an interrupted bake of that version goes on to its planned end. Raises Refused without systemd, or
        if this user may not change the host.
        """
        self.require_change()
        programs.require()
        found = recover(self.context, bake_of=bake_of)
        for ended in found:
            self.note(ended.text)
        return found

    def choose(self, strategy: str, version: str, *, needs_two: bool = False) -> Choice:
        """Return the strategy that the operator chose, or for `auto` the one that suits the host, and print why."""
        if strategy != "auto":
            return Choice(cast("Strategy", strategy), None)
        choice = choose(self.context, version, needs_two=needs_two)
        if choice.reason:
            self.display.phase("strategy", escape(f"{choice.strategy}: {choice.reason}"))
        return choice

    def tell_interrupted(self) -> None:
        """Print a note on each rollout of a killed controller. Verbs that read the host do no more about them.

        Raises Refused if this user may not read the host.
        """
        access.require_read(self.host)
        self.close_files()
        for record in Journal(self.host).interrupted():
            self.note(interruption(record))

    def require_change(self) -> None:
        """Raise Refused if this user may not change the host."""
        access.require_change(self.host)
        self.close_files()

    def close_files(self) -> None:
        """Let only root and the group of a directory read what is written from now on, whatever the umask is."""
        if not self.user:
            os.umask(_UMASK)

    def note(self, text: str) -> None:
        """Print a note on stderr."""
        self.display.line(f"[yellow]note[/] {escape(text)}")

    def show(self, document: BaseModel | dict[str, Any], text: str = "") -> None:
        """Print the result on stdout: `document` with --json, else `text`."""
        self.display.close()
        if self.json:
            fields = document.model_dump() if isinstance(document, BaseModel) else document
            click.echo(json.dumps(fields, indent=2))
        elif text:
            click.echo(text)


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a verb and pass them as its first argument."""

    @click.option("--user", is_flag=True, help="Use the user's service manager; GLM_USER=1 does the same.")
    @click.option(
        "--root", type=click.Path(path_type=Path), help="Directory of releases and slot links, instead of GLM_ROOT."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout. Progress goes to stderr.")
    @click.option("--debug", is_flag=True, help="Print the traceback of an error; GLM_DEBUG=1 does the same.")
    @functools.wraps(command)
    def with_options(*args: Any, user: bool, root: Path | None, as_json: bool, debug: bool, **kwargs: Any) -> Any:
        ctx = click.get_current_context()
        options = ctx.find_object(Options) or ctx.ensure_object(Options)
        options.user = options.user or user
        options.root = root or options.root
        options.json = options.json or as_json
        options.debug = options.debug or debug
        return command(options, *args, **kwargs)

    return with_options
