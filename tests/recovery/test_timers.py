"""The table of deadlines, against a plain dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridgecore.recovery.timers import Deadline, Timer, Timers

timer = st.sampled_from(Timer)
operations = st.lists(st.tuples(timer, st.none() | st.integers(0, 5)), max_size=12)


def table(changes: list[tuple[Timer, int | None]]) -> tuple[Timers, dict[Timer, int]]:
    timers, model = Timers(), dict[Timer, int]()
    for name, at in changes:
        if at is None:
            timers = timers.clear(name)
            model.pop(name, None)
        else:
            timers = timers.set(name, at)
            model[name] = at
    return timers, model


@given(operations)
def test_it_is_a_dict_that_knows_its_earliest_entry(
    changes: list[tuple[Timer, int | None]],
) -> None:
    timers, model = table(changes)
    assert {name: timers.get(name) for name in Timer} == {name: model.get(name) for name in Timer}
    order = list(Timer)
    expected = min(model.items(), key=lambda item: (item[1], order.index(item[0])), default=None)
    assert timers.next() == (None if expected is None else Deadline(expected[1], expected[0]))


@given(operations, st.permutations(list(Timer)))
def test_equal_tables_are_equal_however_they_came_about(
    changes: list[tuple[Timer, int | None]], order: list[Timer]
) -> None:
    timers, model = table(changes)
    again = Timers()
    for name in order:
        again = again.set(name, model[name]) if name in model else again
    assert again == timers
    assert hash(again) == hash(timers)


@given(operations, st.lists(timer))
def test_clear_takes_several(changes: list[tuple[Timer, int | None]], gone: list[Timer]) -> None:
    timers, model = table(changes)
    assert dict(timers.clear(*gone).entries) == {k: v for k, v in model.items() if k not in gone}
