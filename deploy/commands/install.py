"""glmctl install."""

from __future__ import annotations

import os
from ipaddress import ip_address

import click

from deploy.commands.options import Options, shared
from deploy.errors import Refused
from deploy.systemd import listener, placement, programs, torch_build, units
from deploy.systemd.host_files import HostFiles
from deploy.systemd.units import Addresses


@click.command()
@click.option(
    "--listen",
    metavar="IP:PORT",
    help=f"Address of the model server; it cannot change while that runs.  "
    f"[default: the installed one, or {Addresses.listen}]",
)
@click.option(
    "--ui", metavar="HOST:PORT", help=f"Address of the page.  [default: the installed one, or {Addresses.ui}]"
)
@shared
def install(options: Options, listen: str | None, ui: str | None) -> None:
    """Install the service on this host.

    Writes the unit files for this root, these addresses and this Python environment, reloads the service manager, and
    prints the files that changed and the next command. Without --user it also creates the user glm, the groups glm and
    glm-operators and the directories of the host, links glmctl into /usr/local/bin, and gives glm-operators their
    rights. A second call with the same options changes nothing; `glmctl uninstall` undoes it.

    Refused if the service could not read its own code: below /root, /home and /tmp the units hide it.

    \b
    Examples:
      glmctl install
      glmctl install --user --listen 127.0.0.1:9000
    """  # noqa: D301  (\b keeps line breaks)
    for address in (listen, ui):
        host, _, port = (address or "x:1").rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise click.BadParameter(f"{address!r} is not HOST:PORT")
    if listen and not _is_ip(listen):
        raise click.BadParameter(f"{listen!r} is not IP:PORT; systemd resolves no names")
    changed = []
    if not options.user:
        if os.geteuid() != 0:
            raise Refused("installing for the system manager is root's", hint="run it as root, or with --user")
        os.umask(0o022)  # unit files are for everybody
        programs.require(programs.INSTALL)
        placement.require_visible()
    present = listener.addresses(options.host)
    addresses = Addresses(listen or present.listen, ui or present.ui)
    listener.require_same(options.host, addresses.listen)
    if not options.user:
        changed += HostFiles(options.host).install()
    changed += units.install(options.host, addresses)
    systemctl = "systemctl --user" if options.user else "systemctl"
    torch = torch_build.installed()
    if torch and torch.complaint:
        options.note(torch.complaint)
    written = "".join(f"wrote {path}\n" for path in changed)
    options.show(
        {"changed": [str(path) for path in changed], "torch": torch.text if torch else None},
        f"{written}{torch.text if torch else 'torch is not installed'}\nnext: {systemctl} enable --now glm.target"
        if changed
        else "all units are installed and up to date",
    )


def _is_ip(address: str) -> bool:
    try:
        ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True
