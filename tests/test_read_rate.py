"""How many bytes a second are read of one address."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.handover.read_rate import ReadRate

RATE, READ = 1000, 100  # bytes a second, and bytes that are read at most at once
BURST = 0.25  # seconds
ROUNDING = 1e-6  # bytes


@given(
    connections=st.integers(1, 20),
    sizes=st.lists(st.integers(1, READ), min_size=50, max_size=400),
    addresses=st.sampled_from([["10.0.0.1"], ["2001:db8::1", "2001:db8::2", "2001:db8::3"]]),
)
def test_connections_of_a_client_have_the_rate_together(
    connections: int, sizes: list[int], addresses: list[str]
) -> None:
    """Whatever it sends, by however many connections, and from however many addresses of one network."""
    now = 0.0
    rate = ReadRate(RATE, lambda: now)
    free_at = [0.0] * connections
    for size in sizes:
        chosen = min(range(connections), key=free_at.__getitem__)
        now = max(now, free_at[chosen])
        free_at[chosen] = now + rate.spend(addresses[chosen % len(addresses)], size)
    # Each connection may have read once before it was stopped; times are rounded.
    assert sum(sizes) <= RATE * (now + BURST) + connections * READ + ROUNDING


@given(st.lists(st.integers(1, 10 * READ), max_size=50))
def test_no_client_waits_for_others(sizes: list[int]) -> None:
    """One that sends little is never stopped, and one that has paused may send a burst again."""
    now = 0.0
    rate = ReadRate(RATE, lambda: now)
    for number, size in enumerate(sizes):
        rate.spend("10.0.0.1", size)
        assert rate.spend(f"10.0.1.{number}", READ) == 0
    now = sum(sizes) / RATE + 1
    assert rate.spend("10.0.0.1", int(RATE * BURST) - 1) == 0


def test_clients_that_have_gone_are_forgotten() -> None:
    """Otherwise memory would grow with each address."""
    now = 0.0
    rate = ReadRate(RATE, lambda: now)
    for number in range(5000):
        now += 0.01
        rate.spend(f"10.0.{number // 256}.{number % 256}", 1)
    assert len(rate._free_at) < 2000
