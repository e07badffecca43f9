"""The command `python -m deploy.loadtest`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from deploy.loadtest import MODEL, TIME_LIMIT, Load, Mix, Report
from deploy.loadtest.client_classes import CLASSES
from service.contract.atomic import write_text

EXIT_LOST = 1


class _Command(click.Command):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's name
        """Print the classes of clients."""
        counts = Mix().counts()
        with formatter.section("Client classes (number of clients at --scale 1)"):
            formatter.write_dl(
                [
                    (f"{name} ({counts[name]})", (inspect.getdoc(function) or "").partition("\n\n")[0])
                    for name, function in CLASSES.items()
                ]
            )


@click.command(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("host")
@click.argument("port", required=False, type=click.IntRange(1, 65535))
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Duration of the load; 0: until SIGINT or SIGTERM.",
)
@click.option(
    "--scale",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Factor for the number of clients of every class; each keeps at least one.",
)
@click.option(
    "--json",
    "out",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write the report as JSON to FILE; without FILE to stdout, instead of the table.",
)
@click.option(
    "--think",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Mean pause in seconds between the requests of busy, stream and pipelined clients; 0: none.",
)
@click.option("--model", default=MODEL, show_default=True, help="The `model` of the chat requests.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    default=TIME_LIMIT,
    show_default=True,
    help="Seconds after which a request without a complete response is lost.",
)
@click.option("--api-key", envvar="GLM_API_KEY", show_envvar=True, help="The API key of all clients.")
@click.option(
    "--no-compare",
    is_flag=True,
    help="Accept different texts by one version for one greedy request: in bf16 they depend on the batch.",
)
def main(
    host: str,
    port: int | None,
    seconds: float,
    scale: float,
    think: float,
    out: str | None,
    model: str,
    api_key: str | None,
    time_limit: float,
    no_compare: bool,
) -> None:
    """Load a model server with clients of every class and report every lost request.

    HOST PORT, or HOST:PORT, is the address of an OpenAI-compatible server that sends X-Model-Version, X-Slot and
    X-Request-Id with every response. A request is lost when the response is not a complete, correct 200: refused
    connections, resets, truncated responses, unsolicited bytes, mixed versions and timeouts. Nothing is retried.

    Progress is printed to stderr once per second. At the end, or after SIGINT or SIGTERM, the requests in flight are
    finished and the report is printed. Times in the table are milliseconds; `pause` is the longest wait for a
    connection or for the next bytes of a response. In JSON, fields in _ms are milliseconds, all other times seconds.

    Exit status: 0 when nothing was lost, 1 when a request was lost or the host is unknown, 2 for a usage error.

    \b
    Load a server for ten seconds, and deploy a new version meanwhile:
        python -m deploy.loadtest 127.0.0.1:8000
    Four times as many clients, until a signal, with the report in a file:
        python -m deploy.loadtest 127.0.0.1 8000 --seconds 0 --scale 4 --json report.json
    """  # noqa: D301 - \b disables click's rewrapping
    name, number = (host, port) if port is not None else _address(host)
    mix = Mix().scaled(scale)
    try:
        load = Load(
            name,
            number,
            mix,
            model=model,
            time_limit=time_limit,
            compare=not no_compare,
            think=think,
            api_key=api_key,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        report = asyncio.run(_run(load, seconds))
    except OSError as error:
        raise click.ClickException(f"{host}: {error.strerror or error}") from None
    if out is not None:
        _write_json(report, out)
    if out != "-":
        Console().print(report.table())
    sys.exit(EXIT_LOST if report.lost else 0)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise click.UsageError(f"{text!r} has no port. Give HOST PORT or HOST:PORT, such as 127.0.0.1:8000.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _write_json(report: Report, out: str) -> None:
    text = report.model_dump_json(indent=2) + "\n"
    if out == "-":
        click.echo(text, nl=False)
    else:
        write_text(Path(out), text)


async def _run(load: Load, seconds: float) -> Report:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with load:
        progress = asyncio.create_task(_print_progress(load))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds or None):
                await stop.wait()
        try:
            return await load.stop()
        finally:
            progress.cancel()


async def _print_progress(load: Load) -> None:
    while True:
        await asyncio.sleep(1)
        now = load.progress()
        versions = ", ".join(f"{version}: {count}" for version, count in now.by_version.items()) or "none"
        counts = f"sent {now.sent}, lost {now.lost}, in flight {now.in_flight}"
        click.echo(f"{now.seconds:.0f} s: {counts}; responses by version: {versions}", err=True)


if __name__ == "__main__":
    main()
