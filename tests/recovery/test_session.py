"""Tests of recovery/session.py: what it adds to ``step`` (a clock, folding, a trace) changes no
decision."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgecore.errors import ConfigError, InternalError, LocalProtocolError
from bridgecore.recovery import events as ev
from bridgecore.recovery.builder import TransitionBuilder
from bridgecore.recovery.effects import (
    CloseConnection,
    Effect,
    FailTurn,
    FailureReply,
    Ignored,
    RetireSession,
)
from bridgecore.recovery.events import Standing, Turn
from bridgecore.recovery.failure import Closed
from bridgecore.recovery.policy import DEFAULT, Action, Policy, Remedy, Situation, Timeouts
from bridgecore.recovery.rules import RULES, Handling, Rule
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import Phase
from bridgecore.recovery.timers import NS_PER_SECOND, Deadline, Timer
from bridgecore.testing.strategies import (
    History,
    Record,
    Step,
    events,
    histories,
    policies,
    replay,
)

SECOND = NS_PER_SECOND
# A policy, and a history of a session under it.
runs = policies(feasible=False).flatmap(lambda p: st.tuples(st.just(p), histories(p)))


def in_output() -> Session:
    session = Session()
    for event in (
        ev.TurnSubmitted(Turn(1)),
        ev.ConnectionOpened(1),
        ev.FrameSent(1),
        ev.ResponseCreated(1),
        ev.OutputReceived(1),
    ):
        session.handle(event, 0)
    return session


@given(runs)
def test_handle_does_what_step_does(run: tuple[Policy, History]) -> None:
    session = Session(run[0])
    for record in replay(*run):
        assert session.state == record.before
        if isinstance(record.event, ev.DeadlineReached):
            deadline = session.next_timeout()
            due = deadline is not None and deadline.at <= record.now
            assert due is (record.rule != "spurious-deadline")
        assert session.handle(record.event, record.now) == record.effects
        assert session.state == record.after
        assert session.rule == record.rule


@given(runs, st.lists(st.builds(Step, st.integers(0, 400 * SECOND), events(3)), min_size=1))
def test_misuse_changes_nothing(run: tuple[Policy, History], mistakes: History) -> None:
    policy, history = run
    session = Session(policy)
    now = 0
    for item in [*history, *mistakes]:
        now += item.after
        session.handle_timeout(now)
        before, deadline, rule = session.state, session.next_timeout(), session.rule
        try:
            session.handle(item.event, now)
        except LocalProtocolError:
            assert session.state is before
            assert session.next_timeout() == deadline
            assert session.rule == rule


WRONG: list[Any] = [
    "foo",
    None,
    ev.EvictionRequested,
    CloseConnection(1),
    Ignored("the turn is over already"),
    Closed(1006),
    ev.ConnectionLost(1, 1006),  # type: ignore[arg-type]  # no evidence
    ev.ConnectionLost(1, ev.Outcome.FAILED),  # type: ignore[arg-type]  # no evidence
    ev.ConnectionLost(1, Closed("1006")),  # type: ignore[arg-type]  # evidence of a wrong shape
    ev.ConnectionLost(True, Closed(1006)),
    ev.UpstreamRefused(1, "rate_limit_exceeded"),  # type: ignore[arg-type]  # no evidence
    ev.ResponseEnded(1, "completed"),  # type: ignore[arg-type]  # no Outcome
    ev.ResponseEnded(1, ev.Outcome.COMPLETED, b"resp_1"),  # type: ignore[arg-type]  # bytes are wrong
    ev.FrameSent(1.0),  # type: ignore[arg-type]  # a float is wrong
    ev.FrameSent("1"),  # type: ignore[arg-type]  # text is wrong
    ev.TurnSubmitted(1),  # type: ignore[arg-type]  # a number, and no Turn
    ev.TurnSubmitted(Turn("1")),  # type: ignore[arg-type]  # a Turn of a wrong shape
    ev.TurnSubmitted(Turn(1, "held", "resp_1")),  # type: ignore[arg-type]  # text, and no Standing
    ev.TurnAbandoned(None),  # type: ignore[arg-type]  # no number
    ev.RelayPaused(1, 1),  # type: ignore[arg-type]  # is no bool
    ev.DeadlineReached("idle"),  # type: ignore[arg-type]  # no Timer
]


def outcome(session: Session, record: Record) -> tuple[Effect, ...] | str:
    """The transition of the recorded event. It may be impossible if unrecorded output was reported
    before, because that extends a deadline."""
    try:
        return session.handle(record.event, record.now)
    except LocalProtocolError as exc:
        return str(exc)


@given(runs, st.sampled_from(WRONG), st.booleans())
def test_an_invalid_event_raises_and_changes_nothing(
    run: tuple[Policy, History], wrong: Any, touched: bool
) -> None:
    """Of two sessions with the same history, one also gets invalid events, at times yet to come:
    neither its state nor its clock changes."""
    lawful, abused = Session(run[0]), Session(run[0])
    for record in replay(*run):
        if touched:
            lawful.touch(record.now)
            abused.touch(record.now)
        before = abused.state
        with pytest.raises(LocalProtocolError):
            abused.handle(wrong, record.now + 10**15)
        for time in (-1, 1.5, True, "0", None):
            when: Any = time
            with pytest.raises(LocalProtocolError, match="nanoseconds"):
                abused.handle(record.event, when)
            with pytest.raises(LocalProtocolError, match="nanoseconds"):
                abused.handle_timeout(when)
            with pytest.raises(LocalProtocolError, match="nanoseconds"):
                abused.touch(when)
        assert abused.state is before
        assert outcome(abused, record) == outcome(lawful, record)
        assert abused.state == lawful.state
        assert abused.next_timeout() == lawful.next_timeout()


def test_an_event_that_comes_at_a_wrong_time_leaves_output_unfolded_and_the_clock_alone() -> None:
    session = in_output()
    session.touch(5 * SECOND)
    before = session.state
    with pytest.raises(LocalProtocolError, match="submitted before"):
        session.handle(ev.TurnSubmitted(Turn(1)), 9000 * SECOND)
    assert session.state is before
    assert session.handle_timeout(6 * SECOND) == ()
    assert session.next_timeout() == Deadline(305 * SECOND, Timer.IDLE)


def test_the_text_says_what_is_wrong_and_where() -> None:
    session = Session()
    with pytest.raises(LocalProtocolError, match=r"'foo' is not an event: .*recovery\.events"):
        session.handle("foo", 0)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(LocalProtocolError, match=r"ConnectionLost: cause must be Closed or .*1006"):
        session.handle(ev.ConnectionLost(1, 1006), 0)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("wrong", ["default", None, 3])
def test_a_session_has_a_policy(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="Policy"):
        Session(wrong)
    if wrong is not None:
        with pytest.raises(ConfigError, match="SessionState"):
            Session(DEFAULT, wrong)


@given(runs, st.integers(0, 4000))
def test_after_a_timeout_the_next_deadline_is_later(run: tuple[Policy, History], late: int) -> None:
    """However late the wake-up comes (DEADLINES_ARE_KEPT)."""
    policy, history = run
    session = Session(policy)
    now = 0
    for item in history:
        now += item.after + late * SECOND
        session.handle_timeout(now)
        deadline = session.next_timeout()
        assert deadline is None or deadline.at > now
        # The same wake-up once more does nothing (SPURIOUS_IS_NOTHING).
        before = session.state
        assert session.handle_timeout(now) == ()
        assert session.state is before
        try:
            session.handle(item.event, now)
        except LocalProtocolError:
            continue  # it came too late to be possible


@given(runs, st.data())
def test_a_timeout_before_the_deadline_changes_nothing(
    run: tuple[Policy, History], data: st.DataObject
) -> None:
    session = Session(run[0])
    now = 0
    for record in replay(*run):
        session.handle(record.event, record.now)
        now = record.now
    deadline = session.next_timeout()
    if deadline is not None and deadline.at > now:
        before = session.state
        assert session.handle_timeout(data.draw(st.integers(now, deadline.at - 1))) == ()
        assert session.state is before


@given(
    st.lists(st.integers(0, 200 * SECOND), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from(["pause", "end", "wait"]),
)
def test_touch_equals_a_step_for_each_output(gaps: list[int], paused: bool, then: str) -> None:
    touched, stepped = in_output(), in_output()
    now = 0
    if paused:
        for session in (touched, stepped):
            session.handle(ev.RelayPaused(1, True), now)
    for gap in gaps:
        now += gap
        touched.touch(now)
        stepped.handle(ev.OutputReceived(1), now)
    results: list[tuple[Effect, ...]] = []
    for session in (touched, stepped):
        if then == "wait":
            results.append(session.handle_timeout(now + 300 * SECOND - 1))
            results[-1] += session.handle_timeout(now + 300 * SECOND)
        elif then == "pause":
            results.append(session.handle(ev.RelayPaused(1, not paused), now + SECOND))
        else:
            results.append(session.handle(ev.ResponseEnded(1, ev.Outcome.COMPLETED, "r"), now))
    assert results[0] == results[1]
    assert touched.state == stepped.state
    assert touched.next_timeout() == stepped.next_timeout()


def test_a_touch_outside_of_output_is_forgotten() -> None:
    session = in_output()
    session.touch(SECOND)
    session.handle(ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_1"), 2 * SECOND)
    before = session.state
    session.touch(3 * SECOND)
    assert session.handle_timeout(4 * SECOND) == ()
    assert session.state is before


def test_a_clock_that_goes_backwards_stands_still() -> None:
    session = Session()
    session.handle(ev.TurnSubmitted(Turn(1)), 100 * SECOND)
    session.handle(ev.ConnectionOpened(1), 40 * SECOND)
    assert session.next_timeout() == Deadline(160 * SECOND, Timer.CREATED)
    assert session.handle_timeout(10 * SECOND) == ()
    session.handle(ev.FrameSent(1), 101 * SECOND)
    assert session.next_timeout() == Deadline(161 * SECOND, Timer.CREATED)


def test_deadlines_that_are_due_together_pass_in_the_order_of_their_times() -> None:
    session = Session()
    session.handle(ev.TurnSubmitted(Turn(1)), 0)
    session.handle(ev.ConnectionOpened(1), 0)
    # After a day's sleep the deadline that was due first determines the error
    # (ANSWER_TELLS_WHAT_HAPPENED).
    effects = session.handle_timeout(86_400 * SECOND)
    (failed,) = [effect for effect in effects if isinstance(effect, FailTurn)]
    assert failed.failure is not None
    assert failed.failure.detail == "created deadline"


def test_a_deadline_reported_early_is_ignored_by_name() -> None:
    session = Session()
    session.handle(ev.TurnSubmitted(Turn(1)), 0)
    before = session.state
    effects = session.handle(ev.DeadlineReached(Timer.CONNECT), 10 * SECOND - 1)
    assert effects == (Ignored("the deadline is not due"),)
    assert session.state is before
    session.handle(ev.DeadlineReached(Timer.CONNECT), 10 * SECOND)
    assert session.state.phase is Phase.CLOSED


def test_a_rule_that_sets_its_own_deadline_in_the_past_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def again(builder: TransitionBuilder, event: object) -> None:
        builder.set_timer(Timer.CONNECT, 0)

    pair = (Phase.RECONNECTING, Timer.CONNECT)
    broken = Rule("broken", (pair[0],), pair[1], Handling.HANDLED, "spins", again)
    monkeypatch.setitem(RULES, pair, broken)
    session = Session()
    session.handle(ev.TurnSubmitted(Turn(1)), 0)
    before = session.state
    with pytest.raises(InternalError, match=r"'broken'.*DEADLINES_ARE_KEPT.*TurnSubmitted"):
        session.handle_timeout(10 * SECOND)
    assert session.state is before


def test_an_internal_error_has_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = (Phase.CLOSED, ev.EvictionRequested)

    def broken(builder: TransitionBuilder, event: object) -> None:
        builder.fail(FailureReply.OVERLOADED, None)

    monkeypatch.setitem(RULES, pair, Rule("b", (pair[0],), pair[1], Handling.HANDLED, "x", broken))
    session = Session(DEFAULT)
    session.handle(ev.ConnectionLost(0, Closed(1006)), 0)
    with pytest.raises(InternalError, match=r"no turn runs; EvictionRequested.*lost-closed"):
        session.handle(ev.EvictionRequested(), 0)


def test_the_trace_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = (Phase.CLOSED, ev.EvictionRequested)

    def broken(builder: TransitionBuilder, event: object) -> None:
        builder.fail(FailureReply.OVERLOADED, None)

    monkeypatch.setitem(RULES, pair, Rule("b", (pair[0],), pair[1], Handling.HANDLED, "x", broken))
    session = Session(DEFAULT)
    for _ in range(50):
        session.handle(ev.ConnectionLost(0, Closed(1006)), 0)
    with pytest.raises(InternalError) as raised:
        session.handle(ev.EvictionRequested(), 0)
    assert 8 <= str(raised.value).count("lost-closed") <= 16


def test_a_session_keeps_the_cells_of_all_deadlines_of_a_call() -> None:
    times = Timeouts(connect=1, created=1)
    policy = attrs.evolve(DEFAULT, timeouts=times)
    again = Remedy(Action.RESEND, FailureReply.REQUEST_TIMEOUT)
    session = Session(policy.with_cell(Situation.SILENT, Standing.UNANCHORED, again))
    for event in (ev.TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.FrameSent(1)):
        session.handle(event, 0)
        assert session.cells == ()
    # Both at one time: no response.created, and then no connection for the second try.
    session.handle_timeout(1)
    assert [str(cell) for cell in session.cells] == ["silent/unanchored=resend"]
    session.handle_timeout(2)
    assert [str(cell) for cell in session.cells] == ["connect_failed/unanchored=refuse"]
    session.handle_timeout(3)
    assert session.cells == ()


def test_a_new_session_has_no_rule_and_no_touched_output() -> None:
    assert Session(DEFAULT).rule == ""
    session = Session(DEFAULT)
    for event in (ev.TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.OutputReceived(1)):
        session.handle(event, 0)
    assert session.state.phase is Phase.OUTPUT
    # A session that continues from a state in mid-output has not received any output itself.
    heir = Session(DEFAULT, session.state)
    heir.handle(ev.RelayPaused(2, True), SECOND)
    assert heir.next_timeout() == session.next_timeout()


def test_everything_that_is_due_at_once_is_done() -> None:
    session = Session(attrs.evolve(DEFAULT, timeouts=Timeouts(expiry=9000 * SECOND)))
    ended = ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_1")
    turn = ev.TurnSubmitted(Turn(1))
    for event in (turn, ev.ConnectionOpened(1), ev.FrameSent(1), ended):
        session.handle(event, 0)
    # The connection is past its lifetime, and no turn has come.
    effects = session.handle_timeout(10_000 * SECOND)
    assert effects == (CloseConnection(1), RetireSession())
