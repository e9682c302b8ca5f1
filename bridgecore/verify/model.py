"""The reference model: checks the properties of a session from its history alone.

What belongs here: the state of an observer who sees the events of a session and its effects, and
tracks the connection, the turns, the clock and what the upstream can know. The model shares no code
with the rules: it reads neither the session's state nor the policy's cells, so it cannot repeat
their mistakes. Of a policy it gets only the numbers (``Terms``). One function is shared,
``classify``, which derives the kind of failure from the evidence: it has tests of its own, and
checked here is what is done about each kind.

The model is a value, so that an explorer can hash and compare it together with the state that it
checks. To check the transitions of one session one after the other, use a ``Monitor`` (monitor.py),
which keeps its model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable, Mapping
from functools import cache
from typing import NamedTuple, assert_never

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Effect, FailureReply, RequestForm
from bridgecore.recovery.events import Event, Outcome, Remembers, Standing
from bridgecore.recovery.failure import (
    Evidence,
    Failure,
    FailureKind,
    Malformed,
    TimedOut,
    classify,
)
from bridgecore.recovery.policy import Timeouts
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.verify.properties import Property, ViolationError

_P = Property


@attrs.frozen
class Terms:
    """The numbers of the policy that is checked, and what it permits."""

    timeouts: Timeouts
    bounded: int  # retriable refusals of one anchor before not-found
    waiting: int  # turns that may wait
    replays: int = 1  # resends of possibly accepted turns, by the policy's budget
    strict: bool = True  # no such resend at all, whatever the budget
    hands_over: bool = False  # the policy answers OWNER_UNREACHABLE for sessions of this replica
    holds: bool = False  # it may resend a turn that was accepted, before any output
    warm: bool = False  # it preloads a new connection with the context of the old one
    falls_back: bool = False  # it goes on over HTTP where the upstream takes no WebSocket
    without: frozenset[Property] = frozenset()  # not checked, to see what they are worth


class _Stage(enum.Enum):
    WAITING = "waiting"  # not sent, or what was sent was provably not accepted
    SENT = "sent"  # sent, and not known whether the upstream accepted it
    ACCEPTED = "accepted"  # the answer began, but nothing of it was shown to the client
    ANSWERED = "answered"  # the client was shown the beginning of the answer


class _Turn(NamedTuple):
    """What the model knows of a turn that has not ended."""

    id: int
    standing: Standing
    anchor: str | None
    due: int  # the end of its whole budget of time
    stage: _Stage = _Stage.WAITING
    # the kinds of refusal met so far, sorted; "socket": of a WebSocket, or of a size on one
    refusals: tuple[str, ...] = ()
    ambiguous: int = 0  # resends although the upstream may have accepted it
    orphan: bool = False  # its session was rebound, and it was not sent since
    form: str = ""  # the form in which it was last sent
    # the forms that the upstream refused, sorted, connection limits excepted
    refused: tuple[str, ...] = ()

    @property
    def full(self) -> bool:
        """Whether the client's own input was sent instead of an injected anchor: from then on the
        turn has no anchor."""
        return self.form == RequestForm.CLIENT_FULL.value

    @property
    def source(self) -> Standing:
        """Where its context comes from now."""
        return Standing.UNANCHORED if self.full else self.standing


_BEGUN = (_Stage.ACCEPTED, _Stage.ANSWERED)
_HELD = (Standing.HELD, Standing.HELD_STORED)
_ANYWHERE = (Standing.HELD_STORED, Standing.STORED)  # every connection knows such an anchor
_SAYABLE = (Standing.UNANCHORED, *_HELD, Standing.INJECTED)  # can be sent without an anchor
_PROGRESS = (ev.ResponseCreated, ev.OutputReceived)
_TERMINAL = (FailureReply.NOT_FOUND, FailureReply.UPSTREAM_ERROR)
# The limits of the session (``recovery/builder.py``): ids kept of one response, and of responses
# that ended on the connection. Late events of older ones cannot be recognised.
_NAMES, _ENDED = 8, 16


@attrs.define(eq=False)
class Model:
    """The state of the observer. ``after`` returns the next one and never changes the one it is
    called on.

    Times are those of the caller's clock; ``folded`` shifts them.
    """

    terms: Terms
    remote: bool = False  # another replica owns the session
    generation: int = 0
    socket: str = "none"  # none, connecting or open: the current connection
    to_owner: bool = False  # the connection leads to the owner replica
    cached: str | None = None  # the response that the upstream has cached on this connection
    past_lifetime: bool = False  # the connection is past its lifetime
    http: bool = False  # the connection speaks HTTP: it caches no response, and has no lifetime
    carried: int | None = None  # the turn sent on the connection, until it ends
    framed: bool = False  # the whole frame was handed to the operating system
    paused: bool = False  # its client does not read
    known: bool = True  # a healthy upstream knows the anchor that was sent
    turns: tuple[_Turn, ...] = ()  # in order of arrival; the first one runs
    dead_ends: tuple[tuple[str, int], ...] = ()  # per anchor: failures that a retry would repeat
    # the ids that the upstream gave the response of the carried turn, in order
    names: tuple[str, ...] = ()
    doubt: str | None = None  # the id of an ended response that a response.created has named again
    ended: tuple[str, ...] = ()  # ids of responses that ended on this connection, the latest last
    connect_due: int | None = None
    created_due: int | None = None
    idle_due: int | None = None
    lifetime_due: int | None = None
    expiry_due: int | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """A hash key: equal for equal models with the same terms."""
        return (
            self.remote, self.generation, self.socket, self.to_owner, self.cached,
            self.past_lifetime, self.http, self.carried, self.framed, self.paused, self.known,
            self.turns, self.dead_ends, self.names, self.doubt, self.ended, self.connect_due,
            self.created_due, self.idle_due, self.lifetime_due, self.expiry_due,
        )  # fmt: skip

    def folded(
        self,
        generation: int,
        name: Callable[[str | None], str | None],
        numbers: Mapping[int | None, int],
        passed: int,
        plain: bool = False,
    ) -> Model:
        """The same model ``passed`` later, with turns, anchors and the generation renamed (turns
        that are not in ``numbers`` become 0). ``plain``: responses keep their ids."""

        def shift(due: int | None) -> int | None:
            return None if due is None else due - passed

        counts: dict[str, int] = {}
        for anchor, count in self.dead_ends:
            folded = name(anchor) or ""
            counts[folded] = max(count, counts.get(folded, 0))
        turns = [
            turn._replace(
                id=numbers.get(turn.id, 0), anchor=name(turn.anchor), due=turn.due - passed
            )
            for turn in self.turns
        ]
        names, ended = self.names, self.ended
        if not plain:
            names = own_names(names, ended, name)
            ended = one_ended([name(response) or "" for response in ended])
        return Model(
            self.terms, self.remote, generation, self.socket, self.to_owner, name(self.cached),
            self.past_lifetime, self.http,
            None if self.carried is None else numbers.get(self.carried, 0), self.framed,
            self.paused, self.known, tuple(turns), tuple(sorted(counts.items())),
            names, name(self.doubt), ended, shift(self.connect_due), shift(self.created_due),
            shift(self.idle_due), shift(self.lifetime_due), shift(self.expiry_due),
        )  # fmt: skip

    def key_after(self, now: int) -> tuple[object, ...]:
        """Equal for models that behave alike from ``now`` on: deadlines that have passed are alike,
        whenever that was, and so are the numbers of connections."""
        turns = tuple([turn._replace(due=max(turn.due, now)) for turn in self.turns])
        dues = (
            self.connect_due, self.created_due, self.idle_due, self.lifetime_due, self.expiry_due
        )  # fmt: skip
        return (
            self.remote, self.socket, self.to_owner, self.cached, self.past_lifetime, self.http,
            self.carried, self.framed, self.paused, self.known, turns, self.dead_ends, self.names,
            self.doubt, self.ended, tuple([None if due is None else max(due, now) for due in dues]),
        )  # fmt: skip

    def loss_of(self, event: Event, now: int) -> tuple[object, ...] | None:
        """If ``event`` loses a turn that may have been accepted: everything that may influence the
        remedy, so that turns lost in the same way can be compared. None otherwise."""
        if self.carried is None or not self.requires_reaction(event, now):
            return None
        silent, turn = _silent(event), self._carried_turn()
        lost = isinstance(event, ev.ConnectionLost) and not event.unsent
        if turn.stage is not _Stage.SENT or not (silent or (lost and not self._is_size(event))):
            return None
        if self._is_declined(event):
            return None  # provably not accepted
        return (turn.source, self.framed, silent, self.to_owner, turn.ambiguous)

    def _is_declined(self, event: Event) -> bool:
        """Whether ``event`` says that the owner replica has not sent the turn."""
        if not isinstance(event, ev.ConnectionLost) or not self.to_owner:
            return False
        return _kind(event.cause) is FailureKind.NOT_DISPATCHED

    def _is_size(self, event: Event) -> bool:
        """Whether ``event`` says that the frame is larger than the upstream accepts."""
        if isinstance(event, ev.ConnectionLost):
            return _kind(event.cause) is FailureKind.TOO_LARGE and not self.to_owner
        return isinstance(event, ev.UpstreamRefused) and _refusal(event) == "large"

    # ------------------------------------------------------------ folding

    def after(
        self,
        event: Event,
        effects: tuple[Effect, ...],
        now: int,
        deadline: Deadline | None,
        whole: bool = True,
    ) -> Model:
        """The model after ``event`` caused ``effects`` at ``now`` (ns); this very model if the
        event must be ignored. ``deadline`` is the session's next one. ``whole``: these are all its
        effects; otherwise more may follow.

        Raises:
            ViolationError: a property does not hold.
        """
        event = self._by_its_name(event)
        if not self.requires_reaction(event, now):
            for effect in effects:
                if type(effect) is not fx.Ignored:
                    self._broken(_P.SPURIOUS_IS_NOTHING, f"{event} caused {effect}")
            self._check_deadline(deadline)
            return self
        model = Model(
            self.terms, self.remote, self.generation, self.socket, self.to_owner, self.cached,
            self.past_lifetime, self.http, self.carried, self.framed, self.paused, self.known,
            self.turns, self.dead_ends, self.names, self.doubt, self.ended, self.connect_due,
            self.created_due, self.idle_due, self.lifetime_due, self.expiry_due,
        )  # fmt: skip
        check = _StepCheck(self, model, event, now)
        check.apply_event()
        for effect in effects:
            check.apply_effect(effect)
        if whole:
            check.check_after_effects()
            model._check_deadline(deadline)
        return model

    def _broken(self, prop: Property, text: str) -> None:
        if prop not in self.terms.without:
            raise ViolationError(prop, text)

    def _by_its_name(self, event: Event) -> Event:
        """``event``, or the refusal that it amounts to: ``response.failed`` before
        ``response.created`` is a refusal, and so is a not-found that comes later if the turn can be
        resent without its anchor."""
        if not isinstance(event, ev.ResponseEnded) or event.cause is None:
            return event
        if self.carried is None or event.generation != self.generation:
            return event
        if isinstance(event.cause, Malformed) or self._is_stale(event):
            return event
        refused = ev.UpstreamRefused(self.generation, event.cause)
        needless = self._carried_turn().source in _SAYABLE
        if self._stage() is _Stage.SENT or (needless and _refusal(refused) == "not_found"):
            return refused
        return event

    def requires_reaction(self, event: Event, now: int) -> bool:
        """Whether ``event`` at ``now`` requires anything of the session; if not, it must be
        ignored."""
        if isinstance(event, ev.DeadlineReached):
            due = self.due(event.timer)
            return due is not None and due <= now
        if isinstance(event, ev.TurnSubmitted):
            return True
        if isinstance(event, ev.TurnAbandoned):
            return event.turn in [turn.id for turn in self.turns]
        if isinstance(event, ev.EvictionRequested):
            return not self.turns
        if isinstance(event, ev.RelayPaused):
            return event.turn == self.carried and self._stage() in _BEGUN
        if event.generation != self.generation:
            return False
        if isinstance(event, ev.ConnectionOpened):
            return self.socket == "connecting"
        if isinstance(event, ev.ConnectionLost):
            return self.socket != "none"
        if self.carried is None:
            limit = isinstance(event, ev.UpstreamRefused) and _refusal(event) == "limit"
            return limit and self.socket == "open"
        if isinstance(event, ev.FrameSent):
            return not self.framed and self._stage() is _Stage.SENT
        if isinstance(event, ev.ResponseCreated):
            again = event.response in self.ended and self.doubt is not None
            return self._stage() is _Stage.SENT and not again
        if isinstance(event, ev.OutputReceived | ev.ResponseEnded | ev.UpstreamRefused):
            return not self._is_stale(event)
        assert_never(event)

    def _is_stale(self, event: Event) -> bool:
        """Whether ``event`` names a response that has ended and is not the turn's own."""
        name: str | None = getattr(event, "response", None)
        return name in self.ended and name != self.doubt and name not in self.names

    def in_doubt(self, event: Event) -> bool:
        """Whether ``event`` may belong to the carried turn or be a late copy for one that ended: it
        names an ended response, or follows a response.created that did, and no output has shown yet
        which of the two it is."""
        if self._stage() is not _Stage.SENT:
            return False
        if isinstance(event, ev.ResponseCreated):
            return event.response in self.ended
        if not isinstance(event, ev.OutputReceived) or event.bearing or not event.room:
            return False
        return self.doubt is not None and event.response in (None, self.doubt)

    def names_at_end(self, event: ev.ResponseEnded) -> tuple[str, ...]:
        """The ids of the carried turn's response after its terminal event, which has the last."""
        last = event.response
        names = tuple([name for name in self.names if name != last])
        if last is not None:
            return (*names, last)
        if self.doubt is not None and len(names) < _NAMES and self.doubt not in names:
            return (*names, self.doubt)
        return names

    def refusal(self, event: Event) -> str | None:
        """If ``event`` refuses the carried turn, the kind of the refusal: not_found, limit, large
        or other."""
        event = self._by_its_name(event)
        if not isinstance(event, ev.UpstreamRefused) or self.carried is None:
            return None
        return _refusal(event)

    def injected(self) -> str | None:
        """The anchor that the carried turn was sent with, if the bridge injected it."""
        if self.carried is None:
            return None
        turn = self._carried_turn()
        as_is = turn.form == RequestForm.AS_IS.value
        return turn.anchor if as_is and turn.standing is Standing.INJECTED else None

    @property
    def begun(self) -> bool:
        """Whether the connection carries a turn whose answer has begun."""
        return self.carried is not None and self._stage() in _BEGUN

    def _stage(self) -> _Stage:
        return self._carried_turn().stage

    def _carried_turn(self) -> _Turn:
        first = self.turns[0]
        return (
            first
            if first.id == self.carried
            else next(turn for turn in self.turns if turn.id == self.carried)
        )

    def due(self, timer: Timer) -> int | None:
        """The time at which ``timer`` is due; None: it is not set."""
        if timer is Timer.TURN:
            return min([turn.due for turn in self.turns], default=None)
        due: int | None = getattr(self, _DUES[timer]) if timer in _DUES else None
        return due

    def _check_deadline(self, deadline: Deadline | None) -> None:
        owed = self.due(Timer.TURN)
        for due in (
            self.connect_due, self.created_due, self.idle_due, self.lifetime_due, self.expiry_due
        ):  # fmt: skip
            if due is not None and (owed is None or due < owed):
                owed = due
        if deadline is None:
            if owed is not None:
                self._broken(_P.DEADLINES_ARE_KEPT, f"no deadline is set, {owed} is due")
        elif deadline.at != owed or self.due(deadline.reason) != owed:
            text = f"{deadline.reason.value} is set to {deadline.at}, should be {owed}"
            self._broken(_P.DEADLINES_ARE_KEPT, text)


