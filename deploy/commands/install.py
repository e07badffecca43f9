"""glmctl install."""

from __future__ import annotations

import os
from dataclasses import replace

import click

from deploy.commands.options import Options, require_address, shared
from deploy.errors import Refused
from deploy.systemd import listener, placement, programs, torch_build, units
from deploy.systemd.host_files import HostFiles
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
    for address in filter(None, (listen, ui)):
        require_address(address)
    changed = []
    if not options.user:
        if os.geteuid() != 0:
            raise Refused("installing for the system manager is root's", hint="run it as root, or with --user")
        os.umask(0o022)  # unit files are for everybody
        programs.require(programs.INSTALL)
        placement.require_visible()
    present = listener.addresses(options.host)
    page = ui or present.ui
    require_address(page)
    listener.require_same(options.host, listen or present.listen)
    is_known = listen in {None, *present.service}
    addresses = replace(present, ui=page) if is_known else Addresses(listen or "", page)
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
