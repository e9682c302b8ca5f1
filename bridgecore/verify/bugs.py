"""Bugs that users of real bridges met, reproduced, and the property that detects each.

What belongs here: one entry for each bug, with what its users saw, the policy or the transition
function that has it, and the property that has to detect it. Defects that were never reported as
bugs are mutants (mutate.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Event, Outcome, Standing
from bridgecore.recovery.failure import Closed, NotDispatched
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

_SMALL = attrs.evolve(BOUNDS["small"][0], max_states=4000)  # each bug shows within 4000 states
_QUEUE = attrs.evolve(
    _SMALL, name="small, with a queue", waiting=1, standings=(Standing.UNANCHORED,)
)
_LONG_TURNS = attrs.evolve(
    _SMALL, name="small, with long turns", timeouts=attrs.evolve(_SMALL.timeouts, turn=2)
)


@attrs.frozen(eq=False)
class Bug:
    """One bug. ``users_saw``: its symptoms. ``found_by``: the property that it breaks."""

    name: str
    users_saw: str
    found_by: Property
    policy: Policy = DEFAULT
    stepper: Step = step
    bounds: Bounds = _SMALL

    def find(self) -> Counterexample | None:
        """A shortest path to a violation of ``found_by``; None if there is none."""
        report = explore(
            *(self.policy, self.bounds),
            stepper=self.stepper,
            most=len(Property),
            until=self.found_by,
        )
        return report.broken.get(self.found_by)


# ---------------------------------------------------------------- rules that are wrong


def _deaf(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A loss is a loss, whatever the owner of the session says about it."""
    if isinstance(event, ev.ConnectionLost) and isinstance(event.cause, NotDispatched):
        event = attrs.evolve(event, cause=Closed(1006))
    return step(policy, state, event, now)


