"""The load as a command: `python -m deploy.loadtest`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from deploy.loadtest import MODEL, TIME_LIMIT, Load, Mix, Report

LOST = 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("host")
@click.argument("port", required=False, type=click.IntRange(1, 65535))
@click.option(
    "--seconds", type=click.FloatRange(0), default=10.0, show_default=True, help="How long; 0: until a signal."
)
@click.option(
    "--scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Multiplies every class."
)
@click.option(
    "--json",
    "out",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write the report as JSON: to FILE, or without one to stdout instead of the table.",
)
@click.option(
    "--think",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Mean pause in seconds of the clients that else ask as fast as they can.",
)
@click.option("--model", default=MODEL, show_default=True, help="The model that the chats name.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    default=TIME_LIMIT,
    show_default=True,
    help="Seconds until a request without its whole answer is lost.",
)
@click.option(
    "--no-compare", is_flag=True, help="Accept different texts by one version for one request (bf16 is not repeatable)."
)
def main(
    host: str,
    port: int | None,
    seconds: float,
    scale: float,
    think: float,
    out: str | None,
    model: str,
    time_limit: float,
    no_compare: bool,
) -> None:
    """Load a model server with clients of every kind, and account for every request.

    HOST PORT (or HOST:PORT) is an OpenAI-compatible server. Nothing is ever retried: what a client would have noticed
    is a loss. A line a second on stderr says how it goes. At the end, or at SIGINT or SIGTERM, requests in flight are
    finished and the report comes: a table, or JSON. The exit status is 1 when something was lost.

    \b
    Ten seconds while, in another terminal, a new version is deployed:
        python -m deploy.loadtest 127.0.0.1:8000
    Until a signal, four times as many clients, the report in a file:
        python -m deploy.loadtest 127.0.0.1 8000 --seconds 0 --scale 4 --json report.json
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    name, number = (host, port) if port is not None else _address(host)
    mix = Mix().scaled(scale)
    load = Load(name, number, mix, model=model, time_limit=time_limit, compare=not no_compare, think=think)
    try:
        report = asyncio.run(_attend(load, seconds))
    except OSError as error:
        raise click.ClickException(f"{host}: {error.strerror or error}") from None
    if out is not None:
        _publish(report.model_dump_json(indent=2) + "\n", out)
    if out != "-":
        Console().print(report.table())
    sys.exit(LOST if report.lost else 0)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise click.UsageError(f"{text!r} names no port. Give HOST PORT or HOST:PORT, such as 127.0.0.1:8000.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _publish(text: str, out: str) -> None:
    if out == "-":
        click.echo(text, nl=False)
        return
    # by rename, so that whoever waits for the file never reads half of it
    path = Path(out)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.replace(path)


async def _attend(load: Load, seconds: float) -> Report:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with load:
        lines = asyncio.create_task(_tell(load))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds or None):
                await stop.wait()
        try:
            return await load.stop()
        finally:
            lines.cancel()


async def _tell(load: Load) -> None:
    while True:
        await asyncio.sleep(1)
        now = load.progress()
        versions = ", ".join(f"{version}: {count}" for version, count in now.by_version.items()) or "none"
        counts = f"sent {now.sent}, lost {now.lost}, in flight {now.in_flight}"
        click.echo(f"{now.seconds:.0f} s: {counts}; answered by {versions}", err=True)


if __name__ == "__main__":
    main()
