"""No client decides a rollout: not alone, not by the number of its requests, and not by pinning them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.analysis.comparison import Comparison
from deploy.analysis.evidence import Disturbances, Evidence, capped, client_of
from deploy.analysis.samples import Sample
from deploy.policy import Limits
from service.contract.samples import Origin
from tests.box import Box
from tests.simulation import Alarm, Fault, FromClients, Measured, failing, simulate, slower

RATE, STEP = 20.0, 60.0  # responses per second, both slots together; seconds of a window
CANARY, BAKE = (0.1, 0.5), ()
EQUAL, UNEQUAL = [1.0] * 8, [1 / number for number in range(1, 9)]
PROXY = [97, *[0.3] * 10]  # and ten other addresses


def measured(seed: int) -> Measured:
    """Responses of which half are streamed, with times as a service has them."""
    dice = random.Random(1)
    found = []
    for number in range(500):
        seconds = dice.lognormvariate(-1.6, 0.6)
        found.append(Sample(float(number), seconds, seconds / 4 if dice.random() < 0.5 else None, 200))
    return Measured(found, seed, rate=RATE)


def rollouts(fault: Fault, weights: list[float], shares: tuple[float, ...], count: int) -> list[Alarm]:
    """Simulate rollouts under clients with these shares of the requests; returns those that were rolled back."""
    found = (
        simulate(FromClients(measured(seed), seed, weights), fault, shares=shares, step=STEP, before=200, seed=seed)
        for seed in range(count)
    )
    return [one for one in found if one]


def reads_slowly(sample: Sample, dice: random.Random) -> Sample:
    """The first client reads the candidate's answers slowly: it sees in the head which slot answers."""
    if sample.origin.address != 1:
        return sample
    return replace(
        sample, at=sample.at + 2 * sample.seconds, seconds=3 * sample.seconds, first=sample.first and 3 * sample.first
    )


def sends_what_fails(sample: Sample, dice: random.Random) -> Sample:
    """The first client begins to send what no version can answer."""
    return replace(sample, status=500) if sample.origin.address == 1 else sample


@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL])
@pytest.mark.parametrize(("fault", "shares"), [(reads_slowly, CANARY), (reads_slowly, BAKE), (sends_what_fails, BAKE)])
def test_one_client_alone_finds_nothing(fault: Fault, shares: tuple[float, ...], weights: list[float]) -> None:
    """The version is sound for seven of eight clients, and is not rolled back."""
    assert rollouts(fault, weights, shares, 3) == []


@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL, PROXY])
@pytest.mark.parametrize("shares", [CANARY, BAKE])
@pytest.mark.parametrize("fault", [slower, failing])
def test_a_worse_version_is_found_whoever_asks(fault: Fault, shares: tuple[float, ...], weights: list[float]) -> None:
    """That no client decides takes nothing from a finding of all of them, or of a proxy with nearly all requests."""
    assert len(rollouts(fault, weights, shares, 3)) == 3


def test_many_good_answers_of_one_client_hide_nothing() -> None:
    """Of seven clients 3 % of the requests fail; an eighth one sends four fifths of all requests, and none fails."""
    for clients, is_worse in ((8, True), (3, False)):
        comparison = Comparison(Limits(), windows=1)
        for number in range(3700):
            at, is_flood = number / 60, number % 37 >= 7
            origin = Origin(1 if is_flood else 2 + number % (clients - 1))
            is_failing = not is_flood and number % 31 == 0
            comparison.live.add([Sample(at, 0.1, None, 200, origin=origin)])
            comparison.candidate.add([Sample(at, 0.1, None, 500 if is_failing else 200, origin=origin)])
        assert bool(comparison.look(last=True)) is is_worse


counts = st.lists(st.integers(1, 400), min_size=1, max_size=12)


@settings(deadline=None)
@given(counts=counts, least=st.sampled_from([0, 20, 200]))
@example(counts=[400, 400, 400, 1], least=0)
@example(counts=[10, 10, 10, 400], least=0)
@example(counts=[1, 1, 1, 400], least=0)
def test_no_client_has_more_than_its_share(counts: list[int], least: int) -> None:
    """Of four clients and more, none keeps more than a quarter, or `least`; who has less than that keeps everything.

    If one of them has more than nine tenths, it may be a proxy, and all are kept.
    """
    samples = [
        Sample(float(number), 1.0, None, 200, origin=Origin(client))
        for client, count in enumerate(counts, start=1)
        for number in range(count)
    ]
    kept = Counter(sample.origin.address for sample in capped(samples, client_of(samples), least))
    if len(counts) < 4 or max(counts) > 0.9 * sum(counts):
        assert kept.total() == sum(counts)
        return
    limit = max(least, max(kept.values()))
    assert max(kept.values()) <= max(least, kept.total() / 4, 1)
    for client, count in enumerate(counts, start=1):
        assert kept[client] == count or kept[client] == min(limit, count)


