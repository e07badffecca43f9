"""What a rollout meant for those who asked meanwhile, in a sentence or two."""

from __future__ import annotations

from deploy.journal.journal import Record, seconds_between
from deploy.journal.receipt import Line, Receipt
from deploy.reports.report import span

__all__ = ["tell"]


def tell(record: Record) -> str:
    """Tell it; nothing of one that is under way, or has no receipt."""
    if record.outcome is None or record.receipt is None:
        return ""
    went_live = any(step.phase in {"cutover", "rollback", "reload"} for step in record.steps)
    if record.outcome == "done" and went_live:
        return _took_over(record, record.receipt)
    answered = sum(line.completed for line in record.receipt.lines if _is_candidate(record, line))
    serves = f"{record.previous} serves as before" if record.previous else "nothing is live"
    if not went_live:
        share = f"answered {_many(answered, 'request')} of its share and" if answered else "answered no request and"
        return f"{record.version} {share} never went live; {serves}."
    facts = [
        f"{record.version} was live{_for(record)} and answered {_many(answered, 'request')}",
        serves,
        _wait(record),
    ]
    return f"{'; '.join(fact for fact in facts if fact)}."


def _took_over(record: Record, receipt: Receipt) -> str:
    wait = _wait(record)
    if record.kind == "reload":
        who = f"A new generation of {record.version} took over in {record.slot}"
    elif record.previous is None:
        who = f"{record.version} went live in {record.slot}, with nothing live before"
        return f"{who}{f': {wait}' if wait else ''}."
    elif record.kind == "rollback":
        who = f"{record.version} took back over from {record.previous}, in {record.slot}"
    else:
        who = f"{record.version} took over from {record.previous} in {record.slot}"
    drained = sum(line.drained for line in receipt.lines if not _is_candidate(record, line))
    facts = [
        f"client connections changed hands {_many(receipt.handed_out, 'time')}" if receipt.handed_out else "",
        f"{_were(receipt.cut, 'request')} cut by the drain deadline" if receipt.cut else "no request was cut",
        f"{_were(drained, 'request')} finished by the old version after the cutover" if drained else "",
        wait,
    ]
    return f"{who}: {', '.join(fact for fact in facts if fact)}."


def _is_candidate(record: Record, line: Line) -> bool:
    """Whether that generation is what the rollout brought up; in place it is the newest of the slot."""
    if line.slot != record.slot:
        return False
    lines = record.receipt.lines if record.receipt else []
    newest = max((one.generation for one in lines if one.slot == record.slot), default=line.generation)
    return record.kind != "reload" or line.generation == newest


def _for(record: Record) -> str:
    """How long it was live, as far as that is known."""
    began = next((step.at for step in record.steps if step.phase == "cutover"), None)
    ended = next((step.at for step in record.steps if step.phase == "rollback"), record.ended_at)
    seconds = seconds_between(began, ended) if began and ended else None
    return f" for {span(seconds)}" if seconds else ""


def _wait(record: Record) -> str:
    return f"the longest wait that a client saw was {span(record.pause_ms / 1000)}" if record.pause_ms else ""


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _were(count: int, what: str) -> str:
    return f"{_many(count, what)} {'was' if count == 1 else 'were'}"
