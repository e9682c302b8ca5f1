"""The state machine of a session: every rule that changes its state is in this file.

Theory of operation
-------------------

A session keeps one conversation alive on one upstream WebSocket connection at a time, and runs one
turn at a time on it. Its state is a frozen value (state.py). ``step`` takes the state and one event
and returns the next state with the effects to carry out. It is a pure function, so that the
verifier can explore every state and a log can be replayed.

A state has a ``Phase``, derived from it rather than stored, so that the two cannot disagree.
Without a running turn the phase says what the connection is good for::

    CLOSED        no connection
    OPEN          connected; the next turn can be sent
    SEND_SKIPPED  connected, but the last turn was not sent, because the connection could not
                  know its anchor

With a running turn it says how far the current attempt to send the turn has come::

    RECONNECTING -> SENDING -> SENT -> CREATED -> OUTPUT -> (the turn ends: OPEN or CLOSED)

What a loss means depends on this. Before SENDING the upstream cannot have the turn. In SENDING and
SENT it is unknown whether the upstream accepted it, so a resend could run it twice. From CREATED on
it was accepted; from OUTPUT on the client has seen a part of the answer.

Each pair of a phase and an event type (or a timer) has exactly one rule in ``RULES``; without one,
or with two, this module cannot be imported. A rule handles the event; or ignores it, for a stated
reason, because the race that caused it is harmless; or declares it illegal, because the caller did
what it must not do: then ``step`` raises ``LocalProtocolError`` and nothing has changed.

Rules are mechanics, the same for every policy: connections, generations, timers, queues. What to do
about a *loss* or a *refusal* is not decided here. A rule works out the ``Situation`` and passes it
to ``TransitionBuilder.recover``, which looks the remedy up in the policy's table (policy.py).

Four checks hold in every phase, so ``step`` makes them before it looks for a rule:

* An event of an older connection generation is ignored: its connection is gone (LIVE_GENERATION).
* An event that names a response which has ended, and not the running one, is ignored. Upstreams
  send copies and stragglers after the next turn was sent (DELIVERED_TO_ITS_TURN).
* A deadline that is not due is ignored (SPURIOUS_IS_NOTHING).
* A deadline that is due is cleared before its rule runs, so that it cannot fire a second time and
  make the caller's loop spin (DEADLINES_ARE_KEPT).

Names in capitals are properties that the verifier checks: see bridgecore/verify/properties.py. The
first paragraph of a rule's docstring is its line in the documentation and in ``bridgecore rules``;
the reasons come after it.
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
from bridgecore.recovery.failure import (
    Evidence,
    Failure,
    FailureKind,
    Malformed,
    TimedOut,
    classify,
)
from bridgecore.recovery.policy import Cell, Policy, Situation
from bridgecore.recovery.state import AttemptPhase, Lifecycle, Phase, SessionState, Waiting
from bridgecore.recovery.timers import SESSION_TIMERS, Timer

EventKey: TypeAlias = type[ev.Event] | Timer
E = TypeVar("E")


class Handling(enum.Enum):
    """How a rule treats its event: act on it, ignore it as a harmless race, or refuse it as an
    error of the caller."""

    HANDLED = "handled"
    IGNORED = "ignored"
    ILLEGAL = "illegal"


@attrs.frozen(eq=False)
class Rule:
    """One rule of the state machine.

    ``on``: the event type, or the timer whose deadline passed. ``doc``: what the rule does or, if
    it does nothing, the reason. ``apply`` is None for ignored and illegal rules.
    """

    id: str
    phases: tuple[Phase, ...]
    on: EventKey
    handling: Handling
    doc: str
    apply: Callable[[TransitionBuilder, Any], None] | None


@attrs.frozen
class Transition:
    """The result of ``step``: the new state, the effects, and the rule and cells that decided.

    ``rule``: the id of the rule. ``cells``: the cells of the policy's table that were applied, in
    order. Most steps apply none or one. One step can apply several: a remedy can lead to a second
    situation (a turn that is restarted on an open connection may be skipped there,
    ``SEND_SKIPPED``), and when a turn ends, the waiting turns behind it may fail one after another.

    ``foreseen``: the cell for "lost after response.created", read ahead while an event of an answer
    arrived, to decide whether to hold the event back. Nothing was lost, so it is not among
    ``cells``, but ``DeliverEvent.held`` depends on it.
    """

    state: SessionState
    effects: tuple[fx.Effect, ...]
    rule: str
    cells: tuple[Cell, ...] = ()
    foreseen: Cell | None = None


RULES: dict[tuple[Phase, EventKey], Rule] = {}

# A deadline is ruled by its timer.
EVENT_KEYS: tuple[EventKey, ...] = (
    *(event for event in get_args(ev.Event) if event is not ev.DeadlineReached),
    *SESSION_TIMERS,
)
# Ids that ``Transition.rule`` has for the checks before the table.
STALE_GENERATION = "stale-generation"
SPURIOUS_DEADLINE = "spurious-deadline"
ENDED_RESPONSE = "ended-response"


def step(policy: Policy, state: SessionState, event: ev.Event, now: int) -> Transition:
    """Apply ``event`` to ``state`` at the time ``now`` (ns, monotonic). A pure function.

    Raises:
        LocalProtocolError: the event cannot happen in this state, or its generation is newer than
            any that was opened; nothing has changed.
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
    """Whether ``event`` names a response that ended before the running turn was sent."""
    name = getattr(event, "response", None)
    running = state.running
    if name is None or running is None or name not in state.ended:
        return False
    if name in running.responses or name == running.doubtful:
        return False
    # Some upstreams use one id for all responses of a chain, so a ``response.created`` with an old
    # id may belong to the running turn: the rule "created" decides.
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
        doc = " ".join((apply.__doc__ or "").split("\n\n")[0].split())
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
_UNMATCHED = "no turn is running that could have caused it"

