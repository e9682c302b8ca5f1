"""A session under long random histories, checked by the reference model.

What belongs here: the events. The effects are checked by the model of ``bridgecore.verify.model``,
as in the explorer; from the model's state it also follows which events are possible. Unlike the
explorer, a machine has no bounds: any evidence, ids and times and long histories, but each only by
chance. Asserted here is only what the model does not check.
"""

from __future__ import annotations

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
from bridgecore.recovery.effects import Effect, RequestForm
from bridgecore.recovery.events import Event, Outcome, Standing, Turn
from bridgecore.recovery.failure import Closed, ErrorFrame, Malformed
from bridgecore.recovery.policy import DEFAULT, PR397, Policy, replaying
from bridgecore.recovery.state import Phase
from bridgecore.recovery.timers import NS_PER_SECOND, Timer
from bridgecore.testing.strategies import error_frames, losses
from bridgecore.verify.model import Model
from bridgecore.verify.monitor import WatchedSession
from bridgecore.verify.properties import Property

WAITING = 2
# Properties that a policy is known to break are not checked for it.
BROKEN: dict[str, frozenset[Property]] = {
    "default": frozenset(),
    "replaying": frozenset({Property.NO_AMBIGUOUS_RESEND}),
    "pr397": frozenset(
        {
            Property.NO_AMBIGUOUS_RESEND,
            Property.REBIND_CODE_IS_PROVEN,
            Property.REBIND_CODE_IS_NOT_WITHHELD,
            Property.REFUSALS_ARE_BOUNDED,
            Property.REFUSED_IS_NOT_REPEATED,
        }
    ),
}
POLICIES: dict[str, Policy] = {
    "default": DEFAULT,
    "replaying": replaying(DEFAULT),
    "pr397": PR397,
}
UNREADABLE = Malformed("a terminal event without a response that can be read")
LIMIT = ErrorFrame(400, "websocket_connection_limit_reached")
TOO_LARGE = ErrorFrame(413, "request_too_large")
# Events that end much are drawn rarely.
ODDS = st.integers(0, 3)
SECONDS = st.sampled_from([*[0] * 6, *[1] * 6, 10, 60, 300, 1000, 3600])


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.serial = 0  # of turns
        self.attempts = 0  # sends of all turns together
        # The anchors that a client can name, and what the bridge holds of each.
        self.standings: dict[str, Standing] = {}
        self.retired = False
        self.just_sent = ""  # the reason, if the last event caused a send
        self.unsent: tuple[int, RequestForm] | None = (
            None  # the turn whose frame did not leave, its form
        )

    @initialize(
        name=st.sampled_from(["default", "default", "replaying", "pr397"]),
        refusals=st.integers(0, 3),
        warm=st.booleans(),
        remote=st.sampled_from([False, False, True]),
    )
    def begin(self, name: str, refusals: int, warm: bool, remote: bool) -> None:
        policy = POLICIES[name]
        budgets = attrs.evolve(policy.budgets, waiting=WAITING, refusals=refusals, warm=warm)
        policy = attrs.evolve(policy, budgets=budgets)
        # The way in which pr397 handles a lost owner breaks OWNER_LOSS_REBINDS and affects all that
        # follows.
        remote = remote and name != "pr397"
        self.session = WatchedSession(policy, remote=remote, without=BROKEN[name])

    @property
    def model(self) -> Model:
        return self.session.monitor.model

    @property
    def carried(self) -> int | None:
        return self.model.carried

    @property
    def live(self) -> list[int]:
        """The turns that have not ended."""
        return [turn.id for turn in self.model.turns]

    # ------------------------------------------------------------ what happens

    def tell(self, event: Event) -> tuple[Effect, ...]:
        self.just_sent = ""
        turns = {turn.id: turn for turn in self.model.turns}
        effects = self.session.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, fx.SendTurn):
                self.attempts += 1
                answers = isinstance(event, ev.ResponseEnded | ev.UpstreamRefused)
                unsent = getattr(event, "unsent", False)
                self.just_sent = "upstream" if answers and not unsent else "somebody"
                if self.unsent is not None and self.unsent[0] == effect.turn:
                    # Its form was chosen, and no event has shown it to be wrong.
                    assert self.unsent[1] in (RequestForm.AS_IS, effect.form)
                    self.unsent = None
            # What the upstream says of an anchor, or of a rebuilt input, is recorded for good.
            elif isinstance(effect, fx.StopInjecting):
                self.standings.pop(turns[effect.turn].anchor or "", None)
            elif isinstance(effect, fx.StopRebuilding):
                turn = turns[effect.turn]
                stored = turn.standing is Standing.HELD_STORED
                self.standings[turn.anchor or ""] = Standing.STORED if stored else Standing.BOUND
            elif isinstance(effect, fx.RetireSession):
                self.retired = True
        return effects

    def submit_turn(self, standing: Standing, anchor: str | None) -> None:
        self.serial += 1
        self.retired = False
        self.tell(ev.TurnSubmitted(Turn(self.serial, standing, anchor)))

    @rule()
    def submit_unanchored(self) -> None:
        self.submit_turn(Standing.UNANCHORED, None)

    @rule(
        standing=st.sampled_from(
            [Standing.HELD, Standing.HELD_STORED, Standing.UNKNOWN, Standing.BOUND]
        )
    )
    def submit_foreign(self, standing: Standing) -> None:
        """An anchor that no connection of this session has made."""
        anchor = f"foreign_{standing.value}"
        self.standings[anchor] = standing
        self.submit_turn(standing, anchor)

    @precondition(lambda self: self.standings)
    @rule(data=st.data())
    def submit_anchored(self, data: st.DataObject) -> None:
        here = [self.model.cached] * 20 if self.model.cached in self.standings else []
        anchor = data.draw(st.sampled_from([*here, *sorted(self.standings)]))
        self.submit_turn(self.standings[anchor], anchor)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), odds=ODDS)
    def abandon(self, data: st.DataObject, odds: int) -> None:
        if odds:
            return
        self.tell(ev.TurnAbandoned(data.draw(st.sampled_from(self.live))))

    @precondition(lambda self: self.model.socket == "connecting")
    @rule()
    def opened(self) -> None:
        self.tell(ev.ConnectionOpened(self.model.generation))

    @rule(
        steps=st.integers(1, 6),
        standing=st.sampled_from(Standing),
        outcome=st.sampled_from([Outcome.COMPLETED, Outcome.INCOMPLETE]),
    )
    def go_on(self, steps: int, standing: Standing, outcome: Outcome) -> None:
        """The next event of an undisturbed turn; otherwise few turns would ever be answered."""
        for _ in range(steps):
            if self.model.socket == "connecting":
                self.opened()
            elif self.carried is None:
                anchor = self.model.cached if self.model.cached in self.standings else None
                self.submit_turn(self.standings.get(anchor or "", Standing.UNANCHORED), anchor)
            elif not self.model.begun:
                self.created("own")
            else:
                self.ended(outcome, standing, "own")

    # Sequences that chance alone would rarely produce.

    @precondition(lambda self: self.carried is not None)
    @rule(cause=error_frames(), lost=losses(), sized=st.booleans(), odd=st.booleans())
    def read_together(self, cause: ErrorFrame, lost: Any, sized: bool, odd: bool) -> None:
        """The event that ends an attempt comes together with the one that prevents the
        next send."""
        if self.model.begun:
            self.ended(Outcome.COMPLETED, Standing.BOUND, "own")
        else:
            self.refuse(cause)
        if self.just_sent == "upstream" and odd:
            self.refuse_unsent(sized)
        elif self.just_sent == "upstream":
            self.lost_unsent(lost)

    @precondition(lambda self: self.model.ended and self.unanswered())
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

    @precondition(lambda self: self.unanswered())
    @rule()
    def silence_and_the_same_again(self) -> None:
        turn = self.running()
        self.time_passes(60)
        if turn.id not in self.live:
            self.submit_turn(turn.standing, turn.anchor)

    def unanswered(self) -> bool:
        """A turn was sent, and no event of its answer has come."""
        return self.carried is not None and not self.model.begun

    def running(self) -> Turn:
        running = self.session.state.running
        assert running is not None
        return running.turn

    @precondition(lambda self: self.model.socket != "none")
    @rule(cause=losses() | st.just(Closed(1009)), odds=ODDS)
    def lost(self, cause: Any, odds: int) -> None:
        if odds and self.carried is None:
            return
        self.tell(ev.ConnectionLost(self.model.generation, cause))

    @precondition(lambda self: self.just_sent == "upstream")
    @rule(cause=losses())
    def lost_unsent(self, cause: Any) -> None:
        """The frame that the upstream's event caused was not sent: the loss is not ambiguous."""
        running = self.session.state.running
        assert running is not None
        assert running.sent is not None
        self.unsent = running.turn.id, running.sent
        effects = self.tell(ev.ConnectionLost(self.model.generation, cause, unsent=True))
        assert [type(effect) for effect in effects] == [fx.OpenConnection]

    @precondition(lambda self: self.carried is not None)
    @rule(whole=st.booleans())
    def sent(self, whole: bool) -> None:
        """``whole``: its last part was sent, too; until then the frame is still being sent."""
        before = self.session.state.phase
        self.tell(ev.FrameSent(self.model.generation, whole))
        assert whole or self.session.state.phase is before

    # An event of an answer; ``named`` says which id it has.

    def call(self, named: str) -> str | None:
        own = f"resp_{self.attempts}"
        return {"own": own, "other": f"{own}_b", "none": None, "doubt": self.model.doubt}[named]

    @precondition(lambda self: self.carried is not None)
    @rule(named=st.sampled_from(["own", "own", "other", "none"]))
    def created(self, named: str) -> None:
        self.tell(ev.ResponseCreated(self.model.generation, self.call(named)))

    @precondition(lambda self: self.carried is not None)
    @rule(
        bearing=st.booleans(),
        room=st.sampled_from([True, True, True, False]),
        named=st.sampled_from(["own", "other", "none", "doubt"]),
    )
    def output(self, bearing: bool, room: bool, named: str) -> None:
        self.tell(ev.OutputReceived(self.model.generation, bearing, room, self.call(named)))

    @precondition(lambda self: self.carried is not None)
    @rule(
        outcome=st.sampled_from([Outcome.COMPLETED, Outcome.INCOMPLETE]),
        standing=st.sampled_from(Standing),
        named=st.sampled_from(["own", "own", "other", "none", "doubt"]),
    )
    def ended(self, outcome: Outcome, standing: Standing, named: str) -> None:
        name = self.call(named)
        last = name or (self.model.names[-1] if self.model.names else self.model.doubt)
        if last is not None and standing is not Standing.UNANCHORED:
            self.standings[last] = standing
        self.tell(ev.ResponseEnded(self.model.generation, outcome, name))

    @precondition(lambda self: self.carried is not None)
    @rule(
        cause=st.none() | error_frames() | st.just(UNREADABLE),
        named=st.sampled_from(["own", "other", "none"]),
    )
    def failed(self, cause: ErrorFrame | Malformed | None, named: str) -> None:
        name = self.call(named)
        if name is not None:
            # a client may try, but the response cannot be continued
            self.standings[name] = Standing.BOUND
        self.tell(ev.ResponseEnded(self.model.generation, Outcome.FAILED, name, cause))

    # Late and repeated events of responses that have ended on this connection.

    def late_names(self) -> list[str]:
        own = (*self.model.names, self.model.doubt)
        return [name for name in self.model.ended if name not in own]

    @precondition(lambda self: self.late_names())
    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        generation, name = self.model.generation, data.draw(st.sampled_from(self.late_names()))
        events: list[Event] = [
            ev.OutputReceived(generation, True, True, name),
            ev.OutputReceived(generation, False, True, name),
            ev.OutputReceived(generation, False, False, name),
            ev.ResponseEnded(generation, Outcome.COMPLETED, name),
            ev.ResponseEnded(generation, Outcome.INCOMPLETE, name),
            ev.ResponseEnded(generation, Outcome.FAILED, name, ErrorFrame(400, "x")),
            ev.ResponseEnded(generation, Outcome.FAILED, name, UNREADABLE),
        ]
        if not self.unanswered():
            events.append(ev.ResponseCreated(generation, name))
        self.nothing_happens(data.draw(st.sampled_from(events)))

    @precondition(lambda self: self.model.ended and self.unanswered())
    @rule(data=st.data())
    def created_in_doubt(self, data: st.DataObject) -> None:
        """A late copy, or an upstream that reuses an id: not known yet."""
        name = data.draw(st.sampled_from(self.model.ended))
        self.tell(ev.ResponseCreated(self.model.generation, name))

    # Refusals.

    @precondition(lambda self: self.carried is not None)
    @rule(cause=error_frames())
    def refuse(self, cause: ErrorFrame) -> None:
        self.tell(ev.UpstreamRefused(self.model.generation, cause))

    @precondition(lambda self: self.just_sent)
    @rule(sized=st.booleans())
    def refuse_unsent(self, sized: bool) -> None:
        """The same frame was refused for its size before; or the upstream said, in the read that
        caused the send, that the connection is too old."""
        cause = TOO_LARGE if sized or self.just_sent != "upstream" else LIMIT
        self.tell(ev.UpstreamRefused(self.model.generation, cause, unsent=True))

    # Events that have to be ignored.

    @precondition(lambda self: self.model.generation > 1)
    @rule(data=st.data())
    def something_old(self, data: st.DataObject) -> None:
        generation = data.draw(st.integers(0, self.model.generation - 1))
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
        """The model agrees that ``event`` has to be ignored; then it checks that nothing
        is done."""
        assert not self.model.requires_reaction(event, self.now)
        assert self.tell(event)  # the effect is ``Ignored``

    @precondition(lambda self: self.live)
    @rule(data=st.data(), paused=st.booleans())
    def slow_reader(self, data: st.DataObject, paused: bool) -> None:
        self.tell(ev.RelayPaused(data.draw(st.sampled_from(self.live)), paused))

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
        deadline = self.session.next_timeout()
        assert deadline is not None
        self.now = max(self.now, deadline.at)
        self.tell(ev.DeadlineReached(deadline.reason))

    # ------------------------------------------------------------ at any time

    @invariant()
    def the_state_and_the_books_agree(self) -> None:
        """The model never reads the state of a session; but what others read there is
        right, too."""
        if not hasattr(self, "session"):
            return
        state, model = self.session.state, self.model
        running = [] if state.running is None else [state.running.turn]
        waiting = [waiting.turn for waiting in state.waiting]
        assert [turn.id for turn in (*running, *waiting)] == self.live
        if self.carried is not None:
            assert (state.phase in (Phase.CREATED, Phase.OUTPUT)) is model.begun
        assert state.cached_response == model.cached
        assert (state.generation, state.remote) == (model.generation, model.remote)
        assert hash(state) == hash(attrs.evolve(state))

    def teardown(self) -> None:
        """Without further events, with a silent upstream, every turn ends by its deadline."""
        if not hasattr(self, "session") or self.session.monitor.violation is not None:
            return
        for _ in range(200):
            if self.session.next_timeout() is None:
                break
            self.deadline_passes()
        assert not self.live
        assert self.model.socket == "none"
        assert self.session.next_timeout() is None


# A run that fails is shrunk for up to 300 s. If the general limit of 60 s ends that, Hypothesis
# reports FlakyStrategyDefinition instead of the failure.
@pytest.mark.timeout(400)
def test_a_session_keeps_the_invariants() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=500, stateful_step_count=40, deadline=None, database=None),
    )
