"""A ``Bridge`` and an ``Endpoint`` under long random histories, checked by models of their own.

What belongs here: rule-based state machines. Their models share no code with the bridge: which
turns have not ended, what each link carries and remembers, which credential each conversation has,
which context each response has. They are updated with each event and check its effects; the
comments name the properties (``verify/properties.py``, ``verify/explore_bridge.py``). The decisions
of each session are checked by the reference model of the explorer, from the decision log, if the
policy has the cells of ``default``. ``tests/recovery/test_machine.py`` checks one ``Session`` by
itself with that model.

The last part asserts coverage: over these machines and ``strategies.histories``, with the same
random choices in every run, every rule of the core that can apply did apply.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bridgecore import messages as msg
from bridgecore.bridge import Bridge
from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.errors import LocalProtocolError
from bridgecore.recovery import effects as fx
from bridgecore.recovery import session as session_module
from bridgecore.recovery.events import Event
from bridgecore.recovery.failure import Closed, ErrorFrame, Evidence
from bridgecore.recovery.policy import DEFAULT, POLICIES, Policy
from bridgecore.recovery.rules import (
    ENDED_RESPONSE,
    RULES,
    SPURIOUS_DEADLINE,
    STALE_GENERATION,
    Handling,
    Transition,
    step,
)
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing import strategies
from bridgecore.testing.faults import Fault
from bridgecore.testing.network import ByteClient
from bridgecore.transport import Log
from bridgecore.verify.replay import Replay
from bridgecore.wire.decisions import DECISION
from bridgecore.wire.requests import parse_create
from bridgecore.wire.responses import EventKind
from tests.endpoint_world import World, read_answers

SECOND = NS_PER_SECOND
KEYS = ("sk-one", "sk-two", "sk-three")
MAX_WAITING, MAX_SESSIONS = 2, 3
# Secrets and contents that must not be in a log.
SECRETS = re.compile(r"sk-|mark-|said-|resp_")
# The marks of texts, in their order in a body.
WORDS = re.compile(rb"(?:mark|said)-[0-9]+")
# Long times are rare: they end whatever is going on.
SECONDS = st.sampled_from([0, 0, 1, 1, 5, 9, 9, 14, 16, 59, 61, 250, 250, 301, 901, 4000])


# ------------------------------------------------------------------ a bridge


@attrs.define
class Made:
    """A response that an upstream completed."""

    key: str
    store: bool
    items: list[dict[str, Any]]  # the whole context, its own output included

    @property
    def words(self) -> list[bytes]:
        return WORDS.findall(json.dumps(self.items).encode())


@attrs.define
class Asked:
    """A turn whose answer has not ended."""

    key: str
    store: bool
    items: list[dict[str, Any]] | None  # its whole context; None if only the upstream knows it
    created: int = 0
    begun: bool = False


@attrs.define
class Wire:
    """A link as its upstream sees it."""

    key: str
    open: bool = False
    carries: int | None = None  # the turn of the latest frame, until its response ends
    sent: bool = False
    accepted: bool = False
    paused: bool = False


UNMATCHED = ["response.output_text.delta", "response.created", "response.completed", "error", "x"]


def user(number: int) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": f"mark-{number}"}


def event(kind: str, **fields: object) -> bytes:
    return json.dumps({"type": kind, **fields}, separators=(",", ":")).encode()


class BridgeMachine(RuleBasedStateMachine):
    """Turns of three credentials, links that open, break and answer, and time."""

    logs: list[tuple[Config, list[tuple[msg.BridgeEvent, int]]]] | None = None  # when recording

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.serial = 0
        self.asked: dict[int, Asked] = {}
        self.wires: dict[int, Wire] = {}
        self.links: set[int] = set()  # all that ever existed
        self.made: dict[str, Made] = {}
        self.ended: set[int] = set()

    @initialize(
        policy=st.sampled_from([DEFAULT, DEFAULT, POLICIES["pr397"]]) | strategies.policies(),
        continuity=st.sampled_from([Continuity.TRANSCRIPT, *Continuity]),
        short=st.booleans(),
    )
    def begin(self, policy: Policy, continuity: Continuity, short: bool) -> None:
        self.strict = policy is DEFAULT
        self.config = Config(
            upstream=UpstreamUrl.parse("ws://up/"),
            policy=policy,
            max_waiting=MAX_WAITING,
            max_sessions=MAX_SESSIONS,
            continuity=continuity,
            transcript_bytes=100_000,
            upstream_lifetime=(20 if short else 3300) * SECOND,
            turn_timeout=(50 if short else 3600) * SECOND,
            decisions=self.strict,
        )
        self.decisions = Replay(watched=True)
        self.bridge = Bridge(self.config)
        self.log: list[tuple[msg.BridgeEvent, int]] = []
        if self.logs is not None:
            self.logs.append((self.config, self.log))

    # ------------------------------------------------------------ what happens

    def tell(self, event: msg.BridgeEvent) -> list[msg.BridgeEffect]:
        """The effects of ``event``; its lines in the decision log are checked here."""
        self.log.append((event, self.now))
        effects = []
        for effect in self.bridge.handle(event, self.now):
            if isinstance(effect, Log) and effect.event == DECISION:
                assert self.decisions.take(str(effect.fields["line"]).encode()) is None
            else:
                effects.append(effect)
            self.judge(effect)
        return effects

    def ask(self, asked: Asked, body: dict[str, Any]) -> None:
        """Receive a turn. Its number decides how far it goes at once, so that much is under way."""
        self.asked[self.serial] = asked
        headers = [(b"authorization", f"Bearer {asked.key}".encode()), (b"cookie", b"mark-0")]
        data = json.dumps({"model": "m", "store": asked.store, **body}).encode()
        self.tell(msg.TurnReceived(self.serial, parse_create(data), headers))
        self.go_well(self.serial % 6)

    @rule(key=st.sampled_from(KEYS), store=st.booleans())
    def ask_first(self, key: str, store: bool) -> None:
        self.serial += 1
        items = [user(self.serial)]
        self.ask(Asked(key, store, items), {"input": items})

    @precondition(lambda self: self.made)
    @rule(data=st.data(), store=st.booleans())
    def ask_on(self, data: st.DataObject, store: bool) -> None:
        """A turn with the id of an earlier response and a new item."""
        response = data.draw(st.sampled_from(sorted(self.made)))
        made = self.made[response]
        self.serial += 1
        new = [user(self.serial)]
        asked = Asked(made.key, store, [*made.items, *new])
        self.ask(asked, {"input": new, "previous_response_id": response})

    @precondition(lambda self: self.made)
    @rule(data=st.data(), store=st.booleans())
    def ask_with_history(self, data: st.DataObject, store: bool) -> None:
        """A turn with a whole history."""
        made = self.made[data.draw(st.sampled_from(sorted(self.made)))]
        self.serial += 1
        items = [*made.items, user(self.serial)]
        self.ask(Asked(made.key, store, items), {"input": items})

    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def ask_foreign(self, data: st.DataObject, key: str) -> None:
        """A turn with an id of another credential or an unknown one: both have the same effects."""
        theirs = [name for name, made in self.made.items() if made.key != key]
        response = data.draw(st.sampled_from(["resp_nobody", *theirs]))
        self.serial += 1
        body = {"input": [user(self.serial)], "previous_response_id": response}
        self.ask(Asked(key, False, None), body)

    @rule(steps=st.integers(1, 6))
    def go_on(self, steps: int) -> None:
        self.go_well(steps)

    def go_well(self, steps: int) -> None:
        """Let all links make progress for a number of steps."""
        for _ in range(steps):
            for link, wire in list(self.wires.items()):
                if self.wires.get(link) is not wire:
                    continue
                if not wire.open:
                    self.open(link)
                elif wire.carries is not None and not wire.sent:
                    self.send(link)
                elif wire.carries is not None and not wire.accepted:
                    self.say(link, early=False, created=True, deltas=1)
                elif wire.carries is not None:
                    self.end_answer(link, "completed", created=False)

    def pick(self, data: st.DataObject, wanted: Callable[[Wire], bool]) -> int:
        return data.draw(st.sampled_from([n for n, wire in self.wires.items() if wanted(wire)]))

    @precondition(lambda self: any(not wire.open for wire in self.wires.values()))
    @rule(data=st.data())
    def opened(self, data: st.DataObject) -> None:
        self.open(self.pick(data, lambda wire: not wire.open))

    def open(self, link: int) -> None:
        self.wires[link].open = True
        self.tell(msg.LinkOpened(link))

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), cause=strategies.losses(), odds=st.integers(0, 2))
    def lost(self, data: st.DataObject, cause: Evidence, odds: int) -> None:
        if odds:
            return  # without a connection nothing else can happen: this is rare
        link = self.pick(data, lambda wire: True)
        del self.wires[link]
        self.tell(msg.LinkLost(link, cause))

    @precondition(lambda self: any(wire.carries is not None for wire in self.wires.values()))
    @rule(data=st.data())
    def sent(self, data: st.DataObject) -> None:
        self.send(self.pick(data, lambda wire: wire.carries is not None))

    def send(self, link: int) -> None:
        self.wires[link].sent = True
        self.tell(msg.LinkFrameSent(link))

    @precondition(lambda self: any(wire.carries is not None for wire in self.wires.values()))
    @rule(data=st.data(), early=st.booleans(), created=st.booleans(), deltas=st.integers(0, 3))
    def answered(self, data: st.DataObject, early: bool, created: bool, deltas: int) -> None:
        """Some events of an answer in one read, now and then with a second response.created."""
        self.say(self.pick(data, lambda wire: wire.carries is not None), early, created, deltas)

    def say(self, link: int, early: bool, created: bool, deltas: int) -> None:
        wire = self.wires[link]
        turn, events = wire.carries, []
        if early:
            events.append(event("codex.rate_limits", turn=turn))
        if created:
            events.append(self.created(turn))
        events += [event("response.output_text.delta", turn=turn, delta="x")] * deltas
        wire.accepted = wire.accepted or created or deltas > 0
        if events:
            self.tell(msg.MessagesReceived(link, events))

    def created(self, turn: int | None) -> bytes:
        return event("response.created", turn=turn, response={"id": f"resp_{turn}"})

    @precondition(lambda self: any(wire.carries is not None for wire in self.wires.values()))
    @rule(
        data=st.data(),
        how=st.sampled_from(["completed"] * 4 + ["incomplete", "failed"]),
        created=st.booleans(),
    )
    def completed(self, data: st.DataObject, how: str, created: bool) -> None:
        """The end of an answer, or all of it, in one read."""
        self.end_answer(self.pick(data, lambda wire: wire.carries is not None), how, created)

    def end_answer(self, link: int, how: str, created: bool) -> None:
        wire = self.wires[link]
        turn, asked = wire.carries, self.asked[wire.carries or 0]
        item = {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": f"said-{turn}"}],
        }
        events = [self.created(turn)] if created and not wire.accepted else []
        wire.carries = None
        response = {"id": f"resp_{turn}", "output": [item]}
        events.append(event(f"response.{how}", turn=turn, response=response))
        if how == "completed" and asked.items is not None:
            self.made[f"resp_{turn}"] = Made(asked.key, asked.store, [*asked.items, item])
        self.tell(msg.MessagesReceived(link, events))

    @precondition(lambda self: any(wire.carries is not None for wire in self.wires.values()))
    @rule(data=st.data(), error=strategies.error_frames())
    def refused(self, data: st.DataObject, error: ErrorFrame) -> None:
        link = self.pick(data, lambda wire: wire.carries is not None)
        turn, self.wires[link].carries = self.wires[link].carries, None
        fields = attrs.asdict(error)
        status = fields.pop("status")
        self.tell(
            msg.MessagesReceived(link, [event("error", turn=turn, status=status, error=fields)])
        )

    @precondition(
        lambda self: any(wire.open and wire.carries is None for wire in self.wires.values())
    )
    @rule(data=st.data(), kind=st.sampled_from(UNMATCHED))
    def unmatched(self, data: st.DataObject, kind: str) -> None:
        """An event on an idle link is delivered to no turn (DELIVERED_TO_ITS_TURN)."""
        link = self.pick(data, lambda wire: wire.open and wire.carries is None)
        effects = self.tell(msg.MessagesReceived(link, [event(kind, turn=0)]))
        assert all(isinstance(effect, Log) for effect in effects)

    @precondition(lambda self: any(wire.open for wire in self.wires.values()))
    @rule(data=st.data(), garbage=st.sampled_from([b"", b"{", b"[]", b'{"type":7}', b"\xff"]))
    def unreadable(self, data: st.DataObject, garbage: bytes) -> None:
        """An unreadable frame is delivered to no turn, and its link stays open."""
        link = self.pick(data, lambda wire: wire.open)
        effects = self.tell(msg.MessagesReceived(link, [garbage]))
        assert all(isinstance(effect, Log) for effect in effects)
        assert link in self.wires

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from(sorted(self.asked)))
        del self.asked[turn]
        self.tell(msg.TurnLeft(turn))
        # A link is not reused before the terminal event: it is closed (ONE_AT_A_TIME).
        assert all(wire.carries != turn for wire in self.wires.values())

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), blocked=st.booleans())
    def slow_reader(self, data: st.DataObject, blocked: bool) -> None:
        turn = data.draw(st.sampled_from(sorted(self.asked)))
        self.tell(msg.TurnBlocked(turn, blocked))

    @rule(data=st.data())
    def something_old(self, data: st.DataObject) -> None:
        """Late reports about a link or a turn that has ended have no effect."""
        turn = data.draw(st.sampled_from([10**6, *sorted(self.ended)]))
        events: list[msg.BridgeEvent] = [msg.TurnLeft(turn), msg.TurnBlocked(turn, True)]
        if gone := sorted(self.links - self.wires.keys()):
            link = data.draw(st.sampled_from(gone))
            events += [
                msg.LinkOpened(link),
                msg.LinkFrameSent(link),
                msg.MessagesReceived(link, [self.created(turn)]),
            ]
        assert self.tell(data.draw(st.sampled_from(events))) == []

    @rule(data=st.data())
    def misuse(self, data: st.DataObject) -> None:
        """Events that no correct driver reports raise an error and change nothing."""
        request = parse_create(b'{"model":"m","input":"x"}')
        headers: Any = [("authorization", "x")]
        code: Any = 1006
        text: Any = "{}"
        time: Any = data.draw(st.sampled_from([-1, 1.5, None, True]))
        events: list[Any] = [
            "foo",
            fx.RetireSession(),
            msg.CloseLink(1),
            msg.LinkOpened(0),
            msg.LinkFrameSent(10**6),
            msg.LinkLost(10**6, Closed(1006)),
            msg.MessagesReceived(10**6, [b"{}"]),
            msg.TurnLeft(-1),
            msg.TurnReceived(10**6, request, headers),
            *(msg.TurnReceived(turn, request, []) for turn in self.asked),
        ]
        for link, wire in self.wires.items():
            events.append(msg.LinkLost(link, code))
            if wire.open:
                events += [msg.LinkOpened(link), msg.MessagesReceived(link, [text])]
            else:
                events += [msg.LinkFrameSent(link), msg.MessagesReceived(link, [b"{}"])]
        before = self.bridge.snapshot(), self.bridge.next_timeout()
        event = data.draw(st.sampled_from(events))
        with pytest.raises(LocalProtocolError):
            self.bridge.handle(event, self.now)
        with pytest.raises(LocalProtocolError):
            self.bridge.handle(msg.BridgeTimeout(), time)
        assert (self.bridge.snapshot(), self.bridge.next_timeout()) == before

    @rule(odds=st.integers(0, 9))
    def evict(self, odds: int) -> None:
        if odds == 0:  # it ends what other rules need
            self.tell(msg.DrainStarted())

    @rule(seconds=SECONDS, late=st.booleans())
    def time_passes(self, seconds: int, late: bool) -> None:
        """Deadlines are reported on time, or all at once at the end."""
        end = self.now + seconds * SECOND
        while (deadline := self.bridge.next_timeout()) is not None and deadline.at <= end:
            self.deadline_passes(end if late else deadline.at)
        self.now = end

    def deadline_passes(self, at: int) -> None:
        self.now = max(self.now, at)
        self.tell(msg.BridgeTimeout())
        deadline = self.bridge.next_timeout()
        assert deadline is None or deadline.at > self.now  # DEADLINES_ARE_KEPT

    @rule()
    def spurious_deadline(self) -> None:
        deadline = self.bridge.next_timeout()
        if deadline is None or deadline.at > self.now:
            assert self.tell(msg.BridgeTimeout()) == []  # SPURIOUS_IS_NOTHING

    # ------------------------------------------------------------ what the bridge does

    def judge(self, effect: msg.BridgeEffect) -> None:
        if isinstance(effect, msg.OpenLink):
            assert effect.link not in self.wires
            credential = dict(effect.headers)[b"authorization"].decode()
            assert b"cookie" not in dict(effect.headers)
            self.links.add(effect.link)
            self.wires[effect.link] = Wire(credential.removeprefix("Bearer "))
        elif isinstance(effect, msg.CloseLink):
            del self.wires[effect.link]  # KeyError if it is gone: LIVE_GENERATION
        elif isinstance(effect, msg.PauseLink):
            if effect.link in self.wires:
                assert self.wires[effect.link].paused is not effect.paused
                self.wires[effect.link].paused = effect.paused
        elif isinstance(effect, msg.SendFrame):
            self.judge_frame(self.wires[effect.link], effect.data)  # LIVE_GENERATION
        elif isinstance(effect, msg.AnswerEvents):
            self.judge_answer(effect)
        elif isinstance(effect, msg.FailAnswer):
            self.end(effect.turn)
            if effect.error.status in (429, 502, 503, 504):
                assert effect.error.retry_after is None or effect.error.retry_after >= 0
        else:
            assert not SECRETS.search(repr(effect))

    def judge_frame(self, wire: Wire, data: bytes) -> None:
        body = json.loads(data)
        turn = int(WORDS.findall(data)[-1].removeprefix(b"mark-"))
        asked = self.asked[turn]
        assert wire.open  # OPEN_IS_OPEN
        assert wire.carries is None  # turns never overlap
        assert wire.key == asked.key  # CREDENTIALS_ARE_KEPT_APART
        anchor = body.get("previous_response_id")
        if asked.items is not None:
            # In every form of the input the context is the same: CONTEXT_IS_MEANT.
            before = self.made[anchor].words if anchor is not None else []
            said = [*before, *WORDS.findall(json.dumps(body["input"]).encode())]
            assert said == Made("", True, asked.items).words
        if self.strict:
            assert not asked.begun  # NO_REPLAY_AFTER_ANSWER
        wire.carries, wire.sent, wire.accepted = turn, False, False

    def judge_answer(self, effect: msg.AnswerEvents) -> None:
        asked = self.asked[effect.turn]
        first, last = effect.events[0], effect.events[-1]
        assert asked.begun or first.kind is EventKind.CREATED  # ANSWER_IS_WHOLE
        for upstream in effect.events:
            # The bridge makes the first response.created itself if the upstream sent none.
            may_be_own = upstream is first and not asked.begun
            caused_by = json.loads(upstream.data).get("turn", effect.turn if may_be_own else None)
            assert caused_by == effect.turn  # DELIVERED_TO_ITS_TURN
            asked.created += upstream.kind is EventKind.CREATED
            assert upstream is last or upstream.kind is not EventKind.ENDED  # ANSWER_IS_WHOLE
        asked.begun = True
        if self.strict:
            assert asked.created <= 1  # ANSWER_IS_WHOLE
        if last.kind is EventKind.ENDED:
            self.end(effect.turn)

    def end(self, turn: int) -> None:
        del self.asked[turn]  # KeyError at a second end: ONE_END
        self.ended.add(turn)

    # ------------------------------------------------------------ at any time

    @invariant()
    def the_model_agrees(self) -> None:
        if not hasattr(self, "bridge"):
            return
        bridge = self.bridge
        assert bridge.turns == len(self.asked)  # SESSIONS_ARE_LIMITED, ONE_END
        assert bridge.links == len(self.wires)
        carried = [wire.carries for wire in self.wires.values() if wire.carries is not None]
        assert len(set(carried)) == len(carried)
        assert set(carried) <= set(self.asked)  # ONE_AT_A_TIME
        assert 0 <= bridge.conversations <= MAX_SESSIONS  # SESSIONS_ARE_LIMITED
        assert len(self.asked) <= MAX_SESSIONS * (1 + MAX_WAITING)  # QUEUE_IS_BOUNDED
        assert len(self.wires) <= bridge.conversations
        assert 0 <= bridge.memory.size <= 100_000  # memory is bounded
        if self.asked:
            assert bridge.next_timeout() is not None  # some deadline will end the turns

    def teardown(self) -> None:
        """Without further events, with silent upstreams, every turn ends by its deadlines."""
        if not hasattr(self, "bridge"):
            return
        for _ in range(1000):
            deadline = self.bridge.next_timeout()
            if deadline is None:
                break
            self.deadline_passes(deadline.at)
        self.the_model_agrees()
        assert not self.asked  # ONE_END
        assert not self.wires  # NOTHING_IS_LEFT
        assert self.bridge.conversations == 0  # IDLE_IS_RETIRED
        assert self.bridge.memory.size == 0


# ------------------------------------------------------------------ an endpoint


@attrs.define
class Caller:
    """A client's connection, and what it has asked for on it."""

    client: ByteClient
    key: str
    marks: set[bytes] = attrs.Factory(set)
    unsent: list[bytes] = attrs.Factory(list)  # the rest of its latest request
    requests: int = 0  # requests that it sent completely
    reads: bool = True
    stays: bool = True  # it waits for its answers and sends nothing malformed
    cut_off: bool = False  # its connection was lost before a request was sent completely


