"""Write the pictures of the page that the documents show: docs/images/*.png.

A host in a private service manager serves the two releases of the demo, with a canary under way and a light load on
both of them. It takes some minutes.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from PIL import Image

from tests.box import CODE
from tests.browser_fixtures import chromium, new_page, page_host
from tests.page_tour import PAGES, WIDE, begin_tour, canary, choose_language, load, visit_page

if TYPE_CHECKING:
    from playwright.sync_api import Page, ViewportSize

DIRECTORY = CODE / "docs/images"
PHONE: ViewportSize = {"width": 390, "height": 844}
HEIGHTS = {"compare": 1100, "rollout": 1860}  # pixels of the window, for what a page shows below the first screen
LOADED = 75.0  # seconds of load before the first picture, for the plots
COLOURS = 256


def write(page: Page, path: Path) -> None:
    """Write what the window shows, with a palette: a third of the bytes."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # plots and fonts
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    click.echo(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def main(argv: Sequence[str] | None = None) -> None:
    """Start the host, bring the pages into use, and write a picture of each."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where they are written [docs/images]")
    parser.add_argument("--chinese", action="store_true", help="the same in Chinese; needs fonts-noto-cjk")
    options = parser.parse_args(argv)
    options.directory.mkdir(parents=True, exist_ok=True)
    click.echo("starting a host with 1.0.0 live …")
    with page_host() as box, chromium() as browser, load(box), canary(box, "25"):
        began = time.monotonic()
        page = new_page(browser, viewport=WIDE, color_scheme="light", timezone_id="UTC")
        click.echo("bringing the pages into use …")
        begin_tour(page, box)
        if options.chinese:
            choose_language(page, "中文")
        click.echo("letting the plots fill …")
        page.wait_for_timeout(1000 * max(0.0, LOADED - (time.monotonic() - began)))
        for name in PAGES:
            page.set_viewport_size({**WIDE, "height": HEIGHTS.get(name, WIDE["height"])})
            visit_page(page, name)
            write(page, options.directory / f"{name}.png")
        page.set_viewport_size(WIDE)
        visit_page(page, "chat")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size(PHONE)
        write(page, options.directory / "phone-dark.png")


if __name__ == "__main__":
    main()
