"""The simulation of rollouts over many hosts: batches as Ansible makes them, and bounds that hold."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.bench.fleet import BATCHES, Fleet
from tests.fleet_fixtures import CODE


@given(hosts=st.integers(1, 3000))
def test_batches_cover_every_host_once(hosts: int) -> None:
    """The sizes add up to the fleet; the first host is alone, and no batch is larger than a quarter, or one host."""
    sizes = list(Fleet(hosts, forks=5).sizes)
    assert sum(sizes) == hosts
    assert sizes[0] == 1
    assert max(sizes) <= max(1, hosts // 4)


@given(hosts=st.integers(1, 3000), found=st.floats(0, 1), seed=st.integers())
def test_a_bad_release_stops_after_a_batch(hosts: int, found: float, seed: int) -> None:
    """It is on the hosts of whole batches, on one host if each finds it, and on all if none does."""
    fleet = Fleet(hosts, forks=5)
    sizes = list(fleet.sizes)
    assert fleet.taken(found, random.Random(seed)) in {sum(sizes[: count + 1]) for count in range(len(sizes))}
    assert fleet.taken(1.0, random.Random(seed)) == 1
    assert fleet.taken(0.0, random.Random(seed)) == hosts


@given(hosts=st.integers(1, 3000), forks=st.integers(1, 100))
def test_more_forks_never_take_longer(hosts: int, forks: int) -> None:
    """And no rollout is shorter than its batches one after the other."""
    fleet = Fleet(hosts, forks)
    assert fleet.total_seconds >= len(list(fleet.sizes)) * fleet.host_seconds
    assert Fleet(hosts, forks + 1).total_seconds <= fleet.total_seconds


def test_the_batches_are_those_of_the_playbook() -> None:
    """The simulated batches are the default of deploy.yml."""
    text = (CODE / "deploy/ansible/playbooks/deploy.yml").read_text()
    assert f"glm_batches | default([{', '.join(each if each.isdigit() else repr(each) for each in BATCHES)}])" in text
