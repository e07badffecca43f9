"""How long a rollout over many hosts takes, and how many hosts take a bad release before it stops: a simulation.

`python -m tests.bench.fleet` prints the table of docs/fleet.md. The model: hosts of a batch run beside each other, as
many as Ansible has forks; each takes `host_seconds` for load, checks, canary and bake, and `controller_seconds` of the
controller's processors for all its tasks. The run stops after the first batch in which a host rolled back. A bad
release is found by a host with the probability `found`, independently of the others: one that does not find it keeps
it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BATCHES = ("1", "1", "1%", "2%", "5%", "10%", "25%")
"""Those of deploy.yml. The last one is repeated."""


@dataclass(frozen=True)
class Fleet:
    """A fleet and its controller. Times are in seconds."""

    hosts: int
    forks: int
    host_seconds: float = 900.0
    controller_seconds: float = 4.5
    processors: int = 8
    batches: Sequence[str] = BATCHES

    @property
    def sizes(self) -> Iterator[int]:
        """The sizes of the batches, as Ansible's `serial` has them."""
        left, number = self.hosts, 0
        while left:
            size = self.batches[min(number, len(self.batches) - 1)]
            count = max(1, int(int(size[:-1]) / 100 * self.hosts)) if size.endswith("%") else int(size)
            yield min(count, left)
            left -= min(count, left)
            number += 1

    def seconds(self, hosts: int) -> float:
        """Return how long a batch of so many hosts takes."""
        rounds = math.ceil(hosts / self.forks)
        return max(rounds * self.host_seconds, hosts * self.controller_seconds / self.processors)

    @property
    def total_seconds(self) -> float:
        """How long a rollout to all hosts takes."""
        return sum(self.seconds(size) for size in self.sizes)

    def taken(self, found: float, rng: random.Random) -> int:
        """Return how many hosts have taken a bad release when the run stops, whether they found it or not."""
        taken = 0
        for size in self.sizes:
            taken += size
            if rng.random() < 1 - (1 - found) ** size:
                return taken
        return taken


def quantile(fleet: Fleet, found: float, share: float, runs: int = 2000) -> int:
    """Return the number of hosts that is not exceeded in `share` of the runs with a bad release."""
    rng = random.Random(fleet.hosts)  # repeatable
    taken = sorted(fleet.taken(found, rng) for _ in range(runs))
    return taken[min(runs - 1, math.ceil(share * runs) - 1)]


def duration(seconds: float) -> str:
    """Return a time in the unit in which one speaks of it."""
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def main() -> None:
    """Print the table."""
    title = "hosts with a bad release: found by 95 % of hosts | by 50 % | by 5 %"
    print(f"| hosts | forks | batches | duration | {title} |")
    print("|---|---|---|---|---|---|---|")
    for hosts, forks in ((10, 5), (10, 50), (1000, 5), (1000, 50), (1000, 250), (100_000, 250), (100_000, 1000)):
        fleet = Fleet(hosts, forks)
        taken = " | ".join(f"{quantile(fleet, found, 0.99):,}" for found in (0.95, 0.5, 0.05))
        print(f"| {hosts:,} | {forks:,} | {len(list(fleet.sizes))} | {duration(fleet.total_seconds)} | {taken} |")


if __name__ == "__main__":
    main()
