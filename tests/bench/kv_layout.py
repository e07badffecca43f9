"""Is attention of one decode step faster over rows or over blocks of the KV cache?

The shape is that of the small model. Rows are read as a view of one tensor, up to the longest row. Blocks of 16 tokens
are gathered by a block table first, for every row as many as the longest row has.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

HEADS, KV_HEADS, HEAD_SIZE, LAYERS = 4, 2, 64, 4
BLOCK = 16  # tokens
REPEATS = 60


def row_step(rows: int, columns: int, lengths: Any) -> Callable[[], Any]:
    """Return one decode step over a tensor (rows, kv_heads, columns, head_size) for each layer."""
    capacity = 2 * columns  # rows are longer than the part in use
    caches = [torch.randn(2, rows, KV_HEADS, capacity, HEAD_SIZE) for _ in range(LAYERS)]
    mask, query, new, column = _inputs(rows, columns, lengths)

    def step() -> Any:
        for keys, values in caches:
            keys[torch.arange(rows), :, column] = new
            values[torch.arange(rows), :, column] = new
            output = scaled_dot_product_attention(query, keys[:, :, :columns], values[:, :, :columns], attn_mask=mask)
        return output

    return step


def block_step(rows: int, columns: int, lengths: Any) -> Callable[[], Any]:
    """Return one decode step over a tensor (blocks, BLOCK, kv_heads, head_size) for each layer, in random order."""
    each = -(-columns // BLOCK)
    table = torch.randperm(rows * each).view(rows, each)
    caches = [torch.randn(2, rows * each, BLOCK, KV_HEADS, HEAD_SIZE) for _ in range(LAYERS)]
    mask, query, new, column = _inputs(rows, each * BLOCK, lengths)
    block, offset = table[torch.arange(rows), column // BLOCK], column % BLOCK

    def gather(cache: Any) -> Any:
        return cache.index_select(0, table.view(-1)).view(rows, each * BLOCK, KV_HEADS, HEAD_SIZE).transpose(1, 2)

    def step() -> Any:
        for keys, values in caches:
            keys[block, offset] = new
            values[block, offset] = new
            output = scaled_dot_product_attention(query, gather(keys), gather(values), attn_mask=mask)
        return output

    return step


def _inputs(rows: int, columns: int, lengths: Any) -> tuple[Any, Any, Any, Any]:
    """Return the attention mask, a query grouped by KV head, a new key (and value), and the column of each row."""
    mask = (torch.arange(columns) < lengths[:, None])[:, None, None]
    query = torch.randn(rows, KV_HEADS, HEADS // KV_HEADS, HEAD_SIZE)
    return mask, query, torch.randn(rows, KV_HEADS, HEAD_SIZE), lengths - 1


def median_seconds(*steps: Callable[[], Any]) -> list[float]:
    """Return the median time of each step; the steps are measured in turns."""
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(REPEATS):
        for times, step in zip(seconds, steps, strict=True):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
    return [statistics.median(times[REPEATS // 10 :]) for times in seconds]


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    argparse.ArgumentParser(prog="python -m tests.bench.kv_layout", description=__doc__).parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with more, threads wait for each other while other processes run
    table = Table("rows", "longest", "rows, ms", "blocks, ms", "blocks to rows")
    table.title = f"attention of one decode step, {LAYERS} layers, one thread"
    table.caption = "lengths are spread evenly from a quarter of the longest to the longest"
    for rows in (16, 64):
        for columns in (128, 512, 2048):
            lengths = torch.linspace(columns / 4, columns, rows).long()
            by_row, by_block = median_seconds(row_step(rows, columns, lengths), block_step(rows, columns, lengths))
            cells = f"{by_row * 1e3:.2f}", f"{by_block * 1e3:.2f}", f"{by_block / by_row:.2f}"
            table.add_row(str(rows), str(columns), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
