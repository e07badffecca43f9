"""glmctl release: import, list, verify, remove and prune releases."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from deploy.commands.options import Options, shared
from deploy.releases.store import Release


@click.group()
def release() -> None:
    """Import checkpoints as releases, and look after them."""


@release.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--version", "-V", help="Its name from now on; by default the directory's.")
@click.option("--checks", type=click.Path(path_type=Path), help="Questions it must answer rightly; see above.")
@click.option("--engine", type=click.Path(path_type=Path), help="Engine settings: device, dtype, max_new_tokens.")
@shared
def add(options: Options, path: Path, version: str | None, checks: Path | None, engine: Path | None) -> None:
    """Import the checkpoint directory PATH as a release.

    PATH is a directory as Hugging Face writes it: config.json, tokenizer, chat template, *.safetensors. A file that may
    hold a pickle is refused by name. It is copied, hashed and published by one rename: interrupted, nothing is left.

    \b
    A checks file (by default PATH/checks.json) is a list like
      [{"name": "red", "image": "red.png", "question": "Which colour?", "answer": "red", "max_tokens": 16}]
    where `answer` must occur in the reply. A release that fails one never becomes ready.
    """  # noqa: D301  (click reads \b as "keep these lines")
    options.recover()
    with ExitStack() as stack:

        def begin(total: int) -> Callable[[int], None]:
            options.display.phase("add", f"{path}, {total / (1 << 20):.1f} MiB")
            return stack.enter_context(options.display.bytes("copying and hashing", total))

        added = options.context.releases.add(path, version=version, checks=checks, engine=engine, begin=begin)
    options.show(_document(added, ()), f"added {added.version} ({_size(added)}) at {added.path}")


@release.command("list")
@shared
def list_(options: Options) -> None:
    """List the releases of this host, oldest first."""
    options.recover()
    releases = options.context.releases
    found = [(one, releases.slots_of(one.version)) for one in releases.list()]
    rows = [
        f"{one.version:<24} {_size(one):>10}  {one.manifest.created_at[:19]}  {' '.join(slots)}" for one, slots in found
    ]
    options.show(
        {"releases": [_document(one, slots) for one, slots in found]},
        "\n".join(rows) or "no releases yet: `glmctl release add PATH` imports one",
    )


@release.command()
@click.argument("version")
@shared
def verify(options: Options, version: str) -> None:
    """Compare every file of VERSION with its digest."""
    options.recover()
    releases = options.context.releases
    with options.display.bytes(f"digests of {version}", releases.get(version).manifest.size) as advance:
        verified = releases.verify(version, advance)
    options.show(_document(verified, releases.slots_of(version)), f"{version} is as it was added")


@release.command()
@click.argument("version")
@shared
def remove(options: Options, version: str) -> None:
    """Delete VERSION; refused while a slot points to it."""
    options.recover()
    options.context.releases.remove(version)
    options.show({"removed": [version]}, f"removed {version}")


@release.command()
@click.option("--keep", type=click.IntRange(min=0), default=3, show_default=True, help="How many of the newest stay.")
@shared
def prune(options: Options, keep: int) -> None:
    """Delete old releases, but never one that a slot points to."""
    options.recover()
    gone = options.context.releases.prune(keep)
    options.show({"removed": list(gone)}, f"removed {', '.join(gone)}" if gone else "nothing to remove")


def _document(one: Release, slots: tuple[str, ...]) -> dict[str, object]:
    return {
        "version": one.version,
        "path": str(one.path),
        "size": one.manifest.size,
        "created_at": one.manifest.created_at,
        "slots": list(slots),
    }


def _size(one: Release) -> str:
    return f"{one.manifest.size / (1 << 20):.1f} MiB"
