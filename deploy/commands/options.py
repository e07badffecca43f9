"""What every verb shares: --user, --root and --json, before or after the verb, and durations a person would write."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from deploy.display import Display
from deploy.host import Host
from deploy.rollout.plan import Context
from deploy.rollout.recovery import recover


class Duration(click.ParamType[float]):
    """Seconds, as a number or as 500ms, 60s, 10m, 2h."""

    name = "duration"
    _units = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it; a negative or endless one is no duration."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", str(value).strip())
        if not match:
            self.fail(f"{value!r} is no duration: write 500ms, 60s, 10m or 2h", param, ctx)
        return float(match[1]) * self._units[match[2]]


class Step(click.ParamType["float | None"]):
    """A duration, or `pause`, which is None."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Read it."""
        return None if value in (None, "pause") else Duration().convert(value, param, ctx)


class Shares(click.ParamType[tuple[float, ...]]):
    """Percents, separated by commas."""

    name = "percents"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read them; each is more than 0 and at most 100, and more than the one before."""
        if isinstance(value, tuple):
            return value
        try:
            shares = tuple(float(part.strip().removesuffix("%")) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is no list of percents: write 10,50", param, ctx)
        if not all(before < share <= 100 for before, share in pairwise((0.0, *shares))):  # a NaN is neither
            self.fail(f"{value!r}: each share is above the one before, from above 0 to 100", param, ctx)
        return shares


class Options:
    """The global options, wherever on the command line they stood."""

    def __init__(self) -> None:
        self.user = os.environ.get("GLM_USER", "") not in {"", "0"}
        self.root: Path | None = Path(os.environ["GLM_ROOT"]) if os.environ.get("GLM_ROOT") else None
        self.json = False
        self.display = Display()

    @property
    def host(self) -> Host:
        """The installation that is meant."""
        return Host.find(user=self.user, root=self.root.absolute() if self.root else None)

    @property
    def context(self) -> Context:
        """What the verbs work with."""
        return Context(self.host, self.display)

    def recover(self) -> bool:
        """End what a killed controller left behind, and say so; returns whether there was anything."""
        lines = recover(self.context)
        for line in lines:
            self.display.line(f"[yellow]note[/] {line}")
        return bool(lines)

    def show(self, document: BaseModel | dict[str, Any], text: str = "") -> None:
        """Answer on stdout: one JSON document, or words."""
        self.display.close()
        if self.json:
            plain = document.model_dump() if isinstance(document, BaseModel) else document
            click.echo(json.dumps(plain, indent=2))
        elif text:
            click.echo(text)


def shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the global options and pass it the Options they make."""

    @click.option("--user", is_flag=True, help="Address the user's service manager.  [env: GLM_USER]")
    @click.option("--root", type=click.Path(path_type=Path), help="Where the releases lie.  [env: GLM_ROOT]")
    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; progress goes to stderr.")
    @functools.wraps(command)
    def with_options(*args: Any, user: bool, root: Path | None, as_json: bool, **kwargs: Any) -> Any:
        ctx = click.get_current_context()
        options = ctx.find_object(Options) or ctx.ensure_object(Options)
        options.user = options.user or user
        options.root = root or options.root
        options.json = options.json or as_json
        return command(options, *args, **kwargs)

    return with_options
