"""Figures as text: durations, sizes, shares and times of day."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

__all__ = ["bytes_text", "clock", "duration", "moment", "percent", "seconds_between", "zone"]


def duration(seconds: float | None) -> str:
    """Return seconds as `14 ms`, `2.0 s`, `3 m 05 s` or `2 h 10 m`, as glmctl prints them; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} m"


def bytes_text(number: float) -> str:
    """Return bytes in MiB or GiB."""
    return f"{number / (1 << 30):.1f} GiB" if number >= 1 << 30 else f"{number / (1 << 20):.1f} MiB"


def percent(share: float | None) -> str:
    """Return a share from 0 to 1 in percent."""
    return "-" if share is None else f"{share:.1%}"


def moment(at: str | None) -> datetime | None:
    """Return a time of a record (ISO 8601 with a zone); None if there is none or it is malformed."""
    try:
        found = datetime.fromisoformat(at or "")
    except ValueError:
        return None
    return found if found.tzinfo else None


def clock(at: str | None, where: tzinfo) -> str:
    """Return the time of day; empty if there is none."""
    found = moment(at)
    return f"{found.astimezone(where):%H:%M:%S}" if found else ""


def seconds_between(begin: str | None, end: str | None) -> float | None:
    """Return the seconds from one time of a record to another, at least 0; None if one is missing."""
    first, last = moment(begin), moment(end)
    return max(0.0, (last - first).total_seconds()) if first and last else None


def zone(name: str | None) -> tzinfo:
    """Return the time zone of that name, which a browser sends; UTC if it is unknown."""
    try:
        return ZoneInfo(name or "UTC")
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
        return UTC
