"""Tests of admission/limits.py: when there is room, and which session is evicted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.admission.limits import Admitted, Full, Resident, admit, longest_spare

residents = st.lists(st.tuples(st.booleans(), st.booleans())).map(
    lambda facts: [Resident(key, *both) for key, both in enumerate(facts)]
)


def unread() -> Iterator[Resident]:
    """A value that must not be read, because it does not matter."""
    return map(pytest.fail, ["it was looked at"])


@given(st.integers(1, 9), st.data())
def test_below_the_limit_there_is_room(limit: int, data: st.DataObject) -> None:
    sessions = data.draw(st.integers(0, limit - 1))
    assert admit(sessions, limit, unread()) == Admitted()


@given(residents)
def test_at_the_limit_only_a_spare_session_makes_room(sessions: list[Resident]) -> None:
    found = admit(len(sessions), len(sessions), sessions)
    spare = [one.key for one in sessions if one.spare]
    assert found == (Admitted(spare[0]) if spare else Full())


@given(residents)
def test_a_connection_is_given_up_by_a_session_that_has_one(sessions: list[Resident]) -> None:
    found = longest_spare(sessions, linked=True)
    assert found == next((one.key for one in sessions if one.spare and one.linked), None)
