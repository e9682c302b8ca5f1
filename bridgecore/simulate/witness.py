"""What went upstream, held against what clients asked.

What belongs here: the checks that need both ends of a turn, and the independent count of what
continuity saves and costs. A ``Witness`` knows what a client asked (``Asked``) and what the
emulator received; of the bridge between them it knows nothing, and shares no code with it.

Checked for every create frame, also of turns that fail later:

* *context*: what the upstream shows its model is what the client means, item by item;
* *self-contained*: an input whose anchor was taken away has the call of every output, and nothing
  that is shown has an output without its call or a call without its output;
* *credential*: a frame goes out under its client's credential, and names no response of another
  one's unless the client itself did;
* *sibling*: no response is the injected anchor of two conversations, whatever they share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import attrs
import msgspec

from bridgecore.testing.answers import CreateRequest
from bridgecore.testing.emulator import Outcome, Turn

Json: TypeAlias = dict[str, Any]


def encode(value: object) -> bytes:
    """JSON, also of what has half a surrogate pair in it: upstreams send those, escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes | bytearray) -> Any:
    """What ``data`` says.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return json.loads(data)


@attrs.frozen(eq=False)
class Asked:
    """What a client asked in an attempt. ``new``: the items of its body."""

    client: int
    credential: bytes  # the value of its Authorization header
    anchor: str | None
    new: Sequence[Json]
    context: Sequence[Json] | None  # what a model is to be shown; None: nothing can be known
    warms: bool = False  # nothing is to be answered


@attrs.define
class Ledger:
    """What reduction saved and rehydration cost, over turns that were completed.

    Saved are the tokens of the context that was not sent again because an anchor stood for it;
    spent are those of the context that had to be sent although the client's anchor stood for it.
    Both are what the upstream reported when it made the response that the anchor names. Bytes are
    the difference between what the client's frame would have been and what was sent.
    """

    turns: int = 0
    reduced: int = 0
    rehydrated: int = 0
    warmed: int = 0  # sockets, with what a turn of the bridge's own cost
    bytes_saved: int = 0
    bytes_spent: int = 0
    tokens_saved: int = 0
    tokens_spent: int = 0

    def add(self, other: Ledger) -> None:
        """Take in another one."""
        for field in attrs.fields(Ledger):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.reduced:,} of {self.turns:,} turns reduced: {self.bytes_saved:,} bytes and "
            f"{self.tokens_saved:,} tokens saved; {self.rehydrated:,} rehydrated: "
            f"{self.bytes_spent:,} bytes and {self.tokens_spent:,} tokens spent"
            + (f"; {self.warmed:,} sockets warmed, their cost included" if self.warmed else "")
        )


class Witness:
    """Sees every turn that the upstream started, and who asked for it."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[bytes, Turn]] = {}  # response id -> its credential and turn
        self._injected: dict[str, int] = {}  # response id -> the client for whom it was injected

    def saw(self, turn: Turn, asked: Sequence[Asked]) -> list[tuple[str, str]]:
        """The properties that ``turn`` breaks, each with what is wrong. ``asked``: what its client
        asked in the attempts so far, the latest last."""
        request = turn.request
        latest = asked[-1]
        for name in (turn.response_id, turn.created_id):
            self._made[name] = (latest.credential, turn)
        found = [
            *self._credential(request, asked),
            *self._sibling(request, asked),
            *_self_contained(request, latest),
        ]
        if request.context and not any(_means(one, request) for one in asked):
            found.append(_context(request, latest))
        return found

    def warmed(
        self, turn: Turn, answer: Turn, asked: Asked, meant: Sequence[Json] | None
    ) -> list[tuple[str, str]]:
        """The properties that ``turn`` breaks, by which the bridge has a socket learn what came to
        be with ``answer``, to what was ``asked``. ``meant``: what was said by then."""
        request = turn.request
        # It stands for that answer from now on.
        self._made[turn.response_id] = (asked.credential, answer)
        found = [*self._credential(request, [asked]), *_self_contained(request, asked)]
        if turn.outcome is Outcome.FAILED and not request.context:
            return found  # it was refused before anything was shown
        shown = [said(item) for item in request.context]
        if meant is not None and shown != [said(item) for item in meant]:
            text = f"a socket learnt {len(shown)} items for the {len(meant)} that were said"
            found.append(("context", text))
        return found

    def account(self, turn: Turn, asked: Asked) -> Ledger:
        """What a completed turn that was the answer to ``asked`` saved and cost."""
        sent = turn.request
        saved = _size(asked.new, asked.anchor) - _size(sent.input, sent.anchor)
        if sent.anchor is not None and asked.anchor is None:
            tokens = self._tokens(sent.anchor)
            return Ledger(1, reduced=1, bytes_saved=saved, tokens_saved=tokens)
        if asked.anchor is not None and sent.anchor is None:
            tokens = self._tokens(asked.anchor)
            return Ledger(1, rehydrated=1, bytes_spent=-saved, tokens_spent=tokens)
        return Ledger(1)

    def _tokens(self, response: str) -> int:
        """What the upstream reported of the context up to and with ``response``."""
        made = self._made.get(response)
        usage = None if made is None else made[1].usage
        return 0 if usage is None else int(usage["total_tokens"])

    def _credential(
        self, request: CreateRequest, asked: Sequence[Asked]
    ) -> Iterable[tuple[str, str]]:
        sent = next((value for name, value in request.headers if name == b"authorization"), b"")
        if sent != asked[-1].credential:
            text = f"sent under {sent.decode()!r}, not its own credential"
            yield "credential", text
        anchor = request.anchor
        made = None if anchor is None else self._made.get(anchor)
        if made is None or made[0] == asked[-1].credential:
            return
        if all(one.anchor != anchor for one in asked):
            text = f"anchored at a response of {made[0].decode()!r}"
            yield "credential", text

    def _sibling(self, request: CreateRequest, asked: Sequence[Asked]) -> Iterable[tuple[str, str]]:
        anchor = request.anchor
        if anchor is None or any(one.anchor == anchor for one in asked):
            return
        client = asked[-1].client
        first = self._injected.setdefault(anchor, client)
        if first != client:
            text = f"anchored at the response that stood for client {first}"
            yield "sibling", text


