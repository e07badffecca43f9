"""Random inputs: seeds that are cut, repeated, spliced and changed."""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["mutate"]

INTERESTING = (
    b"\0", b"\xff", b"\r\n", b"\r\n\r\n", b"\n", b" ", b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}",
    b"[", b"{",
    b'"', b"\\", b"\\u0000", b"\\ud800", b",", b":", b"18446744073709551616", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"%00", b"../",
    b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff",
)  # fmt: skip
MOST_CHANGES = 6


def mutate(random: random.Random, seeds: Sequence[bytes], max_size: int) -> bytes:
    """Return one of the seeds after some changes, at most `max_size` bytes of it."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(0, MOST_CHANGES)):
        start = random.randint(0, len(data))
        end = min(len(data), start + int(random.paretovariate(0.7)))
        match random.randrange(7):
            case 0 if data:
                data[start % len(data)] ^= 1 << random.randrange(8)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = random.choice(INTERESTING)
            case 3:
                data[start:end] = random.choice(INTERESTING)
            case 4:  # a part many times
                count = min(int(random.paretovariate(0.3)), max_size // max(1, end - start))
                data[start:end] = bytes(data[start:end]) * count
            case 5:  # the end of another seed
                other = random.choice(seeds)
                data[start:] = other[random.randint(0, len(other)) :]
            case _:
                data[start:end] = random.randbytes(end - start)
        del data[max_size:]
    return bytes(data)