_DUES: Mapping[Timer, str] = {
    Timer.CONNECT: "connect_due",
    Timer.CREATED: "created_due",
    Timer.IDLE: "idle_due",
    Timer.LIFETIME: "lifetime_due",
    Timer.EXPIRY: "expiry_due",
}


def own_names(
    names: Iterable[str], ended: Container[str], name: Callable[[str | None], str | None]
) -> tuple[str, ...]:
    """The ids of the running response that matter to the future: those that ended responses have,
    too. No rule depends on its other ids, as long as the terminal event names one."""
    return tuple(dict.fromkeys([name(own) or "" for own in names if own in ended]))


def one_ended(names: Iterable[str]) -> tuple[str, ...]:
    """At most one of the folded ``names``: late events are treated alike whichever ended response
    they name. The one cached on the connection is preferred."""
    return tuple(sorted(names, reverse=True)[:1])  # "tip" before "old"


class _StepCheck:
    """One event and its effects: the model before, and the next model in the making (``model``)."""

    __slots__ = ("again", "before", "declined", "delivered", "doubtful", "event", "head", "knew",
                 "lost", "model", "must_close", "now", "of_the_socket", "refused", "retired",
                 "stopped", "to_stop", "warmed")  # fmt: skip

    def __init__(self, before: Model, model: Model, event: Event, now: int) -> None:
        self.before = before
        self.model = model
        self.event = event
        self.now = now
        self.head: _Turn | None = before.turns[0] if before.turns else None
        self.lost: _Turn | None = None  # the turn that this event left possibly accepted
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

    # ------------------------------------------------------------ the meaning of the event

    def apply_event(self) -> None:
        """Update the model with what the event itself means, independent of the session's
        reaction."""
        model, event, now = self.model, self.event, self.now
        times = model.terms.timeouts
        if isinstance(event, ev.TurnSubmitted):
            turn = event.turn
            due = now + times.turn if event.deadline is None else event.deadline
            model.turns = (*model.turns, _Turn(turn.id, turn.standing, turn.anchor, due))
            model.expiry_due = None
        elif isinstance(event, ev.TurnAbandoned):
            if event.turn == model.carried:
                self.must_close = _P.ONE_AT_A_TIME
            self._end(event.turn)
        elif isinstance(event, ev.ConnectionOpened):
            model.socket, model.connect_due = "open", None
            model.http = event.remembers is Remembers.STORED
            if not model.http:
                model.lifetime_due = now + times.lifetime - event.early
        elif isinstance(event, ev.ConnectionLost):
            self._connection_lost(event)
        elif isinstance(event, ev.FrameSent):
            model.framed, model.created_due = event.whole, now + times.created
        elif isinstance(event, _PROGRESS):
            self._progress(event)
        elif isinstance(event, ev.ResponseEnded):
            if model._carried_turn().stage is _Stage.SENT and not model.framed:
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
        if unheld and model._carried_turn().stage is _Stage.SENT:
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
        if name is not None and name not in model.names and len(model.names) < _NAMES:
            model.names = (*model.names, name)
            model.doubt = None

    def _ended(self, event: ev.ResponseEnded) -> None:
        model = self.model
        last = event.response or model.doubt
        self._call(last)
        names = model.names if last is None or last in model.names else (*model.names, last)
        model.ended = (*[name for name in model.ended if name not in names], *names)[-_ENDED:]
        failed = event.outcome is Outcome.FAILED or not model.names
        # Over HTTP the next request continues only what the upstream stores, as everywhere.
        forgotten = failed or model.http
        model.cached = None if forgotten else event.response or model.names[-1]
        model.carried = model.idle_due = model.doubt = None
        model.names = ()

    def _connection_lost(self, event: ev.ConnectionLost) -> None:
        model = self.model
        if model.carried is not None and model._carried_turn().stage is _Stage.SENT:
            turn = model._carried_turn()
            if event.unsent and not model.framed:
                self._put(turn._replace(stage=_Stage.WAITING))
                model.carried = None
            elif model._is_size(event):
                self.refused = "large"
                self.of_the_socket = model.terms.falls_back and not model.http
                self._put(turn._replace(stage=_Stage.WAITING))
                model.carried = None
            elif model._is_declined(event):
                self.declined = True
                self._put(turn._replace(stage=_Stage.WAITING))
                model.carried = None
        elif model.socket == "connecting" and _kind(event.cause) is FailureKind.NO_WEBSOCKET:
            self.of_the_socket = model.terms.falls_back and not model.remote
        self._possibly_accepted()
        self._forget_connection()

    def _forget_connection(self) -> None:
        model = self.model
        model.names, model.doubt, model.ended = (), None, ()
        model.socket, model.to_owner, model.cached, model.carried = "none", False, None, None
        model.past_lifetime = model.framed = model.paused = model.http = False
        model.known = True
        model.connect_due = model.created_due = model.idle_due = model.lifetime_due = None

    def _possibly_accepted(self) -> None:
        if self.model.carried is None:
            return
        self.lost = self.model._carried_turn()
        if self.lost.stage is _Stage.ACCEPTED:
            # The client saw nothing of the acceptance: treated like a turn that was only sent.
            self.lost = self.lost._replace(stage=_Stage.SENT)
            self._put(self.lost)

    def _accepted(self) -> None:
        model = self.model
        model.created_due = None
        anchor = model._carried_turn().anchor
        if model.dead_ends:
            model.dead_ends = tuple([entry for entry in model.dead_ends if entry[0] != anchor])

    def _refusal(self, event: ev.UpstreamRefused) -> None:
        model = self.model
        kind = _refusal(event)
        if model.carried is None:
            self.must_close = _P.SOCKETS_ARE_ROTATED
            return
        turn = model._carried_turn()
        if turn.stage in _BEGUN:
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
            self._put(turn._replace(stage=_Stage.WAITING, refusals=kinds, refused=forms))
            if turn.source is Standing.INJECTED and kind not in ("limit", "large"):
                self.to_stop.add("injecting")
            as_is = turn.form == RequestForm.AS_IS.value
            if turn.source is Standing.HELD_STORED and as_is and kind not in ("limit", "large"):
                self._add_dead_end(turn)
            if turn.form == RequestForm.REHYDRATED.value and classify(event.cause).is_of_input:
                # Over HTTP, where every input is rebuilt, the first refusal is only counted.
                if model.http and not self._is_known_to_fail(turn):
                    self._add_dead_end(turn)
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

    def _anchor_lost(self, turn: _Turn) -> None:
        """The upstream lost the anchor of ``turn`` in mid-answer: it must not be sent again."""
        if turn.source is Standing.INJECTED:
            self.to_stop.add("injecting")
        elif turn.source is Standing.HELD_STORED:
            self._add_dead_end(turn)

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
            if model.carried is not None and model._carried_turn().due <= self.now:
                self.must_close = _P.ONE_AT_A_TIME
        elif timer is Timer.LIFETIME:
            model.past_lifetime, model.lifetime_due = True, None
        else:
            model.expiry_due = None

    # ------------------------------------------------------------ checking the effects

    def _broken(self, prop: Property, text: str) -> None:
        self.model._broken(prop, text)

    def _turn(self, number: int) -> _Turn:
        for turn in self.model.turns:
            if turn.id == number:
                return turn
        self._broken(_P.ONE_END, f"turn {number} has ended or never existed")
        return _Turn(number, Standing.UNANCHORED, None, self.now)

    def _put(self, turn: _Turn) -> None:
        self.model.turns = tuple([turn if old.id == turn.id else old for old in self.model.turns])

    def _end(self, number: int) -> None:
        self.model.turns = tuple([turn for turn in self.model.turns if turn.id != number])

    def apply_effect(self, effect: Effect) -> None:
        """Check one effect and apply it to the model."""
        model = self.model
        if isinstance(effect, fx.DeliverEvent):
            self._delivered(effect)
        elif isinstance(effect, fx.SendTurn):
            self._sent(effect)
        elif isinstance(effect, fx.OpenConnection):
            if model.socket != "none" or effect.generation != model.generation + 1:
                self._broken(
                    _P.LIVE_GENERATION, f"{effect}, connection {model.generation} is {model.socket}"
                )
            if effect.remote is not model.remote:
                owner = "another replica" if model.remote else "this replica"
                self._broken(_P.OWNER_LOSS_REBINDS, f"{effect}, but {owner} owns the session")
            self._check_transport(effect)
            model.socket, model.generation, model.to_owner = (
                "connecting",
                effect.generation,
                model.remote,
            )
            self.again = model.turns[0].id if model.turns else None
            model.connect_due = self.now + model.terms.timeouts.connect
        elif isinstance(effect, fx.CloseConnection):
            if effect.generation != model.generation or model.socket == "none":
                self._broken(_P.LIVE_GENERATION, f"{effect}, but there is no such connection")
            if not self._may_close():
                self._broken(_P.SOUND_SOCKETS_STAY, f"{effect} after {self.event}")
            if model.past_lifetime and self.must_close is None:
                self.knew = model.cached
            self._forget_connection()
            self.must_close = None
        elif isinstance(effect, fx.CompleteTurn):
            turn = self._turn(effect.turn)
            if not isinstance(self.event, ev.ResponseEnded) or turn.id != self.before.carried:
                self._broken(_P.DELIVERED_TO_ITS_TURN, f"{self.event} ended {turn.id}")
            elif isinstance(self.event.cause, Malformed):
                self._broken(_P.ANSWER_TELLS_WHAT_HAPPENED, f"{self.event} completed the turn")
            else:
                self._check_names(effect, self.event)
            self._end(turn.id)
        elif isinstance(effect, fx.FailTurn):
            self._failed(effect)
        elif isinstance(effect, fx.RetireSession):
            if self.retired:
                self._broken(_P.IDLE_IS_RETIRED, "retired twice")
            self.retired = True
            if model.turns or model.socket != "none":
                self._broken(_P.IDLE_IS_RETIRED, f"retired with {model.turns or model.socket}")
        elif isinstance(effect, fx.RebindSession):
            sent = self.lost is not None
            unsent = self.before.socket == "connecting" or self.declined
            if not model.remote or sent or not unsent:
                self._broken(_P.OWNER_LOSS_REBINDS, f"rebound after {self.event}")
            model.remote = False
            if model.turns:
                self._put(model.turns[0]._replace(orphan=True))
        elif isinstance(effect, fx.StopInjecting | fx.StopRebuilding):
            if effect.turn != self.before.carried:
                self._broken(_P.REFUSED_PLAN_ENDS, f"{effect}, but {self.before.carried} ran")
            what = "injecting" if isinstance(effect, fx.StopInjecting) else "rebuilding"
            if what in self.stopped:
                self._broken(_P.REFUSED_PLAN_ENDS, f"{effect} twice")
            self.stopped.add(what)
        elif isinstance(effect, fx.WarmSession):
            self.warmed = effect.anchor
        elif isinstance(effect, fx.Ignored):
            pass
        else:
            assert_never(effect)

    def _check_transport(self, effect: fx.OpenConnection) -> None:
        """Check that HTTP is asked for if, and only if, the upstream did not take the turn over
        WebSocket; note that it did not."""
        head = self.model.turns[0] if self.model.turns else None
        if head is None:
            return
        before = "socket" in head.refusals
        if self.of_the_socket and before:
            self._broken(_P.FALLBACK_IS_PROVEN, f"{effect} after a second refusal of a WebSocket")
        due = (before or self.of_the_socket) and not effect.remote
        if effect.http is not due:
            self._broken(_P.FALLBACK_IS_PROVEN, f"{effect} after {self.event}")
        if self.of_the_socket:
            self._put(head._replace(refusals=tuple(sorted({*head.refusals, "socket"}))))

    def _check_names(self, effect: fx.CompleteTurn, event: ev.ResponseEnded) -> None:
        """Check that the answer is completed with all ids of its response, in their order, the
        terminal event's own last."""
        names = self.before.names_at_end(event)
        if effect.responses != names:
            text = f"the response's ids are {names}, the effect has {effect.responses}"
            self._broken(_P.DELIVERED_TO_ITS_TURN, text)

    def _may_close(self) -> bool:
        model, event = self.model, self.event
        if self.must_close is not None or model.past_lifetime or self.of_the_socket:
            return True
        if isinstance(event, ev.DeadlineReached):
            return event.timer in (Timer.TURN, Timer.EXPIRY)
        idle = not model.turns
        return idle and (model.socket == "connecting" or isinstance(event, ev.EvictionRequested))

    def _delivered(self, effect: fx.DeliverEvent) -> None:
        turn = self._turn(effect.turn)
        self.delivered += 1
        answers = isinstance(self.event, _PROGRESS)
        if self.model.carried != turn.id or not answers:
            self._broken(_P.DELIVERED_TO_ITS_TURN, f"{self.event} was delivered to turn {turn.id}")
        if self.doubtful:
            if not effect.held:
                text = f"{self.event} was shown before it is known to be of turn {turn.id}"
                self._broken(_P.DELIVERED_TO_ITS_TURN, text)
            return
        if effect.held:
            terms, bearing = self.model.terms, getattr(self.event, "bearing", False)
            again = terms.holds and turn.ambiguous < terms.replays and not self.model.to_owner
            if not again or bearing or turn.stage is _Stage.ANSWERED:
                self._broken(_P.ANSWER_IS_WHOLE, f"{self.event} is held back without need")
        stage = _Stage.ACCEPTED if effect.held else _Stage.ANSWERED
        if turn.stage is not stage:
            self._put(turn._replace(stage=stage))

    def _sent(self, effect: fx.SendTurn) -> None:
        model = self.model
        turn = self._turn(effect.turn)
        if model.socket != "open" or effect.generation != model.generation:
            self._broken(_P.OPEN_IS_OPEN, f"{effect}, the connection is {model.socket}")
        if model.carried is not None or (self.must_close is _P.ONE_AT_A_TIME):
            self._broken(_P.ONE_AT_A_TIME, f"{effect} beside turn {self.before.carried}")
        if turn.stage is _Stage.ANSWERED:
            self._broken(_P.NO_REPLAY_AFTER_ANSWER, f"{effect}")
        if model.past_lifetime and turn.id != self.before.carried:
            self._broken(_P.SOCKETS_ARE_ROTATED, f"{effect} on a connection past its lifetime")
        if turn.id != model.turns[0].id:
            self._broken(_P.QUEUE_IS_BOUNDED, f"{effect} before turn {model.turns[0].id}")
        if self.refused is not None and turn.id == self.before.carried:
            refusals = self.before._carried_turn().refusals
            if self.refused in refusals:
                self._broken(_P.RECOVERED_ONCE, f"{effect} after a second {self.refused}")
        ambiguous = turn.ambiguous
        if turn.stage in (_Stage.SENT, _Stage.ACCEPTED):
            ambiguous = min(ambiguous, model.terms.replays) + 1
            if ambiguous > model.terms.replays:
                self._broken(_P.REPLAYS_ARE_BOUNDED, f"replay {ambiguous} of {turn.id}")
            if model.terms.strict:
                self._broken(_P.NO_AMBIGUOUS_RESEND, f"{effect}")
        self._check_form(turn, effect.form)
        if effect.form.value in turn.refused:
            self._broken(_P.REFUSED_IS_NOT_REPEATED, f"{effect}: that form was refused before")
        self.again = turn.id
        form = effect.form.value
        self._put(turn._replace(stage=_Stage.SENT, ambiguous=ambiguous, orphan=False, form=form))
        model.carried, model.framed, model.paused = turn.id, False, False
        model.names, model.doubt = (), None
        model.created_due, model.idle_due = self.now + model.terms.timeouts.created, None

    def _check_form(self, turn: _Turn, form: RequestForm) -> None:
        model = self.model
        local = turn.anchor is None or turn.anchor == model.cached or model.to_owner
        if form is RequestForm.AS_IS:
            if not local and turn.standing not in (*_ANYWHERE, Standing.UNKNOWN):
                self._broken(
                    _P.ANCHOR_IS_KNOWN, f"{turn.anchor} sent, the connection knows {model.cached}"
                )
            if "not_found" in turn.refusals:
                self._broken(_P.RECOVERED_ONCE, f"{turn.anchor} was not found before")
            if turn.full:
                self._broken(_P.REFUSED_PLAN_ENDS, f"{turn.anchor} is injected again")
            if not local and turn.standing is Standing.HELD_STORED and self._is_known_to_fail(turn):
                text = f"{turn.anchor} failed before, and the full context is held"
                self._broken(_P.REFUSED_IS_NOT_REPEATED, text)
            model.known = local or turn.standing in _ANYWHERE
            return
        able = _HELD if form is RequestForm.REHYDRATED else (Standing.INJECTED,)
        if turn.standing not in able:
            self._broken(_P.FORM_IS_POSSIBLE, f"{form.value} of {turn}")
        stored = turn.standing is Standing.HELD_STORED and not self._is_known_to_fail(turn)
        tried = turn.refusals or turn.refused or turn.ambiguous or turn.form == form.value
        if (local or stored) and not tried:
            self._broken(_P.FORM_IS_POSSIBLE, f"{form.value}, but the anchor is known")
        model.known = True

    def _is_known_to_fail(self, turn: _Turn) -> bool:
        """Whether sending the anchor of ``turn`` is known to fail."""
        return self._dead_ends(turn) > 0

    # ------------------------------------------------------------ checking failures

    def _failed(self, effect: fx.FailTurn) -> None:
        turn = self._turn(effect.turn)
        self._end(turn.id)
        answer, event = effect.answer, self.event
        if answer is FailureReply.OVERLOADED:
            submitted = isinstance(event, ev.TurnSubmitted) and event.turn.id == turn.id
            if not submitted or len(self.model.turns) <= self.model.terms.waiting:
                self._broken(
                    _P.QUEUE_IS_BOUNDED, f"overloaded with {len(self.model.turns)} other turns"
                )
            return
        if answer is FailureReply.NOT_FOUND or (
            answer is FailureReply.UPSTREAM_ERROR and self.refused == "not_found"
        ):
            self._check_not_found(turn, answer)
        elif answer is FailureReply.OWNER_UNREACHABLE and not self.before.to_owner:
            if turn.stage is not _Stage.WAITING:
                self._broken(_P.REBIND_CODE_IS_PROVEN, f"turn {turn.id}: {event}")
            if not (turn.orphan or self.model.terms.hands_over):
                text = f"turn {turn.id} got {answer.value}, its session is local"
                self._broken(_P.ANSWER_TELLS_WHAT_HAPPENED, text)
        else:
            allowed = self._answers(turn)
            if answer not in allowed:
                names = " or ".join(sorted(one.value for one in allowed))
                text = f"turn {turn.id} got {answer.value}, not {names}"
                prop = _P.ANSWER_TELLS_WHAT_HAPPENED
                handed = FailureReply.OWNER_UNREACHABLE in allowed and not turn.orphan
                if handed and answer is FailureReply.UPSTREAM_UNAVAILABLE:
                    prop = _P.REBIND_CODE_IS_NOT_WITHHELD
                self._broken(prop, text)
        self._check_evidence(effect, turn)
        self._check_effort(turn)
        if answer not in _TERMINAL:
            self._count(turn)

    def _answers(self, turn: _Turn) -> set[FailureReply]:
        """The answers that are true for the client, other than not-found."""
        event, model = self.event, self.model
        if isinstance(event, ev.DeadlineReached) and event.timer is Timer.TURN:
            return {FailureReply.REQUEST_TIMEOUT}
        if isinstance(event, ev.ResponseEnded) and self.before.carried == turn.id:
            return {FailureReply.UPSTREAM_ERROR}
        if turn.stage in _BEGUN:
            other = isinstance(event, ev.UpstreamRefused) and _refusal(event) in _OTHERS
            return {FailureReply.UPSTREAM_ERROR if other else FailureReply.STREAM_INCOMPLETE}
        if self.lost is not None and self.lost.id == turn.id:
            if self.before.to_owner:
                return {FailureReply.OWNER_UNREACHABLE}
            return {
                FailureReply.REQUEST_TIMEOUT if _silent(event) else FailureReply.STREAM_INCOMPLETE
            }
        rejected = isinstance(event, ev.ConnectionLost) and _rejected(event)
        if turn.stage is _Stage.SENT and not rejected:
            # A resend found no connection: the answer is about the loss before it.
            return {FailureReply.REQUEST_TIMEOUT, FailureReply.STREAM_INCOMPLETE}
        if self.refused is not None and self.head is not None and self.head.id == turn.id:
            if self.refused in _OTHERS:
                return {FailureReply.UPSTREAM_ERROR}
            return {FailureReply.UPSTREAM_UNAVAILABLE}
        if rejected:
            return {FailureReply.UPSTREAM_ERROR}
        handed = model.terms.hands_over or turn.orphan
        if handed and self.before.socket == "connecting" and model.socket == "none":
            return {FailureReply.OWNER_UNREACHABLE}
        return {FailureReply.UPSTREAM_UNAVAILABLE}

    def _check_not_found(self, turn: _Turn, answer: FailureReply) -> None:
        if turn.source is Standing.INJECTED:
            self._broken(_P.INJECTED_IS_INVISIBLE, f"turn {turn.id} got not-found")
        if answer is FailureReply.UPSTREAM_ERROR and turn.source in (
            Standing.UNKNOWN,
            Standing.UNANCHORED,
        ):
            return
        count = self._dead_ends(turn)
        if count < self.model.terms.bounded or not self._dead_end(turn):
            text = f"a {turn.source.value} anchor, {count} refusals, {self.event}"
            self._broken(_P.NOT_FOUND_IS_EARNED, text)

    def _check_evidence(self, effect: fx.FailTurn, turn: _Turn) -> None:
        """Check that the failure reported with the answer is that of the event; none if nothing
        failed."""
        reported, happened = effect.failure, evidence_of(self.event)
        own = self.refused is not None and self.before.carried == turn.id
        unsent = self.model.socket == "open" and not own and turn.stage is _Stage.WAITING
        if isinstance(self.event, ev.OutputReceived):  # buffer full before response.created
            matches = reported is None or reported.kind is FailureKind.LOST
        else:
            matches = reported == happened or (reported is None and unsent)
        if not matches:
            text = f"{effect} reports {reported} for {self.event}"
            self._broken(_P.ANSWER_TELLS_WHAT_HAPPENED, text)

    def _check_effort(self, turn: _Turn) -> None:
        """Check that the turn was not given up while it could still be recovered."""
        model, event = self.model, self.event
        if isinstance(event, ev.DeadlineReached) and event.timer is Timer.TURN:
            return
        if self.refused is not None and self.before.carried == turn.id:
            before = self.before._carried_turn()
            first = self.refused not in before.refusals
            again = before.source is Standing.INJECTED or (
                before.standing in _HELD and before.form != RequestForm.REHYDRATED.value
            )
            if first and (self.refused == "limit" or (self.refused == "not_found" and again)):
                self._broken(_P.RECOVERED_AT_ONCE, f"{self.refused} ended turn {turn.id}")
            if self.of_the_socket and "socket" not in turn.refusals:
                self._broken(_P.FALLBACK_IS_PROVEN, f"turn {turn.id} was not tried over HTTP")
            if self.refused == "other" and before.source is Standing.INJECTED:
                self._broken(_P.INJECTED_IS_INVISIBLE, f"a refusal ended turn {turn.id}")
        elif model.socket == "open" and turn.stage is _Stage.WAITING:
            known = turn.anchor is None or turn.anchor == model.cached or model.to_owner
            if known or turn.source is not Standing.BOUND:
                self._broken(_P.CONTINUED_AT_ONCE, f"{turn} was refused without a send")
        elif self.of_the_socket and turn.id == _first(self.before):
            if "socket" not in turn.refusals:
                self._broken(_P.FALLBACK_IS_PROVEN, f"turn {turn.id} was not tried over HTTP")
        elif (
            model.remote
            and turn.stage is _Stage.WAITING
            and (self.before.socket == "connecting" or self.declined)
        ):
            self._broken(
                _P.OWNER_LOSS_REBINDS, f"turn {turn.id} failed, its session was not rebound"
            )

    def _dead_end(self, turn: _Turn) -> bool:
        """Whether the same try again would fail in the same way."""
        if turn.anchor is None:
            return False
        if self.lost is not None and self.lost.id == turn.id:
            again = turn.standing in (Standing.STORED, Standing.BOUND, Standing.UNKNOWN)
            # The context can still be sent in full, but the id alone cannot.
            stored = turn.standing is Standing.HELD_STORED and turn.form == RequestForm.AS_IS.value
            again = again or stored
            local = not self.before.to_owner
            return _silent(self.event) and again and local and turn.stage is _Stage.SENT
        if self.refused is not None and self.before.carried == turn.id:
            kept = turn.standing in (Standing.STORED, Standing.BOUND)
            return self.refused == "not_found" and kept
        return self.model.socket == "open" and turn.stage is _Stage.WAITING

    def _dead_ends(self, turn: _Turn) -> int:
        return dict(self.model.dead_ends).get(turn.anchor or "", 0)

    def _count(self, turn: _Turn) -> None:
        deadline = isinstance(self.event, ev.DeadlineReached) and self.event.timer is Timer.TURN
        if deadline or not self._dead_end(turn):
            return
        count = self._dead_ends(turn) + 1
        if count > self.model.terms.bounded and turn.standing is not Standing.HELD_STORED:
            self._broken(_P.REFUSALS_ARE_BOUNDED, f"refusal {count} of {turn.anchor}")
        self._add_dead_end(turn)

    def _add_dead_end(self, turn: _Turn) -> None:
        count = self._dead_ends(turn) + 1
        # Capped: higher counts behave alike, and without a bound the exploration would not end.
        count = min(count, self.model.terms.bounded + 1)
        counts = {**dict(self.model.dead_ends), turn.anchor or "": count}
        self.model.dead_ends = tuple(sorted(counts.items()))

    # ------------------------------------------------------------ checks after all effects

    def check_after_effects(self) -> None:
        """Check what must hold after all effects."""
        model, event, now = self.model, self.event, self.now
        if self.must_close is not None and model.generation == self.before.generation:
            self._broken(self.must_close, f"after {event} the connection is still {model.socket}")
        carried = model.carried
        if carried is not None and carried not in [turn.id for turn in model.turns]:
            self._broken(
                _P.ONE_AT_A_TIME, f"turn {model.carried} ended, its connection is still open"
            )
        if isinstance(event, ev.TurnSubmitted) and len(model.turns) > model.terms.waiting + 1:
            self._broken(_P.QUEUE_IS_BOUNDED, f"{len(model.turns) - 1} turns wait")
        answers = isinstance(event, _PROGRESS) and self.lost is None
        if answers and self.delivered != 1:
            text = f"{event} was delivered {self.delivered} times"
            self._broken(_P.ANSWER_IS_WHOLE, text)
        if isinstance(event, ev.ResponseEnded):
            ended = self.before.carried
            if ended in [turn.id for turn in model.turns]:
                self._broken(_P.ANSWER_IS_WHOLE, f"turn {ended} goes on after its end")
        if model.turns and model.carried is None and model.socket != "connecting":
            numbers = ", ".join(str(turn.id) for turn in model.turns)
            text = f"turn {numbers} waits, but no turn runs and no connect is under way"
            self._broken(_P.NOTHING_IS_STRANDED, text)
        if not model.turns and model.socket == "connecting":
            self._broken(_P.NOTHING_IS_STRANDED, "a connect is under way for no turn")
        if model.past_lifetime and model.carried is None and model.socket == "open":
            self._broken(_P.SOCKETS_ARE_ROTATED, "a connection past its lifetime is kept")
        if self.stopped != self.to_stop:
            text = f"{event} stopped {sorted(self.stopped)}, not {sorted(self.to_stop)}"
            self._broken(_P.REFUSED_PLAN_ENDS, text)
        due = self.knew if model.terms.warm and not model.turns else None
        if self.warmed != due:
            text = f"preloaded {self.warmed}, the old connection knew {due}"
            self._broken(_P.SOCKETS_ARE_ROTATED, text)
        expired = isinstance(event, ev.DeadlineReached) and event.timer is Timer.EXPIRY
        ends = expired or isinstance(event, ev.EvictionRequested)
        if ends is not self.retired:
            self._broken(
                _P.IDLE_IS_RETIRED, f"{event}: retired is {self.retired}, should be {ends}"
            )
        # A loss before the frame was sent costs no try: the send itself has cost one.
        free = isinstance(event, ev.ConnectionOpened) or getattr(event, "unsent", False)
        if self.again is not None and not free:
            left, before = _tries(model, self.again), _tries(self.before, self.again)
            if before is not None and (left is None or left >= before):
                text = f"after {event} turn {self.again} is tried again with {left} tries left"
                self._broken(_P.RECOVERY_DESCENDS, text)
        submitted = isinstance(event, ev.TurnSubmitted)
        if not model.turns and (submitted or self.before.turns):
            model.expiry_due = now + model.terms.timeouts.expiry
        elif self.retired:
            model.expiry_due = None


