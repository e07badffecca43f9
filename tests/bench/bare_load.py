"""How long does a load take without the service around it?

Imports, load and warm-up of a release's model in a process that does nothing else; printed in seconds, as JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.output import parser


def main(argv: Sequence[str] | None = None) -> None:
    """Load once, and print the seconds."""
    options_parser = parser("bare_load", __doc__)
    options_parser.add_argument("release", type=Path, help="a directory with model/ and release.json")
    options_parser.add_argument("--threads", type=int, default=1, help="compute threads [1]")
    options = options_parser.parse_args(argv)
    began = time.monotonic()
    from service.engine import loader
    from service.model.release import Release
    from service.settings import Settings

    settings = Settings(slot="blue", threads=options.threads)
    loader.preload(settings)
    imported = time.monotonic()
    engine = loader.load(Release.read(options.release), settings, lambda *_: None)
    loaded = time.monotonic()
    engine.warm_up(lambda *_: None)
    ended = time.monotonic()
    engine.close()
    print(json.dumps({"imports": imported - began, "load": loaded - imported, "warm_up": ended - loaded}))


if __name__ == "__main__":
    main()
