"""glmctl install."""

from __future__ import annotations

from ipaddress import ip_address

import click

from deploy.commands.options import Options, shared
from deploy.systemd import listener, units
from deploy.systemd.units import Addresses


@click.command()
@click.option(
    "--listen",
    metavar="IP:PORT",
    help=f"Address of the model server; it cannot change while that runs.  "
    f"[default: the installed one, or {Addresses.listen}]",
)
@click.option("--ui", metavar="IP:PORT", help=f"Address of the page.  [default: the installed one, or {Addresses.ui}]")
@shared
def install(options: Options, listen: str | None, ui: str | None) -> None:
    """Install the systemd units.

    Writes the unit files for this root, these addresses and this Python environment, reloads the service manager, and
    prints the files that changed and the next command. A second call with the same options changes nothing.

    \b
    Examples:
      glmctl install
      glmctl install --user --listen 127.0.0.1:9000
    """  # noqa: D301  (\b keeps line breaks)
    for address in (listen, ui):
        host, _, port = (address or "x:1").rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise click.BadParameter(f"{address!r} is not HOST:PORT")
    present = listener.addresses(options.host)
    addresses = Addresses(listen or present.listen, ui or present.ui)
    for address in (listen, addresses.ui):
        if address and not _is_ip(address):
            raise click.BadParameter(f"{address!r} is not IP:PORT; systemd resolves no names")
    listener.require_same(options.host, addresses.listen)
    changed = units.install(options.host, addresses)
    systemctl = "systemctl --user" if options.user else "systemctl"
    written = "".join(f"wrote {path}\n" for path in changed)
    options.show(
        {"changed": [str(path) for path in changed]},
        f"{written}next: {systemctl} enable --now glm.target" if changed else "all units are installed and up to date",
    )


def _is_ip(address: str) -> bool:
    try:
        ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True
