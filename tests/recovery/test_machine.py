"""A session against a model that shares no code with the rules.

What belongs here: one rule-based state machine, over ``Session``.

The model keeps its own books: which connection is open, what its upstream remembers, which turns
have not ended, what the client of each has seen, what nobody can know; by which names the upstream
calls the response of the running turn, and which names it has used before; in which forms a turn
was refused. It is told what happens and judges what the session does about it; the numbers are
those of the invariants in the documentation.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.effects import Answer, Effect, Form
from bridgecore.recovery.events import Event, Outcome, Standing, Turn
from bridgecore.recovery.failure import (
    Closed,
    ErrorFrame,
    Failure,
    FailureKind,
    Malformed,
    TimedOut,
    classify,
)
from bridgecore.recovery.policy import DEFAULT, POLICIES
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import Phase
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.testing.strategies import error_frames, losses

WAITING = 2
REMEMBERED = 16  # names of responses that have ended on a connection
RECOVERABLE = (Standing.STORED, Standing.BOUND)  # not-found is refused, and then the truth
ANYWHERE = (Standing.STORED, Standing.HELD_STORED, Standing.UNKNOWN)  # any socket may know it
REBUILT = (Standing.HELD, Standing.HELD_STORED)  # its whole chain is at hand
UNREADABLE = Malformed("a terminal event without a response that can be read")
LIMIT = ErrorFrame(400, "websocket_connection_limit_reached")
TOO_LARGE = ErrorFrame(413, "request_too_large")
# What ends much is drawn rarely.
ODDS = st.integers(0, 3)
SECONDS = st.sampled_from([*[0] * 6, *[1] * 6, 10, 60, 300, 1000, 3600])
# What is said of the socket or of a size says nothing about what was put into a turn.
NOT_OF_THE_INPUT = (FailureKind.CONNECTION_LIMIT, FailureKind.TOO_LARGE)


@attrs.define
class Live:
    """A turn that has not ended."""

    turn: Turn
    sends: int = 0
    ambiguous: int = 0  # sends again, though nobody could know what became of the one before
    open_send: bool = False  # the latest send was not refused by the upstream itself
    seen: bool = False  # its client has seen the answer begin
    created: int = 0
    form: Form | None = None  # in which it was sent last
    refused: set[Form] = attrs.Factory(set)  # the forms in which the upstream refused it
    unknown: bool = False  # its anchor was sent and not found
    pinned: Form | None = None  # in which it goes next, since the last send has not left


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.live: dict[int, Live] = {}
        self.serial = 0
        self.generation = 0
        self.socket = "none"  # none, connecting, open
        self.standings: dict[str, Standing] = {}  # of every response that can be continued
        # Since an anchor was accepted: how often it met a dead end, and how often silence.
        self.dead_ends: Counter[str] = Counter()
        self.silences: Counter[str] = Counter()
        self.vain: set[str] = set()  # anchors that were sent in vain, though they need not be
        self.retired = False
        self.attempts = 0  # sends of all turns together
        self.just_sent = ""  # why, if the last thing that happened led to a send
        self.forget_socket()

    def forget_socket(self) -> None:
        self.made: set[str] = set()  # responses that this connection has made
        self.carried: int | None = None  # the turn whose frame the connection carries
        self.ended_names: list[str] = []  # of the responses that have ended on this connection
        self.begin_attempt()

    def begin_attempt(self) -> None:
        self.begun = False  # the turn was accepted
        self.names: list[str] = []  # of the response of the running turn
        self.doubt: str | None = None  # the name of a response.created that may be a late copy

    @initialize(name=st.sampled_from(["default", "pr397"]), refusals=st.integers(0, 3))
    def begin(self, name: str, refusals: int) -> None:
        policy = POLICIES[name]
        self.ambiguous = 0 if policy is DEFAULT else policy.budgets.replays
        self.bounded = refusals
        budgets = attrs.evolve(policy.budgets, waiting=WAITING, refusals=refusals)
        self.session = Session(attrs.evolve(policy, budgets=budgets))

    # ------------------------------------------------------------ what happens

    def tell(self, event: Event, *due: Effect) -> tuple[Effect, ...]:
        """``due``: what the bridge must be told never to do again, and nothing else."""
        self.just_sent = ""
        effects = self.session.handle(event, self.now)
        self.judge(event, effects)
        stops = [each for each in effects if isinstance(each, fx.StopInjecting | fx.StopRebuilding)]
        assert stops == list(due)  # 4, 5
        return effects

    def running(self) -> Live:
        assert self.carried is not None
        return self.live[self.carried]

    def submit_turn(self, standing: Standing, anchor: str | None) -> None:
        self.serial += 1
        turn = Turn(self.serial, standing, anchor)
        self.live[turn.id] = Live(turn)
        self.retired = False
        self.tell(ev.TurnSubmitted(turn))

    @rule()
    def submit_unanchored(self) -> None:
        self.submit_turn(Standing.UNANCHORED, None)

    @rule(
        standing=st.sampled_from(
            [Standing.HELD, Standing.HELD_STORED, Standing.UNKNOWN, Standing.BOUND]
        )
    )
    def submit_foreign(self, standing: Standing) -> None:
        """An anchor that no connection here has made."""
        anchor = f"foreign_{standing.value}"
        self.standings[anchor] = standing
        self.submit_turn(standing, anchor)

    @precondition(lambda self: self.standings)
    @rule(data=st.data())
    def submit_anchored(self, data: st.DataObject) -> None:
        here = sorted(self.made & set(self.standings)) * 20
        anchor = data.draw(st.sampled_from([*here, *sorted(self.standings)]))
        self.submit_turn(self.standings[anchor], anchor)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), odds=ODDS)
    def abandon(self, data: st.DataObject, odds: int) -> None:
        if odds:
            return
        number = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[number]
        self.tell(ev.TurnAbandoned(number))
        # A slot is not used again before its terminal event: else the connection is gone.
        assert self.carried != number

    @precondition(lambda self: self.socket == "connecting")
    @rule()
    def opened(self) -> None:
        self.socket = "open"
        self.forget_socket()
        self.tell(ev.ConnectionOpened(self.generation))

    @rule(
        steps=st.integers(1, 6),
        standing=st.sampled_from(Standing),
        outcome=st.sampled_from([Outcome.COMPLETED, Outcome.INCOMPLETE]),
    )
    def go_on(self, steps: int, standing: Standing, outcome: Outcome) -> None:
        """What comes next if all goes well, or else few turns would ever get an answer."""
        for _ in range(steps):
            if self.socket == "connecting":
                self.opened()
            elif self.carried is None:
                here = sorted(self.made & set(self.standings))
                anchor = here[0] if here else None
                standing_of = self.standings.get(anchor or "", Standing.UNANCHORED)
                self.submit_turn(standing_of, anchor)
            elif not self.begun:
                self.created("own")
            else:
                self.ended(outcome, standing, "own")

    # Sequences that chance alone would rarely bring together.

    @precondition(lambda self: self.carried is not None)
    @rule(cause=error_frames(), lost=losses(), sized=st.booleans(), odd=st.booleans())
    def read_together(self, cause: ErrorFrame, lost: Any, sized: bool, odd: bool) -> None:
        """What ends an attempt comes together with what keeps the next one from being sent."""
        if self.begun:
            self.ended(Outcome.COMPLETED, Standing.BOUND, "own")
        else:
            self.refuse(cause)
        if self.just_sent == "upstream" and odd:
            self.refuse_unsent(sized)
        elif self.just_sent == "upstream":
            self.lost_unsent(lost)

    @precondition(lambda self: self.ended_names and self.carried is not None and not self.begun)
    @rule(data=st.data(), named=st.sampled_from(["own", "none", "doubt"]))
    def doubt_is_settled(self, data: st.DataObject, named: str) -> None:
        self.created_in_doubt(data)
        match data.draw(st.sampled_from(["created", "output", "progress", "ended", "refused"])):
            case "created":
                self.created("none" if named == "doubt" else named)
            case "output":
                self.output(True, True, named)
            case "progress":
                self.output(False, True, named)
            case "ended":
                self.ended(Outcome.COMPLETED, Standing.BOUND, named)
            case _:
                self.refuse(data.draw(error_frames()))
        if self.late_names():
            self.late(data)

    @precondition(lambda self: self.carried is not None and not self.begun)
    @rule()
    def silence_and_the_same_again(self) -> None:
        turn = self.running().turn
        self.time_passes(60)
        if turn.id not in self.live:
            self.submit_turn(turn.standing, turn.anchor)

    @precondition(lambda self: self.socket != "none")
    @rule(cause=losses() | st.just(Closed(1009)), odds=ODDS)
    def lost(self, cause: Any, odds: int) -> None:
        if odds and self.carried is None:
            return
        lost, begun = self.carried, self.begun
        self.socket = "none"
        self.forget_socket()
        effects = self.tell(ev.ConnectionLost(self.generation, cause))
        if lost is not None and classify(cause).kind is FailureKind.TOO_LARGE:
            # It was refused for its size: its client hears that, and it is not sent again.
            answer = Answer.STREAM_INCOMPLETE if begun else Answer.UPSTREAM_ERROR
            assert [effect.answer for effect in failures_of(lost, effects)] == [answer]

    @precondition(lambda self: self.just_sent == "upstream")
    @rule(cause=losses())
    def lost_unsent(self, cause: Any) -> None:
        """What the upstream's event led to has not left: nothing is ambiguous about the loss."""
        lost, live = self.carried, self.running()
        assert lost is not None
        live.open_send = False
        live.sends -= 1
        live.pinned = None if live.form is Form.AS_IS else live.form
        self.socket = "none"
        self.forget_socket()
        effects = self.tell(ev.ConnectionLost(self.generation, cause, unsent=True))
        assert [type(effect) for effect in effects] == [fx.OpenConnection]

    @precondition(lambda self: self.carried is not None)
    @rule(whole=st.booleans())
    def sent(self, whole: bool) -> None:
        """``whole``: its last part, too; until then a frame is still being sent."""
        before = self.session.state.phase
        self.tell(ev.FrameSent(self.generation, whole))
        assert whole or self.session.state.phase is before

    # An event of an answer: ``named`` tells how it calls the response.

    def call(self, named: str) -> str | None:
        own = f"resp_{self.attempts}"
        return {"own": own, "other": f"{own}_b", "none": None, "doubt": self.doubt}[named]

    def named(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            self.names.append(name)

    def accepted(self, name: str | None) -> None:
        self.begun, self.doubt = True, None
        self.named(name)
        self.forgive()

    def forgive(self) -> None:
        anchor = self.running().turn.anchor
        if anchor is not None:
            self.dead_ends[anchor] = self.silences[anchor] = 0
            self.vain.discard(anchor)

    def expect(self, event: Event, *delivered: bool) -> None:
        """``delivered``: of what goes to the client of the running turn, whether it is held."""
        carried = self.carried
        effects = self.tell(event)
        told = [effect for effect in effects if not isinstance(effect, fx.Ignored)]
        assert told == [fx.DeliverEvent(carried or 0, held) for held in delivered]  # 24

    @precondition(lambda self: self.carried is not None)
    @rule(named=st.sampled_from(["own", "own", "other", "none"]))
    def created(self, named: str) -> None:
        name = self.call(named)
        event = ev.ResponseCreated(self.generation, name)
        if self.begun:
            self.expect(event)  # 14
        else:
            self.accepted(name)
            self.expect(event, False)

    @precondition(lambda self: self.carried is not None)
    @rule(
        bearing=st.booleans(),
        room=st.sampled_from([True, True, True, False]),
        named=st.sampled_from(["own", "other", "none", "doubt"]),
    )
    def output(self, bearing: bool, room: bool, named: str) -> None:
        name = self.call(named)
        event = ev.OutputReceived(self.generation, bearing, room, name)
        if self.begun:
            self.named(name)
            self.expect(event, False)
        elif not bearing and not room:
            # It cannot be held, and it is no answer: such an upstream is as good as gone.
            effects = self.tell(event)
            assert effects[0] == fx.CloseConnection(event.generation)
        elif not bearing and self.doubt is not None and name in (None, self.doubt):
            self.expect(event, True)
        else:
            self.accepted(name or self.doubt)
            self.expect(event, False)

    @precondition(lambda self: self.carried is not None)
    @rule(
        outcome=st.sampled_from([Outcome.COMPLETED, Outcome.INCOMPLETE]),
        standing=st.sampled_from(Standing),
        named=st.sampled_from(["own", "own", "other", "none", "doubt"]),
    )
    def ended(self, outcome: Outcome, standing: Standing, named: str) -> None:
        ended, name = self.carried, self.call(named)
        assert ended is not None
        self.accepted(name or self.doubt)
        last = name or self.last_name()
        self.made = set() if last is None else {last}
        if last is not None and standing is not Standing.UNANCHORED:
            self.standings[last] = standing
        effects = self.end(ev.ResponseEnded(self.generation, outcome, name))
        assert effects[:1] == self.completion(ended, name) or isinstance(
            effects[0], fx.CloseConnection
        )
        assert ended not in self.live

    def last_name(self) -> str | None:
        return self.names[-1] if self.names else None

    def completion(self, turn: int, name: str | None) -> tuple[Effect, ...]:
        """Its names in the order in which they came, that of the terminal event last."""
        names = [each for each in self.ending_names if each != name]
        return (fx.CompleteTurn(turn, tuple(names if name is None else [*names, name])),)

    def end(self, event: ev.ResponseEnded, *due: Effect) -> tuple[Effect, ...]:
        """The response of the running turn ends, under all of its names."""
        self.named(event.response or self.doubt)
        self.ending, self.ending_names = self.carried, self.names
        before = [name for name in self.ended_names if name not in self.names]
        self.ended_names = [*before, *self.names][-REMEMBERED:]
        self.carried = None
        self.begin_attempt()
        return self.tell(event, *due)

    @precondition(lambda self: self.carried is not None)
    @rule(
        cause=st.none() | error_frames(),
        named=st.sampled_from(["own", "other", "none"]),
    )
    def failed(self, cause: ErrorFrame | None, named: str) -> None:
        ended, live, name = self.carried, self.running(), self.call(named)
        assert ended is not None
        event = ev.ResponseEnded(self.generation, Outcome.FAILED, name, cause)
        if cause is not None and not self.begun:
            # A refusal: the turn may go on in another form. It ends no response, named or not.
            self.refused(live, cause)
            due = self.due(live, cause)
            self.carried = None
            self.begin_attempt()
            self.tell(event, *due)
            return
        ours = live.turn.standing in (Standing.UNANCHORED, Standing.INJECTED, *REBUILT)
        if cause is not None and classify(cause).kind is FailureKind.NOT_FOUND and ours:
            self.refused_answering(live, cause)
            effects = self.end(event, *self.due(live, cause))
            assert fx.CloseConnection(event.generation) in effects
            (failure,) = failures_of(ended, effects)
            assert failure.answer is Answer.STREAM_INCOMPLETE
            return
        self.accepted(name or self.doubt)
        self.made = set()
        if name is not None:
            self.standings[name] = Standing.BOUND  # a client may try, but nothing can continue it
        self.end(event)
        assert ended not in self.live

    @precondition(lambda self: self.carried is not None)
    @rule(named=st.sampled_from(["own", "other", "none"]))
    def ended_unreadably(self, named: str) -> None:
        """The upstream has run the turn: it ends, and is not sent again."""
        ended, name = self.carried, self.call(named)
        assert ended is not None
        self.forgive()
        self.made = set()
        effects = self.end(ev.ResponseEnded(self.generation, Outcome.FAILED, name, UNREADABLE))
        assert [effect.answer for effect in failures_of(ended, effects)] == [Answer.UPSTREAM_ERROR]

    # Late and doubled events of responses that have ended on this connection.

    def late_names(self) -> list[str]:
        return [name for name in self.ended_names if name not in (*self.names, self.doubt)]

    @precondition(lambda self: self.late_names())
    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.late_names()))
        events: list[Event] = [
            ev.OutputReceived(self.generation, True, True, name),
            ev.OutputReceived(self.generation, False, True, name),
            ev.OutputReceived(self.generation, False, False, name),
            ev.ResponseEnded(self.generation, Outcome.COMPLETED, name),
            ev.ResponseEnded(self.generation, Outcome.INCOMPLETE, name),
            ev.ResponseEnded(self.generation, Outcome.FAILED, name, ErrorFrame(400, "x")),
            ev.ResponseEnded(self.generation, Outcome.FAILED, name, UNREADABLE),
        ]
        if self.begun or self.carried is None:
            events.append(ev.ResponseCreated(self.generation, name))
        self.nothing_happens(data.draw(st.sampled_from(events)))  # 24

    @precondition(lambda self: self.ended_names and self.carried is not None and not self.begun)
    @rule(data=st.data())
    def created_in_doubt(self, data: st.DataObject) -> None:
        """A late copy, or an upstream that uses an id again: who knows."""
        name = data.draw(st.sampled_from(self.ended_names))
        event = ev.ResponseCreated(self.generation, name)
        if self.doubt is None:
            self.doubt = name
            self.expect(event, True)
        else:
            self.nothing_happens(event)

    # Refusals.

    def due(self, live: Live, cause: ErrorFrame) -> list[Effect]:
        """What is never to be done again after a refusal of ``live``."""
        kind, turn = classify(cause).kind, live.turn
        if self.begun:
            found = kind is not FailureKind.NOT_FOUND
            injected = turn.standing is Standing.INJECTED and live.form is Form.AS_IS and not found
            return [fx.StopInjecting(turn.id)] if injected else []
        if turn.standing is Standing.INJECTED and live.form is Form.AS_IS:
            return [] if kind in NOT_OF_THE_INPUT else [fx.StopInjecting(turn.id)]
        if live.form is Form.REHYDRATED and kind is FailureKind.INVALID:
            return [fx.StopRebuilding(turn.id)]
        return []

    def refused(self, live: Live, cause: ErrorFrame) -> None:
        kind = classify(cause).kind
        live.open_send = False
        if kind is not FailureKind.CONNECTION_LIMIT and live.form is not None:
            live.refused.add(live.form)
        live.unknown |= kind is FailureKind.NOT_FOUND
        self.made.discard(live.turn.anchor or "")
        if kind not in NOT_OF_THE_INPUT:
            self.anchor_in_vain(live)

    def anchor_in_vain(self, live: Live) -> None:
        """The refusal evicts the anchor; where its chain is at hand, that goes next time."""
        if live.turn.standing is Standing.HELD_STORED and live.form is Form.AS_IS:
            self.vain.add(live.turn.anchor or "")

    def refused_answering(self, live: Live, cause: ErrorFrame) -> None:
        if classify(cause).kind is FailureKind.NOT_FOUND:
            self.anchor_in_vain(live)

    @precondition(lambda self: self.carried is not None)
    @rule(cause=error_frames())
    def refuse(self, cause: ErrorFrame) -> None:
        live = self.running()
        if self.begun:
            self.refused_answering(live, cause)
        else:
            self.refused(live, cause)
        due = self.due(live, cause)
        self.carried = None
        self.begin_attempt()
        self.tell(ev.UpstreamRefused(self.generation, cause), *due)

    @precondition(lambda self: self.just_sent)
    @rule(sized=st.booleans())
    def refuse_unsent(self, sized: bool) -> None:
        """The very frame was refused for its size before; or the upstream said of the socket, in
        the read that led to the send, that it is too old."""
        cause = TOO_LARGE if sized or self.just_sent != "upstream" else LIMIT
        refused, live, made = self.carried, self.running(), set(self.made)
        assert refused is not None
        self.refused(live, cause)
        due = self.due(live, cause)
        self.made, self.carried = made, None
        self.begin_attempt()
        generation = self.generation
        effects = self.tell(ev.UpstreamRefused(generation, cause, unsent=True), *due)
        # A socket on which nothing was begun can be used for what comes next.
        assert (fx.CloseConnection(generation) in effects) is (cause is LIMIT)

    @precondition(lambda self: self.generation > 1)
    @rule(data=st.data())
    def something_old(self, data: st.DataObject) -> None:
        generation = data.draw(st.integers(0, self.generation - 1))
        events: list[Event] = [
            ev.ConnectionOpened(generation),
            ev.ConnectionLost(generation, Closed(1006)),
            ev.FrameSent(generation),
            ev.ResponseCreated(generation),
            ev.OutputReceived(generation),
            ev.ResponseEnded(generation, Outcome.COMPLETED, "resp_0"),
            ev.ResponseEnded(generation, Outcome.FAILED, "resp_0", UNREADABLE),
            ev.UpstreamRefused(generation, ErrorFrame(500)),
            ev.ConnectionLost(generation, Closed(1000), unsent=True),
        ]
        self.nothing_happens(data.draw(st.sampled_from(events)))

    @rule(timer=st.sampled_from(Timer))
    def spurious_deadline(self, timer: Timer) -> None:
        self.nothing_happens(ev.DeadlineReached(timer))

    def nothing_happens(self, event: Event) -> None:
        before = self.session.state
        effects = self.session.handle(event, self.now)
        assert effects
        assert all(isinstance(effect, fx.Ignored) for effect in effects)
        assert self.session.state == before

    @precondition(lambda self: self.live)
    @rule(data=st.data(), paused=st.booleans())
    def slow_reader(self, data: st.DataObject, paused: bool) -> None:
        self.tell(ev.RelayPaused(data.draw(st.sampled_from(sorted(self.live))), paused))

    @precondition(lambda self: not self.retired)
    @rule(odds=ODDS)
    def evict(self, odds: int) -> None:
        if odds:
            return
        self.tell(ev.EvictionRequested())

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: int) -> None:
        end = self.now + seconds * NS_PER_SECOND
        while (deadline := self.session.next_timeout()) is not None and deadline.at <= end:
            self.deadline_passes()
        self.now = end

    def deadline_passes(self) -> None:
        """One by one, so that each effect is judged by the deadline that led to it."""
        deadline = self.session.next_timeout()
        assert deadline is not None
        self.now = max(self.now, deadline.at)
        if deadline.reason is Timer.CREATED:
            turn = self.running().turn
            if turn.standing is Standing.HELD_STORED and turn.anchor is not None:
                self.vain.add(turn.anchor)
        self.tell(ev.DeadlineReached(deadline.reason))
        again = self.session.state.timers.get(deadline.reason)
        assert again is None or again > self.now  # 29

    # ------------------------------------------------------------ what the session does

    def judge(self, event: Event, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            assert not self.retired  # nothing follows the end of a session
            if isinstance(effect, fx.OpenConnection):
                assert self.socket == "none"
                assert effect.generation == self.generation + 1  # 42
                self.socket, self.generation = "connecting", effect.generation
            elif isinstance(effect, fx.CloseConnection):
                assert self.socket != "none"
                assert effect.generation == self.generation  # 42
                self.socket = "none"
                self.forget_socket()
            elif isinstance(effect, fx.SendTurn):
                self.judge_send(effect)
                answers = isinstance(event, ev.ResponseEnded | ev.UpstreamRefused)
                unsent = getattr(event, "unsent", False)
                self.just_sent = "upstream" if answers and not unsent else "somebody"
            elif isinstance(effect, fx.DeliverEvent):
                live = self.live[effect.turn]
                assert effect.turn == self.carried  # 24
                assert isinstance(event, ev.ResponseCreated | ev.OutputReceived)
                if not effect.held:
                    live.seen = True
                    live.created += isinstance(event, ev.ResponseCreated)
                    assert live.created <= 1  # 14
            elif isinstance(effect, fx.CompleteTurn):
                assert isinstance(event, ev.ResponseEnded)
                assert effect.turn == self.ending  # 24
                del self.live[effect.turn]  # a second end would be a KeyError: 41
            elif isinstance(effect, fx.FailTurn):
                self.judge_failure(effect, event)
            elif isinstance(effect, fx.StopInjecting):
                # The bridge takes its word: nothing is reduced by this anchor again.
                self.standings.pop(self.live[effect.turn].turn.anchor or "", None)
            elif isinstance(effect, fx.StopRebuilding):
                turn = self.live[effect.turn].turn
                stored = turn.standing is Standing.HELD_STORED
                self.standings[turn.anchor or ""] = Standing.STORED if stored else Standing.BOUND
            elif isinstance(effect, fx.RetireSession):
                assert not self.live  # 19
                assert self.socket == "none"  # 18
                self.retired = True

    def judge_send(self, effect: fx.SendTurn) -> None:
        live = self.live[effect.turn]
        assert self.socket == "open"  # 17
        assert effect.generation == self.generation  # 42
        assert self.carried is None  # 24
        assert not live.seen  # 13
        assert effect.form not in live.refused  # 5
        assert live.pinned in (None, effect.form)
        assert live.form is not Form.CLIENT_FULL or effect.form is Form.CLIENT_FULL
        turn = live.turn
        tried = live.unknown or turn.anchor in self.vain
        if effect.form is Form.AS_IS:
            here = turn.anchor is None or turn.anchor in self.made
            assert here or turn.standing in ANYWHERE  # 2
            assert here or turn.standing is not Standing.HELD_STORED or not tried  # 5
        elif effect.form is Form.REHYDRATED:
            assert turn.standing in REBUILT  # 7
            # The id costs a few bytes, the chain many thousand.
            assert (
                turn.anchor not in self.made or live.unknown or turn.standing is not Standing.HELD
            )
            assert tried or turn.standing is not Standing.HELD_STORED
        else:
            assert turn.standing is Standing.INJECTED  # 7
        live.ambiguous += live.open_send
        assert live.ambiguous <= self.ambiguous  # 11, 12
        live.sends += 1
        assert live.sends <= 3 + self.ambiguous  # 5: one for each kind of refusal
        live.open_send, live.form, live.pinned = True, effect.form, None
        self.carried = effect.turn
        self.attempts += 1
        self.begin_attempt()

    def judge_failure(self, effect: fx.FailTurn, event: Event) -> None:
        live = self.live.pop(effect.turn)  # a second end would be a KeyError: 41
        anchor = live.turn.anchor
        if effect.answer is Answer.OVERLOADED:
            assert len(self.live) == WAITING + 1
            return
        self.judge_blame(effect.failure, event)
        standing = live.turn.standing
        kind = effect.failure.kind if effect.failure is not None else None
        if isinstance(event, ev.UpstreamRefused) and not live.seen and live.form is Form.AS_IS:
            # What is wrong with an injected anchor is no word for a client that never sent it.
            assert standing is not Standing.INJECTED or kind in NOT_OF_THE_INPUT  # 4
        if effect.answer is Answer.NOT_FOUND:
            assert anchor is not None
            assert self.dead_ends[anchor] + self.silences[anchor] >= self.bounded  # 1
            assert standing not in (Standing.INJECTED, *REBUILT)  # 1
        elif effect.answer is Answer.UPSTREAM_ERROR and kind is FailureKind.NOT_FOUND:
            own = live.form is Form.CLIENT_FULL  # the client's own input, and what is said of it
            assert standing in (Standing.UNANCHORED, Standing.UNKNOWN) or own  # 1
        elif effect.answer is Answer.STREAM_INCOMPLETE:
            pass  # it was accepted
        elif kind is None or (kind is FailureKind.NOT_FOUND and standing in RECOVERABLE):
            assert anchor is not None
            assert kind is not None or anchor not in self.made  # its socket knows it
            self.dead_ends[anchor] += 1
            assert self.dead_ends[anchor] <= self.bounded  # 5
        elif anchor is not None and event == ev.DeadlineReached(Timer.CREATED):
            self.silences[anchor] += 1
        assert self.carried != effect.turn  # 24

    def judge_blame(self, failure: Failure | None, event: Event) -> None:
        """Each attempt starts clean: what is told is what has just happened (16, 31)."""
        mine: Failure | None = None
        if isinstance(event, ev.OutputReceived):
            mine = classify(Malformed("too much before response.created"))
        elif isinstance(event, ev.ConnectionLost | ev.UpstreamRefused | ev.ResponseEnded):
            mine = classify(event.cause) if event.cause is not None else None
        elif isinstance(event, ev.DeadlineReached):
            mine = classify(TimedOut(event.timer))
        # A waiting turn that goes next may be refused by the socket at hand: nothing failed then.
        assert failure in (None, mine)

    # ------------------------------------------------------------ at any time

    @invariant()
    def nothing_is_stranded(self) -> None:
        if not hasattr(self, "session"):
            return
        state = self.session.state
        assert self.carried is None or self.carried in self.live
        if self.carried is not None:
            assert (state.phase in (Phase.CREATED, Phase.OUTPUT)) is self.begun
        assert (state.running is not None) == bool(self.live)  # 18, 41
        assert len(self.live) == len(state.waiting) + (state.running is not None)  # 21
        if self.live:
            assert self.socket == "connecting" or self.carried is not None
            assert self.session.next_timeout() is not None  # so it will end
        assert hash(state) == hash(attrs.evolve(state))

    def teardown(self) -> None:
        """Left alone, with an upstream that is silent for ever, every turn comes to its end."""
        if not hasattr(self, "session"):
            return
        for _ in range(200):
            if self.session.next_timeout() is None:
                break
            self.deadline_passes()
        assert not self.live  # 41
        assert self.socket == "none"  # 18
        assert self.session.next_timeout() is None


def failures_of(turn: int, effects: tuple[Effect, ...]) -> list[fx.FailTurn]:
    return [each for each in effects if isinstance(each, fx.FailTurn) and each.turn == turn]


# A run that fails is shrunk for up to 300 s. If the general limit of 60 s ends that, Hypothesis
# reports FlakyStrategyDefinition instead of the failure.
@pytest.mark.timeout(400)
def test_a_session_keeps_the_invariants() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=500, stateful_step_count=40, database=None),
    )
