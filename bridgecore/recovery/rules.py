"""The rules of a session: everything that affects its state machine lives here.

Theory of operation. A session is in one ``Phase``, which is derived from its state and never kept
beside it. An event (or a deadline that passed) meets exactly one rule, found by (phase, event
type). A rule moves the builder and nothing else: it neither reads a clock nor calls anybody. Rules
are the mechanics, the same for everyone: sockets, generations, timers, queues. What to do about a
*loss* is not decided here but in the policy's table, which ``TransitionBuilder.recover`` reads.

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
from bridgecore.recovery.builder import TransitionBuilder
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
    apply: Callable[[TransitionBuilder, Any], None] | None


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
    builder = TransitionBuilder(policy, state, now)
    if isinstance(key, Timer):
        builder.clear_timer(key)
    rule.apply(builder, event)
    effects = tuple(builder.effects)
    return Transition(builder.finish(), effects, rule.id, builder.cells, builder.foreseen)


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
) -> Callable[[Callable[[TransitionBuilder, E], None]], Callable[[TransitionBuilder, E], None]]:
    def register(
        apply: Callable[[TransitionBuilder, E], None],
    ) -> Callable[[TransitionBuilder, E], None]:
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
def _submit(builder: TransitionBuilder, event: ev.TurnSubmitted) -> None:
    """Connect first if there is no socket (row 1); send unless it cannot know the anchor."""
    arrived = _arrive(builder, event)
    if arrived is None:
        builder.set_timer(Timer.EXPIRY, builder.policy.timeouts.expiry)
        return
    builder.run(arrived)
    builder.start()


def _arrive(builder: TransitionBuilder, event: ev.TurnSubmitted) -> Waiting | None:
    """The turn with the end of its budget; None if that is over: then it is told so."""
    deadline = event.deadline
    if deadline is None:
        deadline = builder.now + builder.policy.timeouts.turn
    if deadline <= builder.now:
        failure = classify(TimedOut(Timer.TURN))
        builder.emit(fx.FailTurn(event.turn.id, fx.FailureReply.REQUEST_TIMEOUT, failure))
        return None
    return Waiting(event.turn, deadline)


@_rule("submit-busy", ev.TurnSubmitted, *_BUSY)
def _submit_busy(builder: TransitionBuilder, event: ev.TurnSubmitted) -> None:
    """Turns never overlap on a connection: wait, within the turn's own budget; a full queue
    rejects at once (invariant 23)."""
    queue = builder.waiting
    if event.turn.id in {builder.running.turn.id, *(waiting.turn.id for waiting in queue)}:
        raise LocalProtocolError(f"turn {event.turn.id} was submitted before")
    if len(queue) >= builder.policy.budgets.waiting:
        builder.emit(fx.FailTurn(event.turn.id, fx.FailureReply.OVERLOADED, None))
        return
    arrived = _arrive(builder, event)
    if arrived is not None:
        builder.waiting = (*queue, arrived)
        builder.time_turns()


@_rule("abandon", ev.TurnAbandoned, *_BUSY)
def _abandon(builder: TransitionBuilder, event: ev.TurnAbandoned) -> None:
    """The client left mid-turn: drop the socket, so its slot is never reused (invariant 24).

    A connect that is under way serves the next turn, and a waiting turn just leaves the queue.
    """
    if builder.drop_waiting(event.turn):
        return
    if builder.running.turn.id != event.turn:
        builder.emit(fx.Ignored(_TURN_OVER))
        return
    if builder.phase is not _P.RECONNECTING or not builder.waiting:
        builder.close()
    builder.release()


@_rule("connection-opened", ev.ConnectionOpened, _P.RECONNECTING)
def _connection_opened(builder: TransitionBuilder, event: ev.ConnectionOpened) -> None:
    """The socket is there: the waiting turn goes on, if the socket can carry it."""
    builder.lifecycle = Lifecycle.OPEN
    builder.clear_timer(Timer.CONNECT)
    builder.set_timer(Timer.LIFETIME, builder.policy.timeouts.lifetime - event.early)
    builder.dispatch()


@_rule("connect-deadline", Timer.CONNECT, _P.RECONNECTING)
def _connect_deadline(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The connect took too long: it is given up as if it had failed."""
    builder.close()
    _give_up_connect(builder, TimedOut(Timer.CONNECT))


