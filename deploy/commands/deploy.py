"""glmctl deploy."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.core import ParameterSource

from deploy.commands.options import STRATEGIES, Duration, Options, Shares, StepDuration, shared
from deploy.errors import DrainCut, RolledBack
from deploy.journal.journal import Journal
from deploy.journal.record import Strategy
from deploy.policy import Policy
from deploy.reports import report
from deploy.rollout import preflight, rollout, weights
from deploy.rollout.plan import Context, Plan
from deploy.rollout.retire import retire_idle_slot
from deploy.rollout.strategy import Choice
from service.contract.canary_file import HEADER

_LIMITS = ("max_error_rate", "max_p95", "max_ttft_p95")
_STRATEGIES = {
    "bake": {"overlap", "swap"},
    "keep_warm": {"overlap"},
    "deadline": {"swap"},
    **{limit: {"overlap", "swap"} for limit in _LIMITS},
}
"""Strategies in which an option has an effect; all, where it is not listed."""


def _header(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Refuse what the canary file may not hold."""
    if value is not None and not HEADER.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not the name of a header")
    return value


@click.command()
@click.argument("version")
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="auto",
    show_default=True,
    help="overlap: load VERSION beside the live version. weights: load its weights into the running processes; same "
    "architecture only. swap: stop the live version first; clients wait meanwhile. auto: the first of these that is "
    "possible.",
)
@click.option(
    "--canary",
    type=Shares(),
    default="",
    help="Ascending shares of the requests for the candidate before the cutover, one step each.",
)
@click.option(
    "--step",
    type=StepDuration(),
    metavar="DURATION|pause",
    default="60s",
    show_default=True,
    help="Duration of each canary step. pause: until `glmctl promote`.",
)
@click.option(
    "--sticky",
    callback=_header,
    is_flag=False,
    flag_value="authorization",
    metavar="[HEADER]",
    help="During a canary step, requests with the same value of HEADER go to the same slot.  [HEADER: Authorization]",
)
@click.option(
    "--mirror",
    type=click.FloatRange(0, 100),
    default=0,
    metavar="PERCENT",
    help="Send this share of the live slot's requests to the candidate too, and compare the responses. Clients never "
    "get them.",
)
@click.option(
    "--analysis/--no-analysis",
    default=True,
    help="Compare error rate and response times of the candidate with the live slot's, repeat its checks, and roll "
    "back if it is worse. Limits: glm.toml. Without analysis, only a dead candidate is rolled back.",
)
@click.option(
    "--max-error-rate",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Roll back if more of the candidate's requests fail.",
)
@click.option("--max-p95", type=Duration(), help="Roll back if the candidate's p95 response time is longer.")
@click.option("--max-ttft-p95", type=Duration(), help="Roll back if the candidate's p95 time to first token is longer.")
@click.option(
    "--bake",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long the new version is watched, while the old one stays loaded.",
)
@click.option(
    "--keep-warm",
    type=Duration(),
    default="0s",
    show_default=True,
    help="How long the old version stays loaded after the bake, for `glmctl rollback`.",
)
@click.option(
    "--drain",
    type=Duration(),
    default="120s",
    show_default=True,
    help="How long requests of the old version may take to finish; what still runs then is cut.",
)
@click.option(
    "--deadline",
    type=Duration(),
    default="10m",
    show_default=True,
    help="With --strategy swap: how long VERSION may take to load before the old version is loaded again.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Also if VERSION is live: load it in the other slot, with the code, settings and addresses as they are now.",
)
@click.option("--dry-run", is_flag=True, help="Run the preflight checks, print the result, change nothing.")
@shared
def deploy(
    options: Options,
    version: str,
    strategy: str,
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
    again: bool,
    dry_run: bool,
) -> None:
    """Move every client to VERSION without losing a request.

    \b
    Phases, in order:
      preflight  check units, policy, disk and memory, begin with the digests
      prepare    point the slot that is not live (the candidate) to VERSION
      vacate     with swap or weights: hold new requests, finish the others
      start      load VERSION and run its checks
      verify     repeat the checks over HTTP, through the candidate's socket;
                 the weights match their digests, unless they did and no
                 file has changed
      canary     with --canary or --mirror: send it a share of the requests
      cutover    rename the symlink `live`; every client moves over
      bake       watch the new version; the old one stays loaded
      retire     let the old version finish its requests, and stop it

    If the candidate fails or is worse than the live version, the rollout goes back by itself and exits with 4 or 5. In
    another terminal, `glmctl promote` ends a canary step, `glmctl abort` the canary, and `glmctl rollback` the bake.
    The receipt at the end accounts for every request. Nothing is done if VERSION is live already.

    DURATION is a number of seconds, or 500ms, 60s, 10m, 2h.

    \b
    Examples:
      glmctl deploy 1.1.0 --dry-run
      glmctl deploy 1.1.0 --bake 10m
      glmctl deploy 1.1.0 --canary 1,10,50 --step 5m
      glmctl deploy 1.1.0 --strategy swap
      glmctl deploy 1.1.0 --again
    """  # noqa: D301  (\b keeps line breaks)
    for ended in options.recover(bake_of=version):
        if ended.error and ended.record.version == version:
            raise ended.error
    context = options.context
    live = context.slots.live
    is_live = live is not None and context.slots.version(live) == version
    if live and is_live and not again and _is_active(context, live):
        document = {"outcome": "unchanged", "version": version, "live": live}
        options.show(document, f"{version} is live already, in {live}")
        return
    needs_two = bool(canary or mirror)
    if needs_two and strategy not in {"auto", "overlap"}:
        raise click.UsageError(f"--canary and --mirror need two loaded versions; --strategy {strategy} loads one")
    if is_live and strategy == "weights":
        raise click.UsageError("--strategy weights loads no code: with --again, use overlap or swap")
    choice = options.choose(strategy, version, needs_two=needs_two)
    if is_live and choice.strategy == "weights":
        choice = Choice("swap", choice.reason)
    for option, reason in _without_effect(choice.strategy, analysis=analysis):
        options.display.line(f"[yellow]note[/] {option} has no effect with {reason}")
    limits = {
        "enabled": None if analysis else False,
        "max_error_rate": max_error_rate / 100 if max_error_rate else None,
        "max_p95": max_p95,
        "max_ttft_p95": max_ttft_p95,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    plan = Plan(
        version,
        strategy=choice.strategy,
        reason=choice.reason,
        bake=bake,
        keep_warm=keep_warm,
        drain=drain,
        canary=canary,
        step=step,
        sticky=sticky,
        mirror=mirror,
        deadline=deadline,
        analysis=Policy.of(context.host).analysis.model_copy(update=given),
    )
    if dry_run:
        _rehearse(options, plan, live)
        return
    if is_live:
        retire_idle_slot(context, context.slots.idle, version, drain)  # a warm copy has the earlier code
    try:
        record = rollout.deploy(context, plan)
    except (DrainCut, RolledBack):
        last = Journal(context.host).last_of("deploy", version)
        if last and not options.json:
            options.display.close()
            report.show(last)
        raise
    options.show(record, report.text(record))


def _is_active(context: Context, slot: str) -> bool:
    return context.systemd.state(context.host.unit(slot)).active == "active"


def _rehearse(options: Options, plan: Plan, live: str | None) -> None:
    context = options.context
    preflight.rehearse(context, plan)
    if plan.strategy == "weights":
        weights.require_possible(context, plan)
        slot = live
        text = f"The weights of {plan.version} could be put into the model in {live}."
    else:
        slot = context.slots.idle
        loaded = "be unloaded first" if plan.strategy == "swap" else f"stay loaded for {plan.bake:g} s"
        old = f"; {context.slots.version(live)} in {live} would {loaded}" if live else ""
        text = f"{plan.version} could be deployed to {slot}{old}."
    document = {
        "outcome": "dry run",
        "version": plan.version,
        "slot": slot,
        "live": live,
        "strategy": plan.strategy,
        "strategy_reason": plan.reason,
    }
    options.show(document, f"{text} Nothing was changed.")


def _without_effect(strategy: Strategy, *, analysis: bool) -> Iterator[tuple[str, str]]:
    """Yield the options on the command line that have no effect, each with the option that is the reason."""
    command_line = click.get_current_context()
    for option in command_line.command.params:
        name = option.name or ""
        if command_line.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if strategy not in _STRATEGIES.get(name, {strategy}):
            yield option.opts[0], f"--strategy {strategy}"
        elif name in _LIMITS and not analysis:
            yield option.opts[0], "--no-analysis"
