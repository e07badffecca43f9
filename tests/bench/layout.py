"""Slots or blocks: what attention of one decode step costs when keys and values lie in rows, and when in blocks.

`python -m tests.bench.layout` prints it for the small model's shape. Rows are read as a view of one slab, as far as the
longest of them goes; blocks of 16 tokens are first gathered by a table, of each row as many as the longest has.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

HEADS, KV_HEADS, SIZE, LAYERS = 4, 2, 64, 4
BLOCK = 16
REPEATS = 60


def slots(rows: int, columns: int, lengths: Any) -> Callable[[], Any]:
    """One step over a slab (rows, kv_heads, columns, size) for each layer."""
    room = 2 * columns  # a slab is longer than what is in use
    slabs = [torch.randn(2, rows, KV_HEADS, room, SIZE) for _ in range(LAYERS)]
    mask, query, new, at = _step(rows, columns, lengths)

    def step() -> Any:
        for keys, values in slabs:
            keys[torch.arange(rows), :, at] = new
            values[torch.arange(rows), :, at] = new
            said = scaled_dot_product_attention(query, keys[:, :, :columns], values[:, :, :columns], attn_mask=mask)
        return said

    return step


def blocks(rows: int, columns: int, lengths: Any) -> Callable[[], Any]:
    """One step over a pool (blocks, block, kv_heads, size) for each layer; the blocks of a row lie anywhere."""
    each = -(-columns // BLOCK)
    table = torch.randperm(rows * each).view(rows, each)
    pools = [torch.randn(2, rows * each, BLOCK, KV_HEADS, SIZE) for _ in range(LAYERS)]
    mask, query, new, at = _step(rows, each * BLOCK, lengths)
    block, place = table[torch.arange(rows), at // BLOCK], at % BLOCK

    def gather(pool: Any) -> Any:
        return pool.index_select(0, table.view(-1)).view(rows, each * BLOCK, KV_HEADS, SIZE).transpose(1, 2)

    def step() -> Any:
        for keys, values in pools:
            keys[block, place] = new
            values[block, place] = new
            said = scaled_dot_product_attention(query, gather(keys), gather(values), attn_mask=mask)
        return said

    return step


def _step(rows: int, columns: int, lengths: Any) -> tuple[Any, Any, Any, Any]:
    """The mask of what each row may see, a query with the heads that share keys side by side, a new key, its column."""
    mask = (torch.arange(columns) < lengths[:, None])[:, None, None]
    query = torch.randn(rows, KV_HEADS, HEADS // KV_HEADS, SIZE)
    return mask, query, torch.randn(rows, KV_HEADS, SIZE), lengths - 1


def turns(*steps: Callable[[], Any]) -> list[float]:
    """The median seconds of each, taken in turns."""
    took: list[list[float]] = [[] for _ in steps]
    for _ in range(REPEATS):
        for times, step in zip(took, steps, strict=True):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
    return [statistics.median(times[REPEATS // 10 :]) for times in took]


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two that wait for each other measure who else is on the machine
    table = Table("rows", "longest", "slots, ms", "blocks, ms", "blocks to slots")
    table.title = f"attention of one decode step, {LAYERS} layers, one thread"
    table.caption = "lengths are ragged: evenly from a quarter of the longest up"
    for rows in (16, 64):
        for columns in (128, 512, 2048):
            lengths = torch.linspace(columns / 4, columns, rows).long()
            slot, block = turns(slots(rows, columns, lengths), blocks(rows, columns, lengths))
            table.add_row(str(rows), str(columns), f"{slot * 1e3:.2f}", f"{block * 1e3:.2f}", f"{block / slot:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
