"""Tests of recovery/timers.py: the table of deadlines, compared with a plain dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridgecore.recovery.timers import Deadline, Timer, Timers

timer = st.sampled_from(Timer)
deadlines = st.dictionaries(timer, st.integers(0, 5))


@given(deadlines)
def test_timers_are_a_dict_that_knows_its_earliest_entry(model: dict[Timer, int]) -> None:
    timers = Timers.of(model)
    assert {name: timers.get(name) for name in Timer} == {name: model.get(name) for name in Timer}
    order = list(Timer)
    expected = min(model.items(), key=lambda item: (item[1], order.index(item[0])), default=None)
    assert timers.next() == (None if expected is None else Deadline(expected[1], expected[0]))


@given(deadlines, st.permutations(list(Timer)))
def test_equal_tables_are_equal_however_they_came_about(
    model: dict[Timer, int], order: list[Timer]
) -> None:
    timers = Timers.of(model)
    again = Timers.of({name: model[name] for name in order if name in model})
    assert again == timers
    assert hash(again) == hash(timers)
