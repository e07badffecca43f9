"""glmctl install."""

from __future__ import annotations

from dataclasses import replace

import click

from deploy.commands.options import Options, require_address, shared
from deploy.systemd import listener, units
from deploy.systemd.units import Addresses


@click.command()
@click.option(
    "--listen",
    metavar="IP:PORT",
    help=f"Address of the model server; `glmctl listen` changes it while that runs.  "
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
    present = listener.addresses(options.host)
    page = ui or present.ui
    for address in filter(None, (listen, page)):
        require_address(address)
    listener.require_same(options.host, listen or present.listen)
    is_known = listen in {None, *present.service}
    addresses = replace(present, ui=page) if is_known else Addresses(listen or "", page)
    changed = units.install(options.host, addresses)
    systemctl = "systemctl --user" if options.user else "systemctl"
    written = "".join(f"wrote {path}\n" for path in changed)
    options.show(
        {"changed": [str(path) for path in changed]},
        f"{written}next: {systemctl} enable --now glm.target" if changed else "all units are installed and up to date",
    )
