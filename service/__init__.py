"""The model server: one Gunicorn master and its workers serve one release from one slot.

Promises:

1. The server never closes the listening socket, which belongs to systemd; workers accept from it or ignore it.
2. A generation accepts no connection before it sends READY=1, and sends it only when every worker has loaded its model,
   warmed it up and passed its release's checks.
3. Every connection is owned by the slot that `live` names, in it by the generation that published `handoff.sock`; a
   canary owns its share.
4. A request ends in the process that started it. Between requests a connection is passed to its owner.
5. accepted = completed + failed + client-aborted + in flight, in every worker's state file.

This package does not import `deploy`; both use the files and sockets that `service/contract` defines. Begin with
`process/worker.py` for a worker's life, with `app.py` for the API.
"""
