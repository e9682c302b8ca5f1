"""The rules of a session: everything that affects its state machine lives here.

Theory of operation. A session is in one ``Phase``, which is derived from its state and never kept
beside it. An event (or a deadline that passed) meets exactly one rule, found by (phase, event
type). A rule moves the draft and nothing else: it neither reads a clock nor calls anybody. Rules
are the mechanics, the same for everyone: sockets, generations, timers, queues. What to do about a
*loss* is not decided here but in the policy's table, which ``Draft.recover`` reads.

Three things are settled before a rule is looked up, because they hold in every phase:

* an event of an old connection generation is ignored by name (invariant 42);
* an event that names a response which has ended, and not the running one, is ignored by name:
  upstreams send copies and stragglers after the next turn's frame went out (invariant 24);
* a deadline that is not due is ignored by name (invariant 44);
* a deadline that is due is cleared first, so it cannot fire again (invariant 29).

Every (phase, event type) pair is ruled: handled, ignored with a named reason, or illegal. Illegal
means that the caller did what it must not do (``LocalProtocolError``) and nothing has changed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, get_args

import attrs

from bridgecore.errors import LocalProtocolError
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.draft import Draft
from bridgecore.recovery.failure import Evidence, FailureKind, Malformed, TimedOut, classify
from bridgecore.recovery.policy import Cell, Policy, Situation
from bridgecore.recovery.state import AttemptPhase, Lifecycle, Phase, SessionState, Waiting
from bridgecore.recovery.timers import Timer

EventKey: TypeAlias = type[ev.Event] | Timer
E = TypeVar("E")


class Handling(enum.Enum):
    """What a rule is: it does something, it names a benign race, or it is the caller's error."""

    HANDLED = "handled"
    IGNORED = "ignored"
    ILLEGAL = "illegal"


@attrs.frozen(eq=False)
class Rule:
    """One rule. ``doc``: one sentence. ``apply`` is None for ignored and illegal ones."""

    id: str
    phases: tuple[Phase, ...]
    on: EventKey
    handling: Handling
    doc: str
    apply: Callable[[Draft, Any], None] | None


@attrs.frozen
class Transition:
    """What ``step`` returns: the new state, what to do, by which rule and by which cells.

    ``cells`` are those of the policy's table that decided, in the order in which they were asked.
    Most steps ask none, and most others one. It is a tuple because one step can ask more than once:
    for the same turn, when a remedy leads to the next question (a turn that is started over on an
    open socket may be skipped there, ``SEND_SKIPPED``), and for the turns behind it, when it ends
    and they are started one after the other.

    ``foreseen`` is the cell that was asked what a loss right now would lead to, because an event of
    an answer is held back while its turn may yet be sent again. It is no decision of this step:
    nothing was lost. The effects depend on it all the same.
    """

    state: SessionState
    effects: tuple[fx.Effect, ...]
    rule: str
    cells: tuple[Cell, ...] = ()
    foreseen: Cell | None = None


RULES: dict[tuple[Phase, EventKey], Rule] = {}

# The timers that a session has; the others, below them, are the endpoint's.
SESSION_TIMERS = tuple(list(Timer)[: list(Timer).index(Timer.EXPIRY) + 1])
EVENT_KEYS: tuple[EventKey, ...] = (*get_args(ev.Event)[:-1], *SESSION_TIMERS)
# Rules that hold in every phase, before the table is looked at.
STALE_GENERATION = "stale-generation"
SPURIOUS_DEADLINE = "spurious-deadline"
ENDED_RESPONSE = "ended-response"


def step(policy: Policy, state: SessionState, event: ev.Event, now: int) -> Transition:
    """Take in ``event`` at ``now`` (ns, monotonic): the new state and what to do.

    Raises:
        LocalProtocolError: the event cannot happen in this state; nothing has changed.
    """
    key: EventKey
    if isinstance(event, ev.DeadlineReached):
        key = event.timer
        due = state.timers.get(event.timer)
        if due is None or due > now:
            return Transition(state, (fx.Ignored("the deadline is not due"),), SPURIOUS_DEADLINE)
    else:
        key = type(event)
        generation = getattr(event, "generation", state.generation)
        if generation > state.generation:
            raise LocalProtocolError(f"{event}, but the latest generation is {state.generation}")
        if generation < state.generation:
            return Transition(state, (fx.Ignored("its connection is gone"),), STALE_GENERATION)
        if _names_an_ended_response(state, event):
            return Transition(state, (fx.Ignored("its response has ended"),), ENDED_RESPONSE)
    rule = RULES[state.phase, key]
    if rule.handling is Handling.ILLEGAL:
        raise LocalProtocolError(f"{event} in phase {state.phase.value}: {rule.doc}")
    if rule.apply is None:
        return Transition(state, (fx.Ignored(rule.doc),), rule.id)
    draft = Draft(policy, state, now)
    if isinstance(key, Timer):
        draft.clear_timer(key)
    rule.apply(draft, event)
    effects = tuple(draft.effects)
    return Transition(draft.finish(), effects, rule.id, draft.cells, draft.foreseen)