@settings(deadline=None)
@given(addresses=st.integers(1, 8), keys=st.integers(1, 8))
def test_who_is_a_client(addresses: int, keys: int) -> None:
    """An address, whatever keys it sends; where there are few addresses, as with a proxy, each key of one."""
    samples = [
        Sample(0.0, 1.0, None, 200, origin=Origin(address, key)) for address in range(addresses) for key in range(keys)
    ]
    client = client_of(samples)
    assert len({client(sample) for sample in samples}) == (addresses if addresses >= 4 else addresses * keys)


parts = st.lists(
    st.lists(
        st.builds(
            Sample,
            at=st.floats(0, 50),
            seconds=st.floats(0.01, 5),
            first=st.none() | st.just(0.01),
            status=st.sampled_from([200, 200, 429, 500]),
            kind=st.integers(0, 3),
            origin=st.builds(Origin, address=st.integers(1, 6), is_pinned=st.sampled_from([False, False, False, True])),
        ),
        max_size=8,
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=40)
@given(parts=parts)
def test_evidence_does_not_depend_on_the_looks_before(parts: list[list[Sample]]) -> None:
    """What was counted at an earlier look counts as if all were seen at once, also with pinned ones between."""

    def content(evidence: Evidence) -> tuple[object, ...]:
        group = evidence.group(evidence.client)
        times = [sorted(one.all) for one in group.times.values()]
        return group.all, group.of_model, times, Counter(group.mirrored)

    looked_at, at_once = (Evidence(times_from=5.0, disturbances=Disturbances(), least=2) for _ in range(2))
    for part in parts:
        looked_at.add(part)
        looked_at.group(looked_at.client)
        looked_at.group(looked_at.client, without=Origin(1).address)
    at_once.add(chain.from_iterable(parts))
    assert content(looked_at) == content(at_once)


def test_pinned_responses_are_not_judged() -> None:
    """They count for neither side, and while they are answered nothing is compared that they may have slowed down."""
    for is_pinned in (False, True):
        comparison = Comparison(Limits(), windows=1, disturbances=Disturbances())
        for number in range(600):
            at = number / 10
            comparison.live.add([Sample(at, 0.1, None, 200)])
            is_slow = 20 <= at < 50  # a pinned request is answered, and slows down the others
            comparison.candidate.add([Sample(at, 0.3 if is_slow else 0.1, None, 429 if is_slow else 200)])
        origin = Origin(is_pinned=is_pinned)
        comparison.candidate.add([Sample(50.0, 30.0, None, 500, origin=origin)] * 40)
        found = comparison.look(last=True)
        assert (found is None) is is_pinned
        assert comparison.candidate.pinned == 40 * is_pinned


@contextmanager
def asking(box: Box, clients: int, body: dict[str, object], **headers: str) -> Iterator[None]:
    """Run clients that send one request after the other, until the end of the block."""
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=f"http://{box.listen}", timeout=60, trust_env=False, headers=headers) as client:
            while not over.is_set():
                client.post("/v1/chat/completions", json=body)
                over.wait(0.02)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


@pytest.mark.model
@pytest.mark.alone
@pytest.mark.long
def test_clients_that_pin_long_requests_do_not_roll_back(box: Box) -> None:
    """Three clients load the candidate of a sound version, beside four whose requests are assigned at random."""
    hello = [{"role": "user", "content": "Hello"}]
    box.host.policy.write_text("[analysis]\nmin_requests = 20\n")
    long = asking(box, 3, {"messages": hello, "max_tokens": 400, "stream": True}, **{"X-GLM-Slot": "candidate"})
    with asking(box, 4, {"messages": hello, "max_tokens": 8, "stream": True}), long:
        box.glmctl("deploy", "1.1.0", "--canary", "50", "--step", "25s", "--bake", "0", timeout=300)
    record = box.json("history")["rollouts"][-1]
    assert record["outcome"] == "done"
    assert record["analysis"][0]["pinned"] > 0
