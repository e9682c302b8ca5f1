"""Tests of recovery/rules.py: every pair has a rule, and ``step`` is a pure function of values."""

from __future__ import annotations

from typing import get_args

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.errors import LocalProtocolError
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Event, Standing, Turn, TurnSubmitted
from bridgecore.recovery.failure import Closed, ErrorFrame, FailureKind
from bridgecore.recovery.policy import (
    DEFAULT,
    Action,
    Budgets,
    Cell,
    Policy,
    Remedy,
    Situation,
    Timeouts,
    replaying,
)
from bridgecore.recovery.rules import (
    ENDED_RESPONSE,
    EVENT_KEYS,
    RULES,
    Handling,
    Transition,
    step,
)
from bridgecore.recovery.state import AttemptPhase, Lifecycle, Phase, SessionState
from bridgecore.recovery.timers import NS_PER_SECOND, SESSION_TIMERS, Timer, Timers
from bridgecore.testing.strategies import History, Step, histories, policies, replay


def runs(drawn: st.SearchStrategy[Policy]) -> st.SearchStrategy[tuple[Policy, History]]:
    """A policy, and a history of a session under it."""
    return drawn.flatmap(lambda policy: st.tuples(st.just(policy), histories(policy)))


# ------------------------------------------------------------------ totality


def test_every_pair_of_phase_and_event_is_ruled_once() -> None:
    assert set(RULES) == {(phase, key) for phase in Phase for key in EVENT_KEYS}
    for (phase, key), rule in RULES.items():
        assert phase in rule.phases
        assert rule.on is key


def test_the_keys_are_all_events_and_all_timers_of_a_session() -> None:
    events = set(get_args(Event)) - {ev.DeadlineReached}
    assert set(EVENT_KEYS) == events | set(SESSION_TIMERS)
    durations = {field.name for field in attrs.fields(Timeouts)}
    assert {timer.value for timer in SESSION_TIMERS} == durations


def test_rule_ids_are_unique_and_each_has_a_sentence() -> None:
    by_id: dict[str, set[object]] = {}
    for rule in RULES.values():
        by_id.setdefault(rule.id, set()).add((rule.on, rule.handling, rule.doc))
        assert rule.doc
        assert "\n" not in rule.doc
        assert (rule.apply is None) is (rule.handling is not Handling.HANDLED)
    assert all(len(kinds) == 1 for kinds in by_id.values()), by_id


def test_the_phase_is_derived_for_every_state_that_can_be() -> None:
    assert {Phase(lifecycle.value) for lifecycle in Lifecycle} < set(Phase)
    attempts = {attempt for attempt in AttemptPhase if attempt is not AttemptPhase.UNSENT}
    assert {Phase(attempt.value) for attempt in attempts} < set(Phase)
    assert len(Phase) == len(Lifecycle) + len(attempts)


# ------------------------------------------------------------------ under any policy


# Whatever an embedder or a mutant writes into a cell, recovery ends, and the mechanics of a session
# are kept.
@settings(max_examples=200)
@given(runs(policies(feasible=False)))
def test_any_table_ends_each_turn_in_a_bounded_number_of_sends(
    run: tuple[Policy, History],
) -> None:
    policy, history = run
    sends: dict[int, int] = {}
    for record in replay(policy, history):
        running, event = record.before.running, record.event
        if running is not None and isinstance(event, ev.ConnectionLost) and event.unsent:
            sends[running.turn.id] -= 1  # its frame was not sent
        for effect in record.effects:
            if isinstance(effect, fx.SendTurn):
                sends[effect.turn] = sends.get(effect.turn, 0) + 1
    # One send, the replays, and one more for each kind of failure that can be recovered.
    most = 1 + policy.budgets.replays + len(FailureKind)
    assert all(count <= most for count in sends.values())


# ------------------------------------------------------------------ step


@given(runs(policies()))
def test_step_is_a_pure_function_of_hashable_values(run: tuple[Policy, History]) -> None:
    policy, history = run
    for record in replay(policy, history):
        before, hashed = repr(record.before), hash(record.before)
        again = step(policy, record.before, record.event, record.now)
        assert again.state == record.after
        assert hash(again.state) == hash(record.after)
        assert again.effects == record.effects
        assert again.rule == record.rule
        assert repr(record.before) == before
        assert hash(record.before) == hashed


@given(histories(), st.integers(1, 5))
def test_an_event_of_the_future_is_misuse_in_any_state(history: History, ahead: int) -> None:
    state = SessionState()
    for record in replay(DEFAULT, history):
        state = record.after
    events: list[Event] = [
        ev.ConnectionOpened(state.generation + ahead),
        ev.ConnectionLost(state.generation + ahead, Closed(1006)),
        ev.FrameSent(state.generation + ahead),
    ]
    for event in events:
        with pytest.raises(LocalProtocolError, match="latest generation"):
            step(DEFAULT, state, event, NS_PER_SECOND)


