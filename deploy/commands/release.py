"""glmctl release add, list, verify, remove and prune."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from deploy.commands.options import Options, shared
from deploy.display import size
from deploy.releases.environments import Environments
from deploy.releases.store import Release


@click.group()
def release() -> None:
    """Import, list, verify and delete releases."""


@release.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--version", "-V", help="Name of the release.  [default: name of PATH]")
@click.option("--checks", type=click.Path(path_type=Path), help="JSON file of checks.  [default: PATH/checks.json]")
@click.option(
    "--engine",
    type=click.Path(path_type=Path),
    help="JSON file of engine settings.  [default: PATH/engine.json]",
)
@click.option("--env", metavar="NAME|DIR", help="Python environment that it runs in.  [default: that of the server]")
@shared
def add(
    options: Options, path: Path, version: str | None, checks: Path | None, engine: Path | None, env: str | None
) -> None:
    """Import a checkpoint directory as a release.

    PATH is a directory in the format of Hugging Face: config.json, tokenizer, chat template and *.safetensors. Files
    that may hold a pickle are refused. The files are copied and hashed, and the release is published by one rename; an
    interrupted import leaves nothing behind.

    A release that fails one of its checks does not become ready. A check is a question; its answer, if given, must
    occur in the reply:

    \b
      [{"name": "red", "image": "red.png",
        "question": "Which colour?", "answer": "red", "max_tokens": 16}]

    \b
    Examples:
      glmctl release add ./GLM-4.6V-Flash --version 1.0.0
      glmctl release add ./1.1.0 --checks ./checks.json
      glmctl release add ./2.0.0 --engine ./vllm.json --env vllm-0.32
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    options.require_change()
    with ExitStack() as stack:

        def begin(total: int) -> Callable[[int], None]:
            options.display.phase("add", f"{path}, {size(total)}")
            return stack.enter_context(options.display.bytes("copying and hashing", total))

        environment = Environments(options.host).find(env) if env else None
        added = options.context.releases.add(
            path, version=version, checks=checks, engine=engine, environment=environment, begin=begin
        )
    text = f"added {added.version} ({size(added.manifest.size)}) at {added.path}"
    if added.manifest.engine.get("engine") == "vllm" and not (environment and environment.vllm):
        text += "\nits arguments of vLLM were not checked: `--env` names an environment that has vLLM"
    options.show(_document(added, ()), text)


@release.command("list")
@shared
def list_(options: Options) -> None:
    """List the releases, the lowest version first.

    Each line has version, size, time of the import (UTC), and the slots that point to the release.

    \b
    Example:
      glmctl release list
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    releases = options.context.releases
    found = [(each, releases.slots_of(each.version)) for each in releases.list()]
    rows = [
        f"{each.version:<24} {size(each.manifest.size):>10}  {each.manifest.created_at[:19]}  {' '.join(slots)}"
        for each, slots in found
    ]
    options.show(
        {"releases": [_document(each, slots) for each, slots in found]},
        "\n".join(rows) or "no releases yet; `glmctl release add PATH` imports one",
    )


@release.command()
@click.argument("version")
@shared
def verify(options: Options, version: str) -> None:
    """Compare every file of VERSION with its SHA-256 digest.

    Everything is read, also where a deploy would not, because the files have not changed since they were compared last.
    Exit code 3 if a file was changed, is missing, or cannot be read.

    \b
    Example:
      glmctl release verify 1.0.0
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    releases = options.context.releases
    with options.display.bytes(f"digests of {version}", releases.get(version).manifest.size) as advance:
        verified = releases.verify(version, advance)
    options.show(_document(verified, releases.slots_of(version)), f"all files of {version} match their digests")


@release.command()
@click.argument("version")
@shared
def remove(options: Options, version: str) -> None:
    """Delete VERSION.

    Refused with exit code 3 while a slot points to it, a process serves it, or a rollout uses it.

    \b
    Example:
      glmctl release remove 1.0.0
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    options.require_change()
    options.context.releases.remove(version)
    options.show({"removed": [version]}, f"removed {version}")


@release.command()
@click.option("--keep", type=click.IntRange(min=0), default=3, show_default=True, help="Number of releases to keep.")
@shared
def prune(options: Options, keep: int) -> None:
    """Delete all but the newest releases.

    The newest have the highest versions: 1.10.0 is newer than 1.9.0, 1.2.0-20250412 than 1.2.0-20250405, and 1.2.0 than
    1.2.0-rc1. Names that do not begin like these are older than all that do, and among each other those that were
    imported first. Releases in use are kept, too: see `glmctl release remove --help`.

    \b
    Example:
      glmctl release prune --keep 2
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    options.require_change()
    removed = options.context.releases.prune(keep)
    options.show({"removed": list(removed)}, f"removed {', '.join(removed)}" if removed else "nothing to remove")


def _document(release: Release, slots: tuple[str, ...]) -> dict[str, object]:
    return {
        "version": release.version,
        "path": str(release.path),
        "size": release.manifest.size,
        "created_at": release.manifest.created_at,
        "slots": list(slots),
    }
