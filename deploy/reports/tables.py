"""Tables that fit the terminal: columns that it has no room for are left out, the receipt is turned by 90 degrees."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.journal.receipt import Line, Receipt

__all__ = ["fitting", "natural_width", "receipt_table"]

_COLUMNS = {
    "accepted": "accepted",
    "completed": "completed",
    "failed": "failed",
    "client_aborted": "aborted",
    "in_flight": "in\nflight",
    "handed_out": "handed\nover",
    "adopted": "adopted",
    "drained": "drained",
    "cut": "cut",
}
_LONGEST_VERSION = 24  # columns of a version in a turned receipt; a longer one is folded
_MEASURE = Console(width=1 << 16, file=None)


def natural_width(table: RenderableType) -> int:
    """Return the columns that a table takes if nothing is cut or folded."""
    return _MEASURE.measure(table, options=_MEASURE.options).maximum


def fitting(
    rows: Iterable[Mapping[str, RenderableType]],
    width: int,
    *,
    right: Collection[str] = (),
    optional: Sequence[str] = (),
) -> Table:
    """Return a table with a column for each key of the rows.

    Of the `optional` columns the first ones are left out until the others fit into `width`. Those in `right` are
    aligned
    to the right.
    """
    found = list(rows)
    titles = list(found[0]) if found else []
    for number in range(len(optional) + 1):
        table = _table([title for title in titles if title not in optional[:number]], found, right)
        if natural_width(table) <= width:
            break
    return table


def _table(titles: Sequence[str], rows: Iterable[Mapping[str, RenderableType]], right: Collection[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[title] for title in titles))
    return table


def receipt_table(receipt: Receipt, width: int) -> RenderableType:
    """Return the counts of each generation and their sums: a row each, or a column each where rows are too wide."""
    by_row = _by_row(receipt)
    return by_row if natural_width(by_row) <= width else _by_column(receipt, width)


def _by_row(receipt: Receipt) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("slot", "version"):
        table.add_column(f"\n{title}", no_wrap=True)
    for title in _COLUMNS.values():
        table.add_column(title if "\n" in title else f"\n{title}", justify="right", no_wrap=True)
    for line in receipt.lines:
        table.add_row(_slot(line), line.version, *(str(getattr(line, name)) for name in _COLUMNS))
    table.add_row("[bold]all", "", *(f"[bold]{getattr(receipt, name)}" for name in _COLUMNS))
    return table


def _by_column(receipt: Receipt, width: int) -> RenderableType:
    """Return as many tables as it takes, one below the other; the last one has the sums."""
    blocks: list[list[Line]] = [[]]
    for line in receipt.lines:
        if blocks[-1] and natural_width(_block([*blocks[-1], line], receipt)) > width:
            blocks.append([])
        blocks[-1].append(line)
    tables = [_block(block, receipt if block is blocks[-1] else None) for block in blocks]
    return Group(*(part for table in tables for part in ("", table)))


def _block(lines: Sequence[Line], receipt: Receipt | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("\n", no_wrap=True)
    for line in lines:
        head = Text(f"{_slot(line)}\n{line.version}", overflow="fold", justify="right")
        table.add_column(head, justify="right", max_width=_LONGEST_VERSION)
    if receipt is not None:
        table.add_column("\n[bold]all", justify="right")
    for name, title in _COLUMNS.items():
        sums = [f"[bold]{getattr(receipt, name)}"] if receipt is not None else []
        table.add_row(title.replace("\n", " "), *(str(getattr(line, name)) for line in lines), *sums)
    return table


def _slot(line: Line) -> str:
    return f"{line.slot} #{line.generation}"