# ---------------------------------------------------------------- the rules


@_rule("submit", ev.TurnSubmitted, *_IDLE)
def _submit(builder: TransitionBuilder, event: ev.TurnSubmitted) -> None:
    """Start a turn: connect if there is no connection, then send it if the connection knows its
    anchor; otherwise the policy decides (``socket is open but does not know the anchor``).

    A turn whose deadline passed on its way here fails at once. The session is idle again after
    that, so its expiry starts anew.
    """
    arrived = _arrive(builder, event)
    if arrived is None:
        builder.set_timer(Timer.EXPIRY, builder.policy.timeouts.expiry)
        return
    builder.run(arrived)
    builder.start()


def _arrive(builder: TransitionBuilder, event: ev.TurnSubmitted) -> Waiting | None:
    """The turn with its deadline; None if that has passed: then the turn is failed."""
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
    """Queue a turn while another one runs; a full queue rejects it at once.

    An upstream connection carries one response at a time (ONE_AT_A_TIME). The wait counts towards
    the turn's own deadline. The queue is bounded, and full means rejected: a client can retry
    elsewhere at once, but cannot see that it waits in vain (QUEUE_IS_BOUNDED).
    """
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
    """The client left: close the connection, because the upstream still writes the answer there.

    The rest of that answer would arrive during the next turn and could reach the wrong client
    (ONE_AT_A_TIME). Two cases need no close: a turn that only waits leaves the queue, and a connect
    under way, over which nothing was sent, is left to the next waiting turn.
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
    """Connected: start the connection's lifetime, and send the running turn if it can be.

    ``early`` shortens the lifetime by a random part, so that connections opened together are not
    all replaced together. A connection that speaks HTTP has no lifetime: upstreams limit that of a
    WebSocket, and between two requests its end costs nothing. A new connection knows no anchor:
    ``dispatch`` checks that.
    """
    builder.lifecycle, builder.remembers = Lifecycle.OPEN, event.remembers
    builder.clear_timer(Timer.CONNECT)
    if event.remembers is ev.Remembers.LATEST:
        builder.set_timer(Timer.LIFETIME, builder.policy.timeouts.lifetime - event.early)
    builder.dispatch()


@_rule("connect-deadline", Timer.CONNECT, _P.RECONNECTING)
def _connect_deadline(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The connect took too long: abort it and treat it as failed."""
    builder.close()
    _give_up_connect(builder, TimedOut(Timer.CONNECT))


@_rule("lost-connecting", ev.ConnectionLost, _P.RECONNECTING)
def _lost_connecting(builder: TransitionBuilder, event: ev.ConnectionLost) -> None:
    """The connect failed: the policy decides what becomes of the running turn."""
    builder.disconnected()
    _give_up_connect(builder, event.cause)


