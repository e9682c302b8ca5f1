"""What an event means: how it changes the reference model, whatever the session does about it.

What belongs here: a ``ModelStep``, from the model before an event to the next one, and everything
that follows from the event alone. It reads no effects. Those are checked against the step in
model_effects.py and model_failures.py.
"""

from __future__ import annotations

from typing import assert_never

from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import RequestForm
from bridgecore.recovery.events import Event, Outcome, Remembers, Standing
from bridgecore.recovery.failure import FailureKind, classify
from bridgecore.recovery.timers import Timer
from bridgecore.verify.evidence import kind_of, refusal_of
from bridgecore.verify.model import BEGUN, ENDED_KEPT, NAMES_KEPT, Model, ModelTurn, TurnStage
from bridgecore.verify.properties import Property

_P = Property
PROGRESS = (ev.ResponseCreated, ev.OutputReceived)
"""The events that are parts of an answer, other than its end."""


class ModelStep:
    """One event: the model before it, the next one in the making (``model``), what the event has
    shown, and what the effects checked so far have done about it."""

    __slots__ = ("again", "before", "declined", "delivered", "doubtful", "event", "head", "knew",
                 "lost", "model", "must_close", "now", "of_the_socket", "refused", "retired",
                 "stopped", "to_stop", "warmed")  # fmt: skip

    def __init__(self, before: Model, model: Model, event: Event, now: int) -> None:
        self.before = before
        self.model = model
        self.event = event
        self.now = now
        self.head: ModelTurn | None = before.turns[0] if before.turns else None
        self.lost: ModelTurn | None = None  # the turn that this event left possibly accepted
        self.refused: str | None = None  # the kind of refusal that this event is
        self.delivered = 0
        self.retired = False
        self.again: int | None = None  # the turn that a connect or a send is for
        self.must_close: Property | None = None  # why this event's connection must be closed
        self.knew: str | None = None  # the response cached on a connection closed for age alone
        self.warmed: str | None = None
        self.doubtful = before.carried is not None and before.in_doubt(event)
        self.of_the_socket = False  # it refuses what may be taken over HTTP
        self.declined = False  # the owner says that it has not sent the turn
        self.to_stop: set[str] = set()  # plans that this event proved useless
        self.stopped: set[str] = set()

    # ------------------------------------------------------------ the kinds of events

    def apply_event(self) -> None:
        """Update the model with what the event itself means, independent of the session's
        reaction."""
        model, event, now = self.model, self.event, self.now
        times = model.terms.timeouts
        if isinstance(event, ev.TurnSubmitted):
            turn = event.turn
            due = now + times.turn if event.deadline is None else event.deadline
            model.turns = (*model.turns, ModelTurn(turn.id, turn.standing, turn.anchor, due))
            model.expiry_due = None
        elif isinstance(event, ev.TurnAbandoned):
            if event.turn == model.carried:
                self.must_close = _P.ONE_AT_A_TIME
            self.end(event.turn)
        elif isinstance(event, ev.ConnectionOpened):
            model.socket, model.connect_due = "open", None
            model.http = event.remembers is Remembers.STORED
            if not model.http:
                model.lifetime_due = now + times.lifetime - event.early
        elif isinstance(event, ev.ConnectionLost):
            self._connection_lost(event)
        elif isinstance(event, ev.FrameSent):
            model.framed, model.created_due = event.whole, now + times.created
        elif isinstance(event, PROGRESS):
            self._progress(event)
        elif isinstance(event, ev.ResponseEnded):
            if model.carried_turn().stage is TurnStage.SENT and not model.framed:
                self.must_close = _P.ONE_AT_A_TIME
            self._accepted()
            self._ended(event)
        elif isinstance(event, ev.UpstreamRefused):
            self._refusal(event)
        elif isinstance(event, ev.RelayPaused):
            model.paused = event.paused
            model.idle_due = None if event.paused else now + times.idle
        elif isinstance(event, ev.DeadlineReached):
            self._deadline(event.timer)
        elif isinstance(event, ev.EvictionRequested):
            pass
        else:
            assert_never(event)

    def _progress(self, event: ev.ResponseCreated | ev.OutputReceived) -> None:
        model = self.model
        if self.doubtful:
            model.doubt = model.doubt or event.response
            return
        unheld = isinstance(event, ev.OutputReceived) and not event.bearing and not event.room
        if unheld and model.carried_turn().stage is TurnStage.SENT:
            # The hold-back buffer is full, and nothing can be delivered before response.created.
            self._possibly_accepted()
            self.must_close = _P.ONE_AT_A_TIME
            model.created_due = None
            return
        self._accepted()
        if isinstance(event, ev.ResponseCreated):
            model.doubt = None  # another response.created: the first was a late copy
        self._call(event.response or model.doubt)
        if not model.paused:
            model.idle_due = self.now + model.terms.timeouts.idle

    def _call(self, name: str | None) -> None:
        """Record an id of the carried turn's response."""
        model = self.model
        if name is not None and name not in model.names and len(model.names) < NAMES_KEPT:
            model.names = (*model.names, name)
            model.doubt = None

    def _ended(self, event: ev.ResponseEnded) -> None:
        model = self.model
        last = event.response or model.doubt
        self._call(last)
        names = model.names if last is None or last in model.names else (*model.names, last)
        model.ended = (*[name for name in model.ended if name not in names], *names)[-ENDED_KEPT:]
        failed = event.outcome is Outcome.FAILED or not model.names
        # Over HTTP the next request continues only what the upstream stores, as everywhere.
        forgotten = failed or model.http
        model.cached = None if forgotten else event.response or model.names[-1]
        model.carried = model.idle_due = model.doubt = None
        model.names = ()

    def _connection_lost(self, event: ev.ConnectionLost) -> None:
        model = self.model
        if model.carried is not None and model.carried_turn().stage is TurnStage.SENT:
            turn = model.carried_turn()
            if event.unsent and not model.framed:
                self.put(turn._replace(stage=TurnStage.WAITING))
                model.carried = None
            elif model.is_size(event):
                self.refused = "large"
                self.of_the_socket = model.terms.falls_back and not model.http
                self.put(turn._replace(stage=TurnStage.WAITING))
                model.carried = None
            elif model.is_declined(event):
                self.declined = True
                self.put(turn._replace(stage=TurnStage.WAITING))
                model.carried = None
        elif model.socket == "connecting" and kind_of(event.cause) is FailureKind.NO_WEBSOCKET:
            self.of_the_socket = model.terms.falls_back and not model.remote
        self._possibly_accepted()
        self.forget_connection()

    def _possibly_accepted(self) -> None:
        if self.model.carried is None:
            return
        self.lost = self.model.carried_turn()
        if self.lost.stage is TurnStage.ACCEPTED:
            # The client saw nothing of the acceptance: treated like a turn that was only sent.
            self.lost = self.lost._replace(stage=TurnStage.SENT)
            self.put(self.lost)

    def _accepted(self) -> None:
        model = self.model
        model.created_due = None
        anchor = model.carried_turn().anchor
        if model.dead_ends:
            model.dead_ends = tuple([entry for entry in model.dead_ends if entry[0] != anchor])

    def _refusal(self, event: ev.UpstreamRefused) -> None:
        model = self.model
        kind = refusal_of(event)
        if model.carried is None:
            self.must_close = _P.SOCKETS_ARE_ROTATED
            return
        turn = model.carried_turn()
        if turn.stage in BEGUN:
            self.must_close = _P.ONE_AT_A_TIME
            self.lost = turn
            if kind == "not_found" and turn.form == RequestForm.AS_IS.value:
                self._anchor_lost(turn)
        else:
            self.refused = kind
            kinds, forms = turn.refusals, turn.refused
            if kind in ("limit", "not_found"):
                kinds = tuple(sorted({*kinds, kind}))
            self.of_the_socket = kind == "large" and model.terms.falls_back and not model.http
            if kind != "limit" and not self.of_the_socket:
                forms = tuple(sorted({*forms, turn.form}))
            self.put(turn._replace(stage=TurnStage.WAITING, refusals=kinds, refused=forms))
            if turn.source is Standing.INJECTED and kind not in ("limit", "large"):
                self.to_stop.add("injecting")
            as_is = turn.form == RequestForm.AS_IS.value
            if turn.source is Standing.HELD_STORED and as_is and kind not in ("limit", "large"):
                self.add_dead_end(turn)
            if turn.form == RequestForm.REHYDRATED.value and classify(event.cause).is_of_input:
                # Over HTTP, where every input is rebuilt, the first refusal is only counted.
                if model.http and not self.is_known_to_fail(turn):
                    self.add_dead_end(turn)
                else:
                    self.to_stop.add("rebuilding")
            if turn.anchor is not None and turn.anchor == model.cached and not event.unsent:
                model.cached = None  # a refusal evicts the id it refers to
            if kind == "limit":
                self.must_close = _P.SOCKETS_ARE_ROTATED
            elif not model.framed and not event.unsent:
                self.must_close = _P.ONE_AT_A_TIME
            # The response.created of an ended id was a late copy, not this turn's.
            model.names, model.doubt = (), None
        model.carried = model.created_due = model.idle_due = None

    def _anchor_lost(self, turn: ModelTurn) -> None:
        """The upstream lost the anchor of ``turn`` in mid-answer: it must not be sent again."""
        if turn.source is Standing.INJECTED:
            self.to_stop.add("injecting")
        elif turn.source is Standing.HELD_STORED:
            self.add_dead_end(turn)

    def _deadline(self, timer: Timer) -> None:
        model = self.model
        if timer is Timer.CONNECT:
            model.connect_due = None
            self.must_close = _P.SILENCE_DROPS_THE_SOCKET
        elif timer in (Timer.CREATED, Timer.IDLE):
            model.created_due = model.idle_due = None
            self._possibly_accepted()
            self.must_close = _P.SILENCE_DROPS_THE_SOCKET
        elif timer is Timer.TURN:
            if model.carried is not None and model.carried_turn().due <= self.now:
                self.must_close = _P.ONE_AT_A_TIME
        elif timer is Timer.LIFETIME:
            model.past_lifetime, model.lifetime_due = True, None
        else:
            model.expiry_due = None

    # ------------------------------------------------------------ used by the checks, too

    def broken(self, prop: Property, text: str) -> None:
        """Raise ViolationError, unless ``prop`` is not checked."""
        self.model.broken(prop, text)

    def turn(self, number: int) -> ModelTurn:
        """The turn ``number``, which must not have ended."""
        for turn in self.model.turns:
            if turn.id == number:
                return turn
        self.broken(_P.ONE_END, f"turn {number} has ended or never existed")
        return ModelTurn(number, Standing.UNANCHORED, None, self.now)

    def put(self, turn: ModelTurn) -> None:
        """Replace the turn of the same number."""
        self.model.turns = tuple([turn if old.id == turn.id else old for old in self.model.turns])

    def end(self, number: int) -> None:
        """Remove the turn ``number``."""
        self.model.turns = tuple([turn for turn in self.model.turns if turn.id != number])

    def forget_connection(self) -> None:
        """Forget the connection, and all that was known of it alone."""
        model = self.model
        model.names, model.doubt, model.ended = (), None, ()
        model.socket, model.to_owner, model.cached, model.carried = "none", False, None, None
        model.past_lifetime = model.framed = model.paused = model.http = False
        model.known = True
        model.connect_due = model.created_due = model.idle_due = model.lifetime_due = None

    def dead_ends(self, turn: ModelTurn) -> int:
        """How many failures that a retry would repeat the anchor of ``turn`` has had."""
        return dict(self.model.dead_ends).get(turn.anchor or "", 0)

    def is_known_to_fail(self, turn: ModelTurn) -> bool:
        """Whether sending the anchor of ``turn`` is known to fail."""
        return self.dead_ends(turn) > 0

    def add_dead_end(self, turn: ModelTurn) -> None:
        """Count one more failure of the anchor of ``turn``."""
        count = self.dead_ends(turn) + 1
        # Capped: higher counts behave alike, and without a bound the exploration would not end.
        count = min(count, self.model.terms.bounded + 1)
        counts = {**dict(self.model.dead_ends), turn.anchor or "": count}
        self.model.dead_ends = tuple(sorted(counts.items()))
