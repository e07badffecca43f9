"""`python -m service`: become the Gunicorn master of the slot that $GLM_SLOT names.

A release may bring an environment of its own (`env`); it is entered through the slot's symlink, so that the next
generation of the slot meets the next release's. Gunicorn is executed as a script beside the interpreter: as a module it
would put its own folder first on the path.
"""

import os
import sys
from pathlib import Path

from service.settings import Settings


def main() -> None:
    """Replace this process; does not return."""
    settings = Settings()  # from the environment
    os.environ.setdefault("GLM_PYTHON", sys.executable)  # where the next generation looks again
    own = settings.root / settings.slot / "env" / "bin" / "python"
    if own.exists() and Path(sys.executable) != own:
        os.execv(own, [str(own), "-m", "service"])
    gunicorn = Path(sys.executable).with_name("gunicorn")
    configuration = Path(__file__).with_name("gunicorn.conf.py")
    os.execv(
        sys.executable,
        [sys.executable, str(gunicorn), "--config", str(configuration), "service.app:create_app()"],
    )


main()
