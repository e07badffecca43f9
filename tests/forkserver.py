"""glmctl, imported once and forked for each call: every call is a process of its own, without 0.4 s of imports."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
GLMCTL = Path(sys.executable).with_name("glmctl")

# Listens on the socket that is its stdin; a connection carries one call and gets the child's pid and its exit code.
_PROGRAM = """
import json, os, socket, sys, traceback
from contextlib import suppress
from deploy.cli import main

listener = socket.socket(fileno=0)

def call(connection):
    head, descriptors, *_ = socket.recv_fds(connection, 1 << 20, 2)
    call = json.loads(head)
    connection.sendall(b"%d\\n" % os.getpid())
    for number, descriptor in enumerate([os.open("/dev/null", os.O_RDONLY), *descriptors]):
        os.dup2(descriptor, number)
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["env"])
    if call["uid"]:
        os.setgroups([])
        os.setresgid(*[call["uid"]] * 3)
        os.setresuid(*[call["uid"]] * 3)
    sys.argv = call["argv"]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else end.code is not None
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(b"%d\\n" % code)
    os._exit(0)

while True:
    connection, _ = listener.accept()
    if os.fork() == 0:
        call(connection)
    connection.close()
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
"""


def glmctl(
    words: Sequence[str], env: dict[str, str], *, timeout: float, uid: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run glmctl and capture its output, as subprocess.run does; raises TimeoutExpired. Threads may call it."""
    argv = [str(GLMCTL), *words]
    call = {"argv": argv, "env": env, "cwd": str(Path.cwd()), "uid": uid}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.settimeout(timeout)
        connection.connect(_address())
        socket.send_fds(connection, [json.dumps(call).encode()], [out.fileno(), err.fileno()])
        connection.shutdown(socket.SHUT_WR)
        said = connection.makefile("r")
        pid = int(said.readline())
        try:
            code = said.readline()
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(argv, timeout) from None
        out.seek(0)
        err.seek(0)
        result = int(code or -signal.SIGKILL)
        return subprocess.CompletedProcess(argv, result, out.read().decode(), err.read().decode())


@cache
def _address() -> str:
    """Start the process that is forked; it ends with this one."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # an abstract address that the kernel chooses
        listener.listen(64)
        command = ["setpriv", "--pdeathsig=KILL", sys.executable, "-c", _PROGRAM]
        server = subprocess.Popen(command, stdin=listener.fileno(), cwd=CODE)
        atexit.register(_stop, server)
        address: str = listener.getsockname()
        return address


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
