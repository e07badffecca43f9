"""glmctl install."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.systemd.units import Addresses
from deploy.systemd.units import install as install_units


@click.command()
@click.option("--listen", default=Addresses.listen, show_default=True, help="Where the model server listens.")
@click.option("--ui", default=Addresses.ui, show_default=True, help="Where the page listens.")
@shared
def install(options: Options, listen: str, ui: str) -> None:
    """Install our unit files for this host, or for this user; a second time it changes nothing."""
    for address in (listen, ui):
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise click.BadParameter(f"{address!r} is no host:port")
    changed = install_units(options.host, Addresses(listen, ui))
    start = "systemctl --user" if options.user else "systemctl"
    options.show(
        {"changed": [str(path) for path in changed]},
        "\n".join(f"wrote {path}" for path in changed) + f"\nnext: {start} enable --now glm.target"
        if changed
        else "everything is in place",
    )
