"""The reference model: the state of an observer who sees one session from outside.

What belongs here: what the observer knows of the connection, the turns, the clock and what the
upstream can know, after any number of events; what follows from that about the next event; and how
models are compared. How an event changes a model is model_events.py. What the session must do about
it is checked in model_effects.py, which has the entry point ``check_step``.

The model shares no code with the rules: it reads neither the session's state nor the policy's
cells, so it cannot repeat their mistakes. Of a policy it gets only the numbers (``Terms``). One
function is shared, ``classify``, which derives the kind of failure from the evidence
(evidence.py).

The model is a value, so that an explorer can hash and compare it together with the state that it
checks. To check the transitions of one session one after the other, use a ``Monitor`` (monitor.py),
which keeps its model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable, Mapping
from typing import NamedTuple, assert_never

import attrs

from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import RequestForm
from bridgecore.recovery.events import Event, Standing
from bridgecore.recovery.failure import FailureKind, Malformed
from bridgecore.recovery.policy import Timeouts
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.verify.evidence import is_silence, kind_of, refusal_of
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


class TurnStage(enum.Enum):
    """How far a turn has come, as far as the observer knows."""

    __hash__ = object.__hash__  # by identity: looked up for every event

    WAITING = "waiting"  # not sent, or what was sent was provably not accepted
    SENT = "sent"  # sent, and not known whether the upstream accepted it
    ACCEPTED = "accepted"  # the answer began, but nothing of it was shown to the client
    ANSWERED = "answered"  # the client was shown the beginning of the answer


class ModelTurn(NamedTuple):
    """What the model knows of a turn that has not ended."""

    id: int
    standing: Standing
    anchor: str | None
    due: int  # the end of its whole budget of time
    stage: TurnStage = TurnStage.WAITING
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


BEGUN = (TurnStage.ACCEPTED, TurnStage.ANSWERED)
"""The stages in which the answer has begun."""
HELD = (Standing.HELD, Standing.HELD_STORED)
"""The standings whose context the bridge holds."""
_SAYABLE = (Standing.UNANCHORED, *HELD, Standing.INJECTED)  # can be sent without an anchor
# As many as the session keeps (``recovery/builder.py``): late events of older ones cannot be
# recognised.
NAMES_KEPT = 8
"""The ids that are kept of one response."""
ENDED_KEPT = 16
"""The ids that are kept of responses that ended on the connection."""


@attrs.define(eq=False)
class Model:
    """The state of the observer. Only ``check_step`` makes the next one, and never changes the one
    that it is given.

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
    turns: tuple[ModelTurn, ...] = ()  # in order of arrival; the first one runs
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

    def copy(self) -> Model:
        """An independent copy: all values are immutable."""
        return Model(
            self.terms, self.remote, self.generation, self.socket, self.to_owner, self.cached,
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
        silent, turn = is_silence(event), self.carried_turn()
        lost = isinstance(event, ev.ConnectionLost) and not event.unsent
        if turn.stage is not TurnStage.SENT or not (silent or (lost and not self.is_size(event))):
            return None
        if self.is_declined(event):
            return None  # provably not accepted
        return (turn.source, self.framed, silent, self.to_owner, turn.ambiguous)

    def is_declined(self, event: Event) -> bool:
        """Whether ``event`` says that the owner replica has not sent the turn."""
        if not isinstance(event, ev.ConnectionLost) or not self.to_owner:
            return False
        return kind_of(event.cause) is FailureKind.NOT_DISPATCHED

    def is_size(self, event: Event) -> bool:
        """Whether ``event`` says that the frame is larger than the upstream accepts."""
        if isinstance(event, ev.ConnectionLost):
            return kind_of(event.cause) is FailureKind.TOO_LARGE and not self.to_owner
        return isinstance(event, ev.UpstreamRefused) and refusal_of(event) == "large"

    def broken(self, prop: Property, text: str) -> None:
        """Raise ViolationError, unless ``prop`` is not checked."""
        if prop not in self.terms.without:
            raise ViolationError(prop, text)

    def by_its_name(self, event: Event) -> Event:
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
        needless = self.carried_turn().source in _SAYABLE
        if self._stage() is TurnStage.SENT or (needless and refusal_of(refused) == "not_found"):
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
            return event.turn == self.carried and self._stage() in BEGUN
        if event.generation != self.generation:
            return False
        if isinstance(event, ev.ConnectionOpened):
            return self.socket == "connecting"
        if isinstance(event, ev.ConnectionLost):
            return self.socket != "none"
        if self.carried is None:
            limit = isinstance(event, ev.UpstreamRefused) and refusal_of(event) == "limit"
            return limit and self.socket == "open"
        if isinstance(event, ev.FrameSent):
            return not self.framed and self._stage() is TurnStage.SENT
        if isinstance(event, ev.ResponseCreated):
            again = event.response in self.ended and self.doubt is not None
            return self._stage() is TurnStage.SENT and not again
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
        if self._stage() is not TurnStage.SENT:
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
        if self.doubt is not None and len(names) < NAMES_KEPT and self.doubt not in names:
            return (*names, self.doubt)
        return names

    def refusal(self, event: Event) -> str | None:
        """If ``event`` refuses the carried turn, the kind of the refusal: not_found, limit, large
        or other."""
        event = self.by_its_name(event)
        if not isinstance(event, ev.UpstreamRefused) or self.carried is None:
            return None
        return refusal_of(event)

    def injected(self) -> str | None:
        """The anchor that the carried turn was sent with, if the bridge injected it."""
        if self.carried is None:
            return None
        turn = self.carried_turn()
        as_is = turn.form == RequestForm.AS_IS.value
        return turn.anchor if as_is and turn.standing is Standing.INJECTED else None

    @property
    def begun(self) -> bool:
        """Whether the connection carries a turn whose answer has begun."""
        return self.carried is not None and self._stage() in BEGUN

    def _stage(self) -> TurnStage:
        return self.carried_turn().stage

    def carried_turn(self) -> ModelTurn:
        """The turn that the connection carries; there must be one."""
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

    def check_deadline(self, deadline: Deadline | None) -> None:
        """Check that ``deadline``, the session's next one, is the earliest that is due."""
        owed = self.due(Timer.TURN)
        for due in (
            self.connect_due, self.created_due, self.idle_due, self.lifetime_due, self.expiry_due
        ):  # fmt: skip
            if due is not None and (owed is None or due < owed):
                owed = due
        if deadline is None:
            if owed is not None:
                self.broken(_P.DEADLINES_ARE_KEPT, f"no deadline is set, {owed} is due")
        elif deadline.at != owed or self.due(deadline.reason) != owed:
            text = f"{deadline.reason.value} is set to {deadline.at}, should be {owed}"
            self.broken(_P.DEADLINES_ARE_KEPT, text)


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
