"""Other weights into the model that runs (`--strategy weights`), as a rollout with a journal and a receipt.

No process begins or ends. The workers of the live slot read the weights beside those in use, let new requests wait,
finish the ones before them, and are asked the release's checks with the new weights in place. The slot's symlink is
what decides: it is renamed when all of them have passed, and until then every worker goes back, by itself if need be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from deploy.errors import GlmError, NotReady, Refused
from deploy.journal.accounts import Generation, Report, Worker, current, generations
from deploy.journal.journal import Journal, Record, begin
from deploy.releases.compatibility import require_compatible
from deploy.rollout import hooks
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.preflight import preflight
from deploy.rollout.slots import release_target
from deploy.rollout.weights_order import Order, settle

__all__ = ["deploy", "finish", "require_possible", "way_back"]

_LOOK = 0.05  # seconds between two looks at the state files
_LOOK_AGAIN = 0.005  # and while clients wait
_PATIENCE = 60.0  # seconds without a sign of progress from any worker
_OVERLAP = "`--strategy overlap` brings it up in the other slot"


def deploy(context: Context, plan: Plan) -> Record:
    """Give the live slot's model the weights of `plan.version`.

    Raises Refused, NotReady (the old weights are back) or Locked.
    """
    journal = Journal(context.host)
    with journal.lock():
        live = context.slots.live or context.slots.idle
        rollout = Rollout.begin(context, plan, begin(journal, plan.kind, plan.version, live, "weights"))
        change: Change | None = None
        try:
            preflight(rollout)
            change = Change.of(rollout)
            change.prepare()
            change.vacate()
            change.verify()
            change.cutover()
        except (GlmError, KeyboardInterrupt) as error:
            why = str(error) or "interrupted from the keyboard"
            if change is None:
                rollout.end("refused" if isinstance(error, Refused) else "failed", reason=why)
            elif change.is_decided:
                change.order.give("done")  # the symlink may lead elsewhere one day
                rollout.end("done", reason=why)
            else:
                change.call_off()
                rollout.end("interrupted" if isinstance(error, KeyboardInterrupt) else "not ready", reason=why)
            raise
        return rollout.end("done")


@dataclass
class Change:
    """The workers' way to other weights, step by step."""

    rollout: Rollout
    generation: int
    order: Order

    @classmethod
    def of(cls, rollout: Rollout) -> Change:
        """Order nothing yet; raises Refused where it cannot be done."""
        context, plan = rollout.context, rollout.plan
        one = require_possible(context, plan)
        order = Order.to(
            context.host, one, id=rollout.entry.record.id, after=plan.version, seconds=plan.drain + 2 * _PATIENCE
        )
        return cls(rollout, one.generation, order)

    def prepare(self) -> None:
        """Have the weights read, beside those in use, while nobody waits."""
        many = len(self.order.workers)
        who = f"{many} workers of {self.slot} read" if many > 1 else f"the worker of {self.slot} reads"
        self.rollout.enter("prepare", f"{who} the weights of {self.order.after}")
        self.order.give("prepare")
        self._await("prepared", _LOOK)
        hooks.run(self.rollout, "pre_cutover")

    def vacate(self) -> None:
        """Let new requests wait until those before them are answered."""
        drain = self.rollout.plan.drain
        self.rollout.enter("vacate", f"new requests wait until those before them are answered, for {drain:g} s at most")
        self.order.give("vacate")
        self._await("vacated", _LOOK_AGAIN, drain)

    def verify(self) -> None:
        """Have the new weights taken, and the release's checks asked, before any client meets them."""
        release = self.rollout.context.releases.get(self.order.after)
        many = len(release.manifest.checks) or 1
        self.rollout.enter("verify", f"the new weights, and {many} check{'' if many == 1 else 's'} of them")
        self.order.give("verify")
        self._await("passed", _LOOK_AGAIN)

    def cutover(self) -> None:
        """One rename: from here on the new weights hold, in every worker, one that is just being born included."""
        context = self.rollout.context
        self.rollout.enter("cutover", f"{self.slot} -> {self.order.after}")
        self._workers()  # once more, after what the journal cost
        context.slots.point(self.slot, release_target(self.order.after))
        self.order.give("done")
        deadline = time.monotonic() + _PATIENCE
        while not self._is_done():
            if time.monotonic() >= deadline:
                raise GlmError(f"{self.slot} was given {self.order.after} and does not say that it serves it")
            time.sleep(_LOOK_AGAIN)
        hooks.run(self.rollout, "post_cutover")

    def call_off(self) -> None:
        """Have the old weights put back, and see that they are."""
        self.order.give("back")
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and any(one.state not in {"back", "failed"} for one in self._reports()):
            time.sleep(_LOOK)
        self._note_pause()

    @property
    def slot(self) -> str:
        """The slot whose model it is."""
        return self.rollout.candidate

    @property
    def is_decided(self) -> bool:
        """Whether the new weights hold for good."""
        return self.rollout.context.slots.version(self.slot) == self.order.after

    def _await(self, state: str, look: float, limit: float | None = None) -> None:
        """Wait until all workers have come to `state`; raises NotReady when one cannot, or takes too long."""
        began = moved_at = time.monotonic()
        seen: object = None
        while True:
            here = self._reports(self._workers())
            failed = next((one for one in here if one.state in {"failed", "back"}), None)
            if failed is not None:
                raise NotReady(
                    f"the weights of {self.order.after} were not taken: {failed.error or 'a worker went back'}",
                    hint=f"{self.order.before} serves on",
                )
            if len(here) == len(self.order.workers) and all(one.state == state for one in here):
                return
            now = time.monotonic()
            if here != seen:
                seen, moved_at = here, now
            if limit is not None and now - began >= limit:
                raise NotReady(
                    f"requests were still being answered after {limit:g} s, and new ones waited",
                    hint="--drain gives them more time; --strategy overlap lets nobody wait",
                )
            if limit is None and now - moved_at >= _PATIENCE:
                raise NotReady(f"no worker has said anything new for {_PATIENCE:.0f} s", hint=_OVERLAP)
            if here:
                slowest = min(here, key=lambda one: one.progress)
                self.rollout.context.display.progress(f"{slowest.step or slowest.state} {slowest.progress:.0%}")
            time.sleep(look)

    def _workers(self) -> list[Worker]:
        """The workers that were ordered; raises NotReady when one of them, or their generation, is not there any more.

        One that was born meanwhile serves the old version, and nobody has asked it the checks.
        """
        one = current(self.rollout.context.host, self.slot)
        if one is None or one.generation != self.generation:
            raise NotReady(f"{self.slot} is served by another generation now", hint="try again")
        living = {worker.pid: worker for worker in one.living if worker.phase == "ready"}
        gone = [pid for pid in self.order.workers if pid not in living]
        if gone:
            raise NotReady(f"worker {gone[0]} ended meanwhile", hint=f"{self.order.before} serves on")
        return [living[pid] for pid in self.order.workers]

    def _living(self) -> list[Worker]:
        found = generations(self.rollout.context.host, self.slot)
        one = next((one for one in found if one.generation == self.generation), None)
        return [worker for worker in one.living if worker.pid in self.order.workers] if one else []

    def _reports(self, workers: list[Worker] | None = None) -> list[Report]:
        """What the workers, or those of them that live, say of this order."""
        found = [worker.change for worker in (self._living() if workers is None else workers)]
        return [one for one in found if one is not None and one.id == self.order.id]

    def _is_done(self) -> bool:
        """Whether all that serves is of the new version, and the pause is over."""
        self._note_pause()
        return _serves(current(self.rollout.context.host, self.slot), self.order.after) and all(
            one.state == "done" for one in self._reports()
        )

    def _note_pause(self) -> None:
        pauses = [one.pause_ms for one in self._reports() if one.pause_ms is not None]
        if pauses:
            self.rollout.entry.record.pause_ms = max(pauses)


