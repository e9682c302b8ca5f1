"""The response ids of a foreign log: whose they are, and whether each is used for its response.

What belongs here: one pass over the lines (``Ids``), which remembers what each id was before a line
uses it. Three uses are compared with that:

* the anchor of a ``sent`` line is the one that the client named, another id for the same response,
  or, if the client named none, that of a response of this conversation (it is injected);
* an event of the upstream names no response of another turn, as far as a connection cannot
  explain that: late copies on the same connection are a matter of the model;
* the id that a client was given for its response is no other response's.

What the model then makes of the turns is foreign.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import attrs

from bridgecore.recovery.events import Standing, Turn
from bridgecore.verify.cost import CostedProperty
from bridgecore.verify.explore_bridge import BridgeProperty
from bridgecore.verify.observed import Observed
from bridgecore.verify.properties import Property
from bridgecore.verify.replay import MalformedLog

TurnName: TypeAlias = tuple[str, str]
"""The session of a turn, and its name there."""


class Broken(NamedTuple):
    """A property that a line breaks, and how."""

    prop: CostedProperty
    text: str


@attrs.define(eq=False)
class _Response:
    """A response of the log. ``line``: where it is named first. ``same``: the response whose
    context it has, if it was made to preload a connection."""

    line: int
    turn: TurnName
    client: str | None
    stored: bool
    place: int  # the connection that it came on, counted in its session
    complete: bool = False
    same: _Response | None = None

    @property
    def origin(self) -> _Response:
        """The first response with this context."""
        return self if self.same is None else self.same.origin

    def __str__(self) -> str:
        session, name = self.turn
        return f"line {self.line} has it as the response of turn {name} of session {session}"


@attrs.define(eq=False)
class _Latest:
    """The latest request of a session. ``stranger``: why the events without an id that come now
    belong to another turn; empty: they do not."""

    turn: str
    place: int
    response: _Response | None = None
    stranger: str = ""


class Ids:
    """What the lines of a whole log say of response ids.

    ``turns``: each turn, with a number, as the model takes it. ``sent``: by line, the turn with the
    anchor that was sent. ``broken``: by line, a use of an id that is wrong. ``strangers``: by line,
    why an event of the upstream belongs to another turn than the one that it came for.

    Raises:
        MalformedLog: a turn is submitted twice, or one leaves that was not submitted.
    """

    def __init__(self, observed: Sequence[Observed]) -> None:
        self.turns: dict[TurnName, Turn] = {}
        self.sent: dict[int, Turn] = {}
        self.broken: dict[int, Broken] = {}
        self.strangers: dict[int, str] = {}
        self._observed = observed
        self._forms: dict[TurnName, list[str | None]] = defaultdict(list)
        self._submitted: dict[TurnName, Observed] = {}
        self._responses: dict[str, _Response] = {}
        self._latest: dict[str, _Latest] = {}
        self._answers: dict[TurnName, _Response] = {}  # the latest response of each turn
        self._clients: dict[str, str] = {}  # the client of each session
        self._places: dict[str, int] = defaultdict(int)
        for one in observed:
            if one.kind == "sent":
                anchor = one.fields.get("previous_response_id")
                self._forms[one.session, one.turn].append(anchor)
        for one in observed:
            self._take(one)

    def _take(self, one: Observed) -> None:
        if one.kind == "turn_submitted":
            self._submit(one)
        elif one.kind == "turn_abandoned":
            if (one.session, one.turn) not in self._submitted:
                text = f"turn {one.turn} of {one.session} was not submitted in an earlier line"
                raise MalformedLog(one.line, text)
        elif one.kind in _PLACES:
            self._places[one.session] += 1
        elif one.kind == "sent":
            self._send(one)
        elif one.kind in _ANSWERS:
            self._answer(one)
        elif one.kind == "answered" and "response" in one.fields:
            self._renamed(one)

    # ------------------------------------------------------------ turns

    def _submit(self, one: Observed) -> None:
        key = one.session, one.turn
        if key in self._submitted:
            earlier = self._submitted[key].line
            text = f"turn {one.turn} of {one.session} was submitted in line {earlier} already"
            raise MalformedLog(one.line, text)
        self._submitted[key] = one
        number, anchor = len(self._submitted), one.fields.get("previous_response_id")
        if anchor is not None:
            self.turns[key] = self._anchored(number, one, anchor)
            return
        injected = next((form for form in self._forms[key] if form is not None), None)
        standing = Standing.UNANCHORED if injected is None else Standing.INJECTED
        self.turns[key] = Turn(number, standing, injected)

    def _anchored(self, number: int, one: Observed, anchor: str) -> Turn:
        """The turn that ``one`` submits, if it is sent with ``anchor``."""
        made = self._responses.get(anchor)
        if made is not None and not made.complete:
            made = None  # it cannot be continued
        if made is not None and made.turn[0] != one.session:
            known = one.fields.get("knows", True)
            if not known or _differ(one.fields.get("client"), made.client):
                made = None
        in_full = made is not None and None in self._forms[one.session, one.turn]
        holds = one.fields.get("holds", in_full)
        return Turn(number, _STANDINGS[None if made is None else made.stored, holds], anchor)

    def _send(self, one: Observed) -> None:
        key = one.session, one.turn
        self._latest[one.session] = _Latest(one.turn, self._places[one.session])
        turn, submitted = self.turns.get(key), self._submitted.get(key)
        if turn is None or submitted is None:
            return  # the model says so
        self._check_sent(one, submitted, turn)
        self._check_client(one, submitted)

    def _check_sent(self, one: Observed, submitted: Observed, turn: Turn) -> None:
        anchor, named = _anchor_of(one), _anchor_of(submitted)
        if anchor is None:
            self.sent[one.line] = turn
            return
        made = self._responses.get(anchor)
        if named is None:
            if made is None or not made.complete or made.turn[0] != one.session:
                text = (
                    f"turn {one.turn} names no response, but is sent with {anchor}, "
                    f"which is no response of this session: {_known(made)}"
                )
                self.broken[one.line] = Broken(BridgeProperty.CONTEXT_IS_MEANT, text)
            self.sent[one.line] = Turn(turn.id, Standing.INJECTED, anchor)
        else:
            if anchor != named and not self._is_same(anchor, named):
                text = (
                    f"turn {one.turn} continues {named}, but is sent with {anchor}: {_known(made)}"
                )
                self.broken[one.line] = Broken(BridgeProperty.CONTEXT_IS_MEANT, text)
            self.sent[one.line] = self._anchored(turn.id, submitted, anchor)

    def _check_client(self, one: Observed, submitted: Observed) -> None:
        """Check that the turn is sent for its client, and with nothing of another one. A client may
        name what another has got, as it may name any id: that is sent as any unknown one."""
        fields = submitted.fields
        client = fields.get("client")
        if client is None:
            return
        first = self._clients.setdefault(one.session, client)
        named, anchor = _anchor_of(submitted), _anchor_of(one)
        used = [fields["preloads"]] if "preloads" in fields else []
        if anchor != named:  # one of the two may be None
            used += [name for name in (anchor, named) if name is not None]
        text = ""
        for name in used:
            made = self._responses.get(name)
            if made is not None and _differ(client, made.client):
                text = f"turn {one.turn} of {client} is sent with what {name} has, of {made.client}"
        if first != client:
            text = f"turn {one.turn} of {client} is sent in a session of {first}"
        if text:
            self.broken[one.line] = Broken(BridgeProperty.CREDENTIALS_ARE_KEPT_APART, text)

    def _is_same(self, anchor: str, other: str) -> bool:
        """Whether both ids are of the same response, or of two with the same context."""
        one, two = self._responses.get(anchor), self._responses.get(other)
        return one is not None and two is not None and one.origin is two.origin

    # ------------------------------------------------------------ responses

    def _answer(self, one: Observed) -> None:
        latest, name = self._latest.get(one.session), one.fields.get("response")
        if latest is None:
            return
        known = None if name is None else self._responses.get(name)
        turn = one.session, latest.turn
        if known is not None:
            elsewhere = known.turn[0] != one.session or known.place < latest.place
            stranger = known.turn != turn and elsewhere
            latest.stranger = f"{name} is no response to it: {known}" if stranger else ""
        elif name is not None:
            latest.stranger = ""
        if latest.stranger:
            self.strangers[one.line] = latest.stranger
            return
        if name is not None and known is None:
            response = latest.response or self._made(one, turn, latest.place)
            self._responses[name] = latest.response = response
        elif known is not None and known.turn == turn:
            latest.response = known
        if one.kind == "response_ended" and latest.response is not None:
            latest.response.complete = one.fields.get("outcome") != "failed"
            self._answers[turn] = latest.response
            latest.response = None

    def _made(self, one: Observed, turn: TurnName, place: int) -> _Response:
        submitted = self._submitted.get(turn)
        fields = {} if submitted is None else submitted.fields
        preloads = fields.get("preloads")
        same = None
        if preloads is not None:
            same = self._responses.get(preloads)
            if same is None:  # of before this log
                same = self._responses[preloads] = _Response(
                    one.line, turn, None, stored=False, place=place, complete=True
                )
        stored, client = fields.get("store", True), fields.get("client")
        return _Response(one.line, turn, client, stored, place, same=same)

    def _renamed(self, one: Observed) -> None:
        """The client is given an id of the bridge's own for its response."""
        name, turn = one.fields["response"], (one.session, one.turn)
        made, known = self._answers.get(turn), self._responses.get(name)
        if known is not None and known is not made:
            text = f"{name} is given to the client as the response of turn {one.turn}: {known}"
            self.broken[one.line] = Broken(Property.DELIVERED_TO_ITS_TURN, text)
        elif made is not None:
            self._responses[name] = made


_PLACES = ("connect", "upstream_opened", "upstream_lost", "upstream_closed")
_ANSWERS = ("response_created", "output", "response_ended")
_STANDINGS: Mapping[tuple[bool | None, bool], Standing] = {
    (None, False): Standing.UNKNOWN,  # the bridge has seen no response with that id
    (None, True): Standing.HELD,
    (False, False): Standing.BOUND,
    (False, True): Standing.HELD,
    (True, False): Standing.STORED,
    (True, True): Standing.HELD_STORED,
}


def _anchor_of(one: Observed) -> str | None:
    anchor: str | None = one.fields.get("previous_response_id")
    return anchor


def _differ(client: str | None, other: str | None) -> bool:
    """Whether both clients are known, and not the same."""
    return client is not None and other is not None and client != other


def _known(made: _Response | None) -> str:
    if made is None:
        return "no earlier line has a response with that id"
    return str(made) if made.complete else f"{made}, and that did not complete"
