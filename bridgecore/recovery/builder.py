"""The steps that rules are composed of: connect, close, send, recover, fail, release.

A ``TransitionBuilder`` holds the state and the effects of one transition while its rule runs. Every
rule is written in its methods, so that each decision is in exactly one place: whether a connection
can know an anchor in ``dispatch``, what to do about a loss in ``recover``, what follows the end of
a turn in ``release``.

The policy's table is read in two methods. ``recover`` reads the cell that decides about a loss or a
refusal, and records it in ``cells``. ``deliver`` reads ahead: whether a loss at this moment would
be answered with a resend decides whether an event is held back. Nothing has been lost then, so that
cell is recorded apart, in ``foreseen``.

The builder is mutable because a rule changes several fields one after another, and replacing a
frozen state for each of them costs microseconds. It never leaves ``step``, which stays a pure
function.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, assert_never

import attrs

from bridgecore.errors import InternalError
from bridgecore.recovery import effects as fx
from bridgecore.recovery.effects import Effect, FailureReply, RequestForm
from bridgecore.recovery.events import Remembers, Standing
from bridgecore.recovery.failure import Failure, FailureKind
from bridgecore.recovery.policy import Action, Cell, Policy, Situation
from bridgecore.recovery.state import (
    AttemptPhase,
    Lifecycle,
    Running,
    SessionState,
    Waiting,
)
from bridgecore.recovery.timers import Timer, Timers

_USABLE = (Lifecycle.OPEN, Lifecycle.SEND_SKIPPED)
# Situations in which the upstream may have accepted the turn: any further send is a replay and
# counts towards ``Budgets.replays``, whichever action the cell has (REPLAYS_ARE_BOUNDED).
_UNANSWERED = {Situation.LOST_SENDING, Situation.LOST_SENT, Situation.SILENT}
_ANSWERING = {Situation.LOST_CREATED, Situation.LOST_OUTPUT, Situation.OWNER_LOST_OUTPUT}
_DISPATCHED = frozenset({*_UNANSWERED, *_ANSWERING, Situation.OWNER_LOST_DISPATCHED})
_NOT_CONNECTED = (Situation.CONNECT_FAILED, Situation.NO_WEBSOCKET)
_FORMS = {
    Action.SEND: RequestForm.AS_IS,
    Action.REHYDRATE: RequestForm.REHYDRATED,
    Action.SEND_FULL: RequestForm.CLIENT_FULL,
}
# Anchors whose refusals are counted, the latest refused; a client can send any string as an anchor,
# so without a bound the state would grow. A session has few anchors in use at a time.
_ANCHORS_COUNTED = 32
# Ids remembered of one response, and of all responses that ended on the connection. An upstream
# uses one or two ids for a response, and stragglers come right after its end, so few are enough.
_IDS_OF_ONE = 8
_IDS_ENDED = 16


_FIELDS = [field.name for field in attrs.fields(Running)]
_PLACES = {name: place for place, name in enumerate(_FIELDS)}
_values = attrgetter(*_FIELDS)


def _changed(running: Running, **changes: Any) -> Running:
    """``running`` with other values for some fields. It is called for most events, and
    ``attrs.evolve`` takes twice as long."""
    values = list(_values(running))
    for name, value in changes.items():
        values[_PLACES[name]] = value
    return Running(*values)


class TransitionBuilder:
    """The state and effects of one transition while its rule runs. Private to ``recovery``.

    It has the fields of ``SessionState`` as mutable attributes: ``timers`` is a dict, ``taken`` is
    the field ``running``, which the property ``running`` returns without None. ``phase`` is the
    phase in which the event came; it does not change. ``effects``, ``cells`` and ``foreseen``
    become those of the ``Transition``.
    """

    def __init__(self, policy: Policy, state: SessionState, now: int) -> None:
        self.policy, self.now, self.phase = policy, now, state.phase
        self.effects: list[Effect] = []
        self.cells: tuple[Cell, ...] = ()
        self.foreseen: Cell | None = None
        self.lifecycle, self.generation = state.lifecycle, state.generation
        self.cached_response, self.taken, self.waiting = (
            state.cached_response,
            state.running,
            state.waiting,
        )
        self.ended = state.ended
        self.refusals, self.past_lifetime, self.remote = (
            state.refusals,
            state.past_lifetime,
            state.remote,
        )
        self.remembers = state.remembers
        self.timers = dict(state.timers.entries)

    def finish(self) -> SessionState:
        """The new state."""
        timers = Timers.of(self.timers)
        socket = (self.lifecycle, self.generation, self.cached_response, self.ended)
        turns = (self.taken, self.waiting, self.refusals)
        kind = (self.past_lifetime, self.remote, self.remembers)
        return SessionState(*socket, *turns, *kind, timers)

    @property
    def running(self) -> Running:
        """The running turn.

        Raises:
            InternalError: there is none; a rule for a phase without a running turn used it.
        """
        if self.taken is None:
            raise InternalError("no turn runs")
        return self.taken

    @property
    def standing(self) -> Standing:
        """The standing of the running turn.

        Unanchored once the injected anchor was dropped in favour of the client's own input: from
        then on the turn needs no anchor, and what the upstream says is about the client's input.
        """
        running = self.running
        gone = RequestForm.CLIENT_FULL in (running.form, running.sent)
        return Standing.UNANCHORED if gone else running.turn.standing

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def advance(self, phase: AttemptPhase, *, paused: bool = False) -> None:
        """Record the phase of the attempt, and whether its client reads too slowly."""
        self.taken = _changed(self.running, phase=phase, paused=paused)

    def name(self, response: str | None) -> None:
        """Record an id that the upstream uses for the running turn's response.

        A response can have several: some upstreams name another one in ``response.completed`` than
        in ``response.created``.
        """
        known = self.running.responses
        if response is not None and response not in known and len(known) < _IDS_OF_ONE:
            self.taken = _changed(self.running, responses=(*known, response), doubtful=None)

    def end_response(self, response: str | None) -> None:
        """Record that the running turn's response has ended, under each of its ids, so that
        stragglers of it are recognised."""
        self.name(response)
        names = list(self.running.responses)
        if response is not None and response not in names:
            names.append(response)  # ``name`` had no room for it
        self.ended = (*[name for name in self.ended if name not in names], *names)[-_IDS_ENDED:]

    def cache(self, response: str | None) -> None:
        """Record that the connection can continue ``response``, which has ended on it, and no
        other. A connection that speaks HTTP cannot: its next request knows only what the upstream
        stores, as on any other connection, and that is the turn's standing."""
        self.cached_response = response if self.remembers is Remembers.LATEST else None

    def set_timer(self, timer: Timer, after: int) -> None:
        """Make ``timer`` due ``after`` ns from now."""
        self.timers[timer] = self.now + after

    def clear_timer(self, *timers: Timer) -> None:
        for timer in timers:
            self.timers.pop(timer, None)

    def drop_waiting(self, turn: int) -> bool:
        """Take ``turn`` out of the queue; False if it is not in it."""
        before = self.waiting
        self.waiting = tuple(waiting for waiting in before if waiting.turn.id != turn)
        if self.taken is not None:
            self.time_turns()
        return len(self.waiting) < len(before)

    def run(self, waiting: Waiting) -> None:
        """Make ``waiting`` the running turn. The session is in use: it does not expire."""
        self.taken = Running(waiting.turn, deadline=waiting.deadline)
        self.clear_timer(Timer.EXPIRY)
        self.time_turns()

    def time_turns(self) -> None:
        """Set the TURN timer to the earliest deadline of the running and the waiting turns.

        Usually that is the running turn's. But deadlines start when a request arrives, and
        resolving one can take longer than another, so a waiting turn may have the earlier deadline.
        """
        ends = [self.running.deadline, *[waiting.deadline for waiting in self.waiting]]
        self.timers[Timer.TURN] = min(ends)

    def deliver(self) -> None:
        """Deliver the current event to the client, or hold it back while the turn may be replayed.

        Once a client has seen ``response.created``, a replay would show it a second one, with
        another id (NO_REPLAY_AFTER_ANSWER). So if the policy would resend the turn after a loss
        now, its events wait until output makes a replay impossible.
        """
        running = self.running
        early = running.phase is AttemptPhase.CREATED and not self.remote
        held = False
        # The table is read last because it rarely matters: most events come after output began.
        if early and running.replays < self.policy.budgets.replays:
            self.foreseen = self._read(Situation.LOST_CREATED)
            held = self.foreseen.remedy.action is Action.RESEND
        self.emit(fx.DeliverEvent(running.turn.id, held))

    def hold(self) -> None:
        """Hold the current event back: it may belong to an earlier response."""
        self.emit(fx.DeliverEvent(self.running.turn.id, held=True))

    def fail(self, answer: FailureReply, failure: Failure | None) -> None:
        """End the running turn with ``answer``, and go on with the next."""
        self.emit(fx.FailTurn(self.running.turn.id, answer, failure))
        self.release()

    def release(self) -> None:
        """Go on after a turn: replace a connection past its lifetime, then start the next waiting
        turn, or let the session idle until it expires.

        In this order, so that the next turn starts on the new connection and not on one that the
        upstream is about to close.
        """
        self.taken = None
        self.clear_timer(Timer.CREATED, Timer.IDLE, Timer.TURN)
        if self.past_lifetime:
            self.rotate()
        if self.waiting:
            first, self.waiting = self.waiting[0], self.waiting[1:]
            self.run(first)
            self.start()
        else:
            self.set_timer(Timer.EXPIRY, self.policy.timeouts.expiry)

    def disconnected(self) -> None:
        """Record that there is no connection, and forget everything that only it knew: its cached
        response, its ended responses, its age and its deadlines."""
        self.lifecycle, self.cached_response, self.past_lifetime = Lifecycle.CLOSED, None, False
        self.ended = ()
        self.clear_timer(Timer.CONNECT, Timer.CREATED, Timer.IDLE, Timer.LIFETIME)

    def close(self) -> None:
        """Close the connection, or abort the connect; without either, do nothing."""
        if self.lifecycle is not Lifecycle.CLOSED:
            self.emit(fx.CloseConnection(self.generation))
            self.disconnected()

    def rotate(self) -> None:
        """Close a connection past its lifetime. The next turn opens another.

        With ``Budgets.warm``, ask for a new one now, preloaded with the context that is lost. Not
        while turns wait: the first of them opens the connection at once, and sends its own context.
        """
        anchor = self.cached_response
        self.close()
        if self.policy.budgets.warm and anchor is not None and not self.waiting:
            self.emit(fx.WarmSession(anchor))

    def retire(self) -> None:
        """End the session: close its connection and let the caller forget it."""
        self.close()
        self.clear_timer(Timer.EXPIRY)
        self.emit(fx.RetireSession())

    def start(self) -> None:
        """Start the running turn: send it on the open connection, or connect first.

        While a connect is under way, do nothing: ``connection-opened`` dispatches the turn.
        """
        if self.lifecycle in _USABLE:
            self.dispatch()
        elif self.lifecycle is Lifecycle.CLOSED:
            self._connect()

    def _connect(self) -> None:
        # A response.created in doubt was of the connection before.
        self.taken = _changed(self.running, phase=AttemptPhase.UNSENT, doubtful=None)
        if self.policy.budgets.reconnect_uses_replay and self.generation > 0:
            self.taken = _changed(self.taken, replays=max(self.taken.replays, 1))
        self.lifecycle, self.remembers = Lifecycle.RECONNECTING, Remembers.LATEST
        self.generation += 1
        self.set_timer(Timer.CONNECT, self.policy.timeouts.connect)
        http = self.taken.over_http and not self.remote
        self.emit(fx.OpenConnection(self.generation, self.remote, http))

    def dispatch(self) -> None:
        """Send the running turn on the open connection, if the connection can know its anchor.

        In WebSocket mode an upstream connection caches only its latest response, so it knows an
        anchor if it made that response last (ANCHOR_IS_KNOWN). Otherwise the turn is not sent, and
        the policy decides: SEND_SKIPPED. A form that was decided before is sent as decided.
        """
        running = self.running
        anchor = running.turn.anchor
        # The replica that owns the session may know the anchor, unless it said that it does not.
        owned = self.remote and FailureKind.NOT_FOUND not in running.recovered
        if running.form is not None:
            self._send(running.form)
        elif running.sent is RequestForm.CLIENT_FULL:
            self._send(running.sent)  # the injected anchor was refused: never send it again
        elif anchor is None or anchor == self.cached_response or owned:
            self._send(RequestForm.AS_IS)
        else:
            self.lifecycle = Lifecycle.SEND_SKIPPED
            self.recover(Situation.SEND_SKIPPED, None)

    def _send(self, form: RequestForm) -> None:
        self.taken = _changed(
            self.running,
            phase=AttemptPhase.SENDING,
            form=None,
            sent=form,
            responses=(),
            doubtful=None,
        )
        self.lifecycle = Lifecycle.OPEN
        self.set_timer(Timer.CREATED, self.policy.timeouts.created)
        self.emit(fx.SendTurn(self.generation, self.running.turn.id, form))

    def _read(self, situation: Situation) -> Cell:
        """Look up the cell of the policy's table for the running turn in ``situation``."""
        standing = self.standing
        remedy = self.policy.remedy(situation, standing)
        return Cell(self.running.turn.id, situation, standing, remedy)

    def recover(self, situation: Situation, failure: Failure | None) -> None:
        """Apply the policy's remedy for ``situation`` to the running turn.

        ``failure``: what happened; None if nothing did (the send was skipped).
        """
        cell = self._read(situation)
        self.cells += (cell,)
        action, answer = cell.remedy.action, cell.remedy.answer
        # If the reconnect for a resend fails, the original answer applies: the first loss decides
        # what the client may conclude, for example that the send was ambiguous.
        before = self.running.fallback if situation in _NOT_CONNECTED else None
        if action is Action.REBIND and self.remote:  # otherwise there is nothing to take over
            self.emit(fx.RebindSession(failure))
            self.remote = False
        match action:
            case Action.SEND | Action.REHYDRATE | Action.SEND_FULL | Action.RESEND | Action.REBIND:
                self._try_again(_FORMS.get(action), situation, failure, answer)
            case Action.FALL_BACK:
                self._fall_back(failure, before or answer, before)
            case Action.SEND_OR_REHYDRATE:
                form = RequestForm.REHYDRATED if self._tried_in_vain() else RequestForm.AS_IS
                self._try_again(form, situation, failure, answer)
            case Action.REFUSE_BOUNDED:
                self._refuse_bounded(answer, failure)
            case Action.REFUSE_THEN_REHYDRATE:
                if self.running.sent is RequestForm.AS_IS:
                    self.count_refusal(self.running.turn.anchor)
                self.fail(answer, failure)
            case Action.SURFACE:
                self.fail(FailureReply.UPSTREAM_ERROR, failure)
            case Action.REFUSE | Action.FAIL:
                self.fail(before or answer, failure)
            case _:
                assert_never(action)

    def _try_again(
        self,
        form: RequestForm | None,
        situation: Situation,
        failure: Failure | None,
        answer: FailureReply,
    ) -> None:
        """Send the turn once more; when the budget is spent, fail it with ``answer``.

        ``form``: the form to send; None: as ``dispatch`` decides. There are three budgets, each of
        which gets smaller with every attempt, so that no turn is tried for ever
        (RECOVERY_DESCENDS): replays after a loss, one recovery for each kind of refusal, and none
        without either.
        """
        running = self.running
        if situation in _DISPATCHED:
            spent = running.replays >= self.policy.budgets.replays
            running = _changed(running, replays=running.replays + 1)
        elif failure is not None:
            # Recover from each kind of refusal once per turn (RECOVERED_ONCE), and never in the
            # form that was refused: it would be refused again (REFUSED_IS_NOT_REPEATED).
            spent = failure.kind in running.recovered or (form is not None and form is running.sent)
            running = _changed(running, recovered=running.recovered | {failure.kind})
        else:
            # The send was skipped. Restarting without another form would skip it again, endlessly.
            spent = form is None
        if spent:
            self.fail(answer, failure)
            return
        self.taken = _changed(running, form=form, fallback=answer)
        self.start()

    def _fall_back(
        self, failure: Failure | None, answer: FailureReply, before: FailureReply | None
    ) -> None:
        """Start the turn over on a connection that speaks HTTP; if it is over HTTP that the
        upstream refused it, fail it with ``answer``.

        A turn in full stays in full. One that named a response is dispatched anew: what only the
        WebSocket could continue is rehydrated there, or refused. ``before``: the answer if HTTP
        cannot be reached either; None: that of a connect that failed.
        """
        running = self.running
        if running.over_http or self.remembers is Remembers.STORED:
            self.fail(answer, failure)
            return
        self.close()
        form = running.form or (None if running.sent is RequestForm.AS_IS else running.sent)
        self.taken = _changed(running, form=form, over_http=True, fallback=before)
        self.start()

    def _refuse_bounded(self, answer: FailureReply, failure: Failure | None) -> None:
        """Fail the turn with ``answer``; after ``Budgets.refusals`` of its anchor, with not-found.

        A retriable answer lets the client keep its anchor, in case the loss is temporary. It must
        not be for ever: at some point only not-found lets the client go on without that anchor.
        """
        anchor = self.running.turn.anchor
        if dict(self.refusals).get(anchor, 0) >= self.policy.budgets.refusals:
            self.fail(FailureReply.NOT_FOUND, failure)
            return
        self.count_refusal(anchor)
        self.fail(answer, failure)

    def count_refusal(self, anchor: str | None) -> None:
        """Count a refusal of ``anchor``; for an anchor beside a held chain, a failed attempt to use
        it, after which the chain is sent instead."""
        used = dict(self.refusals).get(anchor, 0)
        # A higher count decides nothing more, and would only multiply the states to explore.
        most = max(1, self.policy.budgets.refusals)
        self.forgive(anchor)
        self.refusals = (*self.refusals, (anchor, min(used + 1, most)))[-_ANCHORS_COUNTED:]

    def _tried_in_vain(self) -> bool:
        """Whether an earlier attempt with this anchor was answered with not-found or silence."""
        running = self.running
        unknown = FailureKind.NOT_FOUND in running.recovered
        return unknown or self.was_refused(running.turn.anchor)

    def was_refused(self, anchor: str | None) -> bool:
        """Whether a refusal of ``anchor`` is counted."""
        return dict(self.refusals).get(anchor, 0) > 0

    @property
    def rebuilds_often(self) -> bool:
        """Whether a rebuilt input is the rule on this connection, and not what follows a loss."""
        return self.remembers is Remembers.STORED

    def forgive(self, anchor: str | None) -> None:
        """Forget the refusals of ``anchor``: it worked, or its turn was answered otherwise."""
        self.refusals = tuple(entry for entry in self.refusals if entry[0] != anchor)
