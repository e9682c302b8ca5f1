"""Bugs that users of real bridges met, made again on purpose, and the property that finds each.

What belongs here: one entry for each bug, with what its users saw, the policy or the transition
function that has it, and the property that has to notice. Mutants that nobody ever met as a bug are
mutate.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Event, Outcome, Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    PR397,
    V1_12,
    Action,
    Policy,
    Remedy,
    Situation,
)
from bridgecore.recovery.rules import Transition, step
from bridgecore.recovery.state import Phase, SessionState
from bridgecore.recovery.timers import Timer
from bridgecore.verify.environment import BOUNDS, Bounds, due
from bridgecore.verify.explore import Counterexample, Step, explore
from bridgecore.verify.properties import Property

_SMALL = attrs.evolve(BOUNDS["small"][0], max_states=4000)  # all of them are found early
_QUEUE = attrs.evolve(
    _SMALL, name="small, with a queue", waiting=1, standings=(Standing.UNANCHORED,)
)
_LONG_TURNS = attrs.evolve(
    _SMALL, name="small, with long turns", timeouts=attrs.evolve(_SMALL.timeouts, turn=2)
)


@attrs.frozen(eq=False)
class Bug:
    """One bug. ``users_saw``: what it was like. ``found_by``: the property that does not hold."""

    name: str
    users_saw: str
    found_by: Property
    policy: Policy = DEFAULT
    stepper: Step = step
    bounds: Bounds = _SMALL

    def find(self) -> Counterexample | None:
        """A shortest way to what ``found_by`` forbids; None if it is not noticed."""
        report = explore(self.policy, self.bounds, stepper=self.stepper, most=len(Property))
        return report.broken.get(self.found_by)


# ---------------------------------------------------------------- rules that are wrong


def _any_connection(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The close of an old connection is taken for that of the present one."""
    if isinstance(event, ev.ConnectionLost):
        event = attrs.evolve(event, generation=state.generation)
    return step(policy, state, event, now)


