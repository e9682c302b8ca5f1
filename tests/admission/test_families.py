"""Tests of admission/families.py, compared with a list of all notes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridgecore.admission.families import Families, LatestTurn

KEYS = [None, b"a", b"b"]
moves = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([*KEYS, "over"]), st.booleans(), st.booleans()),
    max_size=40,
)


@given(moves)
def test_the_latest_used_come_first(
    moves: list[tuple[int, bytes | str | None, bool, bool]],
) -> None:
    families = Families()
    latest: dict[int, LatestTurn] = {}  # the least recently used one first
    for session, family, continued, repeats in moves:
        latest.pop(session, None)
        if isinstance(family, str):
            families.leave(session)
        else:
            latest[session] = LatestTurn(family, continued, repeats)
            families.note(session, latest[session])
        for key in (b"a", b"b"):
            members = [one for one, turn in latest.items() if turn.family == key]
            assert list(families.members(key)) == members[::-1]
        assert {one: families.latest(one) for one in latest} == latest
    for session in latest:
        families.leave(session)
    assert (families._latest, families._members) == ({}, {})