class EndpointMachine(RuleBasedStateMachine):
    """Clients with three credentials, an upstream with faults, connections that break anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.serial = 0
        self.callers: list[Caller] = []
        self.responses: dict[str, str] = {}  # response id -> the credential that received it first
        self.owners: dict[bytes, str] = {}  # text -> the credential that sent it
        self.logs_read = self.requests_read = 0
        self.drained = False

    @initialize(
        policy=st.sampled_from(["default", "default", "pr397", "v1_12"]),
        continuity=st.sampled_from(Continuity),
        cut=st.none() | strategies.cutters(),
        pace=st.sampled_from([0, 0, SECOND]),
        lifetime=st.sampled_from([None, None, 100 * SECOND]),
    )
    def begin(
        self,
        policy: str,
        continuity: Continuity,
        cut: Callable[[bytes], list[bytes]] | None,
        pace: int,
        lifetime: int | None,
    ) -> None:
        self.world = World(
            policy=policy,
            split=cut,
            continuity=continuity,
            transcript_age=5000 * SECOND,  # shorter than the time in ``teardown``
            max_waiting=MAX_WAITING,
            decisions=policy == "default",
        )
        self.decisions = Replay(watched=True)
        self.world.emulator.delta_interval = pace
        self.world.emulator.lifetime = lifetime

    # ------------------------------------------------------------ what happens

    @rule(data=st.data(), key=st.sampled_from(KEYS), again=st.booleans())
    def ask(self, data: st.DataObject, key: str, again: bool) -> None:
        """Send a request, or its first pieces, on a new connection or an open one."""
        for _ in range(data.draw(st.integers(1, 3))):
            self.ask_once(data, key, again)

    def ask_once(self, data: st.DataObject, key: str, again: bool) -> None:
        usable = [c for c in self.callers if c.stays and not c.unsent and not c.client.closed]
        if again and usable:
            caller = data.draw(st.sampled_from(usable))
        else:
            try:
                caller = Caller(self.world.client(), key)
            except ConnectionRefusedError:
                assert self.drained
                return
            self.callers.append(caller)
        self.serial += 1
        caller.marks.add(b"mark-%d" % self.serial)
        self.owners[b"mark-%d" % self.serial] = caller.key
        mine = [name for name, owner in self.responses.items() if owner == caller.key]
        ids = [None, "resp_nobody", *self.responses, *mine[-2:]]
        body = strategies.create_bodies(
            {
                "model": st.just("m"),
                "input": st.just(f"mark-{self.serial}"),
                "previous_response_id": st.sampled_from(ids),
                "a_field_of_tomorrow": st.none(),
            }
        )
        sent = data.draw(strategies.http_requests(body, key=caller.key))
        caller.unsent = data.draw(strategies.splits(sent))
        for _ in range(data.draw(st.sampled_from([1, 20, 20, 20]))):
            self.send_piece(caller)

    def send_piece(self, caller: Caller) -> None:
        if caller.unsent:
            piece = caller.unsent.pop(0)
            caller.requests += not caller.unsent
            caller.cut_off = caller.cut_off or caller.client.peer_closed
            caller.client.send(piece)

    @precondition(lambda self: any(caller.unsent for caller in self.callers))
    @rule(data=st.data())
    def send_the_rest(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from([caller for caller in self.callers if caller.unsent]))
        while caller.unsent:
            self.send_piece(caller)

    @precondition(lambda self: not self.drained)
    @rule(bad=strategies.malformed_requests())
    def malformed(self, bad: bytes) -> None:
        client = self.world.client()
        client.send(bad)
        (answer,) = read_answers(bytes(client.received))
        assert answer.status == 400
        assert answer.error["code"]
        assert client.eof

    def draw(self, data: st.DataObject) -> Caller:
        return data.draw(st.sampled_from(self.callers))

    @precondition(lambda self: self.callers)
    @rule(data=st.data(), how=st.sampled_from(["half_close", "abort", "garbage"]))
    def leave(self, data: st.DataObject, how: str) -> None:
        caller = self.draw(data)
        if caller.client.closed:
            return
        caller.stays = False
        caller.unsent = []
        if how == "half_close":
            caller.client.half_close()
        elif how == "abort":
            caller.client.abort()
        else:
            caller.client.send(b"\xff\r\n\r\n")

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def slow_reader(self, data: st.DataObject) -> None:
        caller = self.draw(data)
        caller.reads = not caller.reads
        if caller.reads:
            caller.client.resume()
        else:
            caller.client.pause()

    @rule(fault=strategies.faults(), ahead=st.integers(1, 2), odds=st.integers(0, 1))
    def trouble(self, fault: Fault, ahead: int, odds: int) -> None:
        """A fault for one of the next connections or turns. Never for all: then little could
        happen."""
        if odds:
            return
        emulator = self.world.emulator
        of_connection = fault.point in strategies.CONNECTION_POINTS
        so_far = emulator.accepted if of_connection else len(emulator.requests)
        emulator.faults.add(so_far + ahead, fault)

    @rule(up=st.sampled_from([True] * 5 + [False]))
    def upstream_listens(self, up: bool) -> None:
        network = self.world.net
        network.add(self.world.emulator, "up", 80)
        if not up:
            network.remove_listener("up", 80)

    @rule(seconds=SECONDS, odd=st.integers(-1, 1))
    def time_passes(self, seconds: int, odd: int) -> None:
        self.world.net.advance(max(seconds * SECOND + odd, 0))  # checks DEADLINES_ARE_KEPT

    @rule(odds=st.integers(0, 30))
    def drain(self, odds: int) -> None:
        if odds == 0:  # little happens after it
            self.drained = True
            self.world.drain()

    # ------------------------------------------------------------ at any time

    @invariant()
    def the_model_agrees(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        endpoint, bridge = world.endpoint, world.endpoint.bridge
        connections = world.net.open_connections(endpoint)
        assert endpoint.clients + endpoint.upstreams == connections  # NOTHING_IS_LEFT
        assert 0 <= bridge.links <= endpoint.upstreams
        assert 0 <= bridge.turns <= endpoint.clients  # SESSIONS_ARE_LIMITED, ONE_END
        assert 0 <= bridge.links <= bridge.conversations + bridge.turns
        deadline = endpoint.next_timeout()
        assert deadline is None or deadline.at > world.net.now  # DEADLINES_ARE_KEPT
        assert deadline is not None or not connections  # some deadline will end them
        for log in world.net.logs[self.logs_read :]:
            assert not SECRETS.search(repr(log.fields)), log
            if log.event == DECISION:
                assert self.decisions.take(str(log.fields["line"]).encode()) is None
        self.logs_read = len(world.net.logs)

    @invariant()
    def what_goes_upstream_goes_under_its_own_credential(self) -> None:
        if not hasattr(self, "world"):
            return
        requests = self.world.emulator.requests
        for seen in requests[self.requests_read :]:
            credential = dict(seen.headers)[b"authorization"]
            said = seen.raw + json.dumps(seen.context).encode()
            owners = {self.owners[mark] for mark in re.findall(rb"mark-[0-9]+", said)}
            # CREDENTIALS_ARE_KEPT_APART
            assert [b"Bearer " + owner.encode() for owner in owners] == [credential]
        self.requests_read = len(requests)

    @invariant()
    def answers_are_what_was_asked_for(self) -> None:
        for caller in self.callers:
            said = bytes(caller.client.received)
            # CREDENTIALS_ARE_KEPT_APART, DELIVERED_TO_ITS_TURN
            assert set(re.findall(rb"mark-[0-9]+", said)) <= caller.marks
            for found in re.findall(rb'"id":"(resp_[0-9a-f]+)"', said):
                owner = self.responses.setdefault(found.decode(), caller.key)
                assert owner == caller.key  # CREDENTIALS_ARE_KEPT_APART

    def teardown(self) -> None:
        """Clients read again, the upstream works, time passes: clients that stayed have whole
        answers."""
        if not hasattr(self, "world"):
            return
        self.upstream_listens(True)
        self.world.emulator.faults.clear()
        for caller in self.callers:
            caller.cut_off |= caller.client.closed and bool(caller.unsent)
            caller.client.resume()
        self.world.settle()
        for caller in self.callers:
            if caller.stays:
                self.judge(caller)
        self.world.assert_empty()
        assert (self.world.endpoint in self.world.net.stopped) is self.drained

    def judge(self, caller: Caller) -> None:
        answers = read_answers(bytes(caller.client.received))
        finals = [answer for answer in answers if answer.status != 100]
        unasked = 1 if caller.unsent else 0  # 408 for the request that was never completed
        assert len(finals) <= caller.requests + unasked
        # A client that neither sent nor read for too long may not have received its 408.
        if not self.drained and not caller.cut_off:
            assert len(finals) >= min(caller.requests, 1)
        for answer in finals:
            assert answer.complete  # ONE_END
            if answer.headers["content-type"] == "text/event-stream":
                ends = {"response.completed", "response.failed", "response.incomplete"}
                assert [name for name in answer.names if name in ends] == answer.names[-1:]
            else:
                assert answer.json
            if answer.status in (429, 502, 503, 504):
                assert int(answer.headers["retry-after"]) >= 1


def run_machine(machine: type[RuleBasedStateMachine], examples: int, **choices: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            **choices,
        ),
    )


# A run that fails is shrunk for up to 300 s. If the general limit of 60 s ends that, Hypothesis
# reports FlakyStrategyDefinition instead of the failure.
SHRINKS = pytest.mark.timeout(400)


@SHRINKS
def test_a_bridge_keeps_the_invariants() -> None:
    run_machine(BridgeMachine, 60)


@SHRINKS
def test_an_endpoint_keeps_the_invariants() -> None:
    run_machine(EndpointMachine, 30)


# ------------------------------------------------------------------ coverage


REPEATABLE: dict[str, Any] = {"derandomize": True, "phases": [Phase.generate]}
LAWFUL = {found.id for found in RULES.values() if found.handling is not Handling.ILLEGAL}


@contextmanager
def rules_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the rules that sessions apply."""
    met: Counter[str] = Counter()

    def counting(policy: Policy, state: SessionState, event: Event, now: int) -> Transition:
        done = step(policy, state, event, now)
        met[done.rule] += 1
        return done

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "step", counting)
        yield met


def test_every_rule_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the machines above would prove nothing about it."""
    with rules_counted(monkeypatch) as met:
        run_machine(BridgeMachine, 60, **REPEATABLE)
    assert met["ended"] > 30  # most turns are answered: the machine does not get stuck
    with rules_counted(monkeypatch) as of_endpoint:
        run_machine(EndpointMachine, 20, **REPEATABLE)
    assert of_endpoint["ended"] > 5
    met += of_endpoint

    @settings(max_examples=300, database=None, **REPEATABLE)
    @given(st.data(), strategies.policies(feasible=False), st.booleans())
    def of_sessions(data: st.DataObject, policy: Policy, remote: bool) -> None:
        if not remote:  # connections that reach their lifetime
            times = attrs.evolve(policy.timeouts, lifetime=60 * SECOND)
            policy = attrs.evolve(policy, timeouts=times)
        state = SessionState(remote=remote)
        history = data.draw(strategies.histories(policy, state=state, min_size=20))
        met.update(record.rule for record in strategies.replay(policy, history, state))

    of_sessions()
    # Illegal pairs are misuse: no machine and no history has any.
    assert set(met) == {*LAWFUL, STALE_GENERATION, SPURIOUS_DEADLINE, ENDED_RESPONSE}
