"""glmctl install."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.systemd import units
from deploy.systemd.units import Addresses


@click.command()
@click.option(
    "--listen", metavar="HOST:PORT", default=Addresses.listen, show_default=True, help="Address of the model server."
)
@click.option("--ui", metavar="HOST:PORT", default=Addresses.ui, show_default=True, help="Address of the page.")
@shared
def install(options: Options, listen: str, ui: str) -> None:
    """Install the systemd units.

    Writes the unit files for this root, these addresses and this Python environment, reloads the service manager, and
    prints the files that changed and the next command. A second call with the same options changes nothing.

    \b
    Examples:
      glmctl install
      glmctl install --user --listen 127.0.0.1:9000
    """  # noqa: D301  (\b keeps line breaks)
    for address in (listen, ui):
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise click.BadParameter(f"{address!r} is not HOST:PORT")
    changed = units.install(options.host, Addresses(listen, ui))
    systemctl = "systemctl --user" if options.user else "systemctl"
    written = "".join(f"wrote {path}\n" for path in changed)
    options.show(
        {"changed": [str(path) for path in changed]},
        f"{written}next: {systemctl} enable --now glm.target" if changed else "all units are installed and up to date",
    )
