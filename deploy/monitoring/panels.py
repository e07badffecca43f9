"""What the dashboard shows: rows of panels.

`$I` in an expression stands for the matcher of the chosen hosts. A legend that is the version alone has the same colour
in every panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ROWS", "Panel", "Query"]

VERSION = "{{version}}"
SLOT = "{{slot}}"
UNIT = 'id=~".*/glm@(blue|green)[.]service"'


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the names of its series."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel. `unit` is one of Grafana's; `width` is in its columns, of 24."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "state-timeline"] = "timeseries"
    width: int = 8


def _panel(title: str, description: str, *queries: tuple[str, str], unit: str = "short") -> Panel:
    return Panel(title, description, tuple(Query(*one) for one in queries), unit=unit)


def _stat(title: str, description: str, expression: str, legend: str, unit: str = "short") -> Panel:
    return Panel(title, description, (Query(expression, legend),), unit=unit, kind="stat", width=6)


def _states(title: str, description: str, expression: str, legend: str) -> Panel:
    return Panel(title, description, (Query(expression, legend),), kind="state-timeline")


def _quantile(part: float, metric: str, by: str = "version", more: str = "") -> str:
    return f"histogram_quantile({part}, sum by ({by}, le) (rate({metric}_bucket{{$I{more}}}[$__rate_interval])))"


def _rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{$I{more}}}[$__rate_interval]))"


def _outcome(status: str) -> str:
    return f'sum by (version) (increase(glm_requests_total{{$I, route!="internal", status{status}}}[$__range]))'


_ANSWERS = ', route=~"/v1/(chat/completions|completions|responses)"'
_CLIENTS = ', route=~"/v1/.*"'
_OUTCOMES = {"completed": '!~"5..|499"', "failed": '=~"5.."', "client aborted": '="499"'}
_LIVE = "glm_release_info{$I} * on (instance, slot) group_left glm_slot_live{$I} == 1"

ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        _stat("Live", "The version that clients get, and its slot.", _LIVE, "{{version}} in {{slot}}"),
        _stat(
            "Rollout", "The rollout that runs, and its phase. Empty: none.",
            "glm_rollout_running{$I}", "{{kind}} of {{version}}: {{phase}}",
        ),
        _stat(
            "Errors", "Part of the requests to /v1/ of the last 5 minutes that ended with a 5xx.",
            "glm:errors:ratio_rate5m{$I}", "{{instance}}", "percentunit",
        ),
        _stat(
            "Alerts", "The alerts that fire; docs/runbook.md has a section for each. Empty: none.",
            'ALERTS{alertname=~"Glm.*", alertstate="firing"}', "{{alertname}} {{instance}}",
        ),
    ),
    "Slots": (
        _panel(
            "Share of the requests", "Part of the clients' requests that a slot answers: all but in a canary.",
            ("glm_slot_share_ratio{$I}", SLOT), unit="percentunit",
        ),
        _states(
            "Gate open", "1: a worker of the slot accepts connections of clients.",
            "glm_slot_gate_open{$I}", SLOT,
        ),
        _panel(
            "Workers by phase", "Running workers: loading, ready, leaving.",
            ("sum by (slot, phase) (glm_generation_workers{$I})", "{{slot}} {{phase}}"),
        ),
        _panel(
            "Connections handed over", "Connections of clients that one process passed on to another.",
            (_rate("glm_connections_handed_over_total", "version"), VERSION),
            (_rate("glm_connections_adopted_total", "version"), "adopted by {{version}}"),
            unit="ops",
        ),
        _panel(
            "Seconds in the phase", "How long the phase of a running rollout has lasted.",
            ("time() - glm_rollout_phase_timestamp_seconds{$I}", "{{phase}}"), unit="s",
        ),
        _panel(
            "Load by part", "What the start of a worker took: each part of it, and in all.",
            ("max by (version, part) (glm_model_load_part_seconds{$I})", "{{version}} {{part}}"),
            ("max by (version) (glm_model_load_seconds{$I})", VERSION),
            unit="s",
        ),
    ),
    "Requests": (
        _panel(
            "Requests", "Ended requests to /v1/, by the version that answered.",
            (_rate("glm_requests_total", "version", _CLIENTS), VERSION), unit="reqps",
        ),
        _panel(
            "In flight", "Requests that were accepted and have not ended.",
            ("sum by (version) (glm_requests_in_flight{$I})", VERSION),
        ),
        _panel(
            "By status", "Ended requests to /v1/. 499: the client went away before the answer was complete.",
            (_rate("glm_requests_total", "status", _CLIENTS), "{{status}}"), unit="reqps",
        ),
        _panel(
            "Errors by kind", "Requests that ended with an error, by its code; queue_full and queue_timeout are a 429.",
            (_rate("glm_errors_total", "kind, version"), "{{version}} {{kind}}"), unit="reqps",
        ),
        _panel(
            "Latency, p50", "From the head of a request for an answer to the answer's last byte.",
            (_quantile(0.5, "glm_request_seconds", more=_ANSWERS), VERSION), unit="s",
        ),
        _panel(
            "Latency, p95", "As the p50; the slowest twentieth takes longer.",
            (_quantile(0.95, "glm_request_seconds", more=_ANSWERS), VERSION), unit="s",
        ),
        _panel(
            "Mirrored, by outcome", "Copies of requests that the candidate of a rollout answered, and nobody got.",
            (_rate("glm_mirrored_total", "outcome"), "{{outcome}}"), unit="reqps",
        ),
    ),
    "Tokens": (
        _panel(
            "First token, p50", "From the call of the engine to the first token, waits for a row included.",
            (_quantile(0.5, "glm_time_to_first_token_seconds"), VERSION), unit="s",
        ),
        _panel(
            "First token, p95", "As the p50; the slowest twentieth takes longer.",
            (_quantile(0.95, "glm_time_to_first_token_seconds"), VERSION), unit="s",
        ),
        _panel(
            "Time per token, p95", "Mean time between two tokens of an answer, after its first.",
            (_quantile(0.95, "glm_time_per_output_token_seconds"), VERSION), unit="s",
        ),
        _panel(
            "Generated tokens/s", "Of completed answers.",
            (_rate("glm_generated_tokens_total", "version"), VERSION),
        ),
        _panel(
            "Prompt tokens/s", "Of completed answers.",
            (_rate("glm_prompt_tokens_total", "version"), VERSION),
        ),
        _panel(
            "Sequences of a step", "The mean batch size: sequences for each forward pass of the engine.",
            (f"{_rate('glm_engine_step_sequences_total', 'version')} / {_rate('glm_engine_steps_total', 'version')}",
             VERSION),
        ),
    ),
    "Engine": (
        _panel(
            "Waiting for a row", "The length of the engine's queue, in answers.",
            ("sum by (version) (glm_engine_waiting{$I})", VERSION),
        ),
        _panel(
            "Wait for a row, p95", "The time in that queue.",
            (_quantile(0.95, "glm_queue_wait_seconds"), VERSION), unit="s",
        ),
        _panel(
            "Running", "Answers that are being generated.",
            ("sum by (version) (glm_engine_running{$I})", VERSION),
        ),
        _panel(
            "KV cache", "Part of the cache's tokens that running answers have reserved.",
            ("sum by (version) (glm_engine_kv_tokens{$I}) / sum by (version) (glm_engine_kv_capacity_tokens{$I})",
             VERSION),
            unit="percentunit",
        ),
        _panel(
            "Images found in the cache", "Part of the images whose features had not to be computed again.",
            (f"{_rate('glm_image_cache_hits_total', 'version')} / ({_rate('glm_image_cache_hits_total', 'version')}"
             f" + {_rate('glm_image_cache_misses_total', 'version')})", VERSION),
            unit="percentunit",
        ),
    ),
    "GPU": (
        _panel(
            "Utilisation", "Part of the time in which the GPU computed, by NVML. Empty on a host without one.",
            ("glm_gpu_utilization_ratio{$I}", "{{instance}} {{device}}"), unit="percentunit",
        ),
        _panel(
            "Memory", "What the workers of a slot hold, what all programs use, and the size of the GPU's memory.",
            ("glm_gpu_slot_memory_bytes{$I}", "{{device}} {{slot}}"),
            ("glm_gpu_memory_used_bytes{$I}", "{{device}} used"),
            ("glm_gpu_memory_size_bytes{$I}", "{{device}} size"),
            unit="bytes",
        ),
        _panel(
            "Temperature", "Of the GPU. Over its limit it computes more slowly.",
            ("glm_gpu_temperature_celsius{$I}", "{{instance}} {{device}}"), unit="celsius",
        ),
        _panel(
            "Power", "What the GPU draws.",
            ("glm_gpu_power_watts{$I}", "{{instance}} {{device}}"), unit="watt",
        ),
        _panel(
            "Workers by device", "Workers that have loaded their model, by the GPU that they are pinned to.",
            ("sum by (slot, device) (glm_workers{$I})", "{{slot}} {{device}}"),
        ),
        _panel(
            "Last Xid error", "By DCGM. The number of the driver's last error, 0 for none.",
            ("DCGM_FI_DEV_XID_ERRORS{$I}", "GPU {{gpu}}"),
        ),
    ),
    "Host": (
        _panel(
            "Processors of the units", "By cAdvisor. Processors that a unit used, on average.",
            (f"sum by (id) (rate(container_cpu_usage_seconds_total{{$I, {UNIT}}}[$__rate_interval]))", "{{id}}"),
        ),
        _panel(
            "Memory of the units", "By cAdvisor. What a unit uses and the kernel cannot take away.",
            (f"sum by (id) (container_memory_working_set_bytes{{$I, {UNIT}}})", "{{id}}"),
            unit="bytes",
        ),
        _panel(
            "Memory of the host", "By node_exporter. What programs can still get without swapping.",
            ("node_memory_MemAvailable_bytes{$I}", "{{instance}} available"), unit="bytes",
        ),
        _panel(
            "Free disk space", "Of the file systems of the releases and of the state: journal, files and batches.",
            ("glm_disk_free_bytes{$I}", "{{directory}}"),
            ("glm_disk_size_bytes{$I}", "{{directory}} size"),
            unit="bytes",
        ),
        _panel(
            "Restarts by systemd", "By node_exporter. The watchdog, or a master that ended by itself.",
            ('increase(node_systemd_service_restart_total{$I, name=~"glm.*"}[$__rate_interval])', "{{name}}"),
        ),
    ),
    "Rollouts": (
        _panel(
            "Ended rollouts", "Since the host started, by outcome.",
            ("sum by (kind, outcome) (glm_rollouts_total{$I})", "{{kind}}: {{outcome}}"),
        ),
        _panel(
            "Receipt",
            "Requests of clients that ended in the chosen time. Over the time of a rollout the receipt of"
            " `glmctl history ID` has the same sums, and those of workers that were killed: nobody counts these here.",
            *((_outcome(status), f"{{{{version}}}} {name}") for name, status in _OUTCOMES.items()),
        ),
        _panel(
            "Connections under way between processes",
            "Handed over and not yet adopted. A value that stays: connections that were lost.",
            ("sum by (instance) (glm_connections_handed_over_total{$I})"
             " - sum by (instance) (glm_connections_adopted_total{$I})", "{{instance}}"),
        ),
        _panel(
            "Program", "What is installed on the hosts; and 1 for a rollout whose glmctl has died.",
            ("glm_build_info{$I}", "{{instance}}: {{version}}, torch {{torch}}"),
            ("glm_rollout_interrupted{$I}", "{{instance}}: interrupted rollout"),
        ),
    ),
}  # fmt: skip
