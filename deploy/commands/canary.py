"""glmctl promote and glmctl abort."""

from __future__ import annotations

import click

from deploy.commands.options import Options, shared
from deploy.errors import Refused
from deploy.journal.journal import Journal
from deploy.rollout.canary_file import Share


@click.command()
@shared
def promote(options: Options) -> None:
    """End the canary step under way: on to the next share, or to the cutover."""
    options.recover()
    with Journal(options.host).switching():
        weight = _held(Share(options.host).promote())
    options.show({"promoted": weight}, f"the step of {weight:g} % is over; the rollout goes on")


@click.command()
@shared
def abort(options: Options) -> None:
    """End the canary and its rollout: the live slot answers everything again, at once."""
    options.recover()
    with Journal(options.host).switching():  # not while `live` is renamed: then it is the cutover's, and over
        weight = _held(Share(options.host).end())
    options.show({"aborted": weight}, f"the canary of {weight:g} % is over; live alone answers, the rollout ends")


def _held(weight: float | None) -> float:
    if weight is None:
        raise Refused("no canary is under way", hint="`glmctl deploy V --canary 10,50` begins one")
    return weight
