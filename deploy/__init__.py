"""The controller: `glmctl` moves every client of a model server to a new version without losing a request.

1. The listening socket is never closed. systemd holds it; processes come and go.
2. A generation serves clients only after READY=1, and sends it when all its workers have loaded the model, warmed up
   and passed the release's checks.
3. The symlink `live` alone decides which slot serves. Cutover is one atomic rename of it.
4. A request is answered by the process that received it. A connection is handed over between two requests.
5. An update loses no request, and the receipt proves it: accepted = completed + failed + client-aborted + in flight.
   What still runs at the drain deadline is cut and counted.
6. The old version stays loaded until the new one was watched under load. Rollback is the rename back.
7. A crash at any step leaves one version serving. Commands that only read report what was interrupted; those that
   change the host end it first, and a timer does otherwise. An interrupted bake goes on being watched.

This package imports neither torch nor Starlette. It shares files and sockets with the server, in the formats of
`service/contract`. Begin with `rollout/rollout.py`; `cli.py` lists the verbs.
"""

from __future__ import annotations

__version__ = "0.2.0"
"""The only place where the version is written: pyproject.toml, `glmctl --version` and the manual page read it."""
