"""How soon does the page show something, and what do open pages cost the clients of the API?

The first paint is Chromium's `first-contentful-paint` of cold loads: each in a new context, without a cache. Open pages
are the chat or the rollout, each a session with a WebSocket of its own, and are drawn anew as often as in a browser; in
turns with 0 and with 20 of them, the same clients ask for short answers, and the p95 of the two is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import httpx
from rich.console import Console
from rich.table import Table

from deploy.systemd.sandbox import Sandbox
from tests.bench.measurement import percentile
from tests.bench.open_pages import open_pages
from tests.browser_fixtures import chromium, new_page, page_host

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGES = 20
CLIENTS = 4
FIRST_PAINT, COST = 2.0, 1.10  # targets: seconds, and p95 with open pages as a ratio
ASK = {"messages": [{"role": "user", "content": "What can you do?"}], "max_tokens": 8, "temperature": 0}
PAINT = """() => new Promise(found => new PerformanceObserver(list => {
  const paint = list.getEntriesByName('first-contentful-paint')[0];
  if (paint) found(paint.startTime / 1000);
}).observe({type: 'paint', buffered: true}))"""


def first_paint(browser: Browser, address: str) -> float:
    """Return the seconds from the navigation to the first content, with nothing cached."""
    with contextlib.closing(new_page(browser).context) as context:
        page = context.pages[0]
        page.goto(f"http://{address}")
        seconds: float = page.evaluate(PAINT)
        return seconds


def p95(address: str, seconds: float) -> float:
    """Return the p95 of what CLIENTS clients wait for an answer, in seconds."""
    over = time.monotonic() + seconds
    times: list[float] = []

    def ask() -> None:
        with httpx.Client(base_url=f"http://{address}", timeout=60, trust_env=False) as client:
            while time.monotonic() < over:
                began = time.monotonic()
                client.post("/v1/chat/completions", json=ASK).raise_for_status()
                times.append(time.monotonic() - began)
                time.sleep(0.05)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return percentile(times, 95)


def measure(box: Sandbox, turns: int, seconds: float) -> list[tuple[float, float]]:
    """Return the p95 without and with open pages of each turn."""
    found = []
    for turn in range(turns):
        Console(stderr=True).print(f"turn {turn + 1} of {turns}: 0 pages, then {PAGES} …")
        without = p95(box.addresses.listen, seconds)
        with open_pages(box.addresses.ui, PAGES):
            found.append((without, p95(box.addresses.listen, seconds)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both, and print the medians beside the targets."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=5, help="of 0 and of 20 pages [5]")
    parser.add_argument("--seconds", type=float, default=20, help="of requests in one half of a turn [20]")
    parser.add_argument("--loads", type=int, default=7, help="cold loads [7]")
    parser.add_argument("--quick", action="store_true", help="2 turns of 10 s and 3 loads")
    options = parser.parse_args(argv)
    if options.quick:
        options.turns, options.seconds, options.loads = 2, 10.0, 3
    with page_host() as box, chromium() as browser:
        first_paint(browser, box.addresses.ui)  # the page's process imports its modules
        paints = [first_paint(browser, box.addresses.ui) for _ in range(options.loads)]
        p95(box.addresses.listen, 2)  # warm-up
        turns = measure(box, options.turns, options.seconds)
    table = Table("", "median", "target")
    table.add_row(f"first paint of {len(paints)} cold loads", f"{median(paints):.2f} s", f"< {FIRST_PAINT:g} s")
    for count, one in zip((0, PAGES), zip(*turns, strict=True), strict=True):
        table.add_row(f"p95 of the API with {count} open pages", f"{median(one) * 1000:.0f} ms", "")
    table.add_row("ratio of the two", f"{median(b / a for a, b in turns):.2f}", f"< {COST:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