def _names_an_ended_response(state: SessionState, event: ev.Event) -> bool:
    """Whether ``event`` is about a response that ended before the running turn was sent."""
    name = getattr(event, "response", None)
    running = state.running
    if name is None or running is None or name not in state.ended:
        return False
    if name in running.responses or name == running.doubtful:
        return False
    # Some upstreams call all responses of a chain by one id: see the rule "created".
    return not (isinstance(event, ev.ResponseCreated) and state.phase in _UNANSWERED)


# ---------------------------------------------------------------- registration


def _register(rule: Rule) -> None:
    for phase in rule.phases:
        if (phase, rule.on) in RULES:
            raise ValueError(f"{rule.id} and {RULES[phase, rule.on].id} rule the same pair")
        RULES[phase, rule.on] = rule


def _rule(
    rule_id: str, on: type[E] | Timer, *phases: Phase
) -> Callable[[Callable[[Draft, E], None]], Callable[[Draft, E], None]]:
    def register(apply: Callable[[Draft, E], None]) -> Callable[[Draft, E], None]:
        doc = " ".join((apply.__doc__ or "").split("\n\n")[0].split())  # its first paragraph
        key: Any = on
        _register(Rule(rule_id, phases, key, Handling.HANDLED, doc, apply))
        return apply

    return register


def _ignore(rule_id: str, on: type[ev.Event], doc: str, *phases: Phase) -> None:
    _register(Rule(rule_id, phases, on, Handling.IGNORED, doc, None))


def _illegal(rule_id: str, on: EventKey, doc: str, *phases: Phase) -> None:
    _register(Rule(rule_id, phases, on, Handling.ILLEGAL, doc, None))


_P = Phase
_USABLE = (_P.OPEN, _P.SEND_SKIPPED)
_UNANSWERED = (_P.SENDING, _P.SENT)
_ANSWERING = (_P.CREATED, _P.OUTPUT)
_IN_FLIGHT = (*_UNANSWERED, *_ANSWERING)
_IDLE = (_P.CLOSED, *_USABLE)
_BUSY = (_P.RECONNECTING, *_IN_FLIGHT)
_TURN_OVER = "the turn is over already"
_UNMATCHED = "no turn runs that could have caused it (invariant 27)"

# ---------------------------------------------------------------- the rules


@_rule("submit", ev.TurnSubmitted, *_IDLE)
def _submit(draft: Draft, event: ev.TurnSubmitted) -> None:
    """Connect first if there is no socket (row 1); send unless it cannot know the anchor."""
    arrived = _arrive(draft, event)
    if arrived is None:
        draft.set_timer(Timer.EXPIRY, draft.policy.timeouts.expiry)
        return
    draft.run(arrived)
    draft.start()


def _arrive(draft: Draft, event: ev.TurnSubmitted) -> Waiting | None:
    """The turn with the end of its budget; None if that is over: then it is told so."""
    deadline = event.deadline
    if deadline is None:
        deadline = draft.now + draft.policy.timeouts.turn
    if deadline <= draft.now:
        failure = classify(TimedOut(Timer.TURN))
        draft.emit(fx.FailTurn(event.turn.id, fx.Answer.REQUEST_TIMEOUT, failure))
        return None
    return Waiting(event.turn, deadline)


@_rule("submit-busy", ev.TurnSubmitted, *_BUSY)
def _submit_busy(draft: Draft, event: ev.TurnSubmitted) -> None:
    """Turns never overlap on a connection: wait, within the turn's own budget; a full queue
    rejects at once (invariant 23)."""
    queue = draft.waiting
    if event.turn.id in {draft.running.turn.id, *(waiting.turn.id for waiting in queue)}:
        raise LocalProtocolError(f"turn {event.turn.id} was submitted before")
    if len(queue) >= draft.policy.budgets.waiting:
        draft.emit(fx.FailTurn(event.turn.id, fx.Answer.OVERLOADED, None))
        return
    arrived = _arrive(draft, event)
    if arrived is not None:
        draft.waiting = (*queue, arrived)
        draft.time_turns()


