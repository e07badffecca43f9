"""`python -m tests.bench.gpu`."""

import sys

from tests.bench.gpu.command import main

if __name__ == "__main__":
    sys.exit(main())