def _give_up_connect(builder: TransitionBuilder, cause: Evidence) -> None:
    failure = classify(cause)
    if builder.remote:
        situation = Situation.OWNER_LOST  # nothing was sent yet: taking over is safe
    elif failure.kind is FailureKind.REJECTED:
        situation = Situation.UPGRADE_REJECTED
    elif failure.kind is FailureKind.NO_WEBSOCKET:
        situation = Situation.NO_WEBSOCKET
    else:
        situation = Situation.CONNECT_FAILED
    builder.recover(situation, failure)


@_rule("lost-idle", ev.ConnectionLost, *_USABLE)
def _lost_idle(builder: TransitionBuilder, event: ev.ConnectionLost) -> None:
    """Closed between turns: note it and do nothing else; the next turn reconnects.

    There is no client to inform, and a reconnect in advance might never be used.
    """
    builder.disconnected()


_LOST = {
    _P.SENDING: Situation.LOST_SENDING,
    _P.SENT: Situation.LOST_SENT,
    _P.CREATED: Situation.LOST_CREATED,
    _P.OUTPUT: Situation.LOST_OUTPUT,
}


def _loss(builder: TransitionBuilder, mine: Situation, failure: Failure | None = None) -> Situation:
    """The situation of a turn whose connection is lost: ``mine`` on a connection to the upstream.

    On a connection to the replica that owns the session, the cause is unknown, so only what the
    client has seen of the answer matters: after output the turn must not run again elsewhere. But
    that replica may say itself, before an answer, that it has not sent the turn (``failure``).
    """
    if not builder.remote:
        return mine
    begun = builder.phase in _ANSWERING
    if failure is not None and failure.kind is FailureKind.NOT_DISPATCHED and not begun:
        return Situation.OWNER_LOST
    return Situation.OWNER_LOST_OUTPUT if begun else Situation.OWNER_LOST_DISPATCHED


@_rule("lost-in-flight", ev.ConnectionLost, *_IN_FLIGHT)
def _lost_in_flight(builder: TransitionBuilder, event: ev.ConnectionLost) -> None:
    """The connection was lost during a turn: the policy decides, by how far the turn had come.

    If no byte of the turn's frame was written (``unsent``), the loss is not ambiguous: restart the
    turn on a new connection, as after a close between turns. A close for the size of the frame
    (1009) before ``response.created`` is a refusal, not a loss: the frame was not processed, and
    never will be. Nor is it ambiguous if the owner of the session says that it has not sent the
    turn.
    """
    failure = classify(event.cause)
    situation = _loss(builder, _LOST[builder.phase], failure)
    unsent = event.unsent and builder.phase is _P.SENDING
    builder.disconnected()
    if unsent:
        # Keep a full form that an earlier attempt had to fall back to: the anchor it replaced was
        # refused or met silence, and would be again (REFUSED_IS_NOT_REPEATED).
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
    """The operating system took the frame, or the next part of it: restart the deadline for
    response.created.

    While parts of a large frame are left, each part shows progress, so the deadline bounds the time
    to the next one: a slow upload of many megabytes is not silence.
    """
    if event.whole:
        builder.advance(AttemptPhase.SENT)
    builder.set_timer(Timer.CREATED, builder.policy.timeouts.created)


@_rule("created", ev.ResponseCreated, *_UNANSWERED)
def _created(builder: TransitionBuilder, event: ev.ResponseCreated) -> None:
    """The upstream accepted the turn: deliver response.created, and expect the next event within
    the idle deadline.

    If it names a response that has ended, it is either a late copy or from an upstream that uses
    one id for all responses of a chain. It is held back until the next event decides: output or a
    terminal event proves it genuine, because a copy has none; another ``response.created``, with a
    new id, proves it a copy.
    """
    if event.response is not None and event.response in builder.ended:
        if builder.running.doubtful is None:
            builder.taken = attrs.evolve(builder.running, doubtful=event.response)
            builder.hold()
        else:
            builder.emit(fx.Ignored(_ONE_CREATED))
        return
    # A response.created in doubt was a copy: this one is the turn's own, with an id or without.
    builder.taken = attrs.evolve(builder.running, doubtful=None)
    builder.name(event.response)
    _accepted(builder, AttemptPhase.CREATED)


