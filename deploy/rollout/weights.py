"""The weights strategy: the running model of the live slot gets the weights of another release.

No process is started or ended. The workers read the new weights beside those in use, hold new requests back, finish the
others, and run the release's checks with the new weights in place. Then the slot's symlink is renamed, which decides:
until then every worker returns to the old weights, even if the controller dies.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from deploy.display import count
from deploy.errors import GlmError, NotReady, Refused
from deploy.journal.journal import Journal, begin
from deploy.journal.record import Record
from deploy.releases.compatibility import require_compatible
from deploy.rollout import hooks
from deploy.rollout.checks import checks_of
from deploy.rollout.frame import recorded
from deploy.rollout.plan import Context, Plan, Rollout
from deploy.rollout.preflight import preflight
from deploy.rollout.waiting import wait_for
from service.contract.generations import Generation, current, generations
from service.contract.slots import generation_directory, release_target
from service.contract.weights_order import Step, WeightsOrder, WeightsOrderFile, own_order, settle
from service.contract.worker_state import SwapReport, WorkerState

__all__ = ["deploy", "previous_version", "require_possible", "undo"]

_POLL = 0.05  # seconds between two reads of the state files
_POLL_PAUSED = 0.005  # the same while requests wait
_STALL = 60.0  # seconds without progress of any worker
_OVERLAP = "`--strategy overlap` loads it in the other slot"


def deploy(context: Context, plan: Plan) -> Record:
    """Replace the weights of the live slot's model by those of `plan.version`.

    Raises Refused, NotReady (the old weights are in use) or Locked.
    """
    journal = Journal(context.host)
    with journal.lock():
        slot = context.slots.live or context.slots.idle
        rollout = Rollout.begin(context, plan, begin(journal, plan.kind, plan.version, slot, "weights"))
        with recorded(rollout, undo):
            preflight(rollout)
            weights = WeightsRollout.create(rollout)
            weights.prepare()
            weights.vacate()
            weights.verify()
            weights.cutover()
        return rollout.record


def undo(rollout: Rollout) -> bool:
    """End the order: with the new weights if the slot's symlink leads to them, else with the old ones.

    Returns False if the new weights stay.
    """
    context, record = rollout.context, rollout.record
    if record.phase == "preflight":
        return True
    root, runtime = context.host.root, context.host.runtime
    version = context.slots.version(record.slot)
    is_decided = version == record.version
    settle(root, runtime, record.slot, record.id, "done" if is_decided else "back")

    def is_settled() -> bool:
        workers = [worker for one in generations(runtime, record.slot) for worker in one.alive_workers]
        have_ended = all(report.state in {"done", "back", "failed"} for report in _reports(rollout, workers))
        return have_ended and _serves(current(runtime, record.slot), version)

    wait_for(is_settled, _STALL)
    return not is_decided


@dataclass(frozen=True)
class WeightsRollout:
    """The order to the workers of one generation, step by step."""

    rollout: Rollout
    generation: int
    order: WeightsOrder
    file: WeightsOrderFile

    @classmethod
    def create(cls, rollout: Rollout) -> WeightsRollout:
        """Prepare an order to the workers of the live generation; raises Refused if the weights cannot be replaced."""
        host, plan = rollout.context.host, rollout.plan
        found = require_possible(rollout.context, plan)
        order = own_order(
            id=rollout.record.id,
            before=found.version,
            after=plan.version,
            workers=tuple(worker.pid for worker in found.alive_workers),
            seconds=plan.drain + 2 * _STALL,
        )
        directory = generation_directory(host.runtime, found.slot, found.generation)
        return cls(rollout, found.generation, order, WeightsOrderFile(host.root, found.slot, directory))

    def prepare(self) -> None:
        """Have the new weights read and compared with their digests while the old ones serve; raises NotReady."""
        readers = count(len(self.order.workers), "worker")
        self.rollout.enter("prepare", f"the weights of {self.order.after} into {readers} of {self.slot}")
        self._order("prepare")
        self._await("prepared", _POLL)
        self.rollout.require_digests(self._workers)
        hooks.run(self.rollout, "pre_cutover")

    def vacate(self) -> None:
        """Hold new requests back and wait for the others to finish; raises NotReady after the drain time."""
        drain = self.rollout.plan.drain
        self.rollout.enter("vacate", f"new requests wait until the others have finished, {drain:g} s at most")
        self._order("vacate")
        self._await("vacated", _POLL_PAUSED, drain)

    def verify(self) -> None:
        """Have the new weights put in place and the release's checks run on them; raises NotReady."""
        release = self.rollout.context.releases.get(self.order.after)
        self.rollout.enter("verify", f"{count(len(checks_of(release)), 'check')} on the new weights")
        self._order("verify")
        self._await("passed", _POLL_PAUSED)

    def cutover(self) -> None:
        """Rename the slot's symlink: the new weights hold in every worker, also in those that start later."""
        context = self.rollout.context
        self.rollout.enter("cutover", f"{self.slot} -> {self.order.after}")
        self._workers()  # writing the journal took time
        context.slots.point(self.slot, release_target(self.order.after))
        self._order("done")
        deadline = time.monotonic() + _STALL
        while not self._is_done():
            if time.monotonic() >= deadline:
                raise GlmError(f"{self.slot} does not report {self.order.after}, although its symlink leads there")
            time.sleep(_POLL_PAUSED)
        hooks.run(self.rollout, "post_cutover")

    @property
    def slot(self) -> str:
        """The live slot."""
        return self.rollout.candidate

    def _order(self, step: Step) -> None:
        self.file.write(replace(self.order, step=step))

    def _await(self, state: str, poll: float, limit: float | None = None) -> None:
        """Wait until all workers report `state`.

        Raises NotReady if one failed, after `limit` seconds, or without a limit after _STALL seconds without progress.
        """
        began = moved_at = time.monotonic()
        seen: object = None
        while True:
            reports = _reports(self.rollout, self._workers())
            failed = next((report for report in reports if report.state in {"failed", "back"}), None)
            if failed is not None:
                raise NotReady(
                    f"the weights of {self.order.after} were not used: {failed.error or 'a worker went back'}",
                    hint=f"{self.order.before} is still live",
                )
            if len(reports) == len(self.order.workers) and all(report.state == state for report in reports):
                return
            now = time.monotonic()
            if reports != seen:
                seen, moved_at = reports, now
            if limit is not None and now - began >= limit:
                raise NotReady(
                    f"requests were still in flight after {limit:g} s, and new ones waited",
                    hint="--drain allows more time; with --strategy overlap no request waits",
                )
            if limit is None and now - moved_at >= _STALL:
                raise NotReady(f"no worker made progress for {_STALL:.0f} s", hint=_OVERLAP)
            if reports:
                slowest = min(reports, key=lambda report: report.progress)
                self.rollout.context.display.progress(f"{slowest.step or slowest.state} {slowest.progress:.0%}")
            time.sleep(poll)

    def _workers(self) -> list[WorkerState]:
        """Return the workers of the order; raises NotReady if one of them, or their generation, has ended.

        A worker that was started meanwhile holds the old weights and has not run the checks.
        """
        found = current(self.rollout.context.host.runtime, self.slot)
        if found is None or found.generation != self.generation:
            raise NotReady(f"{self.slot} is served by another generation now", hint="try again")
        ready = {worker.pid: worker for worker in found.alive_workers if worker.phase == "ready"}
        ended = [pid for pid in self.order.workers if pid not in ready]
        if ended:
            raise NotReady(f"worker {ended[0]} ended meanwhile", hint=f"{self.order.before} is still live")
        return [ready[pid] for pid in self.order.workers]

    def _is_done(self) -> bool:
        """Return whether all workers serve the new version and no request waits any longer."""
        found = current(self.rollout.context.host.runtime, self.slot)
        reports = _reports(self.rollout, found.alive_workers if found else [])
        return _serves(found, self.order.after) and all(report.state == "done" for report in reports)


