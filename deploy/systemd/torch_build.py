"""Which build of torch is installed, and whether it suits the device. torch is not imported: that takes seconds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TorchBuild", "installed"]

_DRIVER = Path("/proc/driver/nvidia/version")
_CUDA = re.compile(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", re.MULTILINE)


@dataclass(frozen=True)
class TorchBuild:
    """A build of torch, and the device of this host."""

    version: str
    cuda: str | None
    """The version of CUDA that it was built for; None for a build that runs on the CPU alone."""
    has_driver: bool
    """Whether an NVIDIA driver is loaded."""

    @property
    def text(self) -> str:
        """What is installed."""
        device = "an NVIDIA driver is loaded" if self.has_driver else "no NVIDIA driver is loaded"
        return f"torch {self.version} for {f'CUDA {self.cuda}' if self.cuda else 'the CPU'}; {device}"

    @property
    def complaint(self) -> str | None:
        """Return why the build does not suit the device, and what to do; None if it does."""
        if self.has_driver and not self.cuda:
            return (
                "the GPU is not used: torch is the build for the CPU. The build for CUDA is several gigabytes larger: "
                f"`pip install --force-reinstall torch=={self.version.partition('+')[0]} "
                "--index-url https://download.pytorch.org/whl/cu128`"
            )
        if self.cuda and not self.has_driver:
            return (
                "torch is the build for CUDA, and this host has no driver: it runs on the CPU. The build for the CPU "
                f"is several gigabytes smaller: `pip install --force-reinstall torch=={self.version.partition('+')[0]} "
                "--index-url https://download.pytorch.org/whl/cpu`"
            )
        return None


def installed(driver: Path = _DRIVER, package: Path | None = None) -> TorchBuild | None:
    """Return the build that is installed; None if torch is not.

    `driver`: a file that exists where an NVIDIA driver is loaded. `package`: torch's __init__.py; looked for if None.
    """
    if package is None:
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            return None
        package = Path(found.origin)
    try:
        match = _CUDA.search(package.with_name("version.py").read_text())
    except OSError:
        match = None
    return TorchBuild(importlib.metadata.version("torch"), match[1] if match else None, driver.exists())