@_rule("abandon", ev.TurnAbandoned, *_BUSY)
def _abandon(draft: Draft, event: ev.TurnAbandoned) -> None:
    """The client left mid-turn: drop the socket, so its slot is never reused (invariant 24).

    A connect that is under way serves the next turn, and a waiting turn just leaves the queue.
    """
    if draft.drop_waiting(event.turn):
        return
    if draft.running.turn.id != event.turn:
        draft.emit(fx.Ignored(_TURN_OVER))
        return
    if draft.phase is not _P.RECONNECTING or not draft.waiting:
        draft.close()
    draft.release()


@_rule("connection-opened", ev.ConnectionOpened, _P.RECONNECTING)
def _connection_opened(draft: Draft, event: ev.ConnectionOpened) -> None:
    """The socket is there: the waiting turn goes on, if the socket can carry it."""
    draft.lifecycle = Lifecycle.OPEN
    draft.clear_timer(Timer.CONNECT)
    draft.set_timer(Timer.LIFETIME, draft.policy.timeouts.lifetime - event.early)
    draft.dispatch()


@_rule("connect-deadline", Timer.CONNECT, _P.RECONNECTING)
def _connect_deadline(draft: Draft, event: ev.DeadlineReached) -> None:
    """The connect took too long: it is given up as if it had failed."""
    draft.close()
    _give_up_connect(draft, TimedOut(Timer.CONNECT))


@_rule("lost-connecting", ev.ConnectionLost, _P.RECONNECTING)
def _lost_connecting(draft: Draft, event: ev.ConnectionLost) -> None:
    """No socket could be had: the policy says what the turn is told (row 2)."""
    draft.disconnected()
    _give_up_connect(draft, event.cause)


def _give_up_connect(draft: Draft, cause: Evidence) -> None:
    failure = classify(cause)
    if draft.remote:
        situation = Situation.OWNER_LOST  # row 7
    elif failure.kind is FailureKind.REJECTED:
        situation = Situation.UPGRADE_REJECTED
    else:
        situation = Situation.CONNECT_FAILED
    draft.recover(situation, failure)


@_rule("lost-idle", ev.ConnectionLost, *_USABLE)
def _lost_idle(draft: Draft, event: ev.ConnectionLost) -> None:
    """Closed between turns: nobody is told, the next turn reconnects (row 1)."""
    draft.disconnected()


_LOST = {
    _P.SENDING: Situation.LOST_SENDING,
    _P.SENT: Situation.LOST_SENT,
    _P.CREATED: Situation.LOST_CREATED,
    _P.OUTPUT: Situation.LOST_OUTPUT,
}


def _loss(draft: Draft, mine: Situation) -> Situation:
    """What a loss means for the turn in flight: ``mine``, or, where the socket leads to another
    replica, what the client has seen of the answer tells (rows 7, 8)."""
    if not draft.remote:
        return mine
    begun = draft.phase in _ANSWERING
    return Situation.OWNER_LOST_OUTPUT if begun else Situation.OWNER_LOST_DISPATCHED


@_rule("lost-in-flight", ev.ConnectionLost, *_IN_FLIGHT)
def _lost_in_flight(draft: Draft, event: ev.ConnectionLost) -> None:
    """Lost with a turn in flight: how far the turn had come tells the situation (rows 3 to 5).

    If nothing of its frame had left, it is as if the socket had closed between turns (row 1): an
    anchor that only this socket knew does not go to the next one. A close for size means that the
    frame was not processed and never will be.
    """
    failure = classify(event.cause)
    situation = _loss(draft, _LOST[draft.phase])
    unsent = event.unsent and draft.phase is _P.SENDING
    draft.disconnected()
    if unsent:
        # What was refused or met silence is not tried again: the full input goes once more.
        sent = draft.running.sent
        form = None if sent is fx.Form.AS_IS else sent
        draft.taken = attrs.evolve(draft.running, form=form, fallback=None)
        draft.start()
        return
    sized = failure.kind is FailureKind.TOO_LARGE and situation in _UNACCEPTED
    draft.recover(Situation.TOO_LARGE if sized else situation, failure)


_UNACCEPTED = (Situation.LOST_SENDING, Situation.LOST_SENT)


