"""The reference of glmctl: what `--help` prints at 80 columns, of every verb."""

from __future__ import annotations

from collections.abc import Iterator

import click

from deploy.cli import glmctl
from tests.reference.markdown import GENERATED

__all__ = ["help_of", "page", "verbs"]

WIDTH = 80


def verbs(command: click.Command = glmctl, name: str = "glmctl") -> Iterator[tuple[str, click.Command]]:
    """Yield the name and the command of each verb, the group itself first."""
    yield name, command
    if isinstance(command, click.Group):
        for verb in sorted(command.commands):
            yield from verbs(command.commands[verb], f"{name} {verb}")


def help_of(name: str, command: click.Command) -> str:
    """Return the help as a terminal of 80 columns shows it."""
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    context.help_option_names = ["-h", "--help"]
    return command.get_help(context).rstrip()


def page() -> str:
    """Return the page."""
    head = f"{GENERATED}\n# Commands\n\n`man glmctl` and `glmctl COMMAND --help` have the same text.\n"
    parts = [f"\n## {name}\n\n```text\n{help_of(name, command)}\n```\n" for name, command in verbs()]
    return head + "".join(parts)
