"""glmctl listen add, remove and list."""

from __future__ import annotations

import click

from deploy.commands.options import Duration, Options, require_address, shared
from deploy.errors import Refused
from deploy.reports import report
from deploy.rollout import preflight, rollout
from deploy.rollout.plan import Plan
from deploy.rollout.retire import retire_idle_slot
from deploy.systemd import listener, socket_addresses

_drain = click.option(
    "--drain", type=Duration(), default="120s", show_default=True, help="As in deploy, for the slot that is left."
)


@click.group()
def listen() -> None:
    """Change the addresses of the model server while it serves.

    \b
    From one address to another, without a lost request:
      glmctl listen add 10.0.0.5:9000        both addresses are served
      (clients, or the balancer, change to the new one)
      glmctl listen remove 10.0.0.5:8000     the former one is closed
    """  # noqa: D301  (\b keeps line breaks)


@listen.command()
@click.argument("address", metavar="IP:PORT")
@_drain
@shared
def add(options: Options, address: str, drain: float) -> None:
    """Serve IP:PORT too.

    The live version is loaded in the other slot, which gets both addresses, and every client moves there, as by `glmctl
    deploy --again`. Nothing changes if the address is served already.

    \b
    Example:
      glmctl listen add 10.0.0.5:9000
    """  # noqa: D301  (\b keeps line breaks)
    require_address(address)
    options.recover()
    present = listener.addresses(options.host).service
    if address in present:
        _show(options, "unchanged", f"{address} is served already")
        return
    preflight.require_units(options.context)
    socket_addresses.add(options.host, address)
    _move(options, drain)
    _show(options, "added", f"{address} is served too")


@listen.command()
@click.argument("address", metavar="IP:PORT")
@_drain
@shared
def remove(options: Options, address: str, drain: float) -> None:
    """Serve IP:PORT no more.

    Connections that clients have through it are kept. The live version is loaded in the other slot, without the
    address, and every client moves there. New connections to the address are refused at the end: clients, or the
    balancer, must use another one before. Nothing changes if the address is not served.

    \b
    Example:
      glmctl listen remove 10.0.0.5:8000
    """  # noqa: D301  (\b keeps line breaks)
    require_address(address)
    options.recover()
    if address not in listener.addresses(options.host).service:
        _show(options, "unchanged", f"{address} is not served")
        return
    preflight.require_units(options.context)
    socket_addresses.remove(options.host, address)
    _move(options, drain)
    _show(options, "removed", f"{address} is closed")


@listen.command("list")
@shared
def list_(options: Options) -> None:
    """List the addresses of the model server.

    \b
    Example:
      glmctl listen list
    """  # noqa: D301  (\b keeps line breaks)
    addresses = listener.addresses(options.host).service
    options.show({"addresses": list(addresses)}, "\n".join(addresses))


def _move(options: Options, drain: float) -> None:
    """Load the live version in the other slot, which gets the addresses as they are now; raises as a deploy does."""
    context = options.context
    live = context.slots.live
    version = context.slots.version(live) if live else None
    if version is None or live is None or context.systemd.state(context.host.unit(live)).active != "active":
        return  # what is started next has them
    choice = options.choose("auto", version)
    strategy = "swap" if choice.strategy == "weights" else choice.strategy
    retire_idle_slot(context, context.slots.idle, version, drain)
    plan = Plan(version, strategy=strategy, reason=choice.reason, bake=0.0, drain=drain)
    record = rollout.deploy(context, plan)
    if not options.json:
        report.show(record)


def _show(options: Options, outcome: str, text: str) -> None:
    addresses = listener.addresses(options.host).service
    if not addresses:
        raise Refused("glm.socket is not installed", hint="`glmctl install`")
    options.show({"outcome": outcome, "addresses": list(addresses)}, f"{text}; addresses: {', '.join(addresses)}")
