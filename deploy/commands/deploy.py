"""glmctl deploy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import click
from click.core import ParameterSource

from deploy.commands.options import Duration, Options, Shares, Step, shared
from deploy.errors import DrainCut, RolledBack
from deploy.journal.journal import Journal, Strategy
from deploy.policy import Policy
from deploy.reports import report
from deploy.rollout import preflight
from deploy.rollout import weights as inplace
from deploy.rollout.plan import Plan
from deploy.rollout.rollout import deploy as roll_out

_LIMITS = ("max_error_rate", "max_p95", "max_ttft_p95")
_HEEDED_BY = {
    "bake": {"overlap", "swap"},
    "keep_warm": {"overlap"},
    "deadline": {"swap"},
    **{limit: {"overlap", "swap"} for limit in _LIMITS},
}
"""Strategies for which an option means something, where that is not all of them."""


@click.command()
@click.argument("version")
@click.option(
    "--strategy",
    type=click.Choice(get_args(Strategy)),
    default="overlap",
    show_default=True,
    help="overlap: beside the old version. swap: after it left, where two do not fit; clients wait meanwhile. weights: "
    "new weights into the running model, for a release of the same architecture.",
)
@click.option(
    "--canary",
    type=Shares(),
    default="",
    metavar="PERCENT,…",
    help="Shares of the requests that it answers before cutover: 10,50.",
)
@click.option(
    "--step", type=Step(), default="60s", show_default=True, help="How long each share holds; `pause`: until promote."
)
@click.option(
    "--sticky",
    is_flag=False,
    flag_value="authorization",
    metavar="[HEADER]",
    help="Requests with the same value of this header (Authorization) stay on one side for a step.",
)
@click.option(
    "--mirror",
    type=click.FloatRange(0, 100),
    default=0,
    metavar="PERCENT",
    help="Ask the candidate this share of the live slot's requests too, compare the answers, throw them away.",
)
@click.option(
    "--analysis/--no-analysis",
    default=True,
    help="Compare its errors and times with the live slot's, ask its checks again, and roll back if it is worse; "
    "limits: glm.toml. Without: only its death is a reason to.",
)
@click.option("--max-error-rate", type=click.FloatRange(0, 100), metavar="PERCENT", help="Roll back above this.")
@click.option("--max-p95", type=Duration(), help="Roll back when its slowest twentieth takes longer than this.")
@click.option("--max-ttft-p95", type=Duration(), help="The same, until the first token.")
@click.option("--bake", type=Duration(), default="60s", show_default=True, help="How long the old slot stays warm.")
@click.option(
    "--keep-warm",
    type=Duration(),
    default="0s",
    show_default=True,
    help="How long the old slot stays warm after that, unwatched, so that `rollback` is the rename.",
)
@click.option("--drain", type=Duration(), default="120s", show_default=True, help="How long it may finish requests.")
@click.option(
    "--deadline",
    type=Duration(),
    default="10m",
    show_default=True,
    help="swap: how long the new version may load before the old one is brought back.",
)
@click.option(
    "--dry-run", is_flag=True, help="Check everything that can be checked, say what would be done, do nothing."
)
@shared
def deploy(
    options: Options,
    version: str,
    strategy: Strategy,
    canary: tuple[float, ...],
    step: float | None,
    sticky: str | None,
    mirror: float,
    analysis: bool,
    max_error_rate: float | None,
    max_p95: float | None,
    max_ttft_p95: float | None,
    bake: float,
    keep_warm: float,
    drain: float,
    deadline: float,
    dry_run: bool,
) -> None:
    """Move every client to VERSION, and lose nothing.

    preflight, prepare, start, verify, canary, cutover, bake, retire: the new version is loaded beside the old one, has
    to prove itself, answers a share of the requests if you say so, gets every client by one rename, and is watched
    while the old one stays warm. `glmctl promote` and `abort`, from another terminal, end a canary step; `glmctl
    rollback` goes back at once while it bakes. The receipt at the end accounts for every request.
    """
    options.recover()
    context = options.context
    live = context.slots.live
    if (
        live
        and context.slots.version(live) == version
        and context.systemd.state(context.host.unit(live)).active == "active"
    ):
        options.show(
            {"outcome": "unchanged", "version": version, "live": live}, f"{version} is live already, in {live}"
        )
        return
    if strategy != "overlap" and (canary or mirror):
        raise click.UsageError(f"--strategy {strategy} has no second copy that could answer a share of the requests")
    for option, why in _unheeded(strategy, analysis=analysis):
        options.display.line(f"[yellow]note[/] {option} means nothing with {why}")
    given = {
        "enabled": None if analysis else False,
        "max_error_rate": max_error_rate / 100 if max_error_rate else None,
        "max_p95": max_p95,
        "max_ttft_p95": max_ttft_p95,
    }
    limits = Policy.of(options.host).analysis
    plan = Plan(
        version,
        strategy=strategy,
        bake=bake,
        keep_warm=keep_warm,
        drain=drain,
        canary=canary,
        step=step,
        sticky=sticky,
        mirror=mirror,
        deadline=deadline,
        analysis=limits.model_copy(update={name: value for name, value in given.items() if value is not None}),
    )
    if dry_run:
        preflight.rehearse(context, plan)
        if strategy == "weights":
            inplace.require_possible(context, plan)
            text = f"The weights of {version} could be put into the model in {live}. Nothing was touched."
            options.show({"outcome": "dry run", "version": version, "slot": live, "live": live}, text)
            return
        old = f"; {context.slots.version(live)} in {live} would stay warm for {bake:g} s" if live else ""
        options.show(
            {"outcome": "dry run", "version": version, "slot": context.slots.idle, "live": live},
            f"{version} could be deployed to {context.slots.idle}{old}. Nothing was touched.",
        )
        return
    try:
        record = roll_out(context, plan)
    except (DrainCut, RolledBack):
        last = Journal(context.host).last_of("deploy", version)
        if last and not options.json:
            options.display.close()
            report.show(last)
        raise
    options.show(record, report.text(record))


def _unheeded(strategy: Strategy, *, analysis: bool) -> Iterator[tuple[str, str]]:
    """Options that were given and will not matter, each with the one that it means nothing beside."""
    ctx = click.get_current_context()
    for option in ctx.command.params:
        name = option.name or ""
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if strategy not in _HEEDED_BY.get(name, {strategy}):
            yield option.opts[0], f"--strategy {strategy}"
        elif name in _LIMITS and not analysis:
            yield option.opts[0], "--no-analysis"
