"""Prints glmctl(1), from the help of its verbs."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator

import click

from deploy.cli import glmctl


def escaped(text: str) -> str:
    """Return text as roff takes it: neither a request nor an escape."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def sections(command: click.Command, ctx: click.Context) -> Iterator[str]:
    """Yield a section with the help of each verb, those of groups included."""
    context = click.Context(command, parent=ctx, info_name=command.name, max_content_width=80, terminal_width=80)
    yield f".SS {escaped(context.command_path)}\n.nf\n{escaped(command.get_help(context))}\n.fi"
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from sections(below, context)


def page() -> str:
    """Return the manual page."""
    ctx = click.Context(glmctl, info_name="glmctl", max_content_width=80, terminal_width=80)
    verbs = [section for verb in glmctl.commands.values() for section in sections(verb, ctx)]
    return "\n".join(
        [
            f'.TH GLMCTL 1 "" "glm-handover {importlib.metadata.version("glm-handover")}"',
            ".SH NAME\nglmctl \\- move every client of a model server to a new version, without losing a request",
            ".SH SYNOPSIS\n.B glmctl\n[OPTIONS] VERB [ARGS]...",
            f".SH DESCRIPTION\n.nf\n{escaped(glmctl.get_help(ctx))}\n.fi",
            ".SH VERBS",
            *verbs,
            ".SH SEE ALSO\n.BR systemctl (1),\n.BR journalctl (1)",
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(page())