@_rule("frame-sent", ev.FrameSent, _P.SENDING)
def _frame_sent(draft: Draft, event: ev.FrameSent) -> None:
    """The frame is with the operating system: response.created is due from now. While parts of it
    are still to go, the upload makes progress, and what is due is the next part."""
    if event.whole:
        draft.advance(AttemptPhase.SENT)
    draft.set_timer(Timer.CREATED, draft.policy.timeouts.created)


@_rule("created", ev.ResponseCreated, *_UNANSWERED)
def _created(draft: Draft, event: ev.ResponseCreated) -> None:
    """The upstream accepted the turn: from here on nothing is replayed.

    If it names a response that has ended, it may be a late copy, or the upstream calls all
    responses of a chain by one id. It waits until output or the end, which a copy has not, comes.
    """
    if event.response is not None and event.response in draft.ended:
        if draft.running.doubtful is None:
            draft.taken = attrs.evolve(draft.running, doubtful=event.response)
            draft.hold()
        else:
            draft.emit(fx.Ignored(_ONE_CREATED))
        return
    # Whatever was in doubt was a copy: this one is the turn's own, be it with or without an id.
    draft.taken = attrs.evolve(draft.running, doubtful=None)
    draft.name(event.response)
    _accepted(draft, AttemptPhase.CREATED)


@_rule("output-uncreated", ev.OutputReceived, *_UNANSWERED)
def _output_uncreated(draft: Draft, event: ev.OutputReceived) -> None:
    """An answer from an upstream that left response.created out: accepted all the same.

    What comes after a response.created in doubt waits with it, until there is output. Where there
    is no room to wait, the upstream does not speak the protocol: its socket is as good as lost.
    """
    doubtful = draft.running.doubtful
    if not event.bearing and not event.room:
        situation = _loss(draft, _LOST[draft.phase])
        draft.close()
        draft.recover(situation, classify(Malformed("too much before response.created")))
        return
    if doubtful is not None and not event.bearing and event.response in (None, doubtful):
        draft.hold()
        return
    draft.name(event.response or doubtful)
    _accepted(draft, AttemptPhase.OUTPUT if event.bearing else AttemptPhase.CREATED)


def _accepted(draft: Draft, phase: AttemptPhase) -> None:
    draft.forgive(draft.running.turn.anchor)
    draft.advance(phase)
    draft.clear_timer(Timer.CREATED)
    draft.set_timer(Timer.IDLE, draft.policy.timeouts.idle)
    draft.deliver()


@_rule("output", ev.OutputReceived, *_ANSWERING)
def _output(draft: Draft, event: ev.OutputReceived) -> None:
    """Output goes to the turn that caused it; the upstream is alive. What there is no room to hold
    back is shown, and from then on nothing is replayed."""
    draft.name(event.response)
    running = draft.running
    shown = event.bearing or not event.room
    draft.advance(AttemptPhase.OUTPUT if shown else running.phase, paused=running.paused)
    if not running.paused:
        draft.set_timer(Timer.IDLE, draft.policy.timeouts.idle)
    draft.deliver()


@_rule("ended", ev.ResponseEnded, *_IN_FLIGHT)
def _ended(draft: Draft, event: ev.ResponseEnded) -> None:
    """The terminal event: the turn is complete; a completed or incomplete response becomes the
    anchor that the socket knows, a failed one does not.

    A response that failed before it was created is a refusal by another name; one that failed for
    want of an anchor, where the turn can be said without, is no word for its client. A terminal
    event that cannot be read is the upstream's failure.
    """
    name = event.response or draft.running.doubtful
    if isinstance(event.cause, Malformed):
        # The upstream has run the turn, so it is not tried again.
        draft.end_response(name)
        draft.forgive(draft.running.turn.anchor)
        draft.live_anchor = None
        if draft.running.phase is AttemptPhase.SENDING:
            draft.close()
        draft.fail(fx.Answer.UPSTREAM_ERROR, classify(event.cause))
        return
    if event.cause is not None:
        refused = ev.UpstreamRefused(event.generation, event.cause)
        if draft.phase in _UNANSWERED:
            _refused(draft, refused)
            return
        kind = classify(event.cause).kind
        if kind is FailureKind.NOT_FOUND and draft.standing in _OURS:
            _refused_answering(draft, refused)
            return
    # A refusal, above, has no response, whatever id it brings: some upstreams use one for all.
    draft.end_response(name)
    draft.forgive(draft.running.turn.anchor)
    last = event.response
    names = tuple(name for name in draft.running.responses if name != last)
    names = names if last is None else (*names, last)
    draft.live_anchor = None
    if event.outcome is not ev.Outcome.FAILED and names:
        draft.live_anchor = names[-1]
    if draft.running.phase is AttemptPhase.SENDING:
        # An answer before the whole frame was sent: what is left of the frame would be next.
        draft.close()
    draft.emit(fx.CompleteTurn(draft.running.turn.id, names))
    draft.release()


