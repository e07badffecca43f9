"""All that imports vLLM: its engine, its arguments and its classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.contract import atomic
from service.engine.vllm import phases
from service.engine.vllm.llm import AsyncLLM
from service.engine.vllm.stats import Labels, Stats, logger_class
from service.model.checkpoint_files import first_line
from service.model.release import ReleaseError

__all__ = ["Vllm", "argument_names"]


_LOCAL = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Where its processes connect to each other; the hardened unit may connect to this host only."""


def argument_names() -> frozenset[str]:
    """Return the names of vLLM's AsyncEngineArgs; raises ImportError without vLLM."""
    from vllm import AsyncEngineArgs

    return frozenset(field.name for field in dataclasses.fields(AsyncEngineArgs))


class Vllm:
    """vLLM with the arguments of one release; `labels` returns those of its metrics at any time.

    `directory`: of the slot, for the file of its phases.
    """

    def __init__(self, arguments: Mapping[str, Any], labels: Callable[[], Labels], directory: Path) -> None:
        self._arguments = dict(arguments)
        self._labels = labels
        self.stats = Stats()
        config = directory / "vllm-logging.json"
        atomic.write_text(config, phases.logging_config())
        os.environ.update(
            {
                phases.FILE: str(phases.phase_file(directory)),
                "VLLM_LOGGING_CONFIG_PATH": str(config),
                "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads and sockets
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_DO_NOT_TRACK": "1",
                "HF_HUB_OFFLINE": "1",
            }
        )
        for name, value in _LOCAL.items():
            os.environ.setdefault(name, value)

    def start(self, model: Path) -> AsyncLLM:
        """Start it with the checkpoint `model`; blocks until it is ready. Raises ReleaseError."""
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM as RealAsyncLLM

            arguments = AsyncEngineArgs(model=str(model), **self._arguments)
            llm: AsyncLLM = RealAsyncLLM.from_engine_args(
                arguments, stat_loggers=[logger_class(self.stats, self._labels)]
            )
        except ImportError as error:
            raise ReleaseError(
                f"vLLM cannot be imported in the environment of this release: {first_line(error)}; "
                "`glmctl env make NAME --vllm VERSION` makes one, `glmctl release add --env NAME` uses it"
            ) from error
        except Exception as error:
            raise ReleaseError(f"vLLM does not start: {type(error).__name__}: {first_line(error)}") from error
        return llm

    def params(self, arguments: Mapping[str, Any], grammar: str | None) -> Any:
        """Return SamplingParams whose outputs are the tokens since the output before."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        constraint = StructuredOutputsParams(grammar=grammar) if grammar else None
        return SamplingParams(**arguments, structured_outputs=constraint, output_kind=RequestOutputKind.DELTA)
