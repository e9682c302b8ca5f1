"""What must be true whatever happens: a reference model folded from the history.

What belongs here: the named properties of a session, and the model that checks them. The model
watches events go in and effects come out, and keeps its own books about the socket, the turns and
what the upstream can know. It shares no code with the rules: it never reads a session's state or a
policy's cells, so it cannot be wrong in the same way.

The model is a frozen value, so that an explorer can hash it together with the state it watches.
Each property names the invariants (docs: "Guarantees and bounds") that it stands for.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import assert_never

import attrs

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Answer, Effect, Form
from bridgecore.recovery.events import Event, Outcome, Standing
from bridgecore.recovery.failure import (
    NOT_FOUND_CODE,
    ErrorFrame,
    TimedOut,
    UpgradeRefused,
)
from bridgecore.recovery.timers import Timer


class Property(enum.Enum):
    """The properties: the value says what is demanded, with the invariants' numbers."""

    NOT_FOUND_IS_EARNED = (
        "not-found reaches a client only as the upstream's word about an id that the bridge never "
        "saw, or after the bounded refusals are used up (1)"
    )
    ANCHOR_IS_KNOWN = (
        "an anchor is sent only to the socket that made it, or where any socket can know it (2)"
    )
    FORM_IS_POSSIBLE = "a full form is sent only where the full input is at hand (7)"
    ONLY_COMPLETED_ANCHORS = "only a completed response becomes an anchor (9)"
    NO_AMBIGUOUS_RESEND = (
        "what the upstream may have accepted is not sent again, unless it refused it itself (11)"
    )
    REPLAYS_ARE_BOUNDED = "a turn is sent a bounded number of times over all paths together (12)"
    NO_REPLAY_AFTER_ANSWER = "nothing is sent again once the client saw the answer begin (13, 14)"
    ONE_CREATED = "a client sees one response.created, before anything else of the answer (14, 26)"
    INJECTED_IS_INVISIBLE = "an injected anchor never reaches the client as not-found (section 2)"
    OPEN_IS_OPEN = "nothing is sent unless the socket is open (17)"
    ONE_AT_A_TIME = (
        "a socket carries one turn at a time, and is not reused after a turn that did not end (24)"
    )
    DELIVERED_TO_ITS_TURN = "an upstream event reaches only the turn that caused it (24, 27)"
    ONE_END = "each turn has exactly one end, and nothing is done for it afterwards (25, 41)"
    QUEUE_IS_BOUNDED = (
        "turns wait in a bounded queue, in order; a full one rejects at once (21, 23)"
    )
    NOTHING_IS_STRANDED = "no turn waits while the session is idle (18, 19)"
    LIVE_GENERATION = "no effect is for a dead generation; generations grow by one (42)"
    EVICTION_IS_IDLE = "a session is retired only when no turn runs or waits (19)"
    SILENCE_DROPS_THE_SOCKET = "a socket that missed a deadline is dropped (5, 31)"
    REFUSALS_ARE_BOUNDED = (
        "the same dead end is not offered again and again: a bounded number of refusals (5, 35)"
    )
    RECOVERY_IN_ONE_TRY = "an upstream refusal costs at most one extra send of its kind (5, 32)"
    SPURIOUS_IS_NOTHING = "a stale or spurious event does nothing (42, 44)"


class ViolationError(Exception):
    """A property does not hold. ``prop`` is which, ``text`` why."""

    def __init__(self, prop: Property, text: str) -> None:
        super().__init__(f"{prop.name}: {text}")
        self.prop = prop
        self.text = text


class _Stage(enum.Enum):
    WAITING = "waiting"  # accepted, nothing sent
    SENT = "sent"  # sent, whatever became of it
    ANSWERED = "answered"  # the client saw the answer begin


@attrs.frozen
class _Turn:
    """What the model knows of a turn that has not ended."""

    id: int
    standing: Standing
    anchor: str | None
    stage: _Stage = _Stage.WAITING
    sends: int = 0
    refused: bool = False  # the upstream itself refused the latest send
    refusals: frozenset[str] = frozenset()  # the kinds of refusal met so far
    ambiguous: int = 0  # sends that nobody knows the fate of