def require_possible(context: Context, plan: Plan) -> Generation:
    """Return the live slot's generation; raises Refused if its model cannot get the weights of `plan.version`."""
    live = context.slots.live
    if live is None:
        raise Refused("no slot is live, so there is no running model", hint=_OVERLAP)
    if plan.canary:
        raise Refused("one model cannot serve a canary's share with other weights", hint=_OVERLAP)
    version = context.slots.version(live) or ""
    unit = context.host.unit(live)
    found = current(context.host.runtime, live)
    if context.systemd.state(unit).active != "active" or found is None or not found.is_serving:
        raise Refused(f"{unit} does not serve, so there is no running model", hint=_OVERLAP)
    workers = found.alive_workers
    ready = [worker for worker in workers if worker.phase == "ready"]
    if len(ready) < found.workers_wanted or len(ready) < len(workers):
        raise Refused(
            f"of {count(found.workers_wanted, 'worker')} of {live} {len(ready)} can serve", hint="try again later"
        )
    if {found.version, *(worker.version for worker in ready)} != {version}:
        raise Refused(f"{live} leads to {version} and serves {found.version}", hint="`glmctl reload`, or " + _OVERLAP)
    require_compatible(context.releases.get(version), context.releases.get(plan.version))
    return found


def previous_version(context: Context) -> str | None:
    """Return the version whose weights the live slot held before, if the live version came by this strategy."""
    live = context.slots.live
    last = next((one for one in Journal(context.host).newest() if one.outcome == "done"), None)
    if last is None or last.strategy != "weights" or last.slot != live or last.version != context.slots.version(live):
        return None
    return last.previous


def _reports(rollout: Rollout, workers: list[WorkerState]) -> list[SwapReport]:
    """Return what `workers` report of the rollout's order; record the longest pause, and where weights are staged."""
    found = [worker.swap for worker in workers if worker.swap is not None and worker.swap.id == rollout.record.id]
    pauses = [report.pause_ms for report in found if report.pause_ms is not None]
    if pauses:
        rollout.record.pause_ms = max(pauses)
    if places := sorted({report.staged for report in found if report.staged is not None}):
        rollout.record.staged = " and ".join(places)
    return found


def _serves(found: Generation | None, version: str | None) -> bool:
    """Return whether the generation, if there is one, and all its workers report `version`."""
    if found is None or not found.ready:
        return True
    return {found.version, *(worker.version for worker in found.alive_workers)} == {version}
