"""What the dashboard shows: rows of panels, and the annotations.

`$I` in an expression stands for the matcher of the chosen hosts. A legend that is the version alone has the same colour
in every panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ANNOTATIONS", "ROWS", "Annotation", "Panel", "Query"]

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
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "state-timeline"] = "timeseries"
    width: int = 8
    description: str = ""


@dataclass(frozen=True)
class Annotation:
    """Marks on the time axis while `expression` has samples."""

    name: str
    expression: str
    title: str
    text: str
    colour: str


def _panel(title: str, *queries: tuple[str, str], unit: str = "short", width: int = 8, description: str = "") -> Panel:
    found = tuple(Query(*one) for one in queries)
    return Panel(title, found, unit=unit, width=width, description=description)


def _stat(title: str, expression: str, legend: str, unit: str = "short") -> Panel:
    return Panel(title, (Query(expression, legend),), unit=unit, kind="stat", width=6)


def _states(title: str, expression: str, legend: str) -> Panel:
    return Panel(title, (Query(expression, legend),), kind="state-timeline")


def _quantile(part: float, metric: str, by: str = "version", more: str = "") -> str:
    return f"histogram_quantile({part}, sum by ({by}, le) (rate({metric}_bucket{{$I{more}}}[$__rate_interval])))"


def _rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{$I{more}}}[$__rate_interval]))"


_ANSWERS = ', route=~"/v1/(chat/completions|completions|responses)"'
_CLIENTS = ', route=~"/v1/.*"'
_LIVE = "glm_release_info{$I} * on (instance, slot) group_left glm_slot_live{$I} == 1"

ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        _stat("Live", _LIVE, "{{version}} in {{slot}}"),
        _stat("Rollout", "glm_rollout_running{$I}", "{{kind}} of {{version}}: {{phase}}"),
        _stat("Errors", "glm:errors:ratio_rate5m{$I}", "{{instance}}", "percentunit"),
        _stat("Alerts", 'ALERTS{alertname=~"Glm.*", alertstate="firing"}', "{{alertname}} {{instance}}"),
    ),
    "Slots": (
        _panel("Share of the requests", ("glm_slot_share_ratio{$I}", SLOT), unit="percentunit"),
        _states("Gate open", "glm_slot_gate_open{$I}", SLOT),
        _panel("Workers by phase", ("sum by (slot, phase) (glm_generation_workers{$I})", "{{slot}} {{phase}}")),
        _panel(
            "Connections handed over",
            (_rate("glm_connections_handed_over_total", "version"), VERSION),
            (_rate("glm_connections_adopted_total", "version"), "adopted by {{version}}"),
            unit="ops",
        ),
        _panel("Seconds in the phase", ("time() - glm_rollout_phase_timestamp_seconds{$I}", "{{phase}}"), unit="s"),
        _panel(
            "Load by part",
            ("max by (version, part) (glm_model_load_part_seconds{$I})", "{{version}} {{part}}"),
            ("max by (version) (glm_model_load_seconds{$I})", VERSION),
            unit="s",
        ),
    ),
    "Requests": (
        _panel("Requests", (_rate("glm_requests_total", "version", _CLIENTS), VERSION), unit="reqps"),
        _panel("In flight", ("sum by (version) (glm_requests_in_flight{$I})", VERSION)),
        _panel("By status", (_rate("glm_requests_total", "status", _CLIENTS), "{{status}}"), unit="reqps"),
        _panel("Errors by kind", (_rate("glm_errors_total", "kind, version"), "{{version}} {{kind}}"), unit="reqps"),
        _panel("Latency, p50", (_quantile(0.5, "glm_request_seconds", more=_ANSWERS), VERSION), unit="s"),
        _panel("Latency, p95", (_quantile(0.95, "glm_request_seconds", more=_ANSWERS), VERSION), unit="s"),
        _panel("Mirrored, by outcome", (_rate("glm_mirrored_total", "outcome"), "{{outcome}}"), unit="reqps"),
    ),
    "Tokens": (
        _panel("First token, p50", (_quantile(0.5, "glm_time_to_first_token_seconds"), VERSION), unit="s"),
        _panel("First token, p95", (_quantile(0.95, "glm_time_to_first_token_seconds"), VERSION), unit="s"),
        _panel("Time per token, p95", (_quantile(0.95, "glm_time_per_output_token_seconds"), VERSION), unit="s"),
        _panel("Generated tokens/s", (_rate("glm_generated_tokens_total", "version"), VERSION)),
        _panel("Prompt tokens/s", (_rate("glm_prompt_tokens_total", "version"), VERSION)),
        _panel(
            "Sequences of a step",
            (f"{_rate('glm_engine_step_sequences_total', 'version')} / {_rate('glm_engine_steps_total', 'version')}",
             VERSION),
        ),
    ),
    "Engine": (
        _panel("Waiting for a row", ("sum by (version) (glm_engine_waiting{$I})", VERSION)),
        _panel("Wait for a row, p95", (_quantile(0.95, "glm_queue_wait_seconds"), VERSION), unit="s"),
        _panel("Running", ("sum by (version) (glm_engine_running{$I})", VERSION)),
        _panel(
            "KV cache",
            ("sum by (version) (glm_engine_kv_tokens{$I}) / sum by (version) (glm_engine_kv_capacity_tokens{$I})",
             VERSION),
            unit="percentunit",
        ),
        _panel(
            "Images found in the cache",
            (f"{_rate('glm_image_cache_hits_total', 'version')} / ({_rate('glm_image_cache_hits_total', 'version')}"
             f" + {_rate('glm_image_cache_misses_total', 'version')})", VERSION),
            unit="percentunit",
        ),
    ),
    "GPU": (
        _panel("Utilisation", ("glm_gpu_utilization_ratio{$I}", "{{instance}} {{device}}"), unit="percentunit"),
        _panel(
            "Memory",
            ("glm_gpu_slot_memory_bytes{$I}", "{{device}} {{slot}}"),
            ("glm_gpu_memory_used_bytes{$I}", "{{device}} used"),
            ("glm_gpu_memory_size_bytes{$I}", "{{device}} size"),
            unit="bytes",
        ),
        _panel("Temperature", ("glm_gpu_temperature_celsius{$I}", "{{instance}} {{device}}"), unit="celsius"),
        _panel("Power", ("glm_gpu_power_watts{$I}", "{{instance}} {{device}}"), unit="watt"),
        _panel("Workers by device", ("sum by (slot, device) (glm_workers{$I})", "{{slot}} {{device}}")),
        _panel("Last Xid error", ("DCGM_FI_DEV_XID_ERRORS{$I}", "GPU {{gpu}}"), description="By DCGM."),
    ),
    "Host": (
        _panel(
            "Processors of the units",
            (f"sum by (id) (rate(container_cpu_usage_seconds_total{{$I, {UNIT}}}[$__rate_interval]))", "{{id}}"),
            description="By cAdvisor.",
        ),
        _panel(
            "Memory of the units",
            (f"sum by (id) (container_memory_working_set_bytes{{$I, {UNIT}}})", "{{id}}"),
            unit="bytes",
            description="By cAdvisor.",
        ),
        _panel(
            "Memory of the host", ("node_memory_MemAvailable_bytes{$I}", "{{instance}} available"), unit="bytes",
            description="By node_exporter.",
        ),
        _panel(
            "Free disk space",
            ("glm_disk_free_bytes{$I}", "{{directory}}"),
            ("glm_disk_size_bytes{$I}", "{{directory}} size"),
            unit="bytes",
        ),
        _panel(
            "Restarts by systemd",
            ('increase(node_systemd_service_restart_total{$I, name=~"glm.*"}[$__rate_interval])', "{{name}}"),
            description="By node_exporter.",
        ),
    ),
    "Rollouts": (
        _panel("Ended rollouts", ("sum by (kind, outcome) (glm_rollouts_total{$I})", "{{kind}}: {{outcome}}")),
        _panel(
            "Ended requests by status and version",
            (f"sum by (version, status) (increase(glm_requests_total{{$I{_CLIENTS}}}[$__range]))",
             "{{version}}: {{status}}"),
            description="In the chosen time. The receipt of a rollout has the same sums: glmctl history ID.",
        ),
        _panel(
            "Connections under way between processes",
            ("sum by (instance) (glm_connections_handed_over_total{$I})"
             " - sum by (instance) (glm_connections_adopted_total{$I})", "{{instance}}"),
            description="Handed over and not yet adopted. A value that stays: connections that were lost.",
        ),
        _panel(
            "Program",
            ("glm_build_info{$I}", "{{instance}}: {{version}}, torch {{torch}}"),
            ("glm_rollout_interrupted{$I}", "{{instance}}: interrupted rollout"),
        ),
    ),
}  # fmt: skip

ANNOTATIONS = (
    Annotation(
        "Rollouts", "glm_rollout_running{$I}", "{{kind}} of {{version}}", "{{id}} {{strategy}} {{phase}}", "blue"
    ),
    Annotation(
        "Outcomes",
        "(glm_rollouts_total{$I} unless glm_rollouts_total{$I} offset 1m)"
        " or (glm_rollouts_total{$I} > glm_rollouts_total{$I} offset 1m)",
        "{{kind}}: {{outcome}}",
        "{{instance}}",
        "purple",
    ),
    Annotation(
        "Cutovers",
        "glm_slot_live{$I} == 1 and (glm_slot_live{$I} offset 1m == 0)",
        "{{slot}} is live",
        "{{instance}}",
        "green",
    ),
    Annotation(
        "Alerts", 'ALERTS{alertname=~"Glm.*", alertstate="firing"}', "{{alertname}}", "{{instance}} {{severity}}", "red"
    ),
)
