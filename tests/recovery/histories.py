"""Random histories of a session: what may happen, in any order, at any time.

A history is a list of events and of durations (ns) that pass between them. The generation in an
event says how old its connection is: 0 is the latest, 1 the one before. Where an event cannot
happen, that is part of the history as well: the caller misused the session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import attrs
from hypothesis import strategies as st

from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect
from bridgecore.recovery.errors import LocalProtocolError
from bridgecore.recovery.events import Event, Outcome, Standing, Turn
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Malformed,
    Unreachable,
    UpgradeRefused,
)
from bridgecore.recovery.policy import Policy
from bridgecore.recovery.rules import step
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import NS_PER_SECOND, Timer

anchors = st.sampled_from(["resp_1", "resp_2", "resp_3"])
anchored = st.sampled_from([standing for standing in Standing if standing.value != "unanchored"])
turns = st.one_of(
    st.builds(Turn, st.integers(1, 6)),
    st.builds(Turn, st.integers(1, 6), anchored, anchors),
)
losses = st.sampled_from(
    [Closed(1000), Closed(1006), Malformed("frame"), Unreachable("refused"), UpgradeRefused(401)]
)
refusals = st.sampled_from(
    [
        ErrorFrame(400, "previous_response_not_found"),
        ErrorFrame(400, "websocket_connection_limit_reached"),
        ErrorFrame(429),
        ErrorFrame(500, "server_error"),
        ErrorFrame(),
    ]
)
_age = st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1])
_turn_ids = st.integers(1, 6)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(ev.TurnSubmitted, turns),
    st.builds(ev.ConnectionOpened, _age),
    st.builds(ev.FrameSent, _age),
    st.builds(ev.ResponseCreated, _age),
    st.builds(ev.OutputReceived, _age, st.booleans()),
    st.builds(ev.ResponseEnded, _age, st.sampled_from(Outcome), st.none() | anchors),
    st.builds(ev.ConnectionLost, _age, losses),
    st.builds(ev.UpstreamRefused, _age, refusals),
    st.builds(ev.TurnAbandoned, _turn_ids),
    st.builds(ev.RelayPaused, _turn_ids, st.booleans()),
    st.just(ev.EvictionRequested()),
    st.builds(ev.DeadlineReached, st.sampled_from(Timer)),
)
durations = st.sampled_from([0, 1, 1, 9, 10, 59, 60, 61, 300, 900, 3300, 3600]).map(
    lambda seconds: seconds * NS_PER_SECOND
)


@attrs.frozen
class Next:
    """What comes next if all goes well; an idle session is given ``turn``."""

    turn: Turn


Item: TypeAlias = Event | Next | int
History: TypeAlias = list[Item]
_next = st.builds(Next, turns)


def histories(max_size: int = 30) -> st.SearchStrategy[History]:
    """Any history of up to ``max_size`` steps. Half go well: else few answers would begin."""
    return st.lists(st.one_of(_next, _next, _next, events, events, durations), max_size=max_size)


def placed(item: Event | Next, state: SessionState) -> Event:
    """``item`` as an event of ``state``, with the generation that its age stands for."""
    if isinstance(item, Next):
        if state.running is None:
            return ev.TurnSubmitted(item.turn)
        if state.phase is Phase.OUTPUT:
            response = f"resp_{state.running.turn.id % 3 + 1}"
            return ev.ResponseEnded(state.generation, Outcome.COMPLETED, response)
        return _ON_THE_WAY[state.phase](state.generation)
    age: int | None = getattr(item, "generation", None)
    if age is None:
        return item
    change: dict[str, Any] = {"generation": max(state.generation - age, 0)}
    return attrs.evolve(item, **change)


_ON_THE_WAY: dict[Phase, Callable[[int], Event]] = {
    Phase.RECONNECTING: ev.ConnectionOpened,
    Phase.SENDING: ev.FrameSent,
    Phase.SENT: ev.ResponseCreated,
    Phase.CREATED: ev.OutputReceived,
}


@attrs.frozen
class Record:
    """One transition."""

    before: SessionState
    event: Event
    now: int
    after: SessionState
    effects: tuple[Effect, ...]
    rule: str


def run(policy: Policy, history: History, state: SessionState | None = None) -> Iterator[Record]:
    """The transitions that ``history`` leads to; what is misuse leads to none."""
    state = SessionState() if state is None else state
    now = 0
    for item in history:
        if isinstance(item, int):
            end = now + item
            while (deadline := state.timers.next()) is not None and deadline.at <= end:
                now = max(now, deadline.at)
                record = _step(policy, state, ev.DeadlineReached(deadline.reason), now)
                state = record.after
                yield record
            now = end
            continue
        try:
            record = _step(policy, state, placed(item, state), now)
        except LocalProtocolError:
            continue
        state = record.after
        yield record


def _step(policy: Policy, state: SessionState, event: Event, now: int) -> Record:
    transition = step(policy, state, event, now)
    return Record(state, event, now, transition.state, transition.effects, transition.rule)
