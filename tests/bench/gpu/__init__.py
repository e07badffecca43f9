"""What does the whole service do on this machine's GPU, from the weights on disk to a rollout under load?

    make bench-gpu                                  on a CUDA device with room for it: the shape of the 9B model
    make bench-gpu ARGS='--shape small --quick'     the same steps without a GPU; the results say nothing about speed
    make bench-gpu ARGS='--only bandwidth,engine'   some of the parts

Two releases with random weights are made, and measured in the parts `bandwidth`, `engine`, `digests`, `http` and
`rollouts`. Every figure is printed and appended to a file of JSON lines as soon as it is known, so that an interrupted
run keeps what it has; `--table FILE` prints the table of such a file again. docs/DEVICE.md says how to read it.
"""

from tests.bench.gpu.command import main

__all__ = ["main"]
