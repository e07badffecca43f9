"""What the dashboard marks on the time axis: rollouts, their outcomes and cutovers, and alerts.

`$I` in an expression stands for the matcher of the chosen hosts.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ANNOTATIONS", "Annotation"]


@dataclass(frozen=True)
class Annotation:
    """Marks on the time axis while `expression` has samples."""

    name: str
    expression: str
    title: str
    text: str
    colour: str


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