_OURS = (  # need no anchor
    ev.Standing.UNANCHORED,
    ev.Standing.HELD,
    ev.Standing.HELD_STORED,
    ev.Standing.INJECTED,
)
_REFUSED = {
    FailureKind.NOT_FOUND: Situation.NOT_FOUND,
    FailureKind.CONNECTION_LIMIT: Situation.CONNECTION_LIMIT,
    FailureKind.TOO_LARGE: Situation.TOO_LARGE,
}
# Refusals that say nothing about what was put in place of the client's words.
_NOT_OF_THE_INPUT = (FailureKind.CONNECTION_LIMIT, FailureKind.TOO_LARGE)


@_rule("refused", ev.UpstreamRefused, *_UNANSWERED)
def _refused(draft: Draft, event: ev.UpstreamRefused) -> None:
    """The upstream refused the turn before generating: the policy may try another way."""
    failure = classify(event.cause)
    situation = _REFUSED.get(failure.kind, Situation.REFUSED)
    running = draft.running
    if running.turn.anchor == draft.live_anchor and not event.unsent:
        # An in-band refusal evicts the id it referred to from the socket's memory.
        draft.live_anchor = None
    cut = running.phase is AttemptPhase.SENDING and not event.unsent
    if situation is Situation.CONNECTION_LIMIT or cut:
        draft.close()
    evicts = failure.kind not in _NOT_OF_THE_INPUT
    if draft.standing is ev.Standing.INJECTED and evicts:
        draft.emit(fx.StopInjecting(running.turn.id))
    if draft.standing is ev.Standing.HELD_STORED and evicts and running.sent is fx.Form.AS_IS:
        # It evicts the id. The service may have stored it, but the chain at hand is certain: the
        # next try goes in full.
        draft.count_refusal(running.turn.anchor)
    if running.sent is fx.Form.REHYDRATED and failure.kind is FailureKind.INVALID:
        draft.emit(fx.StopRebuilding(running.turn.id))
    draft.recover(situation, failure)


@_rule("refused-answering", ev.UpstreamRefused, *_ANSWERING)
def _refused_answering(draft: Draft, event: ev.UpstreamRefused) -> None:
    """An error frame in mid-answer ends the turn; whether more would come, nobody knows."""
    failure = classify(event.cause)
    # What is wrong with an anchor or a socket is no word for the client of an accepted turn.
    lost = failure.kind in (FailureKind.NOT_FOUND, FailureKind.CONNECTION_LIMIT)
    if failure.kind is FailureKind.NOT_FOUND and draft.running.sent is fx.Form.AS_IS:
        # The next try would send this anchor again, and fail again.
        if draft.standing is ev.Standing.INJECTED:
            draft.emit(fx.StopInjecting(draft.running.turn.id))
        elif draft.standing is ev.Standing.HELD_STORED:
            draft.count_refusal(draft.running.turn.anchor)
    draft.close()
    draft.fail(fx.Answer.STREAM_INCOMPLETE if lost else fx.Answer.UPSTREAM_ERROR, failure)


@_rule("refused-idle", ev.UpstreamRefused, *_USABLE)
def _refused_idle(draft: Draft, event: ev.UpstreamRefused) -> None:
    """An error frame between turns is nobody's; a socket that is too old is closed."""
    if classify(event.cause).kind is FailureKind.CONNECTION_LIMIT:
        draft.close()
    else:
        draft.emit(fx.Ignored(_UNMATCHED))


@_rule("created-deadline", Timer.CREATED, *_UNANSWERED)
def _created_deadline(draft: Draft, event: ev.DeadlineReached) -> None:
    """No response.created in time: the socket is dropped, whatever becomes of the turn (row 4)."""
    situation = _loss(draft, Situation.SILENT)
    draft.close()
    draft.recover(situation, classify(TimedOut(Timer.CREATED)))


