"""Explores how a few turns of two clients can go through a bridge.

What belongs here: the environment of a ``Bridge`` (clients with credentials, an upstream that
remembers what a real one does), the properties of the bridge, and the bounds. One session is the
subject of explore.py; here it is what connects sessions: to which conversation a turn is routed,
which conversation is evicted, under which credential a frame is sent, and whether the context that
the upstream has is the one that the client means. The search itself is search.py.

Theory of operation. A *world* is a bridge and its environment: each client's own record of its
conversations, and the upstream's memory for each link. A bridge cannot be copied, so a world is
made by replaying its path from the beginning, which a deterministic bridge allows. Worlds are
compared by ``Bridge.snapshot``, with links and conversations numbered by their position and times
relative to now. The properties are checked on messages and effects and on what client and upstream
remember; none of them reads the state by which the bridge decides.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs

from bridgecore.bridge import Bridge
from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.errors import BridgecoreError
from bridgecore.intake import Resolver
from bridgecore.messages import (
    AnswerEvents,
    BridgeEffect,
    BridgeEvent,
    BridgeTimeout,
    CloseLink,
    DrainStarted,
    FailAnswer,
    KnownResponse,
    LinkFrameSent,
    LinkLost,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    ResolveTurn,
    SendFrame,
    TurnLeft,
    TurnReceived,
    TurnResolved,
)
from bridgecore.recovery.failure import NOT_FOUND_CODE, Closed, Unreachable
from bridgecore.recovery.state import SessionState
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.statevalue import LINK, QUERY, At, Ref
from bridgecore.telemetry import Log
from bridgecore.verify.cost import CostedProperty, Rank
from bridgecore.verify.explore import later
from bridgecore.verify.search import Search
from bridgecore.wire.requests import parse_create
from bridgecore.wire.responses import EventKind


class BridgeProperty(CostedProperty):
    """The properties of a bridge. The value says what must hold."""

    CONTEXT_IS_MEANT = (
        "the context that the upstream has for a turn equals the context that the client "
        "means, in whatever form the turn was sent",
        Rank.HARM,
        "the model answers in the context of another conversation, or without a part of its own",
    )
    OUTPUTS_HAVE_CALLS = (
        "the output of a tool call is sent upstream only if its call is in the same context",
        Rank.LOSS,
        "the upstream refuses the turn: a tool output without its call",
    )
    CALLS_ARE_TOLD_ONCE = (
        "each tool call is delivered to a client once, as part of the turn that made it",
        Rank.HARM,
        "a tool runs twice, or not at all",
    )
    CREDENTIALS_ARE_KEPT_APART = (
        "a turn is sent only on a link of its own credential, and never names a response made "
        "under another credential",
        Rank.HARM,
        "one tenant's conversation is sent under the credential of another",
    )
    FOREIGN_IS_UNKNOWN = (
        "a response id of another credential has exactly the effects of an id that does not exist",
        Rank.HARM,
        "a tenant finds out which responses another tenant has",
    )
    HELD_IS_ANSWERED = (
        "a turn whose context the bridge holds is answered, unless something was lost on its "
        "way, and never gets previous_response_not_found",
        Rank.HARM,
        "a turn fails although the bridge has its whole context; after a not-found its client "
        "sends all of it again",
    )
    ONE_TURN_A_LINK = (
        "a link carries one turn at a time",
        Rank.HARM,
        "two answers on one connection cannot be told apart: a user may read another's",
    )
    ONE_END = (
        "each turn ends once, and nothing is delivered or sent for it afterwards",
        Rank.LOSS,
        "a client that gets two ends of its turn, or events after the end",
    )
    ANSWER_IS_ITS_OWN = (
        "an event from a link is delivered to the turn that the link carries; an event of a "
        "response that has ended is delivered to no turn",
        Rank.HARM,
        "a client reads the answer to another turn",
    )
    SESSIONS_ARE_LIMITED = (
        "there are never more conversations than the limit",
        Rank.WASTE,
        "memory and connections beyond the limit that the operator set",
    )
    REJECTED_ONLY_WHEN_FULL = (
        "a turn is rejected for lack of room only if no conversation is idle",
        Rank.LOSS,
        "a turn is rejected although there is room",
    )
    IDLE_MAKES_ROOM = (
        "only an idle conversation is evicted to make room, the least recently used one",
        Rank.LOSS,
        "a running turn is cut off, or a conversation in use loses its connection",
    )
    REJECTED_INJECTION_ENDS = (
        "an injected anchor that the upstream rejected is not injected again",
        Rank.WASTE,
        "each turn is sent twice: with the rejected anchor, then without",
    )
    REJECTED_REBUILD_ENDS = (
        "an input that was rebuilt for an anchor and rejected by the upstream is not rebuilt again",
        Rank.STUCK,
        "the same rejected input is uploaded with each retry: the client gets no further",
    )
    SIZE_IS_NOT_REPEATED = (
        "a frame that is larger than the upstream accepts is not sent again",
        Rank.WASTE,
        "a frame of many megabytes is uploaded again, to be refused again",
    )
    NOTHING_IS_LEFT = (
        "after all turns have ended and all timers have run out, no conversation, link or "
        "memory is left",
        Rank.WASTE,
        "memory and connections that are never freed",
    )
    NO_ERROR = (
        "the bridge raises no exception for an event that can happen",
        Rank.LOSS,
        "the turn ends with an internal error, and its conversation with it",
    )


_P = BridgeProperty
ALL: Final = frozenset(BridgeProperty)
Item = tuple[str, ...]  # an item as a model reads it: its text, without ids and status


@attrs.frozen
class BridgeBounds:
    """What an exploration leaves out. ``resolver``: with ``Resolver.DRIVER`` a lookup is answered
    at any time, also after the client has left, or never."""

    name: str
    turns: int
    sessions: int  # limit of conversations
    continuity: Continuity
    depth: int  # moves from the beginning
    resolver: Resolver = Resolver.MEMORY
    credentials: int = 2
    waiting: int = 1
    max_worlds: int = 2_000_000


class Move(NamedTuple):
    """One thing that can happen, and the client, link, turn or response it happens to."""

    what: str
    about: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.what, *map(str, self.about)])


@attrs.frozen
class BridgeCounterexample:
    """A violation with a shortest path to it."""

    prop: BridgeProperty
    text: str
    path: tuple[str, ...]


@attrs.define
class BridgeReport:
    """The result of an exploration."""

    bounds: BridgeBounds
    worlds: int = 0
    edges: int = 0
    complete: bool = False
    checked: Counter[BridgeProperty] = attrs.Factory(Counter)
    counterexamples: list[BridgeCounterexample] = attrs.Factory(list)


class BridgeViolationError(BridgecoreError):
    """The property ``prop`` does not hold; ``text`` says what was observed."""

    def __init__(self, prop: BridgeProperty, text: str) -> None:
        super().__init__(f"{prop.name}: {text}")
        self.prop = prop
        self.text = text


# ---------------------------------------------------------------- the environment


@attrs.define(eq=False)
class _Turn:
    """A turn as its client knows it."""

    id: int
    credential: int
    meaning: tuple[Item, ...]  # the whole context that the client means
    items: list[Any]  # the same as JSON, as far as this client has it
    anchor: str | None
    store: bool
    asks_for_call: bool
    at: int
    link: int | None = None  # the link on which it was last sent
    sends: int = 0
    injected: tuple[str, ...] = ()  # the anchors that the bridge injected
    harmed: bool = False  # a link or connect was lost on its way, or it was refused
    began: bool = False
    resolving: bool = False  # a lookup of its anchor is under way
    calls: tuple[str, ...] = ()


@attrs.define(eq=False)
class _Response:
    """A response as client and upstream know it."""

    id: str
    credential: int
    store: bool
    context: tuple[Item, ...]  # up to and with its output
    items: list[Any]
    call: str | None  # the tool call that waits for its output
    at: int


@attrs.define(eq=False)
class _Link:
    """A link as the upstream knows it."""

    credential: int
    open: bool = False
    cached: str | None = None  # the response that it has cached
    turn: int | None = None
    context: tuple[Item, ...] | None = None  # of the carried turn; None: the anchor is unknown
    store: bool = False
    began: str | None = None  # the response id of the carried turn, once it was created
    anchored: bool = False  # the frame of the carried turn named a response
    frame: bytes = b""  # of the carried turn
    # the events of the last response that ended, after its response.created
    last: tuple[bytes, ...] = ()
    late: bool = False  # they were repeated after the next turn's frame
    used: int = 0  # when a turn was last routed to it, counted in routed turns


_CODES = {"limit": "websocket_connection_limit_reached", "invalid": "invalid_prompt"}
_KEYS = (b"Bearer sk-a", b"Bearer sk-b")
_UNKNOWN_ID = "resp_0"
_NEVER_ASKED = "resp_z"  # an id that does not exist and is used by no client
_SECONDS = {
    "connect_timeout": 2,
    "created_timeout": 2,
    "idle_timeout": 2,
    "turn_timeout": 50,
    "session_idle": 10,
    "upstream_lifetime": 40,
    "transcript_age": 30,
}


class World:
    """A bridge and its environment, after the moves of ``path``."""

    def __init__(
        self,
        bounds: BridgeBounds,
        make: Callable[..., Bridge],
        path: Sequence[Move] = (),
        checked: Counter[BridgeProperty] | None = None,
    ) -> None:
        times = {name: seconds * NS_PER_SECOND for name, seconds in _SECONDS.items()}
        config = Config(
            upstream=UpstreamUrl.parse("ws://upstream/"),
            continuity=bounds.continuity,
            max_sessions=bounds.sessions,
            max_waiting=bounds.waiting,
            **times,  # type: ignore[arg-type]  # all of them are durations
        )
        self.bounds = bounds
        self.make = make
        late = bounds.resolver is Resolver.DRIVER
        self.bridge = make(config, resolver=bounds.resolver) if late else make(config)
        self.now = 0
        self.turns: dict[int, _Turn] = {}  # those that have not ended
        self.submitted = 0
        self.routed = 0
        self.queries: dict[int, int] = {}  # the turn of each lookup, by the number of the query
        self.links: dict[int, _Link] = {}
        self.responses: dict[str, _Response] = {}
        self.refused: _Turn | None = None  # the turn refused for its size, until repeated
        self.rejected: set[tuple[int, str]] = set()  # anchors injected and rejected, by credential
        # Anchors whose rebuilt input was rejected, and the latest turn that had come by then.
        self.unbuilt: dict[tuple[int, str], int] = {}
        self.too_large: set[tuple[int, bytes]] = set()  # frames refused for their size
        self.delivered_calls: set[str] = set()  # tool calls that were delivered
        self.ended: set[str] = set()  # responses whose end was delivered
        self.checked = Counter[BridgeProperty]()
        for move in path:
            self.happens(move)
        if checked is not None:
            self.checked = checked

    # ------------------------------------------------------------ moves

    def moves(self) -> Iterator[Move]:
        """Everything that can happen now."""
        if self.submitted < self.bounds.turns:
            for credential in range(self.bounds.credentials if self.submitted else 1):
                yield from self._submissions(credential)
        for query, number in self.queries.items():
            yield Move("resolved", (query,))
            if (anchor := self._stored_anchor(number)) is not None:
                yield Move("resolved", (query, anchor))
        for number, link in self.links.items():
            if not link.open:
                yield Move("opened", (number,))
                yield Move("connect fails", (number,))
                continue
            yield Move("lost", (number,))
            if link.turn is None:
                continue
            if link.context is None:
                yield Move("not found", (number,))
                continue
            yield Move("answers", (number,))
            if link.last and not link.late:
                yield Move("repeats itself", (number,))
            if not link.began:
                yield Move("begins", (number,))
                yield Move("limit", (number,))
                yield Move("too large", (number,))
                if link.anchored:
                    yield Move("forgets", (number,))
                if self._is_ours(link):
                    yield Move("invalid", (number,))
        for turn in self.turns:
            yield Move("leaves", (turn,))
        if self.bridge.next_timeout() is not None:
            yield Move("time passes")
        if self.links and not self.turns:
            yield Move("evict")

    def _is_ours(self, link: _Link) -> bool:
        """Whether the link's frame has another anchor than its client sent."""
        turn = self.turns.get(link.turn or 0)
        if turn is None:
            return False
        frame = json.loads(link.frame)
        return bool(frame.get("previous_response_id") != turn.anchor)

    def _stored_anchor(self, number: int) -> str | None:
        """The anchor of a turn, if a resolver may know that the upstream stores it."""
        turn = self.turns.get(number)
        made = self.responses.get(turn.anchor or "") if turn is not None else None
        known = turn is not None and made is not None and made.credential == turn.credential
        return made.id if made is not None and known and made.store else None

    def _submissions(self, credential: int) -> Iterator[Move]:
        if self.refused is not None and self.refused.credential == credential:
            yield Move("the same again", (credential,))
        yield Move("fresh", (credential,))
        if not self.submitted:
            yield Move("stored", (credential,))
            yield Move("calling", (credential,))
        else:
            yield Move("continue", (credential, _UNKNOWN_ID))
        for response in self.responses.values():
            yield Move("continue", (credential, response.id))
            if response.credential == credential:
                yield Move("repeat", (credential, response.id))

    def happens(self, move: Move) -> None:
        """Let ``move`` happen.

        Raises:
            BridgeViolationError: a property does not hold.
        """
        what, about = move
        if what == "the same again":
            self._submit_again(int(about[0]))
        elif what in ("fresh", "stored", "calling", "continue", "repeat"):
            self._submit(what, int(about[0]), str(about[1]) if len(about) > 1 else None)
        elif what == "resolved":
            self._resolved(int(about[0]), str(about[1]) if len(about) > 1 else None)
        elif what == "leaves":
            self.turns.pop(int(about[0]))
            self._tell(TurnLeft(int(about[0])))
        elif what == "time passes":
            deadline = self.bridge.next_timeout()
            if deadline is not None:
                self.now = max(self.now, deadline.at)
                for turn in self.turns.values():
                    turn.harmed = True
                self._tell(BridgeTimeout())
        elif what == "evict":
            self._tell(DrainStarted())
        else:
            self._of_link(what, int(about[0]))
        self._judge()

    def _of_link(self, what: str, number: int) -> None:
        link = self.links[number]
        if what == "opened":
            link.open = True
            self._tell(LinkOpened(number))
        elif what in ("connect fails", "lost"):
            self._gone(number)
            cause = Closed(1006) if link.open else Unreachable("refused")
            self._tell(LinkLost(number, cause))
        elif what == "begins":
            link.began = self._next()
            self._tell(MessagesReceived(number, [_event("created", response={"id": link.began})]))
        elif what == "answers":
            self._answers(number, link)
        elif what == "repeats itself":
            link.late = True
            self._tell(MessagesReceived(number, [*link.last]))
        elif what == "too large":
            self.too_large.add((link.credential, link.frame))
            self.refused = self.turns.get(link.turn or 0)
            self._gone(number)
            self._tell(LinkLost(number, Closed(1009)))
        else:
            self._refuses(what, number, link)

    def _next(self) -> str:
        """The id of the upstream's next response, one that no other response has."""
        taken = {*self.responses, *[link.began for link in self.links.values()]}
        names = (f"resp_{number}" for number in itertools.count(1))
        return next(name for name in names if name not in taken)

    def _gone(self, number: int) -> None:
        """A link is lost. Turns without a link count as harmed, too: they may have waited for this
        one."""
        del self.links[number]
        for turn in self.turns.values():
            if turn.link is None or turn.link == number:
                turn.link, turn.harmed = None, True

    def _answers(self, number: int, link: _Link) -> None:
        if link.turn is None or link.context is None:
            raise KeyError(number)
        turn = self.turns.get(link.turn)
        response = link.began or self._next()
        call = None
        asked = link.context[-1][-1]
        item: dict[str, Any]
        if asked.startswith("call"):
            call = f"c{response}"
            item = {"type": "function_call", "id": f"fc_{response}", "call_id": call, "name": "f",
                    "arguments": "{}", "status": "completed"}  # fmt: skip
        else:
            text = {"type": "output_text", "text": f"to {asked}", "annotations": []}
            item = {"type": "message", "id": f"msg_{response}", "role": "assistant",
                    "status": "completed", "content": [text]}  # fmt: skip
        context = (*link.context, _read(item))
        items = [*(turn.items if turn is not None else []), item]
        made = _Response(response, link.credential, link.store, context, items, call, self.now)
        self.responses[response] = made
        link.cached = response
        messages = [] if link.began else [_event("created", response={"id": response})]
        link.last = (
            _event("output_item.added", item={**item, "status": "in_progress"}),
            _event("output_item.done", item=item),
            _event("completed", response={"id": response, "output": [item]}),
            _event("done", response={"id": response}),
        )
        self._tell(MessagesReceived(number, [*messages, *link.last]))

    def _refuses(self, what: str, number: int, link: _Link) -> None:
        turn = self.turns.get(link.turn) if link.turn is not None else None
        code = _CODES.get(what, NOT_FOUND_CODE)
        if turn is not None:
            if what == "limit":
                turn.harmed = turn.sends > 1
            else:
                self.rejected.update((turn.credential, anchor) for anchor in turn.injected[-1:])
            if what == "invalid" and turn.anchor is not None:
                turn.harmed = True
                self.unbuilt.setdefault((turn.credential, turn.anchor), self.submitted)
        link.turn = link.context = link.cached = None
        error = {"type": "invalid_request_error", "code": code, "message": "no"}
        self._tell(
            MessagesReceived(number, [_json({"type": "error", "status": 400, "error": error})])
        )

    def _submit(self, what: str, credential: int, about: str | None) -> None:
        self.submitted += 1
        turn = self._turn(self.submitted, what, credential, about)
        made = self.responses.get(about or "")
        # Only the first time: then the bridge remembers the id as asked for, whoever owns it.
        again = about is not None and Move("continue", (credential, about)) in self.path
        if made is not None and made.credential != credential and not again:
            self._compare(turn, made.id)
        self._tell_of(turn)

    def _submit_again(self, credential: int) -> None:
        """A client repeats a turn that was refused for its size, although the error says not to."""
        if self.refused is None or self.refused.credential != credential:
            raise KeyError(credential)
        self.submitted += 1
        old, self.refused = self.refused, None
        self._tell_of(
            _Turn(self.submitted, credential, old.meaning, old.items, old.anchor, old.store,
                  old.asks_for_call, self.now, harmed=True)
        )  # fmt: skip

    def _tell_of(self, turn: _Turn) -> None:
        self.turns[turn.id] = turn
        body: dict[str, Any] = {"model": "m", "store": turn.store, "input": turn.items}
        if turn.anchor is not None:
            body["previous_response_id"] = turn.anchor
            body["input"] = turn.items[-1:]
        headers = [(b"authorization", _KEYS[turn.credential])]
        if self.bounds.resolver is Resolver.MEMORY:
            self.routed += 1
        self._tell(TurnReceived(turn.id, parse_create(_json(body)), headers), turn)

    def _resolved(self, query: int, anchor: str | None) -> None:
        """A lookup is answered: ``anchor`` is stored, or None: it is unknown. The client may have
        left."""
        turn = self.turns.get(self.queries.pop(query))
        if turn is not None:
            turn.resolving, turn.at = False, self.now
            self.routed += 1
        known = None if anchor is None else KnownResponse(anchor, stored=True)
        self._tell(TurnResolved(query, known), turn)

    def _turn(self, number: int, what: str, credential: int, about: str | None) -> _Turn:
        text = f"call {number}" if what == "calling" else f"u{number}"
        new: dict[str, Any] = {"role": "user", "content": text}
        before = self.responses.get(about or "")
        if before is not None and before.credential != credential:
            before = None
        if before is not None and before.call is not None:
            new = {"type": "function_call_output", "call_id": before.call, "output": text}
        meaning = (*(before.context if before is not None else ()), _read(new))
        items = [*(before.items if before is not None else []), new]
        anchor = about if what == "continue" else None
        store, calls = what == "stored", what == "calling"
        return _Turn(number, credential, meaning, items, anchor, store, calls, self.now)

    def _compare(self, turn: _Turn, anchor: str) -> None:
        """Check that an id of another credential has the effects of an id that does not exist."""
        seen = []
        for name in (anchor, _NEVER_ASKED):
            twin = World(self.bounds, self.make, self.path)
            body = {"model": "m", "store": turn.store, "input": turn.items[-1:]}
            request = parse_create(_json({**body, "previous_response_id": name}))
            headers = [(b"authorization", _KEYS[turn.credential])]
            effects = twin.bridge.handle(TurnReceived(turn.id, request, headers), twin.now)
            for asked in [effect for effect in effects if isinstance(effect, ResolveTurn)]:
                effects.remove(asked)
                effects += twin.bridge.handle(TurnResolved(asked.query), twin.now)
            for effect in effects:
                if isinstance(effect, SendFrame):
                    effect.data = effect.data.replace(name.encode(), b"")
                elif isinstance(effect, Log):
                    effect.fields.pop("anchor", None)
            seen.append(repr(effects))
        self._check(_P.FOREIGN_IS_UNKNOWN, seen[0] == seen[1], f"{seen[0]}\nand\n{seen[1]}")

    # ------------------------------------------------------------ effects of the bridge

    path: tuple[Move, ...] = ()

    def _tell(self, event: BridgeEvent, submitted: _Turn | None = None) -> None:
        try:
            effects = self.bridge.handle(event, self.now)
        except Exception as error:  # any exception is a bug: this can happen
            text = f"{type(error).__name__}: {error}"
            raise BridgeViolationError(_P.NO_ERROR, text) from error
        source = event.link if isinstance(event, MessagesReceived) else None
        carried = self.links[source].turn if source in self.links and source is not None else None
        for effect in effects:
            self._done(effect, carried, submitted)
        if isinstance(event, LinkOpened):
            self._sent()

    def _sent(self) -> None:
        """Report all frames as sent: that a send fails is explored with one session."""
        for number, link in list(self.links.items()):
            if link.turn is not None and not link.began:
                self.bridge.handle(LinkFrameSent(number), self.now)

    def _done(self, effect: BridgeEffect, carried: int | None, submitted: _Turn | None) -> None:
        if isinstance(effect, OpenLink):
            credential = _KEYS.index(dict(effect.headers)[b"authorization"])
            self.links[effect.link] = _Link(credential, used=self.routed)
        elif isinstance(effect, ResolveTurn):
            self.queries[effect.query] = effect.turn
            self.turns[effect.turn].resolving = True
        elif isinstance(effect, CloseLink):
            self._closed(effect.link, submitted)
        elif isinstance(effect, SendFrame):
            self._frame(effect)
        elif isinstance(effect, AnswerEvents):
            self._check(_P.ANSWER_IS_ITS_OWN, effect.turn == carried, f"{effect.turn}, {carried}")
            self._answered(effect)
        elif isinstance(effect, FailAnswer):
            self._failed(effect, submitted)

    def _closed(self, number: int, submitted: _Turn | None) -> None:
        link = self.links.pop(number, None)
        turns = [turn for turn in self.turns.values() if turn.link == number]
        for turn in turns:
            turn.link = None
        if link is None or submitted is None:
            return
        # The link was closed to make room for the submitted turn.
        busy = bool(turns) or link.turn in self.turns
        self._check(_P.IDLE_MAKES_ROOM, not busy, f"link {number} was busy")
        longer = [
            other
            for other in self.links.values()
            if other.open and other.turn is None and other.used < link.used
        ]
        self._check(_P.IDLE_MAKES_ROOM, not longer, f"link {number} was used later than another")

    def _frame(self, effect: SendFrame) -> None:
        link = self.links[effect.link]
        frame: dict[str, Any] = json.loads(effect.data)
        items = tuple(_read(item) for item in frame["input"])
        turn = self._meant(items[-1])
        self._check(
            _P.ONE_TURN_A_LINK,
            link.turn is None,
            f"turn {turn.id} is sent while turn {link.turn} runs",
        )
        self._check(
            _P.CREDENTIALS_ARE_KEPT_APART, link.credential == turn.credential, f"turn {turn.id}"
        )
        anchor: str | None = frame.get("previous_response_id")
        before = self.responses.get(anchor or "")
        context: tuple[Item, ...] | None = items
        sized = (link.credential, effect.data) not in self.too_large
        self._check(_P.SIZE_IS_NOT_REPEATED, sized, f"turn {turn.id}")
        if anchor is None and turn.anchor is not None:
            # A turn that was on its way may try it once: its own items may be the better ones.
            before_it = self.unbuilt.get((turn.credential, turn.anchor), turn.id)
            self._check(_P.REJECTED_REBUILD_ENDS, turn.id <= before_it, f"turn {turn.id}")
        if anchor is not None:
            if anchor != turn.anchor:
                pair = (turn.credential, anchor)
                self._check(_P.REJECTED_INJECTION_ENDS, pair not in self.rejected, anchor)
                turn.injected += (anchor,)
                foreign = before is not None and before.credential != turn.credential
                self._check(
                    _P.CREDENTIALS_ARE_KEPT_APART, not foreign, f"{anchor} of another credential"
                )
            known = before is not None and before.credential == turn.credential
            at_hand = link.cached == anchor or (before is not None and before.store)
            if known and before is not None and at_hand:
                context = (*before.context, *items)
            else:
                # The bridge must not send an anchor that it knows to be cached on another link.
                self._check(_P.HELD_IS_ANSWERED, not known, f"{anchor} on link {effect.link}")
                context = None
        if context is not None and not (turn.anchor is not None and turn.meaning == items):
            same = context == turn.meaning
            self._check(_P.CONTEXT_IS_MEANT, same, f"{context}, the client means {turn.meaning}")
        if context is not None:
            called = {item[1] for item in context if item[0] == "call"}
            for item in context:
                known = item[0] != "output" or item[1] in called or turn.anchor is not None
                self._check(_P.OUTPUTS_HAVE_CALLS, known, f"{item} in {context}")
        link.turn, link.context, link.began = turn.id, context, None
        link.store, link.used = bool(frame.get("store")), self.routed
        link.anchored = anchor is not None
        link.frame, link.late = effect.data, False
        turn.link, turn.sends = effect.link, turn.sends + 1

    def _meant(self, last: Item) -> _Turn:
        """The turn with this newest item; each turn has one of its own."""
        for turn in self.turns.values():
            if turn.meaning[-1] == last:
                return turn
        raise BridgeViolationError(_P.ONE_END, f"a turn is sent after its end: {last}")

    def _answered(self, effect: AnswerEvents) -> None:
        turn = self.turns.get(effect.turn)
        if turn is None:
            raise BridgeViolationError(_P.ONE_END, f"turn {effect.turn} is answered after its end")
        for event in effect.events:
            mine = event.response is None or event.response not in self.ended
            self._check(_P.ANSWER_IS_ITS_OWN, mine, f"{event.response} delivered to turn {turn.id}")
            if event.type == b"response.output_item.done":
                item = json.loads(event.data)["item"]
                if item["type"] == "function_call":
                    call = item["call_id"]
                    self._check(_P.CALLS_ARE_TOLD_ONCE, call not in self.delivered_calls, call)
                    self.delivered_calls.add(call)
            if event.kind is EventKind.ENDED:
                if event.response is not None:
                    self.ended.add(event.response)
                self._end(turn)

    def _failed(self, effect: FailAnswer, submitted: _Turn | None) -> None:
        turn = self.turns.get(effect.turn)
        if turn is None:
            raise BridgeViolationError(_P.ONE_END, f"turn {effect.turn} fails after its end")
        status, code = effect.error.status, effect.error.code
        if submitted is turn and status == 503:
            # Each of the others keeps a conversation busy.
            others = {
                other.link or -other.id
                for other in self.turns.values()
                if other is not turn and not other.resolving
            }
            full = len(others) >= self.bounds.sessions
            full = full or len(self.turns) > self.bounds.waiting + 1
            self._check(_P.REJECTED_ONLY_WHEN_FULL, full, f"turn {turn.id}: {others}")
        elif self._is_held(turn):
            self._check(_P.HELD_IS_ANSWERED, code != NOT_FOUND_CODE, f"turn {turn.id}: {code}")
            self._check(_P.HELD_IS_ANSWERED, turn.harmed, f"turn {turn.id}: {status} {code}")
        self._end(turn)

    def _is_held(self, turn: _Turn) -> bool:
        """Whether the bridge has the whole context of the turn."""
        if self.bounds.continuity is not Continuity.TRANSCRIPT:
            return False
        if turn.anchor is None:
            return True
        if (turn.credential, turn.anchor) in self.unbuilt:
            return False
        before = self.responses.get(turn.anchor)
        age = _SECONDS["transcript_age"] * NS_PER_SECOND
        return (
            before is not None
            and before.credential == turn.credential
            and turn.at - before.at < age - NS_PER_SECOND
        )

    def _end(self, turn: _Turn) -> None:
        del self.turns[turn.id]
        for link in self.links.values():
            if link.turn == turn.id:
                link.turn = link.context = None
                link.began = None

    # ------------------------------------------------------------ checks at any time

    def _judge(self) -> None:
        bridge, limit = self.bridge, self.bounds.sessions
        self._check(
            _P.SESSIONS_ARE_LIMITED, bridge.conversations <= limit, f"{bridge.conversations}"
        )
        self._check(_P.ONE_END, bridge.turns == len(self.turns), f"{bridge.turns} turns run")
        self._check(_P.NOTHING_IS_LEFT, bridge.links == len(self.links), f"{bridge.links} links")

    def fade(self) -> None:
        """Let all timers run out, then check that nothing is left. Only for worlds
        without turns."""
        for _ in range(30):
            deadline = self.bridge.next_timeout()
            if deadline is None:
                break
            self.now = max(self.now, deadline.at)
            self._tell(BridgeTimeout())
        left = (self.bridge.conversations, self.bridge.links, self.bridge.memory.size)
        self._check(_P.NOTHING_IS_LEFT, left == (0, 0, 0), f"{left} are left")

    def _check(self, prop: BridgeProperty, holds: bool, text: str) -> None:
        self.checked[prop] += 1
        if not holds:
            raise BridgeViolationError(prop, text)

    # ------------------------------------------------------------ comparing

    def key(self) -> object:
        """A hash key: equal for worlds with the same future."""
        links = {number: place for place, number in enumerate(self.links)}
        around = (
            self.submitted,
            self.routed,
            tuple([number if number in self.turns else None for number in self.queries.values()]),
            tuple(
                (turn.id, turn.anchor, turn.credential, links.get(turn.link or 0), turn.sends > 1,
                 turn.harmed, turn.injected, turn.began, len(turn.meaning), turn.items[-1:] and
                 str(turn.items[-1]))
                for turn in self.turns.values()
            ),
            tuple(
                (link.credential, link.open, link.cached, link.turn, link.context, link.store,
                 link.began, link.anchored, bool(link.last), link.late, link.used)
                for link in self.links.values()
            ),
            tuple(
                (made.id, made.credential, made.store, made.context, self.now - made.at)
                for made in self.responses.values()
            ),
            tuple(sorted(self.rejected)),
            tuple(sorted(self.unbuilt.items())),
            len(self.too_large),
            None if self.refused is None else (self.refused.credential, str(self.refused.items)),
        )  # fmt: skip
        names = {(LINK, number): place for number, place in links.items()}
        names |= {(QUERY, number): place for place, number in enumerate(self.queries)}
        return around, _folded(self.bridge, names, self.now)