def require_possible(context: Context, plan: Plan) -> Generation:
    """Refuse unless a model runs in the live slot that can take the weights; returns the generation that holds it."""
    live = context.slots.live
    if live is None:
        raise Refused("no slot is live, so no model runs that could take the weights", hint=_OVERLAP)
    if plan.canary:
        raise Refused("one model cannot answer a share of the requests with other weights", hint=_OVERLAP)
    held = context.slots.version(live) or ""
    unit = context.host.unit(live)
    one = current(context.host, live)
    if context.systemd.state(unit).active != "active" or one is None or not one.serves:
        raise Refused(f"{unit} does not serve, so no model runs that could take the weights", hint=_OVERLAP)
    ready = [worker for worker in one.living if worker.phase == "ready"]
    if len(ready) < one.workers_wanted or len(ready) < len(one.living):
        raise Refused(f"{len(ready)} of {one.workers_wanted} workers of {live} are ready", hint="wait for the others")
    if {one.version, *(worker.version for worker in ready)} != {held}:
        raise Refused(f"{live} points to {held} and serves {one.version}", hint="`glmctl reload`, or " + _OVERLAP)
    require_compatible(context.releases.get(held), context.releases.get(plan.version))
    return one


def _serves(one: Generation | None, version: str | None) -> bool:
    """Whether all that serves is of that version, and says so."""
    if one is None or not one.ready:
        return True
    return {one.version, *(worker.version for worker in one.living)} == {version}


def finish(rollout: Rollout) -> tuple[str, str]:
    """End what a controller that died had begun: the slot's symlink says how far it had come."""
    context, record = rollout.context, rollout.entry.record
    held = context.slots.version(record.slot)
    decided = held == record.version
    settle(context.host, record.slot, record.id, "done" if decided else "back")
    deadline = time.monotonic() + _PATIENCE
    while not _serves(current(context.host, record.slot), held) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return ("done", f"{held} serves") if decided else ("interrupted", f"{held or 'nothing'} serves as before")


def way_back(context: Context) -> str | None:
    """The version whose weights the live slot's model held before, if that is how the present one went live."""
    live = context.slots.live
    last = next((one for one in Journal(context.host).newest() if one.outcome == "done"), None)
    if last is None or last.strategy != "weights" or last.slot != live or last.version != context.slots.version(live):
        return None
    return last.previous
