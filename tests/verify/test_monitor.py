"""Tests of verify/monitor.py: the reference model checks each transition, until the first
violation."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.builder import TransitionBuilder
from bridgecore.recovery.events import Event, Standing, Turn
from bridgecore.recovery.failure import Closed
from bridgecore.recovery.policy import DEFAULT, PR397, Budgets, Policy, replaying
from bridgecore.recovery.rules import SPURIOUS_DEADLINE, Transition
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import Timer
from bridgecore.testing import strategies
from bridgecore.verify.monitor import Monitor, WatchedSession
from bridgecore.verify.properties import Property, ViolationError
from bridgecore.verify.replay import Replay
from bridgecore.wire.decisions import Recorder

# A turn that was sent and lost; then a new connection is opened.
LOST: tuple[Event, ...] = (
    ev.TurnSubmitted(Turn(1)),
    ev.ConnectionOpened(1),
    ev.FrameSent(1),
    ev.ConnectionLost(1, Closed(1006)),
    ev.ConnectionOpened(2),
)


def live(session: Session, *events: Event) -> None:
    for at, event in enumerate(events):
        session.handle(event, at)


def test_a_violation_is_raised_by_the_event_that_shows_it_and_by_no_later_one() -> None:
    session = WatchedSession(PR397)
    live(session, *LOST[:-1])
    with pytest.raises(ViolationError) as caught:
        live(session, LOST[-1])
    assert caught.value.prop is Property.NO_AMBIGUOUS_RESEND
    assert session.monitor.violation is caught.value
    live(session, ev.FrameSent(2), ev.ResponseEnded(2, ev.Outcome.COMPLETED, "resp_1"))


def test_known_violations_can_be_left_out() -> None:
    session = WatchedSession(PR397, without=frozenset({Property.NO_AMBIGUOUS_RESEND}))
    live(session, *LOST)
    assert session.monitor.violation is None


def test_ignored_events_change_no_state() -> None:
    """The effects alone would not show that the state changed."""
    monitor, state = Monitor(DEFAULT), SessionState()
    ignored = (fx.Ignored("the deadline is not due"),)
    spurious = ev.DeadlineReached(Timer.PING)
    monitor.watch(state, spurious, Transition(state, ignored, SPURIOUS_DEADLINE), 0)
    changed = Transition(attrs.evolve(state, past_lifetime=True), ignored, SPURIOUS_DEADLINE)
    with pytest.raises(ViolationError) as caught:
        monitor.watch(state, spurious, changed, 0)
    assert caught.value.prop is Property.SPURIOUS_IS_NOTHING


def test_output_that_is_folded_together_is_judged_at_its_time() -> None:
    session = WatchedSession(DEFAULT)
    live(session, *LOST[:3], ev.ResponseCreated(1, "a"), ev.OutputReceived(1, response="a"))
    idle = DEFAULT.timeouts.idle
    session.touch(idle)
    assert session.handle_timeout(idle + 4) == ()
    assert session.monitor.model.idle_due == 2 * idle
    session.handle_timeout(2 * idle)
    assert session.monitor.model.turns == ()


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            DEFAULT,
            replaying(DEFAULT),
            attrs.evolve(DEFAULT, budgets=Budgets(refusals=0, waiting=1, warm=True)),
        ]
    ),
    st.booleans(),
    st.data(),
)
def test_no_history_breaks_the_safe_policy(
    policy: Policy, remote: bool, data: st.DataObject
) -> None:
    state = SessionState(remote=remote)
    history = data.draw(strategies.histories(policy, state=state))
    monitor = Monitor(policy, remote=remote, without=frozenset({Property.NO_AMBIGUOUS_RESEND}))
    for record in strategies.replay(policy, history, state):
        transition = Transition(record.after, record.effects, record.rule)
        monitor.watch(record.before, record.event, transition, record.now)


# ------------------------------------------------------------------ the decision log


def lines(policy: Policy, *events: Event) -> list[bytes]:
    recorder = Recorder(policy)
    live(recorder.session(1), *events)
    live(recorder.session(2), *LOST[:3])
    return [str(record.fields["line"]).encode() for record in recorder.take()]


def test_a_decision_log_is_judged_line_by_line_if_that_is_wanted() -> None:
    for watched in (False, True):
        replayed = Replay(watched=watched)
        broken = []
        for line in lines(PR397, *LOST):
            try:
                replayed.take(line)
            except ViolationError as violation:
                broken.append((replayed.lines, violation.prop))
        assert broken == [(6, Property.NO_AMBIGUOUS_RESEND)] * watched
        assert replayed.report().transitions == 8
        assert replayed.report().same


def test_ids_that_are_hashed_are_judged_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal ids have equal hashes, so the model can check where an anchor is sent."""
    turn = ev.TurnSubmitted(Turn(2, Standing.BOUND, "resp_1"))
    ended = ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_1")
    replayed = Replay(watched=True)
    for line in lines(DEFAULT, *LOST[:3], ended, turn):
        replayed.take(line)
    # A bridge that sends every anchor on any connection.
    monkeypatch.setattr(
        TransitionBuilder, "dispatch", lambda builder: builder._send(fx.RequestForm.AS_IS)
    )
    turn = ev.TurnSubmitted(Turn(2, Standing.BOUND, "resp_2"))
    replayed = Replay(watched=True)
    *before, last = lines(DEFAULT, *LOST[:3], ended, turn)[:6]
    for line in before:
        replayed.take(line)
    with pytest.raises(ViolationError, match="ANCHOR_IS_KNOWN"):
        replayed.take(last)
