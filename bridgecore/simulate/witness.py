"""Compares each frame that the upstream received with what its client asked.

What belongs here: the checks of a single frame that need both ends of a turn, and the independent
count of what continuity saves and costs. A ``Witness`` knows what a client asked (``Asked``) and
what the emulator received. It shares no code with the bridge and knows nothing of its state.

Checked for every create frame, also of turns that fail later:

* *context*: the context at the upstream equals the one that the client means, item by item;
* *self-contained*: an input without the client's anchor has the call of every output, and no
  context has an output without its call or a call without its output;
* *credential*: a frame is sent under its client's credential, and names a response of another
  credential only if the client itself did;
* *sibling*: no response is the injected anchor of two conversations, whatever keys they share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import attrs
import msgspec

from bridgecore.testing.answers import CreateFrame
from bridgecore.testing.emulator import Outcome, Turn

Json: TypeAlias = dict[str, Any]


def encode(value: object) -> bytes:
    """``value`` as JSON. It may contain half a surrogate pair: upstreams send those, escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes | bytearray) -> Any:
    """The value of the JSON text ``data``.

    Raises:
        ValueError: it is not JSON.
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
    context: Sequence[Json] | None  # the context that it means; None: it cannot be known
    warms: bool = False  # the request has ``generate: false``


@attrs.define
class Ledger:
    """What reduction saved and rehydration cost, over completed turns.

    Saved are the tokens of context that was not sent again because an anchor replaced it; spent are
    those of context that had to be sent although the client's anchor names it. Both are the figures
    that the upstream reported for the response that the anchor names. Bytes are the difference
    between the client's own frame and the frame that was sent.
    """

    turns: int = 0
    reduced: int = 0
    rehydrated: int = 0
    warmed: int = 0  # connections preloaded by turns of the bridge's own
    bytes_saved: int = 0
    bytes_spent: int = 0
    tokens_saved: int = 0
    tokens_spent: int = 0

    def add(self, other: Ledger) -> None:
        """Add the figures of another one."""
        for field in attrs.fields(Ledger):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def text(self) -> str:
        """The figures in one line."""
        return (
            f"{self.reduced:,} of {self.turns:,} turns reduced: {self.bytes_saved:,} bytes and "
            f"{self.tokens_saved:,} tokens saved; {self.rehydrated:,} rehydrated: "
            f"{self.bytes_spent:,} bytes and {self.tokens_spent:,} tokens spent"
            + (f"; {self.warmed:,} sockets warmed, their cost included" if self.warmed else "")
        )


class Witness:
    """Sees every turn that the upstream began, and what its client asked."""

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
        """The properties that ``turn`` breaks, with which the bridge preloads a connection.
        ``answer`` is the answer to what was ``asked``; ``meant`` is the history up to and with it.
        """
        request = turn.request
        # From now on it names the same context as that answer.
        self._made[turn.response_id] = (asked.credential, answer)
        found = [*self._credential(request, [asked]), *_self_contained(request, asked)]
        if turn.outcome is Outcome.FAILED and not request.context:
            return found  # refused before the upstream had a context
        shown = [said(item) for item in request.context]
        if meant is not None and shown != [said(item) for item in meant]:
            text = f"a connection is preloaded with {len(shown)} items instead of {len(meant)}"
            found.append(("context", text))
        return found

    def account(self, turn: Turn, asked: Asked) -> Ledger:
        """What a completed turn, the answer to ``asked``, saved and cost."""
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
        """The tokens of the context up to and with ``response``, as reported by the upstream."""
        made = self._made.get(response)
        usage = None if made is None else made[1].usage
        return 0 if usage is None else int(usage["total_tokens"])

    def _credential(
        self, request: CreateFrame, asked: Sequence[Asked]
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
            text = f"anchored to a response of {made[0].decode()!r}"
            yield "credential", text

    def _sibling(self, request: CreateFrame, asked: Sequence[Asked]) -> Iterable[tuple[str, str]]:
        anchor = request.anchor
        if anchor is None or any(one.anchor == anchor for one in asked):
            return
        client = asked[-1].client
        first = self._injected.setdefault(anchor, client)
        if first != client:
            text = f"anchored to the response that was injected for client {first}"
            yield "sibling", text


def _self_contained(request: CreateFrame, asked: Asked) -> Iterable[tuple[str, str]]:
    if request.anchor is None and asked.anchor is not None:
        orphans, _ = _pairing(request.input)
        if orphans:
            text = f"its anchor was removed, and the output of {orphans[0]} has no call"
            yield "self-contained", text
    orphans, pending = _pairing(request.context)
    if orphans:
        text = f"the context has an output of {orphans[0]}, but not its call"
        yield "self-contained", text
    if pending:
        text = f"the context has the call {pending[0]}, but not its output"
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


def _means(asked: Asked, request: CreateFrame) -> bool:
    """Whether the context of ``request`` is what the client means, apart from ids and status."""
    meant = asked.context
    if meant is None or len(meant) != len(request.context):
        return False
    return all(
        one is other or one == other or said(one) == said(other)
        for one, other in zip(meant, request.context, strict=True)
    )


def _context(request: CreateFrame, asked: Asked) -> tuple[str, str]:
    held = len(request.context)
    if asked.context is None:
        return "foreign", f"it named a response that it does not own and got {held} items"
    text = f"the client means {len(asked.context)} items, the upstream has {held}"
    if held == len(asked.context):
        text = "an item that the upstream has is not what it means"
    return "context", text


def said(item: Json) -> tuple[object, ...]:
    """The content of an item and its author, as a model reads it: without ids and status."""
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
    """Bytes of the members in which frames of one turn differ: input and anchor."""
    size = len(encode(items))
    return size if anchor is None else size + len(anchor) + _ANCHOR


_ANCHOR: Final = len('"previous_response_id":"",')