def test_states_and_effects_cannot_be_changed() -> None:
    transition = step(DEFAULT, SessionState(), TurnSubmitted(Turn(1)), 0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        transition.state.generation = 7  # type: ignore[misc]  # what the test is about
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        transition.rule = "x"  # type: ignore[misc]  # what the test is about


def walk(policy: Policy, *events: Event) -> Transition:
    """The last of the transitions that ``events`` cause, from the beginning."""
    transition = Transition(SessionState(), (), "")
    for event in events:
        transition = step(policy, transition.state, event, 0)
    return transition


NOT_FOUND = ev.UpstreamRefused(1, ErrorFrame(400, "previous_response_not_found"))
SKIPPED = Remedy(Action.REFUSE_BOUNDED, FailureReply.UPSTREAM_UNAVAILABLE)


def test_a_transition_names_the_cell_that_decided() -> None:
    events = (TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.FrameSent(1))
    assert walk(DEFAULT, *events).cells == ()
    refused = Remedy(Action.REFUSE, FailureReply.STREAM_INCOMPLETE)
    cell = Cell(1, Situation.LOST_SENT, Standing.UNANCHORED, refused)
    lost = walk(DEFAULT, *events, ev.ConnectionLost(1, Closed(1006)))
    assert lost.cells == (cell,)
    assert str(cell) == "lost_sent/unanchored=refuse"
    assert cell.words == (
        "lost after sending, before response.created / unanchored = refuse (stream_incomplete)"
    )


def test_a_remedy_that_leads_to_the_next_question_is_named_before_its_answer() -> None:
    again = Remedy(Action.RESEND, FailureReply.UPSTREAM_UNAVAILABLE)
    policy = DEFAULT.with_cell(Situation.NOT_FOUND, Standing.UNKNOWN, again)
    policy = policy.with_cell(Situation.SEND_SKIPPED, Standing.UNKNOWN, SKIPPED)
    known = ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_1")
    turn = TurnSubmitted(Turn(2, Standing.UNKNOWN, "resp_1"))
    events = (TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.FrameSent(1), known)
    refused = walk(policy, *events, turn, ev.FrameSent(1), NOT_FOUND)
    assert [str(cell) for cell in refused.cells] == [
        "not_found/unknown=resend",
        "send_skipped/unknown=refuse_bounded",
    ]


def test_consecutive_failures_have_their_own_cells() -> None:
    waiting = [TurnSubmitted(Turn(number, Standing.BOUND, "resp_0")) for number in (2, 3)]
    sent = (TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.FrameSent(1))
    last = ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_1")
    ended = walk(DEFAULT, *sent, *waiting, last)
    assert ended.cells == tuple(
        Cell(number, Situation.SEND_SKIPPED, Standing.BOUND, SKIPPED) for number in (2, 3)
    )


@pytest.mark.parametrize("policy", [DEFAULT, replaying(DEFAULT)], ids=["fails", "replays"])
def test_whether_an_event_is_held_back_is_asked_ahead_and_decides_about_no_turn(
    policy: Policy,
) -> None:
    events = (TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.FrameSent(1))
    created = walk(policy, *events, ev.ResponseCreated(1, "resp_1"))
    assert created.cells == ()
    assert created.foreseen is not None
    assert created.foreseen.situation is Situation.LOST_CREATED
    held = created.foreseen.remedy.action is Action.RESEND
    assert created.effects == (fx.DeliverEvent(1, held),)
    # After output nothing can be held back: the table is not read for each delta.
    output = ev.OutputReceived(1, response="resp_1")
    assert walk(policy, *events, ev.ResponseCreated(1, "resp_1"), output).foreseen is None


def test_a_session_ignores_timers_of_the_endpoint() -> None:
    for timer in set(Timer) - set(SESSION_TIMERS):
        transition = step(DEFAULT, SessionState(), ev.DeadlineReached(timer), NS_PER_SECOND)
        assert transition.state == SessionState()
        assert transition.effects == (fx.Ignored("the deadline is not due"),)


def test_a_deadline_due_in_a_phase_that_never_sets_it_is_misuse() -> None:
    """Only a state that was made by hand can have one."""
    state = SessionState(timers=Timers.of({Timer.CONNECT: 5}))
    with pytest.raises(LocalProtocolError, match="never set"):
        step(DEFAULT, state, ev.DeadlineReached(Timer.CONNECT), 5)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("events", [0, 1, 2, 3])
@pytest.mark.parametrize("action", [Action.RESEND, Action.REBIND, Action.SEND])
def test_a_resend_of_a_sent_turn_uses_a_replay_whatever_the_cell(
    remote: bool, events: int, action: Action
) -> None:
    """However far the turn had come, and whoever lost it, it uses the same budget
    (REPLAYS_ARE_BOUNDED)."""
    remedy = Remedy(action, FailureReply.STREAM_INCOMPLETE)
    cells = {(s, standing): remedy for s in Situation for standing in Standing}
    policy = Policy("mine", "", cells, Budgets(replays=0))
    on_the_way: list[Event] = [ev.FrameSent(1), ev.ResponseCreated(1), ev.OutputReceived(1)]
    history: list[Event] = [TurnSubmitted(Turn(1)), ev.ConnectionOpened(1)]
    history += [*on_the_way[:events], ev.ConnectionLost(1, Closed(1006))]
    steps = [Step(0, event) for event in history]
    *_, last = replay(policy, steps, SessionState(remote=remote))
    ended = [effect for effect in last.effects if not isinstance(effect, fx.RebindSession)]
    assert [type(effect) for effect in ended] == [fx.FailTurn]


@pytest.mark.parametrize("remote", [False, True])
def test_only_a_session_of_another_replica_is_taken_over(remote: bool) -> None:
    """A policy may have this action in any cell. Here, a turn is only started over."""
    remedy = Remedy(Action.REBIND, FailureReply.UPSTREAM_UNAVAILABLE)
    cells = {(s, standing): remedy for s in Situation for standing in Standing}
    refused = ev.UpstreamRefused(1, ErrorFrame(400, "previous_response_not_found"))
    history: list[Event] = [TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.FrameSent(1)]
    steps = [Step(0, event) for event in (*history, refused)]
    *_, last = replay(Policy("mine", "", cells), steps, SessionState(remote=remote))
    rebound = [effect for effect in last.effects if isinstance(effect, fx.RebindSession)]
    assert len(rebound) == remote
    assert not any(isinstance(effect, fx.FailTurn) for effect in last.effects)


# ------------------------------------------------------------------ bounded refusals


def after(*events: Event) -> SessionState:
    state = SessionState()
    for event in events:
        state = step(DEFAULT, state, event, 0).state
    return state


BOUND = Turn(1, Standing.BOUND, "resp_1")
REFUSED = after(TurnSubmitted(BOUND), ev.ConnectionOpened(1))


def test_refusals_of_an_anchor_are_counted_in_one_place() -> None:
    again = step(DEFAULT, REFUSED, TurnSubmitted(attrs.evolve(BOUND, id=2)), 0).state
    assert REFUSED.refusals == (("resp_1", 1),)
    assert again.refusals == (("resp_1", 2),)


def test_an_answer_without_created_resets_the_count_too() -> None:
    """Some upstreams omit response.created."""
    unknown = Turn(2, Standing.UNKNOWN, "resp_1")
    sent = step(DEFAULT, REFUSED, TurnSubmitted(unknown), 0).state
    assert sent.refusals == (("resp_1", 1),)
    ended = ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_2")
    assert step(DEFAULT, sent, ended, 0).state.refusals == ()


def test_a_refused_anchor_is_no_longer_cached() -> None:
    ended = ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_1")
    open_ = after(TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.FrameSent(1), ended)
    sent = step(DEFAULT, open_, TurnSubmitted(attrs.evolve(BOUND, id=2)), 0).state
    sent = step(DEFAULT, sent, ev.FrameSent(1), 0).state
    assert sent.cached_response == "resp_1"
    refused = ev.UpstreamRefused(1, ErrorFrame(400, "invalid_prompt"))
    assert step(DEFAULT, sent, refused, 0).state.cached_response is None


# ------------------------------------------------------------------ budgets of turns


@settings(deadline=None)
@given(runs(policies(feasible=False)))
def test_the_turns_timer_is_due_with_the_first_of_their_budgets(
    run: tuple[Policy, History],
) -> None:
    """Whichever turn that is: one that spent part of its budget before has less of it left."""
    for record in replay(*run):
        running, waiting = record.after.running, record.after.waiting
        ends = [turn.deadline for turn in (running, *waiting) if turn is not None]
        assert record.after.timers.get(Timer.TURN) == min(ends, default=None)


def test_a_turn_submitted_after_its_deadline_times_out() -> None:
    late = TurnSubmitted(Turn(2), deadline=NS_PER_SECOND)
    for state in (SessionState(), after(TurnSubmitted(Turn(1)))):
        transition = step(DEFAULT, state, late, NS_PER_SECOND)
        (failed,) = transition.effects
        assert isinstance(failed, fx.FailTurn)
        assert (failed.turn, failed.answer) == (2, FailureReply.REQUEST_TIMEOUT)
        assert transition.state.running == state.running
        assert transition.state.timers.next() is not None  # so the turn will end


# ------------------------------------------------------------------ forms, and names


def test_an_unsent_frame_is_sent_again_in_the_form_chosen_for_it() -> None:
    """Whatever the table has for a connection that does not know the anchor."""
    refuse = Remedy(Action.REFUSE, FailureReply.UPSTREAM_UNAVAILABLE)
    policy = DEFAULT.with_cell(Situation.SEND_SKIPPED, Standing.HELD, refuse)
    not_found = ErrorFrame(400, "previous_response_not_found")
    history: list[Event] = [
        TurnSubmitted(Turn(1)),
        ev.ConnectionOpened(1),
        ev.ResponseCreated(1, "resp_1"),
        TurnSubmitted(Turn(2, Standing.HELD, "resp_1")),
        ev.FrameSent(1),
        ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_1"),
        ev.FrameSent(1),
        ev.UpstreamRefused(1, not_found),
        ev.ConnectionLost(1, Closed(1000), unsent=True),
        ev.ConnectionOpened(2),
    ]
    *_, last = replay(policy, [Step(0, event) for event in history])
    assert last.effects == (fx.SendTurn(2, 2, fx.RequestForm.REHYDRATED),)


@pytest.mark.parametrize("refusals", [0, 1, 3])
def test_a_silent_stored_id_is_rebuilt_at_the_next_try(refusals: int) -> None:
    """However small the budget of refusals is: this refusal is not counted."""
    budgets = attrs.evolve(DEFAULT.budgets, refusals=refusals)
    policy = attrs.evolve(DEFAULT, budgets=budgets)
    second = NS_PER_SECOND
    steps = [
        Step(0, TurnSubmitted(Turn(1, Standing.HELD_STORED, "resp_0"))),
        Step(0, ev.ConnectionOpened(1)),
        Step(0, ev.FrameSent(1)),
        Step(60 * second, TurnSubmitted(Turn(2, Standing.HELD_STORED, "resp_0"))),
        Step(0, ev.ConnectionOpened(2)),
    ]
    sends = [
        effect
        for record in replay(policy, steps)
        for effect in record.effects
        if isinstance(effect, fx.SendTurn)
    ]
    assert [send.form for send in sends] == [fx.RequestForm.AS_IS, fx.RequestForm.REHYDRATED]


def test_names_are_remembered_within_bounds() -> None:
    """However many ids an upstream makes up, for one answer or for many."""
    state = after(TurnSubmitted(Turn(1)), ev.ConnectionOpened(1), ev.FrameSent(1))
    for number in range(100):
        state = step(DEFAULT, state, ev.OutputReceived(1, True, True, f"a{number}"), 0).state
    assert state.running is not None
    assert 0 < len(state.running.responses) < 10
    transition = step(DEFAULT, state, ev.ResponseEnded(1, ev.Outcome.COMPLETED, "last"), 0)
    (complete,) = transition.effects
    assert isinstance(complete, fx.CompleteTurn)
    assert complete.responses[-1] == "last"
    state = transition.state
    assert state.cached_response == "last"
    for number in range(2, 100):
        for event in (
            TurnSubmitted(Turn(number)),
            ev.FrameSent(1),
            ev.ResponseEnded(1, ev.Outcome.COMPLETED, f"b{number}"),
        ):
            state = step(DEFAULT, state, event, 0).state
    assert 1 < len(state.ended) < 20
    assert state.ended[-1] == "b99"  # the latest are kept: their late events are the likely ones
    again = step(DEFAULT, state, TurnSubmitted(Turn(100)), 0).state
    late = ev.ResponseEnded(1, ev.Outcome.COMPLETED, "b99")
    assert step(DEFAULT, again, late, 0).rule == ENDED_RESPONSE


@given(runs(policies(feasible=False)))
def test_events_of_an_ended_response_change_nothing(run: tuple[Policy, History]) -> None:
    """Under any table, unless the upstream uses the id for the running response, too."""
    for record in replay(*run):
        running = record.before.running
        if record.rule == ENDED_RESPONSE:
            assert record.after == record.before
            assert [type(effect) for effect in record.effects] == [fx.Ignored]
        elif running is not None and isinstance(record.event, ev.ResponseEnded):
            name = record.event.response
            mine = {*running.responses, running.doubtful}
            assert name not in record.before.ended or name in mine or name is None
