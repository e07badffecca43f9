"""What a release may set of vLLM, its object `vllm`, and which of vLLM's arguments are not its to set.

The names are those of vLLM's AsyncEngineArgs. Which of them exist depends on the version of vLLM; what it has no name
for is refused where it is installed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["DECIDED", "RUNS_CODE", "check", "check_names"]

_SETTINGS = "the settings of the release have it under another name: "
_SERVER = "the server decides it: "

DECIDED: Mapping[str, str] = {
    "model": "it is the checkpoint of the release",
    "tokenizer": "it is the checkpoint of the release",
    "model_weights": "it is the checkpoint of the release",
    "revision": "it is the checkpoint of the release",
    "tokenizer_revision": "it is the checkpoint of the release",
    "code_revision": "it is the checkpoint of the release",
    "hf_config_path": "it is the checkpoint of the release",
    "generation_config": "it is that of the checkpoint",
    "override_generation_config": "it is that of the checkpoint",
    "served_model_name": f"{_SERVER}GLM_SERVED_MODEL",
    "dtype": f"{_SETTINGS}dtype",
    "max_num_seqs": f"{_SETTINGS}rows",
    "gpu_memory_utilization": f"{_SERVER}both slots share a GPU, by [memory] of glm.toml",
    "kv_cache_memory_bytes": f"{_SETTINGS}kv_tokens",
    "num_gpu_blocks_override": f"{_SETTINGS}kv_tokens",
    "limit_mm_per_prompt": f"{_SERVER}GLM_MAX_IMAGES",
    "scheduling_policy": f"{_SERVER}batches come after interactive requests",
    "max_logprobs": f"{_SERVER}the API has its own limit",
    "structured_outputs_config": f"{_SERVER}grammars of the API are written for llguidance",
    "guided_decoding_backend": f"{_SERVER}grammars of the API are written for llguidance",
    "reasoning_parser": f"{_SERVER}the API parses the reasoning",
    "reasoning_config": f"{_SERVER}the API parses the reasoning",
    "tool_parser_plugin": f"{_SERVER}the API parses calls of tools",
    "skip_tokenizer_init": f"{_SERVER}the API encodes prompts and decodes answers",
    "enable_log_requests": f"{_SERVER}prompts are not logged",
    "disable_log_stats": f"{_SERVER}/metrics shows them",
    "max_num_queued_reqs": f"{_SERVER}GLM_MAX_QUEUE",
    "max_num_queued_tokens": f"{_SERVER}GLM_MAX_QUEUE",
    "data_parallel_size": f"{_SERVER}GLM_WORKERS, one worker for each GPU",
    "allowed_local_media_path": f"{_SERVER}pictures come decoded from the API",
    "allowed_media_domains": f"{_SERVER}GLM_IMAGE_HOSTS",
    "enable_prompt_embeds": f"{_SERVER}prompts are text and pictures",
    "enable_mm_embeds": f"{_SERVER}prompts are text and pictures",
    "runner": f"{_SERVER}it generates text",
    "convert": f"{_SERVER}it generates text",
    "hf_token": "nothing is downloaded",
    "download_dir": "nothing is downloaded",
}
"""Arguments that the server sets itself, and why, or what sets them."""

RUNS_CODE = frozenset(
    {
        "trust_remote_code",
        "worker_cls",
        "worker_extension_cls",
        "logits_processors",
        "scheduler_cls",
        "io_processor_plugin",
    }
)
"""Arguments that name code to run. What runs is the environment of the release, not what a settings file names."""

_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
_MOST_GPUS = 64


def check(settings: Mapping[str, Any], where: str = "engine.vllm") -> None:
    """Raise ValueError for an argument that a release may not set, with the reason. `where` names the object."""
    for name in sorted(settings):
        if not name.isidentifier():
            hint = name.strip("-").replace("-", "_")
            wanted = f"; as a setting it is called {hint}" if hint.isidentifier() else ""
            raise ValueError(f"{where}.{name} is no name of vLLM's AsyncEngineArgs{wanted}")
        if name in RUNS_CODE:
            raise ValueError(f"{where}.{name} names code to run, which a release cannot bring; install it in its env")
        if name in _SIZES and (type(settings[name]) is not int or not 1 <= settings[name] <= _MOST_GPUS):
            raise ValueError(f"{where}.{name} is {repr(settings[name])[:100]}, not 1 to {_MOST_GPUS}")
        if reason := DECIDED.get(name) or (name.startswith("data_parallel_") and DECIDED["data_parallel_size"]):
            raise ValueError(f"{where}.{name} cannot be set: {reason}")


def check_names(settings: Mapping[str, Any], known: Collection[str], where: str = "engine.vllm") -> None:
    """Raise ValueError for an argument that is not in `known`, the names of the installed vLLM's AsyncEngineArgs."""
    for name in sorted(settings):
        if name not in known:
            near = [other for other in sorted(known) if name in other or other in name]
            wanted = f"; it has {', '.join(near[:3])}" if near else ""
            raise ValueError(f"{where}.{name} is no argument of the vLLM in the release's environment{wanted}")
