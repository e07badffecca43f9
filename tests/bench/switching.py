"""What do clients lose when one version replaces another, here and with what people use today?

Every peer serves the same application under the same load, in the same run: once without a switch, then with --switches
of them. Lost requests are counted by class of clients (`python -m deploy.loadtest --help`); nothing is retried. Beside
the load some connections are kept idle: each switch is timed until all of them are answered by the new version.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from deploy.loadtest import Report
from service.demo_models import tiny
from tests.bench.kept_connections import KeptConnections, Moved
from tests.bench.mixed_load import MixedLoad
from tests.bench.output import Output, parser
from tests.bench.peers.gunicorn_signals import GunicornHup, GunicornUsr2
from tests.bench.peers.haproxy import HAProxy
from tests.bench.peers.nginx import Nginx
from tests.bench.peers.ours import Ours
from tests.bench.peers.peer import VERSIONS, Missing, Peer

SWITCHES, QUICK_SWITCHES = 50, 5
STEADY, QUICK_STEADY = 20.0, 3.0  # seconds
INTERVAL = 0.2  # seconds from one switch to the next
KEPT = 20
LIMIT = 60.0  # seconds for a switch
ALLOWANCE, FACTOR = 50.0, 1.5
"""Target: the longest pause of any client is at most ALLOWANCE ms + FACTOR times the p99.9 of the busy ones before."""
PEERS: tuple[type[Peer], ...] = (Ours, Nginx, HAProxy, GunicornHup, GunicornUsr2)
ABSENT = {"kamal-proxy": "neither PyPI, npm nor Debian has it, and Go's module proxy was out of reach"}


@dataclass(frozen=True)
class Result:
    """The measurement of one peer."""

    peer: str
    how: str
    versions: str
    steady: Report
    switching: Report
    moved: tuple[Moved, ...]

    def document(self) -> dict[str, Any]:
        """Return the fields of --json; times in ms."""
        times = [one.seconds for one in self.moved]
        ended = [1000 * seconds for seconds in times if seconds is not None]
        return {
            "peer": self.peer,
            "how": self.how,
            "versions": self.versions,
            "switches": len(self.moved),
            "sent": self.switching.sent,
            "lost": self.switching.lost,
            "lost_steady": self.steady.lost,
            "lost_by_class": {name: one.lost for name, one in self.switching.by_class.items()},
            "requests_per_second": self.switching.requests_per_second,
            "p999_steady_ms": _p999(self.steady),
            "p999_ms": _p999(self.switching),
            "longest_pause_steady_ms": self.steady.longest_pause_ms,
            "longest_pause_ms": self.switching.longest_pause_ms,
            "own_lag_ms": self.switching.own_lag_ms,
            "allowed_pause_ms": ALLOWANCE + FACTOR * _p999(self.steady),
            "kept_connections": KEPT,
            "kept_closed": sum(one.closed for one in self.moved),
            "unfinished": len(times) - len(ended),
            "all_over_ms": {"median": median(ended), "max": max(ended)} if ended else None,
            "losses": [f"{one.count} x {one.client} {one.kind}: {one.came}" for one in self.switching.losses[:10]],
        }


def _p999(report: Report) -> float:
    """Return that of the busy clients: their requests are short, where a stream takes as long as its tokens."""
    return report.by_class["busy"].latency.p999_ms


async def switch_all(peer: Peer, switches: int, progress: Callable[[str], None]) -> tuple[Moved, ...]:
    """Switch that often, one after the other; returns what each did to the kept connections."""
    moved = []
    async with KeptConnections(peer.address, KEPT) as kept:
        for number in range(1, switches + 1):
            await asyncio.to_thread(peer.prepare)
            began = time.monotonic()
            await asyncio.to_thread(peer.switch)
            moved.append(await kept.until(VERSIONS[peer.live], began=began, limit=LIMIT))
            await asyncio.to_thread(peer.finish)
            if number % 10 == 0 or number == switches:
                progress(f"{peer.name}: {number} of {switches} switches")
            await asyncio.sleep(INTERVAL)
    return tuple(moved)


def measure(peer: Peer, switches: int, steady_seconds: float, progress: Callable[[str], None]) -> Result:
    """Load a running peer without switches, then with them."""
    with MixedLoad(peer.address) as load:
        time.sleep(steady_seconds)
        steady = load.stop()
    with MixedLoad(peer.address) as load:
        moved = asyncio.run(switch_all(peer, switches, progress))
        switching = load.stop()
    return Result(peer.name, peer.how, peer.versions(), steady, switching, moved)


def make_releases(directory: Path) -> Path:
    """Write a release for each of VERSIONS below `directory`, and return it."""
    for seed, version in enumerate(VERSIONS, 1):
        tiny.make(directory / version / "model", seed=seed, dtype="float32")
        (directory / version / "release.json").write_text(f'{{"version": "{version}"}}\n')
    return directory


def show(output: Output, rows: Sequence[dict[str, Any]], skipped: dict[str, str]) -> None:
    """Print the tables of the measured peers, and why others were not."""
    if not rows:
        output.note("no peer was measured")
    else:
        _show_peers(output, rows)
    for name, why in skipped.items():
        output.note(f"not measured: {name}: {why}")


def _show_peers(output: Output, rows: Sequence[dict[str, Any]]) -> None:
    output.table(
        f"{rows[0]['switches']} switches of each under the same load",
        ("", "sent", "lost", "p99.9\nbefore", "p99.9\nduring", "pause\nbefore", "pause\nduring", "pause\nallowed"),
        (
            (row["peer"], row["sent"], row["lost"], row["p999_steady_ms"], row["p999_ms"],
             row["longest_pause_steady_ms"], row["longest_pause_ms"], row["allowed_pause_ms"])
            for row in rows
        ),
        "Times in ms. p99.9: latency of the busy clients. pause: the longest wait of any client; "
        f"allowed are {ALLOWANCE:.0f} ms + {FACTOR} x p99.9 before",
    )  # fmt: skip
    classes = list(rows[0]["lost_by_class"])
    output.table(
        "lost requests, by class of clients",
        ("", *(name.replace("pipelined", "piped") for name in classes)),
        ((row["peer"], *(row["lost_by_class"][name] for name in classes)) for row in rows),
    )
    output.table(
        f"from the switch until {KEPT} kept connections are answered by the new version",
        ("", "median ms", "max ms", "unfinished", "closed"),
        (
            (row["peer"], *((row["all_over_ms"] or {}).get(name) for name in ("median", "max")), row["unfinished"],
             row["kept_closed"])
            for row in rows
        ),
        "closed: connections that the server ended; their clients opened others",
    )  # fmt: skip
    for row in rows:
        output.note(f"{row['peer']}: {row['how']}. {row['versions']}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all peers, one after the other, and print."""
    names = {peer.name: peer for peer in PEERS}
    options_parser = parser("switching", __doc__)
    options_parser.add_argument(
        "--switches", type=int, help=f"of each peer [{SWITCHES}, with --quick {QUICK_SWITCHES}]", metavar="N"
    )
    options_parser.add_argument(
        "--only", action="append", choices=list(names), help="measure this peer alone; may be given several times"
    )
    options = options_parser.parse_args(argv)
    switches = options.switches or (QUICK_SWITCHES if options.quick else SWITCHES)
    output = Output.of("switching", options)
    rows, skipped = [], dict(ABSENT)
    with tempfile.TemporaryDirectory() as directory:
        releases = make_releases(Path(directory) / "releases")
        for number, name in enumerate(options.only or names):
            scratch = Path(directory) / str(number)
            scratch.mkdir()
            peer = names[name](releases, scratch)
            try:
                peer.versions()
            except Missing as missing:
                skipped[name] = str(missing)
                output.row("skipped", peer=name, why=str(missing))
                continue
            output.progress(f"{name}: {peer.versions()}")
            with peer:
                result = measure(peer, switches, QUICK_STEADY if options.quick else STEADY, output.progress)
            rows.append(output.row("peer", **result.document()))
    show(output, rows, skipped)


if __name__ == "__main__":
    main()
