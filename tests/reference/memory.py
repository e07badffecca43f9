"""The memory arithmetic of GLM-4.6V-Flash on common cards: what service/contract/device_memory.py returns."""

from __future__ import annotations

from collections.abc import Iterator

from service.contract.device_memory import LEAST_TOKENS, Device, cache_tokens, fits, room
from service.contract.memory_policy import MemoryPolicy
from tests.device_fixtures import GB, NINE_B
from tests.reference.markdown import GENERATED, table

__all__ = ["page"]

_CARDS = (24, 32, 40, 48, 80, 96, 141)
_TOKENS = 4096  # of a request, for the number that fits


def page() -> str:
    """Return the page."""
    weights, rest = NINE_B.weights / GB, (NINE_B.fixed - NINE_B.weights) / GB
    return (
        f"{GENERATED}\n# Memory\n\nOf GLM-4.6V-Flash in bfloat16, in GB of 10^9 bytes: computed by "
        "`service/contract/device_memory.py`, by which engine and preflight decide, for a card of exactly that size "
        "of which "
        "all is free. Not measured; [On a GPU](../DEVICE.md) has what was.\n\n"
        f"A copy takes {weights:.1f} for the weights and {rest:.1f} for the CUDA context, the buffers of a step and "
        "the cache "
        f"of image features, and {NINE_B.kv_token:,} bytes for each token of the KV cache. Less than "
        f"{LEAST_TOKENS:,} tokens "
        "are refused.\n\n"
        f"{table(_TITLES, _rows())}"
        "\n*Default* is without `kv_tokens` in the release's `engine.json` and without `[memory]` in `glm.toml`. *A "
        "second one "
        "fits*: `overlap`, canary and mirror are possible; otherwise a deploy takes `weights` or `swap`. With "
        "`copies = 1` in "
        "`[memory]`, and on a card that `[devices]` gives to one slot alone, a copy may take all of it.\n\n"
        "**Two cards.** Without `[devices]` each slot has a worker on each card, so that the table holds for each "
        "of them, and "
        "requests are divided between two workers. With `[devices]` `blue = [0]` and `green = [1]`, each slot has a "
        "card of its "
        "own: the last two columns hold, two versions fit beside each other on any cards that hold one, and one "
        "card is idle "
        "between rollouts.\n"
    )


_TITLES = (
    "card", "default: a copy takes", "tokens", f"requests of {_TOKENS:,} tokens", "a second one fits", "alone: tokens",
    f"requests of {_TOKENS:,}",
)  # fmt: skip


def _rows() -> Iterator[tuple[str, ...]]:
    default, alone = MemoryPolicy(), MemoryPolicy(copies=1)
    for size in _CARDS:
        card = Device("cuda", size * GB, size * GB)
        tokens, most = cache_tokens(NINE_B, card, default), cache_tokens(NINE_B, card, alone)
        held = NINE_B.with_cache(tokens)
        beside = Device("cuda", card.total, card.total - held, slots=held)
        yield (
            str(size), f"{min(held, room(NINE_B, card, default)) / GB:.1f}", f"{tokens:,}", f"{tokens // _TOKENS:,}",
            "yes" if fits(NINE_B, beside, default) else "no", f"{most:,}", f"{most // _TOKENS:,}",
        )  # fmt: skip