@_rule("idle-deadline", Timer.IDLE, *_ANSWERING)
def _idle_deadline(draft: Draft, event: ev.DeadlineReached) -> None:
    """The upstream fell silent in mid-answer: as if the socket were lost."""
    situation = _loss(draft, _LOST[draft.phase])
    draft.close()
    draft.recover(situation, classify(TimedOut(Timer.IDLE)))


@_rule("relay-paused", ev.RelayPaused, *_ANSWERING)
def _relay_paused(draft: Draft, event: ev.RelayPaused) -> None:
    """A slow reader is not a silent upstream: nothing is due while upstream is not read."""
    if draft.running.turn.id != event.turn:
        draft.emit(fx.Ignored(_TURN_OVER))
        return
    draft.advance(draft.running.phase, paused=event.paused)
    if event.paused:
        draft.clear_timer(Timer.IDLE)
    else:
        draft.set_timer(Timer.IDLE, draft.policy.timeouts.idle)


@_rule("turn-deadline", Timer.TURN, *_BUSY)
def _turn_deadline(draft: Draft, event: ev.DeadlineReached) -> None:
    """The whole budget of a turn is used up, waits and replays included."""
    failure = classify(TimedOut(Timer.TURN))
    draft.time_turns()
    for waiting in draft.waiting:
        if waiting.deadline <= draft.now:
            draft.drop_waiting(waiting.turn.id)
            draft.emit(fx.FailTurn(waiting.turn.id, fx.Answer.REQUEST_TIMEOUT, failure))
    if draft.running.deadline <= draft.now:
        draft.close()
        draft.fail(fx.Answer.REQUEST_TIMEOUT, failure)


@_rule("lifetime-idle", Timer.LIFETIME, *_USABLE)
def _lifetime_idle(draft: Draft, event: ev.DeadlineReached) -> None:
    """The socket is old and no turn runs: close it before the upstream does (invariant 32)."""
    draft.rotate()


@_rule("lifetime-busy", Timer.LIFETIME, *_IN_FLIGHT)
def _lifetime_busy(draft: Draft, event: ev.DeadlineReached) -> None:
    """The socket is old but a turn runs: it is replaced when the turn is over."""
    draft.worn = True


@_rule("expiry", Timer.EXPIRY, *_IDLE)
def _expiry(draft: Draft, event: ev.DeadlineReached) -> None:
    """Nobody used the conversation for long: give up its socket and its state."""
    draft.retire()


@_rule("evict-idle", ev.EvictionRequested, *_IDLE)
def _evict_idle(draft: Draft, event: ev.EvictionRequested) -> None:
    """Room is needed and no turn runs or waits: give up the socket and the state."""
    draft.retire()


# ---------------------------------------------------------------- benign races, and misuse

_ONE_CREATED = "a turn has one response.created (invariant 14)"
_UNRELAYED = tuple(phase for phase in Phase if phase not in _ANSWERING)
_ALL_BUT_SENDING = tuple(phase for phase in Phase if phase is not _P.SENDING)
_ignore("abandon-idle", ev.TurnAbandoned, _TURN_OVER, *_IDLE)
_ignore("opened-unwanted", ev.ConnectionOpened, "the connect was given up", _P.CLOSED)
_ignore("lost-closed", ev.ConnectionLost, "the socket was closed before", _P.CLOSED)
_ignore("frame-sent-late", ev.FrameSent, "the attempt is further already", *_ALL_BUT_SENDING)
_ignore("created-twice", ev.ResponseCreated, _ONE_CREATED, *_ANSWERING)
for _event in (ev.ResponseCreated, ev.OutputReceived, ev.ResponseEnded):
    _ignore(f"unmatched-{_event.__name__}", _event, _UNMATCHED, *_IDLE, _P.RECONNECTING)
_ignore("unmatched-UpstreamRefused", ev.UpstreamRefused, _UNMATCHED, _P.CLOSED, _P.RECONNECTING)
_ignore("paused-unmatched", ev.RelayPaused, "nothing is relayed", *_UNRELAYED)
_ignore("evict-busy", ev.EvictionRequested, "a turn runs or waits (invariant 19)", *_BUSY)

_illegal("opened-twice", ev.ConnectionOpened, "no connect is under way", *_USABLE, *_IN_FLIGHT)
for _timer in SESSION_TIMERS:
    _unset = [phase for phase in Phase if (phase, _timer) not in RULES]
    _illegal(f"{_timer.value}-never-due", _timer, "it is never set in this phase", *_unset)