@_rule("lost-connecting", ev.ConnectionLost, _P.RECONNECTING)
def _lost_connecting(builder: TransitionBuilder, event: ev.ConnectionLost) -> None:
    """No socket could be had: the policy says what the turn is told (row 2)."""
    builder.disconnected()
    _give_up_connect(builder, event.cause)


def _give_up_connect(builder: TransitionBuilder, cause: Evidence) -> None:
    failure = classify(cause)
    if builder.remote:
        situation = Situation.OWNER_LOST  # row 7
    elif failure.kind is FailureKind.REJECTED:
        situation = Situation.UPGRADE_REJECTED
    else:
        situation = Situation.CONNECT_FAILED
    builder.recover(situation, failure)


@_rule("lost-idle", ev.ConnectionLost, *_USABLE)
def _lost_idle(builder: TransitionBuilder, event: ev.ConnectionLost) -> None:
    """Closed between turns: nobody is told, the next turn reconnects (row 1)."""
    builder.disconnected()


_LOST = {
    _P.SENDING: Situation.LOST_SENDING,
    _P.SENT: Situation.LOST_SENT,
    _P.CREATED: Situation.LOST_CREATED,
    _P.OUTPUT: Situation.LOST_OUTPUT,
}


def _loss(builder: TransitionBuilder, mine: Situation) -> Situation:
    """What a loss means for the turn in flight: ``mine``, or, where the socket leads to another
    replica, what the client has seen of the answer tells (rows 7, 8)."""
    if not builder.remote:
        return mine
    begun = builder.phase in _ANSWERING
    return Situation.OWNER_LOST_OUTPUT if begun else Situation.OWNER_LOST_DISPATCHED


@_rule("lost-in-flight", ev.ConnectionLost, *_IN_FLIGHT)
def _lost_in_flight(builder: TransitionBuilder, event: ev.ConnectionLost) -> None:
    """Lost with a turn in flight: how far the turn had come tells the situation (rows 3 to 5).

    If nothing of its frame had left, it is as if the socket had closed between turns (row 1): an
    anchor that only this socket knew does not go to the next one. A close for size means that the
    frame was not processed and never will be.
    """
    failure = classify(event.cause)
    situation = _loss(builder, _LOST[builder.phase])
    unsent = event.unsent and builder.phase is _P.SENDING
    builder.disconnected()
    if unsent:
        # What was refused or met silence is not tried again: the full input goes once more.
        sent = builder.running.sent
        form = None if sent is fx.RequestForm.AS_IS else sent
        builder.taken = attrs.evolve(builder.running, form=form, fallback=None)
        builder.start()
        return
    sized = failure.kind is FailureKind.TOO_LARGE and situation in _UNACCEPTED
    builder.recover(Situation.TOO_LARGE if sized else situation, failure)


_UNACCEPTED = (Situation.LOST_SENDING, Situation.LOST_SENT)


@_rule("frame-sent", ev.FrameSent, _P.SENDING)
def _frame_sent(builder: TransitionBuilder, event: ev.FrameSent) -> None:
    """The frame is with the operating system: response.created is due from now. While parts of it
    are still to go, the upload makes progress, and what is due is the next part."""
    if event.whole:
        builder.advance(AttemptPhase.SENT)
    builder.set_timer(Timer.CREATED, builder.policy.timeouts.created)


@_rule("created", ev.ResponseCreated, *_UNANSWERED)
def _created(builder: TransitionBuilder, event: ev.ResponseCreated) -> None:
    """The upstream accepted the turn: from here on nothing is replayed.

    If it names a response that has ended, it may be a late copy, or the upstream calls all
    responses of a chain by one id. It waits until output or the end, which a copy has not, comes.
    """
    if event.response is not None and event.response in builder.ended:
        if builder.running.doubtful is None:
            builder.taken = attrs.evolve(builder.running, doubtful=event.response)
            builder.hold()
        else:
            builder.emit(fx.Ignored(_ONE_CREATED))
        return
    # Whatever was in doubt was a copy: this one is the turn's own, be it with or without an id.
    builder.taken = attrs.evolve(builder.running, doubtful=None)
    builder.name(event.response)
    _accepted(builder, AttemptPhase.CREATED)


