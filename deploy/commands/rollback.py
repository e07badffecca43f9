"""glmctl rollback."""

from __future__ import annotations

import click

from deploy.commands.options import STRATEGIES, Duration, Options, shared
from deploy.errors import Unrecorded
from deploy.reports import report
from deploy.rollout import preflight, weights
from deploy.rollout.plan import Plan
from deploy.rollout.rollback import is_at_hand, target
from deploy.rollout.rollback import rollback as roll_back
from deploy.systemd import programs


@click.command()
@click.argument("version", required=False)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    help="As in deploy, if the version has to be loaded.  [default: weights if the live version was deployed with it, "
    "else auto]",
)
@click.option(
    "--drain", type=Duration(), default="120s", show_default=True, help="As in deploy, if the version has to be loaded."
)
@click.option("--dry-run", is_flag=True, help="Tell which version it would be, change nothing.")
@click.option("--force", is_flag=True, help="Also if VERSION was found worse and rolled back itself.")
@shared
def rollback(
    options: Options, version: str | None, strategy: str | None, drain: float, dry_run: bool, force: bool
) -> None:
    """Go back to the version that served before, or to VERSION.

    Without VERSION: the version that was live last and was not rolled back itself by the analysis, or because it died.

    While that version is still loaded in the other slot, `live` is renamed back within milliseconds. Both slots stay
    loaded then, so that a second rollback undoes the first. A deploy that is baking in another terminal ends with exit
    code 5. Otherwise the version is loaded first, as by a deploy without a bake.

    \b
    Examples:
      glmctl rollback
      glmctl rollback --dry-run
      glmctl rollback 1.0.0
    """  # noqa: D301  (\b keeps line breaks)
    programs.require()
    options.require_change()
    context = options.context
    wanted = target(context, version, force=force)
    if not is_at_hand(context, wanted):
        _recover(options)
        wanted = target(context, version, force=force)
    preflight.require_units(context)
    live = context.slots.version(context.slots.live or "")
    if dry_run:
        document = {"outcome": "dry run", "version": wanted, "live": live, "loaded": is_at_hand(context, wanted)}
        options.show(document, f"It would go from {live} back to {wanted}. Nothing was changed.")
        return
    if version is None:
        options.display.line(f"{'':10}back to {wanted}, which served before {live}")
    if strategy is None:
        strategy = "weights" if wanted == weights.previous_version(context) else "auto"
    if strategy == "auto" and is_at_hand(context, wanted):
        strategy = "overlap"  # nothing is loaded, and no time is lost
    choice = options.choose(strategy, wanted)
    plan = Plan(wanted, kind="rollback", strategy=choice.strategy, reason=choice.reason, bake=0.0, drain=drain)
    record = roll_back(context, plan)
    _recover(options)  # ends a deploy whose controller was killed during the bake
    options.show(record, report.text(record))


def _recover(options: Options) -> None:
    """End interrupted rollouts, as far as that can be recorded."""
    try:
        options.recover()
    except Unrecorded as error:
        options.note(f"{error}; an interrupted rollout was not ended")