def _first(model: Model) -> int | None:
    """The number of the turn that runs."""
    return model.turns[0].id if model.turns else None


def _tries(model: Model, number: int) -> int | None:
    """How many further tries turn ``number`` has: one if its owner may be lost, one for each kind
    of refusal, and its replays. None: it has not been tried."""
    for turn in model.turns[:1]:
        if turn.id != number:
            continue
        dark = turn.stage is _Stage.SENT and model.carried is None  # lost, and to be resent
        injected = turn.source is Standing.INJECTED and not turn.refused
        kinds = 2 + model.terms.falls_back - len(turn.refusals) + injected
        return model.remote + model.terms.replays - turn.ambiguous - dark + kinds
    return None


def _silent(event: Event) -> bool:
    """Whether ``event`` is that a sent turn got no response.created in time."""
    return isinstance(event, ev.DeadlineReached) and event.timer is Timer.CREATED


@cache
def _kind(cause: Evidence) -> FailureKind:
    return classify(cause).kind


_REFUSALS = {
    FailureKind.NOT_FOUND: "not_found",
    FailureKind.CONNECTION_LIMIT: "limit",
    FailureKind.TOO_LARGE: "large",
}
_OTHERS = ("other", "large")  # refusals that are passed on to the client


def _refusal(event: ev.UpstreamRefused) -> str:
    return _REFUSALS.get(_kind(event.cause), "other")


def _rejected(event: ev.ConnectionLost) -> bool:
    """Whether the upgrade was refused for a reason that concerns the client."""
    return _kind(event.cause) is FailureKind.REJECTED


def evidence_of(event: Event) -> Failure | None:
    """The failure that may be reported for ``event``; None: none may."""
    if isinstance(event, ev.DeadlineReached):
        return classify(TimedOut(event.timer))
    if isinstance(event, ev.ConnectionLost | ev.UpstreamRefused):
        return classify(event.cause)
    if isinstance(event, ev.ResponseEnded) and isinstance(event.cause, Malformed):
        return classify(event.cause)
    return None