@_rule("output-uncreated", ev.OutputReceived, *_UNANSWERED)
def _output_uncreated(builder: TransitionBuilder, event: ev.OutputReceived) -> None:
    """An event of an answer without response.created: the upstream accepted the turn all the same.

    Events that follow a ``response.created`` in doubt are held back with it, until output settles
    the doubt. If the buffer for such events is full, the upstream does not follow the protocol: the
    connection is closed and treated as lost.
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
    """An event of the running answer: deliver it, and restart the idle deadline.

    If the buffer for held-back events is full (``room`` is False), the event is delivered now and
    counts as output: from here on the turn cannot be replayed (NO_REPLAY_AFTER_ANSWER). While the
    client's connection is paused the idle deadline stays off: see ``relay-paused``.
    """
    builder.name(event.response)
    running = builder.running
    shown = event.bearing or not event.room
    builder.advance(AttemptPhase.OUTPUT if shown else running.phase, paused=running.paused)
    if not running.paused:
        builder.set_timer(Timer.IDLE, builder.policy.timeouts.idle)
    builder.deliver()


@_rule("ended", ev.ResponseEnded, *_IN_FLIGHT)
def _ended(builder: TransitionBuilder, event: ev.ResponseEnded) -> None:
    """The terminal event: complete the turn, and remember the response as the connection's anchor
    unless it failed or the connection speaks HTTP.

    Upstreams let completed and incomplete responses be continued, but not failed ones. Three kinds
    of terminal event do not complete the turn:

    * One that cannot be read is a failure of the upstream.
    * ``response.failed`` before ``response.created`` is a refusal, in the form of a response.
    * ``response.failed`` with not-found, for a turn that can be resent without its anchor, is
      hidden from the client: it would drop an anchor that still works for it.
    """
    name = event.response or builder.running.doubtful
    if isinstance(event.cause, Malformed):
        # The upstream has run the turn, so a resend would run it twice.
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
    # Only here, not for the refusals above: they end no response, even if they carry an id (some
    # upstreams use one id for all responses of a chain).
    builder.end_response(name)
    builder.forgive(builder.running.turn.anchor)
    last = event.response
    names = tuple(name for name in builder.running.responses if name != last)
    names = names if last is None else (*names, last)
    builder.cache(names[-1] if event.outcome is not ev.Outcome.FAILED and names else None)
    if builder.running.phase is AttemptPhase.SENDING:
        # The answer ended before the whole frame was sent. The rest of the frame cannot be taken
        # back, and the upstream would read it as the beginning of the next one.
        builder.close()
    builder.emit(fx.CompleteTurn(builder.running.turn.id, names))
    builder.release()


_OURS = (  # standings of turns that the bridge can send without an anchor
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
# Refusals that are not about the content of the frame, and so say nothing about an anchor in it.
_NOT_OF_THE_INPUT = (FailureKind.CONNECTION_LIMIT, FailureKind.TOO_LARGE)


@_rule("refused", ev.UpstreamRefused, *_UNANSWERED)
def _refused(builder: TransitionBuilder, event: ev.UpstreamRefused) -> None:
    """The upstream refused the turn before generating: the policy may send it in another form.

    A refusal is not ambiguous, so a second send is safe. Four things are recorded first, so that
    neither this turn nor a later one repeats what was refused (REFUSED_IS_NOT_REPEATED): the
    connection forgets the anchor, the history match is given up (``StopInjecting``), a stored
    anchor is sent in full next time, and a rebuilt input is not rebuilt again (``StopRebuilding``).
    Over HTTP every input is rebuilt, so there what is wrong is most often what the client has
    added: only a second refusal in a row ends the rebuilding.
    """
    failure = classify(event.cause)
    situation = _REFUSED.get(failure.kind, Situation.REFUSED)
    running = builder.running
    if running.turn.anchor == builder.cached_response and not event.unsent:
        # The upstream evicts the id that a refused request named (Responses API, WebSocket mode).
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
        # The id is evicted. The upstream may still have it in storage, but the bridge holds the
        # chain, which is certain to work: the next attempt is sent in full.
        builder.count_refusal(running.turn.anchor)
    if running.sent is fx.RequestForm.REHYDRATED and failure.is_of_input:
        if builder.rebuilds_often and not builder.was_refused(running.turn.anchor):
            builder.count_refusal(running.turn.anchor)
        else:
            builder.emit(fx.StopRebuilding(running.turn.id))
    builder.recover(situation, failure)


@_rule("refused-answering", ev.UpstreamRefused, *_ANSWERING)
def _refused_answering(builder: TransitionBuilder, event: ev.UpstreamRefused) -> None:
    """An error frame during an answer: end the turn, and close the connection.

    Whether more of the answer would follow is undefined, and it must not reach the next turn.
    """
    failure = classify(event.cause)
    # The turn was accepted, so not-found or a limit is about the upstream's own storage or
    # connection. Shown as such, it would make the client drop an anchor that still works for it.
    lost = failure.kind in (FailureKind.NOT_FOUND, FailureKind.CONNECTION_LIMIT)
    if failure.kind is FailureKind.NOT_FOUND and builder.running.sent is fx.RequestForm.AS_IS:
        # The client's retry would send this anchor again, and fail again.
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
    """Ignore error frames while no turn is running; but if one says that the connection is past
    the upstream's limit, close it.

    The next turn would be refused on it. Any other error is about a turn that has ended.
    """
    if classify(event.cause).kind is FailureKind.CONNECTION_LIMIT:
        builder.close()
    else:
        builder.emit(fx.Ignored(_UNMATCHED))


@_rule("created-deadline", Timer.CREATED, *_UNANSWERED)
def _created_deadline(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """No response.created in time: close the connection; the policy decides about the turn.

    The answer to this turn may still come, and must not arrive during the next one; and the next
    turn should not wait on a connection that may be dead (SILENCE_DROPS_THE_SOCKET).
    """
    situation = _loss(builder, Situation.SILENT)
    builder.close()
    builder.recover(situation, classify(TimedOut(Timer.CREATED)))


@_rule("idle-deadline", Timer.IDLE, *_ANSWERING)
def _idle_deadline(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The upstream fell silent during an answer: close the connection and treat it as lost."""
    situation = _loss(builder, _LOST[builder.phase])
    builder.close()
    builder.recover(situation, classify(TimedOut(Timer.IDLE)))