@_rule("output-uncreated", ev.OutputReceived, *_UNANSWERED)
def _output_uncreated(builder: TransitionBuilder, event: ev.OutputReceived) -> None:
    """An answer from an upstream that left response.created out: accepted all the same.

    What comes after a response.created in doubt waits with it, until there is output. Where there
    is no room to wait, the upstream does not speak the protocol: its socket is as good as lost.
    """
    doubtful = builder.running.doubtful
    if not event.bearing and not event.room:
        situation = _loss(builder, _LOST[builder.phase])
        builder.close()
        builder.recover(situation, classify(Malformed("too much before response.created")))
        return
    if doubtful is not None and not event.bearing and event.response in (None, doubtful):
        builder.hold()
        return
    builder.name(event.response or doubtful)
    _accepted(builder, AttemptPhase.OUTPUT if event.bearing else AttemptPhase.CREATED)


def _accepted(builder: TransitionBuilder, phase: AttemptPhase) -> None:
    builder.forgive(builder.running.turn.anchor)
    builder.advance(phase)
    builder.clear_timer(Timer.CREATED)
    builder.set_timer(Timer.IDLE, builder.policy.timeouts.idle)
    builder.deliver()


@_rule("output", ev.OutputReceived, *_ANSWERING)
def _output(builder: TransitionBuilder, event: ev.OutputReceived) -> None:
    """Output goes to the turn that caused it; the upstream is alive. What there is no room to hold
    back is shown, and from then on nothing is replayed."""
    builder.name(event.response)
    running = builder.running
    shown = event.bearing or not event.room
    builder.advance(AttemptPhase.OUTPUT if shown else running.phase, paused=running.paused)
    if not running.paused:
        builder.set_timer(Timer.IDLE, builder.policy.timeouts.idle)
    builder.deliver()


@_rule("ended", ev.ResponseEnded, *_IN_FLIGHT)
def _ended(builder: TransitionBuilder, event: ev.ResponseEnded) -> None:
    """The terminal event: the turn is complete; a completed or incomplete response becomes the
    anchor that the socket knows, a failed one does not.

    A response that failed before it was created is a refusal by another name; one that failed for
    want of an anchor, where the turn can be said without, is no word for its client. A terminal
    event that cannot be read is the upstream's failure.
    """
    name = event.response or builder.running.doubtful
    if isinstance(event.cause, Malformed):
        # The upstream has run the turn, so it is not tried again.
        builder.end_response(name)
        builder.forgive(builder.running.turn.anchor)
        builder.cached_response = None
        if builder.running.phase is AttemptPhase.SENDING:
            builder.close()
        builder.fail(fx.FailureReply.UPSTREAM_ERROR, classify(event.cause))
        return
    if event.cause is not None:
        refused = ev.UpstreamRefused(event.generation, event.cause)
        if builder.phase in _UNANSWERED:
            _refused(builder, refused)
            return
        kind = classify(event.cause).kind
        if kind is FailureKind.NOT_FOUND and builder.standing in _OURS:
            _refused_answering(builder, refused)
            return
    # A refusal, above, has no response, whatever id it brings: some upstreams use one for all.
    builder.end_response(name)
    builder.forgive(builder.running.turn.anchor)
    last = event.response
    names = tuple(name for name in builder.running.responses if name != last)
    names = names if last is None else (*names, last)
    builder.cached_response = None
    if event.outcome is not ev.Outcome.FAILED and names:
        builder.cached_response = names[-1]
    if builder.running.phase is AttemptPhase.SENDING:
        # An answer before the whole frame was sent: what is left of the frame would be next.
        builder.close()
    builder.emit(fx.CompleteTurn(builder.running.turn.id, names))
    builder.release()


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
def _refused(builder: TransitionBuilder, event: ev.UpstreamRefused) -> None:
    """The upstream refused the turn before generating: the policy may try another way."""
    failure = classify(event.cause)
    situation = _REFUSED.get(failure.kind, Situation.REFUSED)
    running = builder.running
    if running.turn.anchor == builder.cached_response and not event.unsent:
        # An in-band refusal evicts the id it referred to from the socket's memory.
        builder.cached_response = None
    cut = running.phase is AttemptPhase.SENDING and not event.unsent
    if situation is Situation.CONNECTION_LIMIT or cut:
        builder.close()
    evicts = failure.kind not in _NOT_OF_THE_INPUT
    if builder.standing is ev.Standing.INJECTED and evicts:
        builder.emit(fx.StopInjecting(running.turn.id))
    if (
        builder.standing is ev.Standing.HELD_STORED
        and evicts
        and running.sent is fx.RequestForm.AS_IS
    ):
        # It evicts the id. The service may have stored it, but the chain at hand is certain: the
        # next try goes in full.
        builder.count_refusal(running.turn.anchor)
    if running.sent is fx.RequestForm.REHYDRATED and failure.kind is FailureKind.INVALID:
        builder.emit(fx.StopRebuilding(running.turn.id))
    builder.recover(situation, failure)


