"""Tests of transport/timer_queue.py, compared with a plain dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridgecore.timer_queue import TimerQueue


def test_earliest_first() -> None:
    schedule: TimerQueue[str] = TimerQueue()
    assert schedule.next() is None
    schedule.set("b", 20)
    schedule.set("a", 10)
    assert schedule.next() == (10, "a")
    schedule.set("a", 30)
    assert schedule.next() == (20, "b")
    schedule.set("b", None)
    assert schedule.next() == (30, "a")


def test_ties_in_the_order_of_setting() -> None:
    schedule: TimerQueue[str] = TimerQueue()
    for key in "bca":
        schedule.set(key, 10)
    assert list(schedule.due(10)) == ["b", "c", "a"]
    assert schedule.next() is None


def test_a_key_set_again_while_due_waits_for_its_new_time() -> None:
    schedule: TimerQueue[int] = TimerQueue()
    schedule.set(1, 10)
    schedule.set(2, 11)
    woken = []
    for key in schedule.due(11):
        woken.append(key)
        schedule.set(key, 12)
        schedule.set(2, 12)
    assert woken == [1]
    assert list(schedule.due(12)) == [1, 2]


def test_memory_follows_the_number_of_keys() -> None:
    schedule: TimerQueue[int] = TimerQueue()
    for at in range(100_000):
        schedule.set(at % 10, at)
    assert len(schedule._heap) <= 64 + 4 * 10


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 50)), st.booleans()),
        max_size=200,
    )
)
def test_like_a_dictionary(steps: list[tuple[int, int | None, bool]]) -> None:
    schedule: TimerQueue[int] = TimerQueue()
    model: dict[int, int] = {}
    for key, at, wake in steps:
        if wake:
            now = at or 0
            due = {key for key, at in model.items() if at <= now}
            found = list(schedule.due(now))
            assert set(found) == due
            assert [model[key] for key in found] == sorted(model[key] for key in found)
            model = {key: at for key, at in model.items() if key not in due}
        else:
            schedule.set(key, at)
            model.pop(key, None)
            if at is not None:
                model[key] = at
        first = schedule.next()
        assert (None if first is None else first[0]) == min(model.values(), default=None)