def _any_ending(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Whatever response ended last is continued, a failed one, too."""
    if isinstance(event, ev.ResponseEnded):
        event = attrs.evolve(event, outcome=Outcome.COMPLETED)
    return step(policy, state, event, now)


def _only_complete(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A response that was cut short at ``max_output_tokens`` is taken for one that failed."""
    after = step(policy, state, event, now)
    if not isinstance(event, ev.ResponseEnded) or event.outcome is not Outcome.INCOMPLETE:
        return after
    return attrs.evolve(after, state=attrs.evolve(after.state, cached_response=None))


def _any_response(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """An event belongs to the turn that runs, whatever response it names."""
    if isinstance(event, ev.ResponseCreated | ev.OutputReceived | ev.ResponseEnded):
        return step(policy, attrs.evolve(state, ended=()), event, now)
    return step(policy, state, event, now)


def _taken_for_sent(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A close counts from when it is handled, and not from when it was read."""
    if isinstance(event, ev.ConnectionLost):
        event = attrs.evolve(event, unsent=False)
    return step(policy, state, event, now)


def _rebuilt_for_ever(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """That a rebuilt input was refused is told to the client and remembered by nobody."""
    return _without(step(policy, state, event, now), fx.StopRebuilding)


def _injected_for_ever(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """That an injected anchor was refused is made good and remembered by nobody."""
    return _without(step(policy, state, event, now), fx.StopInjecting)


def _slot_kept(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A client that leaves frees its place on a socket that is still answering it."""
    transition = step(policy, state, event, now)
    if not isinstance(event, ev.TurnAbandoned) or state.phase is Phase.RECONNECTING:
        return transition
    return _without(transition, fx.CloseConnection)


def _wedged(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A turn that fails wakes up nobody."""
    alone = step(policy, attrs.evolve(state, waiting=()), event, now)
    if not any(type(effect) is fx.FailTurn for effect in alone.effects):
        return step(policy, state, event, now)
    return attrs.evolve(alone, state=attrs.evolve(alone.state, waiting=state.waiting))


def _limit_forgotten(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Nobody counts how often the upstream said that the socket was too old."""
    after = step(policy, state, event, now)
    if not isinstance(event, ev.UpstreamRefused) or after.state.running is None:
        return after
    running = attrs.evolve(after.state.running, recovered=frozenset())
    return attrs.evolve(after, state=attrs.evolve(after.state, running=running))


def _kept_alive(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Anything that is heard puts off the deadline for the beginning of the answer."""
    after = step(policy, state, event, now)
    if state.phase is not Phase.SENT or not isinstance(event, ev.RelayPaused | ev.FrameSent):
        return after
    return attrs.evolve(after, state=due(state, Timer.CREATED, now + policy.timeouts.created))


def _busy_evicted(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Room is made at the expense of a session whose turn still runs."""
    if isinstance(event, ev.EvictionRequested) and not state.idle:
        close = fx.CloseConnection(state.generation)
        gone = SessionState(generation=state.generation)
        return Transition(gone, (close, fx.RetireSession()), "evict-idle")
    return step(policy, state, event, now)


def _reader_blamed(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A client that reads slowly is taken for an upstream that says nothing."""
    after = step(policy, state, event, now)
    idle = state.timers.get(Timer.IDLE)
    if not isinstance(event, ev.RelayPaused) or not event.paused or idle is None:
        return after
    return attrs.evolve(after, state=due(after.state, Timer.IDLE, idle))


def _orphaned_connect(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The client is gone, its connect goes on and is counted as a session for ever."""
    after = step(policy, state, event, now)
    if not isinstance(event, ev.TurnAbandoned) or state.phase is not Phase.RECONNECTING:
        return after
    return _without(after, fx.CloseConnection)


def _endless(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The terminal event is passed on like any other: the turn holds its session for ever."""
    if isinstance(event, ev.ResponseEnded):
        return step(policy, state, ev.OutputReceived(event.generation), now)
    return step(policy, state, event, now)


def _without(transition: Transition, *kinds: type[fx.Effect]) -> Transition:
    kept = [effect for effect in transition.effects if type(effect) not in kinds]
    return attrs.evolve(transition, effects=tuple(kept))


# ---------------------------------------------------------------- tables that are wrong


_UNAVAILABLE = FailureReply.UPSTREAM_UNAVAILABLE


def _cell(situation: Situation, standing: Standing, action: Action, answer: FailureReply) -> Policy:
    return DEFAULT.with_cell(situation, standing, Remedy(action, answer))


_P = Property
BUGS: Sequence[Bug] = (
    Bug(
        "a loss told as not-found",
        "After every lost socket the client was told previous_response_not_found, gave its anchor "
        "up and sent its whole history: 70 K tokens a turn, a window full after 17 turns.",
        _P.NOT_FOUND_IS_EARNED,
        V1_12,
    ),
    Bug(
        "the same 502 for ever",
        "The id was gone with its socket; each retry was refused as retriable, without an end.",
        _P.REFUSALS_ARE_BOUNDED,
        _cell(
            Situation.SEND_SKIPPED, Standing.BOUND, Action.REFUSE, FailureReply.UPSTREAM_UNAVAILABLE
        ),
    ),
    Bug(
        "a turn that ran twice",
        "A socket died after the send. The turn was sent again, and the tools of both were run.",
        _P.NO_AMBIGUOUS_RESEND,
        _cell(
            Situation.LOST_SENT, Standing.UNANCHORED, Action.RESEND, FailureReply.STREAM_INCOMPLETE
        ),
    ),
    Bug(
        "a reconnect that uses up the replay",
        "The retry that a turn had was spent on opening a socket, before anything was sent.",
        _P.RECONNECT_COSTS_NO_REPLAY,
        attrs.evolve(
            DEFAULT.with_cell(
                Situation.LOST_SENT,
                Standing.UNANCHORED,
                PR397.remedy(Situation.LOST_SENT, Standing.UNANCHORED),
            ),
            budgets=attrs.evolve(DEFAULT.budgets, reconnect_uses_replay=True),
        ),
    ),
    Bug(
        "a late close that kills the new socket",
        "The close of the old socket came after the new one was open, and ended the turn on it.",
        _P.SPURIOUS_IS_NOTHING,
        stepper=_any_connection,
    ),
    Bug(
        "an anchor sent to a socket that cannot know it",
        "After a reconnect the turn went out as it was: 400 from the upstream, for a chain that "
        "could have been sent in full.",
        _P.ANCHOR_IS_KNOWN,
        _cell(Situation.SEND_SKIPPED, Standing.HELD, Action.SEND, _UNAVAILABLE),
    ),
    Bug(
        "a failed response that is continued",
        "A response that had failed became the anchor of the next turn; no upstream knows it.",
        _P.ANCHOR_IS_KNOWN,
        stepper=_any_ending,
    ),
    Bug(
        "an answer cut short that ends the conversation",
        "max_output_tokens was used up. The client asked to go on, as the API lets it, and was "
        "told that its response was not to be found.",
        _P.CONTINUED_AT_ONCE,
        stepper=_only_complete,
    ),
    Bug(
        "the answer to another turn",
        "The upstream repeated the end of a response after the next turn's frame went out: the "
        "next turn was answered with it, and the status was 200.",
        _P.DELIVERED_TO_ITS_TURN,
        stepper=_any_response,
    ),
    Bug(
        "a close that was read before the send",
        "The upstream ended a response and closed, and both were read at once. The next turn was "
        "given up as if its frame had been lost on the way, though it had never left.",
        _P.ANSWER_TELLS_WHAT_HAPPENED,
        stepper=_taken_for_sent,
    ),
    Bug(
        "the same megabytes, again and again",
        "The upstream closed with 1009, message too big. The client was told to retry, and did, "
        "with the same message.",
        _P.ANSWER_TELLS_WHAT_HAPPENED,
        _cell(
            Situation.TOO_LARGE, Standing.UNANCHORED, Action.REFUSE, FailureReply.STREAM_INCOMPLETE
        ),
    ),
    Bug(
        "a rebuilt input that is refused for ever",
        "The upstream refused the input that was rebuilt for a lost chain. Each retry rebuilt and "
        "uploaded the same again.",
        _P.REFUSED_PLAN_ENDS,
        stepper=_rebuilt_for_ever,
    ),
    Bug(
        "an injected anchor that is refused for ever",
        "An upstream takes no anchor together with instructions. Each turn was sent twice: with "
        "the anchor, and then without.",
        _P.REFUSED_PLAN_ENDS,
        stepper=_injected_for_ever,
    ),
    Bug(
        "an error about words that the client did not say",
        "The upstream refused the anchor that stood for a history, for another reason than that "
        "it did not know it, and the client was told.",
        _P.INJECTED_IS_INVISIBLE,
        _cell(Situation.REFUSED, Standing.INJECTED, Action.SURFACE, FailureReply.UPSTREAM_ERROR),
    ),
    Bug(
        "a whole context where an id would have done",
        "The upstream stored the conversation. After each lost socket all of it was sent again: "
        "39 times the bytes, and no cached token.",
        _P.FORM_IS_POSSIBLE,
        _cell(
            Situation.SEND_SKIPPED,
            Standing.HELD_STORED,
            Action.REHYDRATE,
            FailureReply.UPSTREAM_UNAVAILABLE,
        ),
    ),
    Bug(
        "an answer to somebody who left",
        "A client left in mid-answer, its place was given to the next turn at once, and that one "
        "was shown the rest of the answer: one user saw another's stream.",
        _P.ONE_AT_A_TIME,
        stepper=_slot_kept,
    ),
    Bug(
        "a queue that nobody wakes up",
        "A turn failed; those behind it waited for their whole budget, beside a healthy upstream.",
        _P.NOTHING_IS_STRANDED,
        stepper=_wedged,
        bounds=_QUEUE,
    ),
    Bug(
        "a limit error that is retried for ever",
        "The upstream refused for a limit that a new socket did not cure: reconnect, send, limit, "
        "reconnect, until somebody pulled the plug.",
        _P.RECOVERED_ONCE,
        stepper=_limit_forgotten,
    ),
    Bug(
        "a keepalive that puts off the deadline",
        "The upstream had lost the turn but kept its socket alive: the client waited for ever.",
        _P.DEADLINES_ARE_KEPT,
        stepper=_kept_alive,
        bounds=_LONG_TURNS,
    ),
    Bug(
        "an eviction in mid-answer",
        "The pool was full, and the session that was longest in it went, with its running turn.",
        _P.SPURIOUS_IS_NOTHING,
        stepper=_busy_evicted,
    ),
    Bug(
        "an anchor that the client never sent",
        "The bridge put an id in place of history, the upstream did not know it, and the client "
        "was told that an id of which it had never heard was not found.",
        _P.INJECTED_IS_INVISIBLE,
        _cell(Situation.SEND_SKIPPED, Standing.INJECTED, Action.REFUSE, FailureReply.NOT_FOUND),
    ),
    Bug(
        "a slow reader taken for a silent upstream",
        "A client was slow, so the upstream was not read; then the upstream was called silent.",
        _P.DEADLINES_ARE_KEPT,
        stepper=_reader_blamed,
    ),
    Bug(
        "a connect for nobody",
        "The client left while its socket was being opened, and the session was counted for ever.",
        _P.NOTHING_IS_STRANDED,
        stepper=_orphaned_connect,
    ),
    Bug(
        "a turn that never ends",
        "The terminal event was passed on like any other, and the session was never free again.",
        _P.DELIVERED_TO_ITS_TURN,
        stepper=_endless,
    ),
    Bug(
        "a takeover after the send",
        "The owner died with the turn in hand, another replica took over and sent it once more.",
        _P.OWNER_LOSS_REBINDS,
        DEFAULT.with_cell(
            Situation.OWNER_LOST_DISPATCHED,
            Standing.UNANCHORED,
            PR397.remedy(Situation.OWNER_LOST_DISPATCHED, Standing.UNANCHORED),
        ),
    ),
)  # fmt: skip
