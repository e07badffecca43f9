"""glmctl trace."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click

from deploy.commands.options import Options, shared
from deploy.errors import GlmError, Refused
from deploy.journal.journal import Journal
from deploy.reports.log import Selection, workers
from deploy.reports.request_trace import Trace, first_time, from_journal, from_text
from deploy.systemd.sandbox import LOG_VARIABLE

_RECORDS = 1000  # rollouts that are looked through for the one during which the request ended


@click.command()
@click.argument("request_id", metavar="REQUEST_ID")
@shared
def trace(options: Options, request_id: str) -> None:
    """Show what became of one request.

    Which workers had it, what took how long, and how it ended. REQUEST_ID is the X-Request-Id of its response. What is
    shown is of the request's line in the access log: in the journal, or in a sandbox's own log. A client may send an id
    more than once; then each request is shown.

    \b
    Examples:
      glmctl trace req-5d1c0c3e6f1b7a9e0000000000000007
      glmctl trace my-own-id --json
      glmctl logs --request my-own-id            all lines, with tracebacks
    """  # noqa: D301  (\b keeps line breaks)
    found = list(_find(options, request_id))
    if not found:
        raise Refused(f"no request {request_id} is in the log", hint=_hint(options))
    records = list(islice(Journal(options.host).newest(), _RECORDS))
    documents = [one.within(records) for one in found]
    texts = [
        one.text + (f"\nduring       rollout {document['rollout']}" if document["rollout"] else "")
        for one, document in zip(found, documents, strict=True)
    ]
    options.show({"requests": documents}, "\n\n".join(texts))


def _find(options: Options, request_id: str) -> Iterator[Trace]:
    if text := os.environ.get(LOG_VARIABLE):
        with Path(text).open(errors="replace") as lines:
            yield from from_text(lines, request_id, workers(options.host.runtime))
        return
    yield from from_journal(_journal(options, Selection(request=request_id)), request_id)


def _journal(options: Options, selection: Selection) -> Iterator[str]:
    """Yield entries as JSON; raises Refused without journalctl, and GlmError if it fails."""
    if not shutil.which("journalctl"):
        raise Refused("journalctl is not installed", hint="install systemd's journal, or read the log of the container")
    argv = selection.journalctl(user=options.host.user, follow=False, as_json=True)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout
        assert process.stderr
        try:
            yield from process.stdout
        except GeneratorExit:
            process.terminate()
            raise
        message = process.stderr.read().strip()
    if process.returncode and message:
        raise GlmError(f"journalctl failed: {message.splitlines()[-1]}", hint="run it as root, or in the group adm")


def _hint(options: Options) -> str:
    """Return why a request may have no line: it is older than the log, or the access log leaves some out."""
    hints = []
    if begin := _begin(options):
        hints.append(f"the log of the servers begins {begin}")
    share = os.environ.get("GLM_ACCESS_LOG") or options.host.setting("ACCESS_LOG") or "1"
    if _number(share) == 0:
        hints.append("GLM_ACCESS_LOG=0 turns the access log off")
    elif _number(share) < 1:
        hints.append(f"GLM_ACCESS_LOG={share}: of the requests that did not fail, only that part has a line")
    hints.append("a line is written when the request has ended")
    hints.append("`glmctl logs` shows how many lines were left out, if there were too many in a second")
    return "; ".join(hints)


def _begin(options: Options) -> str | None:
    if text := os.environ.get(LOG_VARIABLE):
        with Path(text).open(errors="replace") as lines:
            times = (at for line in lines if (at := first_time(line)))
            first = next(times, None)
    else:
        entries = _journal(options, Selection())
        first = next((at for line in entries if (at := first_time(line))), None)
        entries.close()  # type: ignore[attr-defined]
    return f"{first.astimezone():%Y-%m-%d %H:%M:%S %z}" if first else "with nothing: no line of them was found"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0
