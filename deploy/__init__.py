"""The controller: one command moves every client to a new model version, and loses nothing.

1. The listening socket is never closed. systemd holds it; processes come and go.
2. Not ready, no traffic. A generation accepts nothing until it has said READY=1.
3. One truth, one rename. The symlink `live` names the slot that serves; cutover renames it, and nothing else decides.
4. A request ends where it began; a connection changes hands between requests.
5. Nothing is lost, and it can be proved: accepted = completed + failed + client-aborted + in flight.
6. The old version stays warm until the new one has earned its place. Rollback is the same rename backwards.
7. A crash at any step leaves one version serving, and the next call ends cleanly what was interrupted.

This package imports no torch and no Starlette; it meets the server in files and sockets only (CONTRIBUTING,
"Contracts"). The place to begin reading is `rollout.py`.
"""
