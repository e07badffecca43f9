"""The model server: one Gunicorn master and its workers serve one release from one slot.

What holds here, at any moment:

1. The listening socket is systemd's. We watch it or leave it alone; we never close it.
2. A generation takes nothing before it has said READY=1, and says so only when every worker holds a model that is
   loaded, warmed up and has passed its release's checks.
3. The slot that `live` names, and in it the generation whose `handoff.sock` stands there, owns every connection.
4. A request ends where it began. Between requests a connection belongs to the owner, and is passed to it.
5. accepted = completed + failed + client-aborted + in flight, in every worker's state file.

This package knows nothing of `deploy`: between them stand files and sockets (see CONTRIBUTING, "Contracts").
"""