@_rule("relay-paused", ev.RelayPaused, *_ANSWERING)
def _relay_paused(builder: TransitionBuilder, event: ev.RelayPaused) -> None:
    """The client reads too slowly, or reads again: stop the idle deadline, or restart it.

    While the client is slow the bridge does not read from the upstream, so no event can arrive, and
    the upstream is not to blame for that.
    """
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
    """A turn reached its deadline, waits and replays included: fail it, running or waiting.

    A running turn takes its connection with it: its answer may still be coming.
    """
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
    """The connection reached its lifetime between turns: close it before the upstream does.

    A close of our own between turns costs a reconnect; one of the upstream's during a turn costs
    the turn (SOCKETS_ARE_ROTATED).
    """
    builder.rotate()


@_rule("lifetime-busy", Timer.LIFETIME, *_IN_FLIGHT)
def _lifetime_busy(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The connection reached its lifetime during a turn: replace it when the turn has ended."""
    builder.past_lifetime = True


@_rule("expiry", Timer.EXPIRY, *_IDLE)
def _expiry(builder: TransitionBuilder, event: ev.DeadlineReached) -> None:
    """The conversation was unused for too long: close its connection and retire the session."""
    builder.retire()


@_rule("evict-idle", ev.EvictionRequested, *_IDLE)
def _evict_idle(builder: TransitionBuilder, event: ev.EvictionRequested) -> None:
    """The bridge needs room and no turn runs or waits: close the connection and retire the
    session."""
    builder.retire()


# ---------------------------------------------------------------- harmless races, and misuse
#
# An event can cross with a decision of the session: a client leaves as its answer ends, a
# connection opens as it is given up, the upstream repeats an event. None of these is an error, and
# none may change anything. Illegal is what only a faulty caller can report: a connection that opens
# twice, or a deadline that was never set. The last loop makes the table complete for timers.

_ONE_CREATED = "the turn has its response.created already"
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
_ignore("evict-busy", ev.EvictionRequested, "a turn is running or waiting", *_BUSY)

_illegal("opened-twice", ev.ConnectionOpened, "no connect is under way", *_USABLE, *_IN_FLIGHT)
for _timer in SESSION_TIMERS:
    _unset = [phase for phase in Phase if (phase, _timer) not in RULES]
    _illegal(f"{_timer.value}-never-due", _timer, "it is never set in this phase", *_unset)
_unruled = [(phase, key) for phase in Phase for key in EVENT_KEYS if (phase, key) not in RULES]
if _unruled:
    raise ValueError(f"no rule for {_unruled}")
