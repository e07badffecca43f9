"""glmctl completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "glmctl"
_VARIABLE = "_GLMCTL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    The script asks glmctl for each completion, so that it knows the verbs and options of the installed version.

    \b
    Examples:
      glmctl completion bash > /etc/bash_completion.d/glmctl
      glmctl completion zsh > /usr/local/share/zsh/site-functions/_glmctl
      glmctl completion fish > ~/.config/fish/completions/glmctl.fish
    """  # noqa: D301  (\b keeps line breaks)
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click has no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, _PROGRAM, _VARIABLE).source())
