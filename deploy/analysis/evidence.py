"""Which responses of one side are evidence: those of requests that were assigned at random, and of no client too many.

A client can choose what it sends and how slowly it reads, and may do so by the slot that answers. So it must not decide
a rollout: not by pinning requests, not by sending more than all others together, and not by being the only one that
finds the candidate worse (`comparison.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain
from math import inf

from deploy.analysis.group import Group
from deploy.analysis.samples import Sample

__all__ = ["MANY", "Client", "Disturbances", "Evidence", "capped", "client_of"]

Client = Callable[[Sample], Hashable]
"""Returns what identifies the client that sent a request."""

MANY = 4
"""Clients, from which on none makes up more than its share."""
_SHARE = 1 / MANY
_PROXY = 0.9
_KEPT = 20_000  # responses of the model, and of others; older ones are dropped


class Disturbances:
    """The times in which pinned requests were answered: they load one slot, and slow down what else it answers."""

    def __init__(self) -> None:
        self.number = 0
        """How many were added."""
        self._begins: list[float] = []
        self._ends: list[float] = []

    def add(self, begin: float, end: float) -> None:
        """Add the time from `begin` to `end`, CLOCK_MONOTONIC seconds."""
        self.number += 1
        spans = sorted([*zip(self._begins, self._ends, strict=True), (begin, end)])
        self._begins, self._ends = [], []
        for first, last in spans:
            if self._ends and first <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], last)
            else:
                self._begins.append(first)
                self._ends.append(last)

    def __contains__(self, sample: object) -> bool:
        """Whether a pinned request was answered in the time in which this one was."""
        assert isinstance(sample, Sample)
        place = bisect_left(self._ends, sample.at - sample.seconds)
        return place < len(self._begins) and self._begins[place] <= sample.at


class Evidence:
    """The responses of one side in one window, which grow. `group` returns what counts of them.

    `times_from`, `times_until`: CLOCK_MONOTONIC seconds; times of responses that ended before or after do not count.
    `least`: how many responses of one client count in any case. `disturbances` grow with the pinned requests.
    """

    def __init__(
        self,
        *,
        times_from: float = 0.0,
        times_until: float = inf,
        disturbances: Disturbances | None = None,
        least: int = 0,
    ) -> None:
        self.count = self.of_model = self.failed = self.pinned = 0
        """How many were added: of all but the pinned ones, the model's and the failed ones among them; pinned ones."""
        self._times_from, self._times_until, self._least = times_from, times_until, least
        self._disturbances = disturbances
        self.newest = -inf
        """When the last of them ended."""
        self._answers: deque[Sample] = deque(maxlen=_KEPT)
        self._others: deque[Sample] = deque(maxlen=_KEPT)
        self._version: object = None
        self._group = self._new_group()
        self._all, self._disturbed = self._new_group(), 0
        """All of the responses, but for the new ones, and how many disturbances there were then."""
        self._new: deque[Sample] = deque(maxlen=2 * _KEPT)

    def add(self, samples: Iterable[Sample]) -> None:
        """Add responses, in any order."""
        for sample in samples:
            if sample.origin.is_pinned:
                self.pinned += 1
                if self._disturbances is not None:
                    self._disturbances.add(sample.at - sample.seconds, sample.at)
                continue
            self.count += 1
            self.newest = max(self.newest, sample.at)
            self.of_model += sample.is_answer
            self.failed += sample.is_error
            (self._answers if sample.is_answer else self._others).append(sample)
            self._new.append(sample)

    @property
    def client(self) -> Client:
        """Clients are told apart by their addresses; by addresses and keys if there are few addresses."""
        return client_of(self._answers or self._others)

    def group(self, client: Client, *, without: Hashable = None) -> Group:
        """Return the responses that count, of all clients but one."""
        version = client, without, self.count, self._disturbances and self._disturbances.number
        if version != self._version:
            found = [capped(some, client, self._least, without=without) for some in (self._answers, self._others)]
            self._version = version
            self._group = self._whole() if sum(map(len, found)) == self.count else self._new_group(chain(*found))
        return self._group

    def _whole(self) -> Group:
        """Return all responses. Those of the last call are not counted again, unless pinned requests came between."""
        disturbed = self._disturbances.number if self._disturbances else 0
        if disturbed != self._disturbed:
            self._all, self._disturbed = self._new_group(chain(self._answers, self._others)), disturbed
        else:
            self._all.add(self._new)
        self._new.clear()
        return self._all

    def _new_group(self, samples: Iterable[Sample] = ()) -> Group:
        return Group(samples, times_from=self._times_from, times_until=self._times_until, disturbed=self._disturbances)

    def clients(self, client: Client, is_counted: Callable[[Sample], bool]) -> Counter[Hashable]:
        """Return how many responses each client has, of those that are counted."""
        return Counter(client(sample) for sample in chain(self._answers, self._others) if is_counted(sample))


def client_of(samples: Iterable[Sample]) -> Client:
    """Return how to tell the clients of some responses apart.

    A key is not verified, so that a client may send another one with each request; behind a proxy all clients have one
    address.
    """
    addresses = {sample.origin.address for sample in samples}
    return _address if len(addresses) >= MANY else _origin


def is_many(counts: Counter[Hashable]) -> bool:
    """Return whether responses are those of many clients: at least four, and none with more than nine tenths.

    Of fewer each may be a proxy, and so may be one with that many.
    """
    return len(counts) >= MANY and max(counts.values()) <= _PROXY * counts.total()


def capped(samples: Iterable[Sample], client: Client, least: int = 0, *, without: Hashable = None) -> list[Sample]:
    """Return the responses with no more than a quarter of them, or `least` if that is more, from one client.

    Of a client with more, as many are returned as it may have, evenly spaced in time. Where there are not many clients,
    all are returned.
    """
    of_client: dict[Hashable, list[Sample]] = defaultdict(list)
    for sample in samples:
        of_client[client(sample)].append(sample)
    counts = Counter({one: len(some) for one, some in of_client.items()})
    of_client.pop(without, None)
    if not is_many(counts):
        return list(chain.from_iterable(of_client.values()))
    limit = max(least, _limit([len(some) for some in of_client.values()]))
    return [one for some in of_client.values() for one in _spaced(some, limit)]


def _limit(counts: Sequence[int]) -> int:
    """Return how many each may have at most, so that none has more than its share of what is left."""
    ordered = sorted(counts, reverse=True)
    if len(ordered) < MANY:
        return ordered[0]
    for greater in range(MANY):  # that have more than the limit
        rest = sum(ordered[greater:])
        limit = int(rest * _SHARE / (1 - greater * _SHARE))
        if ordered[greater] <= limit:
            break
    return max(1, limit)


def _spaced(samples: list[Sample], limit: int) -> list[Sample]:
    if len(samples) <= limit:
        return samples
    samples.sort(key=lambda sample: sample.at)
    return [samples[number * len(samples) // limit] for number in range(limit)]


def _address(sample: Sample) -> Hashable:
    return sample.origin.address


def _origin(sample: Sample) -> Hashable:
    return sample.origin
