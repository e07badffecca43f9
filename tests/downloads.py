"""What pip is about to download: reads the report of `pip install --dry-run --report -` and prints a line or two.

`make setup` shows it before it installs torch, because the build depends on the package index. The standard library
is all
that a new environment has.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["summary"]


def summary(report: dict[str, Any]) -> str:
    """Return which build of torch is installed, with how many packages, and how to get the other one."""
    packages = {item["metadata"]["name"]: item["metadata"]["version"] for item in report["install"]}
    nvidia = [name for name in packages if name.startswith("nvidia-")]
    others = f"{len(packages) - 1} package{'' if len(packages) == 2 else 's'}"
    if nvidia:
        return (
            f"pip is about to download torch {packages['torch']}, the CUDA build, and {others}\n"
            f"that it needs, {len(nvidia)} of them with libraries of NVIDIA: several gigabytes.\n"
            "Without a GPU, Ctrl-C, and\n"
            "make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu"
        )
    return (
        f"pip is about to download torch {packages['torch']}, a build without CUDA, and\n"
        f"{others} that it needs; then those of pyproject.toml."
    )


if __name__ == "__main__":
    print(summary(json.load(sys.stdin)))