@attrs.define(unsafe_hash=True)
class Model:
    """The books. Build one with the numbers of the policy that is being checked.

    A value: ``after`` never changes the books it is called on.
    """

    replays: int = 1  # ambiguous resends that the policy's budget allows at all
    strict: bool = True  # no ambiguous resend at all, whatever the budget
    bounded: int = 4  # bounded refusals of one anchor
    waiting: int = 64
    remote: bool = False
    generation: int = 0
    socket: str = "none"  # none, connecting, open
    cached: str | None = None  # what the upstream of this socket remembers
    carried: int | None = None  # the turn that the socket carries and that has not ended
    turns: tuple[_Turn, ...] = ()
    dead_ends: tuple[str | None, int] = (None, 0)  # the anchor refused last, how often
    silences: tuple[str | None, int] = (None, 0)  # the anchor that met silence last, how often

    def folded(
        self,
        generation: int,
        name: Callable[[str | None], str | None],
        numbers: Mapping[int | None, int],
    ) -> Model:
        """The same books with turns, anchors and the generation named otherwise (turns that
        ``numbers`` leaves out are called 0)."""
        turns = [
            _Turn(
                numbers.get(turn.id, 0),
                turn.standing,
                name(turn.anchor),
                turn.stage,
                turn.sends,
                turn.refused,
                turn.refusals,
                turn.ambiguous,
            )
            for turn in self.turns
        ]
        turns.sort(key=lambda turn: turn.id)
        return Model(
            self.replays,
            self.strict,
            self.bounded,
            self.waiting,
            self.remote,
            generation,
            self.socket,
            name(self.cached),
            None if self.carried is None else numbers.get(self.carried, 0),
            tuple(turns),
            (name(self.dead_ends[0]), self.dead_ends[1]),
            (name(self.silences[0]), min(self.silences[1], self.bounded)),
        )

    def _copy(self) -> Model:
        return Model(
            self.replays,
            self.strict,
            self.bounded,
            self.waiting,
            self.remote,
            self.generation,
            self.socket,
            self.cached,
            self.carried,
            self.turns,
            self.dead_ends,
            self.silences,
        )

    # ------------------------------------------------------------ folding

    def after(self, event: Event, effects: tuple[Effect, ...], *, ruled: bool) -> Model:
        """The books after ``event`` led to ``effects``. ``ruled`` is False for an event that was
        stale, spurious or ignored, which must have led to nothing.

        Raises:
            ViolationError: a property does not hold.
        """
        if not ruled:
            for effect in effects:
                if not isinstance(effect, fx.Ignored):
                    raise ViolationError(Property.SPURIOUS_IS_NOTHING, f"{event} led to {effects}")
            return self
        model = self._copy()
        model._learn(event)
        for effect in effects:
            model._obey(effect, event)
        if model.turns and model.carried is None and model.socket != "connecting":
            raise ViolationError(Property.NOTHING_IS_STRANDED, f"{model.turns} wait for nobody")
        if (
            _missed_deadline(event)
            and self.carried is not None
            and model.socket == "open"
            and model.generation == self.generation
        ):
            raise ViolationError(Property.SILENCE_DROPS_THE_SOCKET, "the socket is still open")
        return model

    def _turn(self, number: int) -> _Turn:
        for turn in self.turns:
            if turn.id == number:
                return turn
        raise ViolationError(Property.ONE_END, f"turn {number} is over or was never there")

    def _put(self, turn: _Turn) -> None:
        self.turns = tuple([turn if other.id == turn.id else other for other in self.turns])

    def _end(self, number: int) -> None:
        self.turns = tuple([turn for turn in self.turns if turn.id != number])

    def _learn(self, event: Event) -> None:
        """What the event itself means, whatever the session does about it."""
        if isinstance(event, ev.TurnSubmitted):
            turn = event.turn
            self.turns = (*self.turns, _Turn(turn.id, turn.standing, turn.anchor))
        elif isinstance(event, ev.TurnAbandoned):
            self._end(event.turn)
        elif isinstance(event, ev.ConnectionOpened):
            if self.socket == "connecting":  # else it came too late: the connect was given up
                self.socket, self.cached, self.carried = "open", None, None
        elif isinstance(event, ev.ConnectionLost):
            self.socket, self.cached, self.carried = "none", None, None
        elif self.carried is None:
            pass
        elif isinstance(event, ev.UpstreamRefused):
            self._refused(event)
        elif isinstance(event, ev.ResponseCreated | ev.OutputReceived):
            self.dead_ends = self.silences = (None, 0)
        elif isinstance(event, ev.ResponseEnded):
            self.cached = event.response if event.outcome is Outcome.COMPLETED else None
            self.carried = None
            self.dead_ends = self.silences = (None, 0)

    def _refused(self, event: ev.UpstreamRefused) -> None:
        for turn in self.turns:
            if turn.id == self.carried and turn.stage is _Stage.SENT:
                kind = _refusal(event)
                if kind == "limit" and turn.sends > 3:
                    raise ViolationError(Property.RECOVERY_IN_ONE_TRY, f"{turn.sends} frames")
                if turn.anchor == self.cached:
                    self.cached = None  # a refusal evicts the id that it refers to
                self._put(attrs.evolve(turn, refused=True, refusals=turn.refusals | {kind}))
        self.carried = None

    # ------------------------------------------------------------ judging

    def _obey(self, effect: Effect, event: Event) -> None:
        if isinstance(effect, fx.DeliverEvent):
            self._delivered(effect, event)
        elif isinstance(effect, fx.SendTurn):
            self._sent(effect)
        elif isinstance(effect, fx.OpenConnection):
            if self.socket != "none" or effect.generation != self.generation + 1:
                raise ViolationError(Property.LIVE_GENERATION, f"{effect} beside {self.generation}")
            self.socket, self.generation = "connecting", effect.generation
            self.remote = effect.remote
        elif isinstance(effect, fx.CloseConnection):
            if effect.generation != self.generation or self.socket == "none":
                raise ViolationError(Property.LIVE_GENERATION, f"{effect}, there is no such socket")
            self.socket, self.cached, self.carried = "none", None, None
        elif isinstance(effect, fx.CompleteTurn):
            self._turn(effect.turn)
            if not isinstance(event, ev.ResponseEnded):
                raise ViolationError(Property.DELIVERED_TO_ITS_TURN, f"{event} completed a turn")
            self._end(effect.turn)
        elif isinstance(effect, fx.FailTurn):
            self._failed(effect, event)
        elif isinstance(effect, fx.RetireSession):
            if self.turns or self.socket != "none":
                raise ViolationError(Property.EVICTION_IS_IDLE, f"retired with {self.turns}")
        elif isinstance(effect, fx.RebindSession):
            self.remote = False
        elif isinstance(effect, fx.Ignored):
            pass
        else:
            assert_never(effect)

    def _sent(self, effect: fx.SendTurn) -> None:
        turn = self._turn(effect.turn)
        if self.socket != "open" or effect.generation != self.generation:
            raise ViolationError(Property.OPEN_IS_OPEN, f"{effect} on a socket that is {self.socket}")
        if self.carried is not None:
            raise ViolationError(Property.ONE_AT_A_TIME, f"{effect} beside turn {self.carried}")
        if turn.stage is _Stage.ANSWERED:
            raise ViolationError(Property.NO_REPLAY_AFTER_ANSWER, f"{effect}")
        self._check_form(turn, effect.form)
        ambiguous = turn.ambiguous
        if turn.stage is _Stage.SENT and not turn.refused:
            ambiguous += 1
            if ambiguous > self.replays:
                raise ViolationError(Property.REPLAYS_ARE_BOUNDED, f"replay {ambiguous} of {turn.id}")
            if self.strict:
                raise ViolationError(Property.NO_AMBIGUOUS_RESEND, f"{effect}")
        if turn.sends >= 4:
            raise ViolationError(Property.REPLAYS_ARE_BOUNDED, f"send {turn.sends + 1} of {turn.id}")
        self._put(
            _Turn(
                turn.id,
                turn.standing,
                turn.anchor,
                _Stage.SENT,
                turn.sends + 1,
                False,
                turn.refusals,
                ambiguous,
            )
        )
        self.carried = turn.id

    def _check_form(self, turn: _Turn, form: Form) -> None:
        if form is Form.AS_IS:
            anywhere = turn.standing in (Standing.STORED, Standing.UNKNOWN) or self.remote
            if turn.anchor is not None and turn.anchor != self.cached and not anywhere:
                raise ViolationError(
                    Property.ANCHOR_IS_KNOWN, f"{turn.anchor} sent where {self.cached} is known"
                )
        elif form is Form.REHYDRATED:
            if turn.standing is not Standing.HELD:
                raise ViolationError(Property.FORM_IS_POSSIBLE, f"nothing is held for {turn}")
        elif form is Form.CLIENT_FULL:
            if turn.standing is not Standing.INJECTED:
                raise ViolationError(Property.FORM_IS_POSSIBLE, f"no full input came with {turn}")
        else:
            assert_never(form)

    def _delivered(self, effect: fx.DeliverEvent, event: Event) -> None:
        turn = self._turn(effect.turn)
        if self.carried != turn.id:
            raise ViolationError(Property.DELIVERED_TO_ITS_TURN, f"{event} went to turn {turn.id}")
        if isinstance(event, ev.ResponseCreated) and turn.stage is _Stage.ANSWERED:
            raise ViolationError(Property.ONE_CREATED, f"another one went to turn {turn.id}")
        if turn.stage is not _Stage.ANSWERED:
            self._put(attrs.evolve(turn, stage=_Stage.ANSWERED))

    def _failed(self, effect: fx.FailTurn, event: Event) -> None:
        turn = self._turn(effect.turn)
        self._end(turn.id)
        if effect.answer is Answer.OVERLOADED:
            if len(self.turns) <= self.waiting:
                raise ViolationError(Property.QUEUE_IS_BOUNDED, f"{len(self.turns)} are no overload")
            return
        surfaced = (
            effect.answer is Answer.UPSTREAM_ERROR
            and isinstance(event, ev.UpstreamRefused)
            and _refusal(event) == "not_found"
        )
        if effect.answer is Answer.NOT_FOUND or surfaced:
            self._check_not_found(turn, surfaced)
        else:
            self._count(turn, event)

    def _check_not_found(self, turn: _Turn, surfaced: bool) -> None:
        if turn.standing is Standing.INJECTED:
            raise ViolationError(Property.INJECTED_IS_INVISIBLE, f"turn {turn.id} was told not-found")
        foreign = turn.standing in (Standing.UNKNOWN, Standing.UNANCHORED)
        if (surfaced and foreign) or self._used_up(turn.anchor):
            return
        raise ViolationError(
            Property.NOT_FOUND_IS_EARNED,
            f"a {turn.standing.value} anchor, {self.dead_ends[1] + self.silences[1]} refusals",
        )

    def _used_up(self, anchor: str | None) -> bool:
        ends = sum(n for a, n in (self.dead_ends, self.silences) if a == anchor)
        return ends >= self.bounded

    def _count(self, turn: _Turn, event: Event) -> None:
        """A refusal that changes nothing for the next try is a dead end: count it."""
        if turn.anchor is None:
            return
        if _missed_deadline(event) and turn.sends:
            self.silences = _more(self.silences, turn.anchor)
        elif (turn.sends == 0 and self.socket == "open") or "not_found" in turn.refusals:
            self.dead_ends = _more(self.dead_ends, turn.anchor)
            if self.dead_ends[1] > self.bounded:
                raise ViolationError(
                    Property.REFUSALS_ARE_BOUNDED, f"{self.dead_ends[1]} times {turn.anchor}"
                )


def _more(count: tuple[str | None, int], anchor: str) -> tuple[str | None, int]:
    return (anchor, count[1] + 1) if count[0] == anchor else (anchor, 1)


def _missed_deadline(event: Event) -> bool:
    return isinstance(event, ev.DeadlineReached) and event.timer in (Timer.CREATED, Timer.IDLE)


def _refusal(event: ev.UpstreamRefused) -> str:
    cause = event.cause
    if isinstance(cause, ErrorFrame):
        if cause.code == NOT_FOUND_CODE:
            return "not_found"
        if cause.code == "websocket_connection_limit_reached":
            return "limit"
    return "other"


def is_connect_failure(event: Event) -> bool:
    """For reports: whether the event says that a connect failed."""
    return isinstance(event, ev.ConnectionLost) and isinstance(
        event.cause, UpgradeRefused | TimedOut
    )