def _self_contained(request: CreateRequest, asked: Asked) -> Iterable[tuple[str, str]]:
    if request.anchor is None and asked.anchor is not None:
        orphans, _ = _pairing(request.input)
        if orphans:
            text = f"its anchor was taken away, and {orphans[0]} has no call"
            yield "self-contained", text
    orphans, pending = _pairing(request.context)
    if orphans:
        text = f"the upstream is shown an output of {orphans[0]}, which has no call"
        yield "self-contained", text
    if pending:
        text = f"the upstream is shown the call {pending[0]} without its output"
        yield "self-contained", text


def _pairing(items: Iterable[Json]) -> tuple[list[str], list[str]]:
    """The call ids of outputs that have no call before them, and of calls without an output."""
    orphans: list[str] = []
    pending: dict[str, None] = {}
    answered: set[str] = set()
    for item in items:
        kind = item.get("type")
        if kind == "function_call":
            pending[item["call_id"]] = None
        elif kind == "function_call_output":
            call: str = item["call_id"]
            if call in pending:
                del pending[call]
                answered.add(call)
            elif call not in answered:
                orphans.append(call)
    return orphans, list(pending)


def _means(asked: Asked, request: CreateRequest) -> bool:
    """Whether a model that is shown the context of ``request`` reads what the client means."""
    meant = asked.context
    if meant is None or len(meant) != len(request.context):
        return False
    return all(
        one is other or one == other or said(one) == said(other)
        for one, other in zip(meant, request.context, strict=True)
    )


def _context(request: CreateRequest, asked: Asked) -> tuple[str, str]:
    held = len(request.context)
    if asked.context is None:
        return "foreign", f"it named what it does not own, and {held} items were shown for it"
    text = f"it believes in {len(asked.context)} items, the upstream held {held}"
    if held == len(asked.context):
        text = "an item that the upstream held is not what it believes"
    return "context", text


def said(item: Json) -> tuple[object, ...]:
    """What a model reads of an item, and who says it: the rest is bookkeeping."""
    kind = item.get("type", "message")
    if kind == "message":
        content = item["content"]
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content)
        return (item["role"], content)
    if kind == "function_call":
        return (kind, item["call_id"], item["name"], item["arguments"])
    if kind == "function_call_output":
        return (kind, item["call_id"], item["output"])
    return (kind, *sorted((name, item[name]) for name in item if name not in ("id", "status")))


def _size(items: Sequence[Json], anchor: str | None) -> int:
    """Bytes of a frame that say what it is about."""
    size = len(encode(items))
    return size if anchor is None else size + len(anchor) + _ANCHOR


_ANCHOR: Final = len('"previous_response_id":"",')
