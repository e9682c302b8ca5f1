"""A session against a model that shares no code with the rules.

The model keeps its own books: which connection is open, what its upstream remembers, which turns
have not ended, what the client of each has seen, what nobody can know. It is told what happens and
judges what the session does about it; the numbers are those of the invariants in the documentation.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
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
from bridgecore.recovery.failure import Closed, ErrorFrame, Failure, FailureKind, TimedOut, classify
from bridgecore.recovery.policy import DEFAULT, POLICIES
from bridgecore.recovery.session import Session
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.testing.strategies import error_frames, losses

WAITING = 2
RECOVERABLE = (Standing.STORED, Standing.BOUND)  # not-found is refused, and then the truth
ANYWHERE = (Standing.STORED, Standing.UNKNOWN)  # any socket may know such an anchor


@attrs.define
class Live:
    """A turn that has not ended."""

    turn: Turn
    sends: int = 0
    ambiguous: int = 0  # sends again, though nobody could know what became of the one before
    open_send: bool = False  # the latest send was not refused by the upstream itself
    seen: bool = False  # its client has seen the answer begin
    created: int = 0


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.live: dict[int, Live] = {}
        self.serial = 0
        self.generation = 0
        self.socket = "none"  # none, connecting, open
        self.made: set[str] = set()  # responses that this connection has made
        self.carried: int | None = None  # the turn whose frame the connection carries
        self.standings: dict[str, Standing] = {}  # of every response there ever was
        # Since an anchor was accepted: how often it met a dead end, and how often silence.
        self.dead_ends: Counter[str] = Counter()
        self.silences: Counter[str] = Counter()
        self.retired = False

    @initialize(name=st.sampled_from(["default", "pr397"]), refusals=st.integers(0, 3))
    def begin(self, name: str, refusals: int) -> None:
        policy = POLICIES[name]
        self.ambiguous = 0 if policy is DEFAULT else policy.budgets.replays
        self.bounded = refusals
        budgets = attrs.evolve(policy.budgets, waiting=WAITING, refusals=refusals)
        self.session = Session(attrs.evolve(policy, budgets=budgets))

    # ------------------------------------------------------------ what happens

    def tell(self, event: Event) -> None:
        self.judge(event, self.session.handle(event, self.now))

    def submit_turn(self, standing: Standing, anchor: str | None) -> None:
        self.serial += 1
        turn = Turn(self.serial, standing, anchor)
        self.live[turn.id] = Live(turn)
        self.retired = False
        self.tell(ev.TurnSubmitted(turn))

    @rule()
    def submit_unanchored(self) -> None:
        self.submit_turn(Standing.UNANCHORED, None)

    @rule(standing=st.sampled_from([Standing.HELD, Standing.UNKNOWN, Standing.BOUND]))
    def submit_foreign(self, standing: Standing) -> None:
        """An anchor that no connection here has made."""
        anchor = f"foreign_{standing.value}"
        self.standings[anchor] = standing
        self.submit_turn(standing, anchor)

    @precondition(lambda self: self.standings)
    @rule(data=st.data())
    def submit_anchored(self, data: st.DataObject) -> None:
        anchor = data.draw(st.sampled_from(sorted(self.standings)))
        self.submit_turn(self.standings[anchor], anchor)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[number]
        self.tell(ev.TurnAbandoned(number))
        # A slot is not used again before its terminal event: else the connection is gone.
        assert self.carried != number

    @precondition(lambda self: self.socket == "connecting")
    @rule()
    def opened(self) -> None:
        self.socket = "open"
        self.made = set()
        self.tell(ev.ConnectionOpened(self.generation))

    @precondition(lambda self: self.socket != "none")
    @rule(cause=losses())
    def lost(self, cause: Any) -> None:
        self.socket, self.carried = "none", None
        self.made = set()
        self.tell(ev.ConnectionLost(self.generation, cause))

    @precondition(lambda self: self.carried is not None)
    @rule()
    def sent(self) -> None:
        self.tell(ev.FrameSent(self.generation))

    @precondition(lambda self: self.carried is not None)
    @rule()
    def created(self) -> None:
        self.accepted()
        self.tell(ev.ResponseCreated(self.generation))

    @precondition(lambda self: self.carried is not None)
    @rule(bearing=st.booleans())
    def output(self, bearing: bool) -> None:
        self.accepted()
        self.tell(ev.OutputReceived(self.generation, bearing))

    def accepted(self) -> None:
        assert self.carried is not None
        anchor = self.live[self.carried].turn.anchor
        if anchor is not None:
            self.dead_ends[anchor] = self.silences[anchor] = 0

    @precondition(lambda self: self.carried is not None)
    @rule(outcome=st.sampled_from(Outcome), standing=st.sampled_from(Standing))
    def ended(self, outcome: Outcome, standing: Standing) -> None:
        assert self.carried is not None
        self.accepted()
        response = f"resp_{self.carried}"
        self.made = {response} if outcome is Outcome.COMPLETED else set()
        if outcome is Outcome.COMPLETED and standing is not Standing.UNANCHORED:
            self.standings[response] = standing
        ended, self.carried = self.carried, None
        self.ending = ended
        self.tell(ev.ResponseEnded(self.generation, outcome, response))
        assert ended not in self.live

    @precondition(lambda self: self.carried is not None)
    @rule(cause=error_frames())
    def refuse(self, cause: ErrorFrame) -> None:
        assert self.carried is not None
        live = self.live[self.carried]
        live.open_send = False
        if not live.seen:
            self.made.discard(live.turn.anchor or "")
        self.carried = None
        self.tell(ev.UpstreamRefused(self.generation, cause))

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
            ev.UpstreamRefused(generation, ErrorFrame(500)),
        ]
        self.nothing_happens(data.draw(st.sampled_from(events)))

    @rule(timer=st.sampled_from(Timer))
    def spurious_deadline(self, timer: Timer) -> None:
        self.nothing_happens(ev.DeadlineReached(timer))

    def nothing_happens(self, event: Event) -> None:
        before = self.session.state
        effects = self.session.handle(event, self.now)
        assert all(isinstance(effect, fx.Ignored) for effect in effects)
        assert self.session.state is before

    @precondition(lambda self: self.live)
    @rule(data=st.data(), paused=st.booleans())
    def slow_reader(self, data: st.DataObject, paused: bool) -> None:
        self.tell(ev.RelayPaused(data.draw(st.sampled_from(sorted(self.live))), paused))

    @precondition(lambda self: not self.retired)
    @rule()
    def evict(self) -> None:
        self.tell(ev.EvictionRequested())

    @rule(seconds=st.sampled_from([1, 10, 60, 300, 1000, 3600]))
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
                self.socket, self.carried = "none", None
                self.made = set()
            elif isinstance(effect, fx.SendTurn):
                self.judge_send(effect)
            elif isinstance(effect, fx.DeliverEvent):
                live = self.live[effect.turn]
                assert effect.turn == self.carried  # 24
                assert isinstance(event, ev.ResponseCreated | ev.OutputReceived)
                live.seen = True
                live.created += isinstance(event, ev.ResponseCreated)
                assert live.created <= 1  # 14
            elif isinstance(effect, fx.CompleteTurn):
                assert isinstance(event, ev.ResponseEnded)
                assert effect.turn == self.ending  # 24
                del self.live[effect.turn]  # a second end would be a KeyError: 41
            elif isinstance(effect, fx.FailTurn):
                self.judge_failure(effect, event)
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
        turn = live.turn
        if effect.form is Form.AS_IS:
            assert turn.anchor is None or turn.anchor in self.made or turn.standing in ANYWHERE  # 2
        else:
            full = Standing.HELD if effect.form is Form.REHYDRATED else Standing.INJECTED
            assert turn.standing is full  # 7
        live.ambiguous += live.open_send
        assert live.ambiguous <= self.ambiguous  # 11, 12
        live.sends += 1
        assert live.sends <= 3 + self.ambiguous  # 5: one for each kind of refusal
        live.open_send = True
        self.carried = effect.turn

    def judge_failure(self, effect: fx.FailTurn, event: Event) -> None:
        live = self.live.pop(effect.turn)  # a second end would be a KeyError: 41
        anchor = live.turn.anchor
        if effect.answer is Answer.OVERLOADED:
            assert len(self.live) == WAITING + 1
            return
        self.judge_blame(effect.failure, event)
        standing = live.turn.standing
        kind = effect.failure.kind if effect.failure is not None else None
        if effect.answer is Answer.NOT_FOUND:
            assert anchor is not None
            assert self.dead_ends[anchor] + self.silences[anchor] >= self.bounded  # 1
            assert standing not in (Standing.HELD, Standing.INJECTED)  # 1
        elif effect.answer is Answer.UPSTREAM_ERROR and kind is FailureKind.NOT_FOUND:
            assert standing in (Standing.UNANCHORED, Standing.UNKNOWN)  # 1
        elif kind is None or (kind is FailureKind.NOT_FOUND and standing in RECOVERABLE):
            assert anchor is not None
            self.dead_ends[anchor] += 1
            assert self.dead_ends[anchor] <= self.bounded  # 5
        elif anchor is not None and event == ev.DeadlineReached(Timer.CREATED):
            self.silences[anchor] += 1
        if self.carried == effect.turn:
            assert isinstance(event, ev.UpstreamRefused)

    def judge_blame(self, failure: Failure | None, event: Event) -> None:
        """Each attempt starts clean: what is told is what has just happened (16, 31)."""
        if isinstance(event, ev.ConnectionLost | ev.UpstreamRefused):
            mine = classify(event.cause)
        elif isinstance(event, ev.DeadlineReached):
            mine = classify(TimedOut(event.timer))
        else:
            mine = None
        # A waiting turn that goes next may be refused by the socket at hand: nothing failed then.
        assert failure in (None, mine)

    # ------------------------------------------------------------ at any time

    @invariant()
    def nothing_is_stranded(self) -> None:
        if not hasattr(self, "session"):
            return
        state = self.session.state
        assert self.carried is None or self.carried in self.live
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


def test_a_session_keeps_the_invariants() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=150, stateful_step_count=40, deadline=None, database=None),
    )