def _folded(bridge: Bridge, names: dict[tuple[str, int], int], now: int) -> object:
    """The state of ``bridge`` with links and conversations numbered by their position and times
    relative to ``now``. ``names``: the positions of links; those of conversations, ordered by last
    use, are added."""
    state: Any = bridge.snapshot()
    for place, (conversation, _) in enumerate(dict(state)["_conversations"]):
        names[conversation] = place

    def fold(value: Any) -> Any:
        if isinstance(value, Ref):
            return names.get(value, -1)  # of an alias whose conversation has ended
        if isinstance(value, At):
            return now - value.ns
        if isinstance(value, SessionState):
            return later(value, now)
        return tuple(map(fold, value)) if isinstance(value, tuple) else value

    return fold(state)


def _event(name: str, **fields: Any) -> bytes:
    return _json({"type": f"response.{name}", **fields})


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _read(item: Mapping[str, Any]) -> Item:
    """``item`` as a model reads it."""
    kind = item.get("type", "message")
    if kind == "function_call":
        return ("call", item["call_id"], item["name"], item["arguments"])
    if kind == "function_call_output":
        return ("output", item["call_id"], item["output"])
    content = item["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return (item["role"], text)


# ---------------------------------------------------------------- the search

_T, _PASS = Continuity.TRANSCRIPT, Continuity.PASSTHROUGH
BRIDGE_BOUNDS: Mapping[str, Sequence[BridgeBounds]] = {
    "quick": (
        BridgeBounds("one session", 2, 1, _T, 5),
        BridgeBounds("two sessions", 2, 2, _PASS, 4),
    ),
    "small": (
        BridgeBounds("one session", 2, 1, _T, 6),
        BridgeBounds("two sessions", 2, 2, _PASS, 5),
        BridgeBounds("one session, resolved late", 2, 1, _T, 6, Resolver.DRIVER),
    ),
    "ci": (
        BridgeBounds("one session", 3, 1, _T, 7),
        BridgeBounds("two sessions", 3, 2, _T, 7),
        BridgeBounds("two sessions, nothing held", 3, 2, _PASS, 7),
        BridgeBounds("two sessions, resolved late", 2, 2, _T, 8, Resolver.DRIVER),
    ),
    "nightly": (
        BridgeBounds("one session", 3, 1, _T, 9),
        BridgeBounds("two sessions", 3, 2, _T, 9),
        BridgeBounds("two sessions, nothing held", 3, 2, _PASS, 9),
        BridgeBounds("two sessions, resolved late", 3, 2, _T, 9, Resolver.DRIVER),
    ),
}


def explore_bridge(
    bounds: BridgeBounds,
    *,
    make: Callable[..., Bridge] = Bridge,
    judged: Collection[BridgeProperty] = ALL,
    progress: Callable[[BridgeReport], None] | None = None,
) -> BridgeReport:
    """Explore bridges made by ``make``, until the first violation of a property in ``judged`` or
    the end of the bounds. What comes after a violation of another property is not explored."""
    report = BridgeReport(bounds)
    search: Search[object, Move] = Search(most=bounds.max_worlds)
    search.reach(World(bounds, make).key())

    def look(number: int, _: object) -> bool:
        path = search.way(number)[1]
        for move in list(World(bounds, make, path).moves()):
            report.edges += 1
            way = (*path, move)
            world = World(bounds, make, path, report.checked)
            world.path = path
            try:
                world.happens(move)
                if world.submitted == bounds.turns and not world.turns:
                    World(bounds, make, way, report.checked).fade()
            except BridgeViolationError as violation:
                if violation.prop not in judged:
                    continue
                names = tuple(map(str, way))
                shown = BridgeCounterexample(violation.prop, violation.text, names)
                report.counterexamples.append(shown)
                return False
            if len(way) < bounds.depth:
                search.reach(world.key(), number, move)
        return True

    def show() -> None:
        report.worlds = len(search)
        if progress is not None:
            progress(report)

    search.run(look, show)
    report.worlds = len(search)
    report.complete = search.complete
    return report
