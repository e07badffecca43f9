"""The order of versions: numbers as numbers, dates after the version, candidates before it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.versions import order

NUMBERS = st.lists(st.integers(0, 20250405), min_size=2, max_size=4)


@pytest.mark.parametrize(
    "ascending",
    [
        ["1.2.0-20250405", "1.2.0-20250412", "1.2.0-20251201", "1.2.1-20250101", "1.10.0-20240101"],
        ["0.9.9", "1.2.0-alpha", "1.2.0-beta2", "1.2.0-beta10", "1.2.0-rc1", "1.2.0", "1.2.0-20250405", "1.2.1"],
        ["v1.2", "v1.2.0", "1.10", "2.0+1", "2.0+2"],
        ["nightly", "0.0.1"],
        ["3fa9c1", "0.0.1"],
    ],
)
def test_versions_are_in_the_order_in_which_people_make_them(ascending: list[str]) -> None:
    """Each is lower than the next one, and the order of names is another."""
    assert all(order(one) < order(other) for one, other in pairwise(ascending))


@given(one=NUMBERS, other=NUMBERS)
def test_numbers_compare_as_numbers(one: list[int], other: list[int]) -> None:
    """Versions of numbers compare like the lists of their numbers, however many digits these have."""
    written = [".".join(map(str, numbers)) for numbers in (one, other)]
    assert (order(written[0]) < order(written[1])) == (one < other)


@given(numbers=NUMBERS, date=st.dates())
def test_a_date_follows_its_version_and_a_candidate_precedes_it(numbers: list[int], date: object) -> None:
    """1.2.0-rc1 < 1.2.0 < 1.2.0-20250405."""
    version = ".".join(map(str, numbers))
    day = str(date).replace("-", "")
    assert order(f"{version}-rc1") < order(version) < order(f"{version}-{day}")


def test_names_without_numbers_keep_their_order() -> None:
    """A stable sort leaves them as they were, before all others."""
    assert sorted(["1.0.0", "zulu", "2025", "alpha"], key=order) == ["zulu", "2025", "alpha", "1.0.0"]