def _any_connection(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The close of an old connection is handled as that of the current one."""
    if isinstance(event, ev.ConnectionLost):
        event = attrs.evolve(event, generation=state.generation)
    return step(policy, state, event, now)


def _any_ending(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The response that ended last is continued, even if it failed."""
    if isinstance(event, ev.ResponseEnded):
        event = attrs.evolve(event, outcome=Outcome.COMPLETED)
    return step(policy, state, event, now)


def _only_complete(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A response that was cut short at ``max_output_tokens`` is handled as a failed one."""
    after = step(policy, state, event, now)
    if not isinstance(event, ev.ResponseEnded) or event.outcome is not Outcome.INCOMPLETE:
        return after
    return attrs.evolve(after, state=attrs.evolve(after.state, cached_response=None))


def _any_response(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """An event is attributed to the running turn, whatever response it names."""
    if isinstance(event, ev.ResponseCreated | ev.OutputReceived | ev.ResponseEnded):
        return step(policy, attrs.evolve(state, ended=()), event, now)
    return step(policy, state, event, now)


def _taken_for_sent(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A close is ordered by when it was handled, not by when it was read."""
    if isinstance(event, ev.ConnectionLost):
        event = attrs.evolve(event, unsent=False)
    return step(policy, state, event, now)


def _rebuilt_for_ever(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The client gets the refusal of a rebuilt input, but the refusal is not recorded."""
    return _without(step(policy, state, event, now), fx.StopRebuilding)


def _injected_for_ever(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A refused injected anchor is replaced by the full input, but the refusal is not recorded."""
    return _without(step(policy, state, event, now), fx.StopInjecting)


def _slot_kept(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A turn whose client left frees the connection although its answer is still arriving."""
    transition = step(policy, state, event, now)
    if not isinstance(event, ev.TurnAbandoned) or state.phase is Phase.RECONNECTING:
        return transition
    return _without(transition, fx.CloseConnection)


def _wedged(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A turn that fails does not start the next waiting turn."""
    alone = step(policy, attrs.evolve(state, waiting=()), event, now)
    if not any(type(effect) is fx.FailTurn for effect in alone.effects):
        return step(policy, state, event, now)
    return attrs.evolve(alone, state=attrs.evolve(alone.state, waiting=state.waiting))


def _limit_forgotten(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Connection-limit errors of a turn are not counted."""
    after = step(policy, state, event, now)
    if not isinstance(event, ev.UpstreamRefused) or after.state.running is None:
        return after
    running = attrs.evolve(after.state.running, recovered=frozenset())
    return attrs.evolve(after, state=attrs.evolve(after.state, running=running))


def _kept_alive(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """Any event extends the deadline for ``response.created``."""
    after = step(policy, state, event, now)
    if state.phase is not Phase.SENT or not isinstance(event, ev.RelayPaused | ev.FrameSent):
        return after
    return attrs.evolve(after, state=due(state, Timer.CREATED, now + policy.timeouts.created))


def _busy_evicted(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """A session with a running turn is evicted."""
    if isinstance(event, ev.EvictionRequested) and not state.idle:
        close = fx.CloseConnection(state.generation)
        gone = SessionState(generation=state.generation)
        return Transition(gone, (close, fx.RetireSession()), "evict-idle")
    return step(policy, state, event, now)


def _reader_blamed(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The idle deadline runs on while the client's backpressure stops reading."""
    after = step(policy, state, event, now)
    idle = state.timers.get(Timer.IDLE)
    if not isinstance(event, ev.RelayPaused) or not event.paused or idle is None:
        return after
    return attrs.evolve(after, state=due(after.state, Timer.IDLE, idle))


def _orphaned_connect(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The connect goes on after its client left, and the session is never retired."""
    after = step(policy, state, event, now)
    if not isinstance(event, ev.TurnAbandoned) or state.phase is not Phase.RECONNECTING:
        return after
    return _without(after, fx.CloseConnection)


def _endless(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
    """The terminal event is relayed like any other, and the turn is never ended."""
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
        "a lost connection answered with not-found",
        "After each lost connection the client got previous_response_not_found, dropped its anchor "
        "and sent its whole history: 70 K tokens a turn, a context window full after 17 turns.",
        _P.NOT_FOUND_IS_EARNED,
        V1_12,
    ),
    Bug(
        "the same 502 for ever",
        "The response id was lost with its connection; each retry got a retriable 502 again.",
        _P.REFUSALS_ARE_BOUNDED,
        _cell(
            Situation.SEND_SKIPPED, Standing.BOUND, Action.REFUSE, FailureReply.UPSTREAM_UNAVAILABLE
        ),
    ),
    Bug(
        "a turn that ran twice",
        "A connection was lost after the send. The turn was resent, and the tool calls of both "
        "were run.",
        _P.NO_AMBIGUOUS_RESEND,
        _cell(
            Situation.LOST_SENT, Standing.UNANCHORED, Action.RESEND, FailureReply.STREAM_INCOMPLETE
        ),
    ),
    Bug(
        "a reconnect that uses up the replay",
        "The only replay of a turn was spent on reconnecting, before anything was sent.",
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
        "a late close that ends the new connection",
        "The close of the old connection was read after the new one was open, and failed the turn "
        "on the new one.",
        _P.SPURIOUS_IS_NOTHING,
        stepper=_any_connection,
    ),
    Bug(
        "an anchor sent on a connection that cannot know it",
        "After a reconnect the turn was sent with its anchor and got 400 from the upstream, "
        "although the bridge held the full context.",
        _P.ANCHOR_IS_KNOWN,
        _cell(Situation.SEND_SKIPPED, Standing.HELD, Action.SEND, _UNAVAILABLE),
    ),
    Bug(
        "a failed response that is continued",
        "A failed response was used as the anchor of the next turn; no upstream accepts it.",
        _P.ANCHOR_IS_KNOWN,
        stepper=_any_ending,
    ),
    Bug(
        "an answer cut short that ends the conversation",
        "max_output_tokens was reached. The client continued the incomplete response, as the API "
        "permits, and got previous_response_not_found.",
        _P.CONTINUED_AT_ONCE,
        stepper=_only_complete,
    ),
    Bug(
        "the answer to another turn",
        "The upstream repeated the terminal event of a response after the next turn was sent: the "
        "next turn was answered with it, with status 200.",
        _P.DELIVERED_TO_ITS_TURN,
        stepper=_any_response,
    ),
    Bug(
        "a close that was read before the send",
        "The upstream ended a response and closed, and both were read at once. The next turn "
        "failed as possibly accepted, although its frame was never sent.",
        _P.ANSWER_TELLS_WHAT_HAPPENED,
        stepper=_taken_for_sent,
    ),
    Bug(
        "a message too big that is retried",
        "The upstream closed with 1009, message too big. The client got a retriable error and sent "
        "the same message again.",
        _P.ANSWER_TELLS_WHAT_HAPPENED,
        _cell(
            Situation.TOO_LARGE, Standing.UNANCHORED, Action.REFUSE, FailureReply.STREAM_INCOMPLETE
        ),
    ),
    Bug(
        "a rebuilt input that is refused for ever",
        "The upstream refused the input that was rebuilt from the transcript. Each retry rebuilt "
        "and uploaded the same input.",
        _P.REFUSED_PLAN_ENDS,
        stepper=_rebuilt_for_ever,
    ),
    Bug(
        "an injected anchor that is refused for ever",
        "An upstream accepts no anchor together with instructions. Each turn was sent twice: with "
        "the anchor, then without.",
        _P.REFUSED_PLAN_ENDS,
        stepper=_injected_for_ever,
    ),
    Bug(
        "an error about an injected anchor",
        "The upstream refused the injected anchor for another reason than not-found, and the "
        "client got the error.",
        _P.INJECTED_IS_INVISIBLE,
        _cell(Situation.REFUSED, Standing.INJECTED, Action.SURFACE, FailureReply.UPSTREAM_ERROR),
    ),
    Bug(
        "a full context where the anchor was enough",
        "The upstream stored the conversation. After each lost connection all of it was sent "
        "again: 39 times the bytes, and no cached tokens.",
        _P.FORM_IS_POSSIBLE,
        _cell(
            Situation.SEND_SKIPPED,
            Standing.HELD_STORED,
            Action.REHYDRATE,
            FailureReply.UPSTREAM_UNAVAILABLE,
        ),
    ),
    Bug(
        "an answer delivered to the next client",
        "A client left in mid-answer, and the next turn was sent on its connection at once. It "
        "received the rest of the answer: one user saw another's stream.",
        _P.ONE_AT_A_TIME,
        stepper=_slot_kept,
    ),
    Bug(
        "a queue that is not resumed after a failure",
        "A turn failed; those behind it waited until their deadline, with a healthy upstream.",
        _P.NOTHING_IS_STRANDED,
        stepper=_wedged,
        bounds=_QUEUE,
    ),
    Bug(
        "a limit error that is retried for ever",
        "The upstream answered a connection-limit error that a new connection did not cure: the "
        "bridge reconnected and resent in a loop.",
        _P.RECOVERED_ONCE,
        stepper=_limit_forgotten,
    ),
    Bug(
        "a keepalive that extends the deadline",
        "The upstream had lost the turn but kept its connection alive: the client waited for ever.",
        _P.DEADLINES_ARE_KEPT,
        stepper=_kept_alive,
        bounds=_LONG_TURNS,
    ),
    Bug(
        "an eviction in mid-answer",
        "The pool was full, and the oldest session was evicted, with its running turn.",
        _P.SPURIOUS_IS_NOTHING,
        stepper=_busy_evicted,
    ),
    Bug(
        "a not-found for an injected anchor",
        "The bridge replaced history by an anchor, the upstream did not know it, and the client "
        "got previous_response_not_found for an id that it had never sent.",
        _P.INJECTED_IS_INVISIBLE,
        _cell(Situation.SEND_SKIPPED, Standing.INJECTED, Action.REFUSE, FailureReply.NOT_FOUND),
    ),
    Bug(
        "a slow reader taken for a silent upstream",
        "A client was slow, so the upstream was not read; then the idle deadline failed the turn.",
        _P.DEADLINES_ARE_KEPT,
        stepper=_reader_blamed,
    ),
    Bug(
        "a connect without a turn",
        "The client left during the connect, and the session was never retired.",
        _P.NOTHING_IS_STRANDED,
        stepper=_orphaned_connect,
    ),
    Bug(
        "a turn that never ends",
        "The terminal event was relayed like any other, and the session was busy for ever.",
        _P.DELIVERED_TO_ITS_TURN,
        stepper=_endless,
    ),
    Bug(
        "a takeover after the send",
        "The owner replica was lost after it had sent the turn; another one took over and sent it "
        "again.",
        _P.OWNER_LOSS_REBINDS,
        DEFAULT.with_cell(
            Situation.OWNER_LOST_DISPATCHED,
            Standing.UNANCHORED,
            PR397.remedy(Situation.OWNER_LOST_DISPATCHED, Standing.UNANCHORED),
        ),
    ),
    Bug(
        "an owner that is not believed",
        "The owner replica was about to stop, and said that it had not sent the turn; the client "
        "got an error all the same.",
        _P.ANSWER_TELLS_WHAT_HAPPENED,
        stepper=_deaf,
    ),
)  # fmt: skip