@_rule("refused-answering", ev.UpstreamRefused, *_ANSWERING)
def _refused_answering(builder: TransitionBuilder, event: ev.UpstreamRefused) -> None:
    """An error frame in mid-answer ends the turn; whether more would come, nobody knows."""
    failure = classify(event.cause)
    # What is wrong with an anchor or a socket is no word for the client of an accepted turn.
    lost = failure.kind in (FailureKind.NOT_FOUND, FailureKind.CONNECTION_LIMIT)
    if failure.kind is FailureKind.NOT_FOUND and builder.running.sent is fx.RequestForm.AS_IS:
        # The next try would send this anchor again, and fail again.
        if builder.standing is ev.Standing.INJECTED:
            builder.emit(fx.StopInjecting(builder.running.turn.id))
        elif builder.standing is ev.Standing.HELD_STORED:
            builder.count_refusal(builder.running.turn.anchor)
    builder.close()
    builder.fail(
        fx.FailureReply.STREAM_INCOMPLETE if lost else fx.FailureReply.UPSTREAM_ERROR, failure
    )


@_rule("refused-idle", ev.UpstreamRefused, *_USABLE)
def _refused_idle(builder: TransitionBuilder, event: ev.UpstreamRefused) -> None:
    """An error frame between turns is nobody's; a socket that is too old is closed."""
    if classify(event.cause).kind is FailureKind.CONNECTION_LIMIT:
        builder.close()
    else:
        builder.emit(fx.Ignored(_UNMATCHED))


@_rule("created-deadline", Timer.CREATED, *_UNANSWERED)
def _created_deadline(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """No response.created in time: the socket is dropped, whatever becomes of the turn (row 4)."""
    situation = _loss(builder, Situation.SILENT)
    builder.close()
    builder.recover(situation, classify(TimedOut(Timer.CREATED)))


@_rule("idle-deadline", Timer.IDLE, *_ANSWERING)
def _idle_deadline(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The upstream fell silent in mid-answer: as if the socket were lost."""
    situation = _loss(builder, _LOST[builder.phase])
    builder.close()
    builder.recover(situation, classify(TimedOut(Timer.IDLE)))


@_rule("relay-paused", ev.RelayPaused, *_ANSWERING)
def _relay_paused(builder: TransitionBuilder, event: ev.RelayPaused) -> None:
    """A slow reader is not a silent upstream: nothing is due while upstream is not read."""
    if builder.running.turn.id != event.turn:
        builder.emit(fx.Ignored(_TURN_OVER))
        return
    builder.advance(builder.running.phase, paused=event.paused)
    if event.paused:
        builder.clear_timer(Timer.IDLE)
    else:
        builder.set_timer(Timer.IDLE, builder.policy.timeouts.idle)


@_rule("turn-deadline", Timer.TURN, *_BUSY)
def _turn_deadline(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The whole budget of a turn is used up, waits and replays included."""
    failure = classify(TimedOut(Timer.TURN))
    builder.time_turns()
    for waiting in builder.waiting:
        if waiting.deadline <= builder.now:
            builder.drop_waiting(waiting.turn.id)
            builder.emit(fx.FailTurn(waiting.turn.id, fx.FailureReply.REQUEST_TIMEOUT, failure))
    if builder.running.deadline <= builder.now:
        builder.close()
        builder.fail(fx.FailureReply.REQUEST_TIMEOUT, failure)


@_rule("lifetime-idle", Timer.LIFETIME, *_USABLE)
def _lifetime_idle(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The socket is old and no turn runs: close it before the upstream does (invariant 32)."""
    builder.rotate()


@_rule("lifetime-busy", Timer.LIFETIME, *_IN_FLIGHT)
def _lifetime_busy(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The socket is old but a turn runs: it is replaced when the turn is over."""
    builder.past_lifetime = True


@_rule("expiry", Timer.EXPIRY, *_IDLE)
def _expiry(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """Nobody used the conversation for long: give up its socket and its state."""
    builder.retire()


@_rule("evict-idle", ev.EvictionRequested, *_IDLE)
def _evict_idle(builder: TransitionBuilder, event: ev.EvictionRequested) -> None:
    """Room is needed and no turn runs or waits: give up the socket and the state."""
    builder.retire()


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
