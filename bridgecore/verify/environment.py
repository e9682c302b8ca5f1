"""The environment of a session: the bounds of an exploration, and the moves in each state.

What belongs here: which events can occur when, by name; what is bounded, in one table; and what the
reference model gets of a policy. The search is explore.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Event, Outcome, Remembers, Standing, Turn
from bridgecore.recovery.failure import (
    NOT_FOUND_CODE,
    Closed,
    ErrorFrame,
    Malformed,
    NotDispatched,
    Unreachable,
    UpgradeRefused,
)
from bridgecore.recovery.policy import Action, Policy, Situation, Timeouts
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import SESSION_TIMERS, Timer, Timers
from bridgecore.verify.model import Terms


@attrs.frozen
class Bounds:
    """What an exploration leaves out. Everything that is not bounded here is explored."""

    name: str
    waiting: int  # most turns that wait at a time
    standings: tuple[Standing, ...]
    timeouts: Timeouts  # in ticks
    refusals: int  # retriable refusals of one anchor
    queued: tuple[Standing, ...] = (Standing.UNANCHORED, Standing.BOUND)  # of turns that wait
    remote: bool = True  # also start with a session that another replica owns
    causes: bool = True  # several causes of lost connects and refusals, else one of each
    http: bool = False  # also connections that speak HTTP, and upgrades that say there is no other
    late: bool = True  # also late copies of events of ended responses
    depth: int | None = None  # most moves from the start; None: no limit
    max_states: int = 5_000_000


_ALL = tuple(Standing)
_SHORT = Timeouts(connect=1, created=1, idle=1, turn=1, lifetime=1, expiry=1)
_LONG = Timeouts(connect=1, created=2, idle=2, turn=4, lifetime=4, expiry=1)
_FINE = Timeouts(connect=1, created=2, idle=2, turn=4, lifetime=4, expiry=2)
_SOME = (Standing.UNANCHORED, Standing.HELD, Standing.BOUND)
_FEW = (Standing.UNANCHORED, Standing.HELD)
_OTHERS = tuple([standing for standing in Standing if standing not in _SOME])
# The two that share a session: a turn whose anchor the bridge has injected can keep another from
# being sent in full, which takes one that may be sent with its id, too.
_BY_ID_OR_IN_FULL = (Standing.HELD_STORED, Standing.INJECTED)
_SMALL = (
    Bounds("every standing", 0, _ALL, _SHORT, 1),
    Bounds("over HTTP", 0, _ALL, _SHORT, 1, remote=False, http=True, late=False),
)
# All are explored in parts, each wide in one dimension and narrow in the others: all dimensions
# wide at once would be too many states.
BOUNDS: Mapping[str, Sequence[Bounds]] = {
    "quick": (
        Bounds("quick", 0, _SOME, _SHORT, 1, late=False),
        Bounds("quick, over HTTP", 0, _FEW, _SHORT, 1, remote=False, http=True, late=False),
        # Every column of a policy has to be read. All at once they would take half a minute. So of
        # the other standings two share a session, the rest have one of their own each, and all
        # share one for a few moves only: enough for one that another replica owns to be lost and
        # tried again.
        *[
            Bounds(
                "quick, " + " and ".join(one.value for one in some),
                *(0, some, _SHORT, 1),
                remote=False,
                late=False,
            )
            for some in (_BY_ID_OR_IN_FULL, (Standing.STORED,), (Standing.UNKNOWN,))
        ],
        Bounds("quick, few moves", 0, _OTHERS, _SHORT, 1, late=False, depth=7),
        Bounds(
            *("quick, few moves over HTTP", 0, (*_OTHERS, Standing.BOUND), _SHORT, 1),
            http=True,
            late=False,
            depth=4,
        ),
    ),
    "small": _SMALL,
    "ci": (
        *_SMALL,
        Bounds("longer times", 0, _SOME, _LONG, 1, late=False),
        Bounds("a queue", 1, _SOME, _SHORT, 1),
    ),
    "nightly": (
        Bounds("nightly, longer times", 1, _ALL, _FINE, 2, queued=_SOME, late=False),
        Bounds("nightly, a queue", 1, _ALL, _SHORT, 1),
        Bounds("nightly, two that wait", 2, _SOME, _SHORT, 1),
        Bounds("nightly, over HTTP", 1, _ALL, _SHORT, 1, http=True, late=False),
    ),
}


@attrs.frozen
class Move:
    """One thing that can happen: its name, and the event; None: a tick passes."""

    label: str
    event: Event | None


def due(state: SessionState, timer: Timer, at: int | None) -> SessionState:
    """``state`` with ``timer`` due at ``at``; None: not set."""
    entries = {name: time for name, time in state.timers.entries if name is not timer}
    if at is not None:
        entries[timer] = at
    return attrs.evolve(state, timers=Timers.of(entries))


def bounded(policy: Policy, bounds: Bounds) -> Policy:
    """``policy`` with the times and budgets of ``bounds``."""
    budgets = attrs.evolve(
        policy.budgets,
        waiting=bounds.waiting,
        refusals=min(policy.budgets.refusals, bounds.refusals),
    )
    return attrs.evolve(policy, timeouts=bounds.timeouts, budgets=budgets)


_OWNER_ROWS = (
    Situation.OWNER_LOST,
    Situation.OWNER_LOST_DISPATCHED,
    Situation.OWNER_LOST_OUTPUT,
)


def terms_of(policy: Policy) -> Terms:
    """What the model gets of ``policy``: its numbers, and what they imply. ``hands_over``: it
    lets other replicas take over sessions of this one."""
    hands_over = any(
        remedy.answer is FailureReply.OWNER_UNREACHABLE
        for (situation, _), remedy in policy.cells.items()
        if situation not in _OWNER_ROWS
    )
    budgets = policy.budgets
    holds = any(
        policy.remedy(Situation.LOST_CREATED, standing).action is Action.RESEND
        for standing in Standing
    )
    return Terms(
        policy.timeouts,
        budgets.refusals,
        budgets.waiting,
        budgets.replays,
        hands_over=hands_over,
        holds=holds,
        warm=budgets.warm,
        falls_back=any(remedy.action is Action.FALL_BACK for remedy in policy.cells.values()),
    )


_NOT_FOUND = ErrorFrame(status=400, code=NOT_FOUND_CODE)
_LIMIT = ErrorFrame(status=400, code="websocket_connection_limit_reached")
_INVALID = ErrorFrame(status=400, code="invalid_prompt")
_TOO_LARGE = ErrorFrame(status=413, code="request_too_large")
_UNREADABLE = Malformed("a terminal event without a response that can be read")
_CLOSED = Closed(1006)
_NOT_DISPATCHED = NotDispatched("not the owner")


def moves(state: SessionState, bounds: Bounds) -> Iterator[Move]:
    """Everything that can happen in ``state``. A name means the same in every state, so that a path
    of names can be replayed."""
    generation = state.generation
    yield from _turns(state, bounds)
    deadline = state.timers.next()
    if deadline is None or deadline.at > 0:
        if deadline is not None:
            yield Move("a tick passes", None)
    else:
        yield Move(f"deadline {deadline.reason.value}", ev.DeadlineReached(deadline.reason))
    for timer in SESSION_TIMERS:
        at = state.timers.get(timer)
        if at is None or at > 0:
            yield Move(f"spurious deadline {timer.value}", ev.DeadlineReached(timer))
    yield Move("evict", ev.EvictionRequested())
    phase = state.phase
    if phase is Phase.RECONNECTING:
        yield Move("opened", ev.ConnectionOpened(generation))
        yield Move("connect fails", ev.ConnectionLost(generation, Unreachable("refused")))
        if bounds.http:
            http = ev.ConnectionOpened(generation, remembers=Remembers.STORED)
            yield Move("opened over HTTP", http)
            yield Move("upgrade 404", ev.ConnectionLost(generation, UpgradeRefused(404)))
        if bounds.causes:
            yield Move("upgrade 401", ev.ConnectionLost(generation, UpgradeRefused(401)))
    elif phase is not Phase.CLOSED:
        yield Move("lost", ev.ConnectionLost(generation, _CLOSED))
        if bounds.causes:
            yield Move("lost: too large", ev.ConnectionLost(generation, Closed(1009)))
        if state.remote:
            yield Move("not dispatched", ev.ConnectionLost(generation, _NOT_DISPATCHED))
        if phase is Phase.SENDING:
            yield Move("lost, nothing sent", ev.ConnectionLost(generation, _CLOSED, unsent=True))
        yield from _upstream(state, bounds)
    if generation > 0 and phase is Phase.CLOSED:
        # The connection was closed from here, but an event of it was on its way.
        yield Move("late loss", ev.ConnectionLost(generation, _CLOSED))
        yield Move("late open", ev.ConnectionOpened(generation))
    if generation > 0 and phase in (Phase.CLOSED, Phase.RECONNECTING):
        yield from _upstream(state, bounds)
    if generation > 1:
        yield Move("stale loss", ev.ConnectionLost(generation - 1, _CLOSED))
        yield Move("stale created", ev.ResponseCreated(generation - 1))


def _turns(state: SessionState, bounds: Bounds) -> Iterator[Move]:
    running = state.running
    taken = [waiting.turn.id for waiting in state.waiting]
    if running is not None:
        taken.append(running.turn.id)
    fresh = max(taken, default=0) + 1
    if len(state.waiting) <= bounds.waiting:
        allowed = bounds.standings if running is None else bounds.queued
        for standing in allowed:
            if standing is Standing.UNANCHORED:
                yield Move("submit unanchored", ev.TurnSubmitted(Turn(fresh)))
                continue
            yield Move(
                f"submit {standing.value} old", ev.TurnSubmitted(Turn(fresh, standing, "old"))
            )
            if state.cached_response is not None and standing is not Standing.UNKNOWN:
                turn = Turn(fresh, standing, state.cached_response)
                yield Move(f"submit {standing.value} tip", ev.TurnSubmitted(turn))
    if running is not None:
        yield Move("running turn leaves", ev.TurnAbandoned(running.turn.id))
        yield Move("reader stalls", ev.RelayPaused(running.turn.id, True))
        yield Move("reader goes on", ev.RelayPaused(running.turn.id, False))
    for index, waiting in enumerate(state.waiting):
        yield Move(f"waiting turn {index + 1} leaves", ev.TurnAbandoned(waiting.turn.id))
    yield Move("a turn that is over leaves", ev.TurnAbandoned(fresh))
    yield Move("reader of a turn that is over stalls", ev.RelayPaused(fresh, True))


def _upstream(state: SessionState, bounds: Bounds) -> Iterator[Move]:
    generation = state.generation
    yield Move("frame sent", ev.FrameSent(generation))
    if bounds.causes:
        yield Move("part of the frame sent", ev.FrameSent(generation, whole=False))
    yield from _answers(generation, fresh_name(state))
    if state.phase in (Phase.CREATED, Phase.OUTPUT):
        # Some upstreams name a response when it is created, and not again when it ends.
        unnamed = ev.ResponseEnded(generation, Outcome.COMPLETED)
        yield Move("completed, without its name", unnamed)
    if bounds.late and state.ended and state.running is not None:
        yield from _late(generation, state.ended[-1])
    if state.phase in (Phase.SENDING, Phase.SENT):  # later it is a failure like any other
        limit = ev.ResponseEnded(generation, Outcome.FAILED, fresh_name(state), _LIMIT)
        yield Move("failed: connection limit", limit)
    yield Move("refused: not found", ev.UpstreamRefused(generation, _NOT_FOUND))
    yield Move("refused: connection limit", ev.UpstreamRefused(generation, _LIMIT))
    yield Move("refused: invalid", ev.UpstreamRefused(generation, _INVALID))
    if bounds.causes:
        yield Move("refused: too large", ev.UpstreamRefused(generation, _TOO_LARGE))
        if state.phase is Phase.SENDING:
            again = ev.UpstreamRefused(generation, _TOO_LARGE, unsent=True)
            yield Move("refused before: too large", again)


def fresh_name(state: SessionState) -> str:
    """The id that the upstream gives the response of the running turn, or the next one."""
    if state.running is not None and state.running.responses:
        return state.running.responses[-1]
    taken = {*state.ended, state.cached_response}
    return next(name for name in ("new", *map("new {}".format, range(99))) if name not in taken)


def _answers(generation: int, name: str) -> Iterator[Move]:
    yield Move("created", ev.ResponseCreated(generation, name))
    yield Move("output", ev.OutputReceived(generation))
    yield Move("progress", ev.OutputReceived(generation, bearing=False, response=name))
    yield Move("too much to hold", ev.OutputReceived(generation, bearing=False, room=False))
    yield Move("completed", ev.ResponseEnded(generation, Outcome.COMPLETED, name))
    yield Move("incomplete", ev.ResponseEnded(generation, Outcome.INCOMPLETE, name))
    for why, cause in (
        ("not found", _NOT_FOUND),
        ("invalid", _INVALID),
        ("unreadable", _UNREADABLE),
    ):
        event = ev.ResponseEnded(generation, Outcome.FAILED, name, cause)
        yield Move(f"failed: {why}", event)


def _late(generation: int, name: str) -> Iterator[Move]:
    """Late copies of events of a response that has ended. Some upstreams use one id for all
    responses of a chain: then they are events of the running one."""
    yield Move("late created", ev.ResponseCreated(generation, name))
    yield Move("late progress", ev.OutputReceived(generation, bearing=False, response=name))
    yield Move("late output", ev.OutputReceived(generation, response=name))
    yield Move("late end", ev.ResponseEnded(generation, Outcome.COMPLETED, name))
