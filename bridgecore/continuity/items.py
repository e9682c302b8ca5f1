"""The items of a conversation: cut out, put into input form, compared, paired.

What belongs here: everything that knows what an item of the Responses API looks like. Items are raw
JSON and stay as they came. What the API *requires* of an item that comes back as input is cut out
of it, and two items are compared by what a model would read of them, through a digest of a
canonical form; nothing else is ever re-serialised. Which item follows which is transcript.py's.

The tables follow the API reference (the input item union) and what clients were seen to send back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import attrs
import msgspec

from bridgecore.wire.responses import CreateRequest

Json: TypeAlias = dict[str, Any]

DIGEST_SIZE: Final = 16  # bytes: 2^64 items of one credential before two of them might be confused
ROOT: Final = bytes(DIGEST_SIZE)  # the chain digest of no items at all

# What the service adds to an item, by item type. Members of these names are bookkeeping: under
# store=false the ids name nothing (and the service refuses an id that it cannot find), and
# "completed" is what an item without a status is taken for. A type that is not listed is not
# touched: an unknown one may mean something by any member, and of these known ones the reference
# requires `id` or the id is a handle that others refer to: mcp_approval_request, mcp_call,
# mcp_list_tools, image_generation_call, code_interpreter_call, file_search_call, computer_call,
# program, program_output. `status` is bookkeeping only where the reference does not require it.
_BOOKKEEPING: Final[Mapping[str, frozenset[str]]] = {
    "message": frozenset({"id", "status"}),
    "reasoning": frozenset({"id", "status"}),
    "function_call": frozenset({"id", "status", "created_by"}),
    "function_call_output": frozenset({"id", "status", "created_by"}),
    "custom_tool_call": frozenset({"id", "status", "created_by"}),
    "custom_tool_call_output": frozenset({"id", "status", "created_by"}),
    "tool_search_call": frozenset({"id", "status", "created_by"}),
    "tool_search_output": frozenset({"id", "status", "created_by"}),
    "shell_call": frozenset({"id", "status", "created_by"}),
    "shell_call_output": frozenset({"id", "status", "created_by"}),
    "computer_call_output": frozenset({"id", "status", "created_by"}),
    "apply_patch_call": frozenset({"id", "created_by"}),
    "apply_patch_call_output": frozenset({"id", "created_by"}),
    "local_shell_call": frozenset({"id"}),
    "web_search_call": frozenset({"id"}),
    "additional_tools": frozenset({"id"}),
}
# Compared without these, but sent back whole: a compaction is replayed exactly as it was handed out.
_KEPT_WHOLE: Final[Mapping[str, frozenset[str]]] = {
    "compaction": frozenset({"id", "created_by"}),
}

# What a chain carries on from one request to the next besides items: nothing. But a client that
# changes one of these means another conversation (docs, "Protocol notes"), and the two last ones
# decide what the service makes of a long context.
_SETTINGS: Final = (
    "model",
    "instructions",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "include",
    "service_tier",
    "prompt_cache_key",
    "text",
    "truncation",
    "context_management",
)
# With one of these the context has items that the request does not show.
_HIDDEN_CONTEXT: Final = ("conversation", "prompt")

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])
_any = msgspec.json.Decoder()
# MessagePack because it is canonical once keys are sorted: one encoding per value, types told
# apart, and no escapes to write.
_canonical = msgspec.msgpack.Encoder(order="sorted")

# Everything that reading a value can raise: malformed (a lone surrogate is), too deep, too large.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError, ValueError)


# ------------------------------------------------------------------ input form


def input_form(item: msgspec.Raw | bytes, *, stored: bool) -> bytes | None:
    """An output item of a response as a later request can send it; None if it cannot be sent.

    A response of ``store=true`` (``stored``) has items the service can look up: they go back as
    they came. Otherwise the service's bookkeeping is cut out; ``reasoning`` is kept only with its
    ``encrypted_content``, because without it there is nothing but an id that names nothing. Content
    stays ``output_text``, which the API takes from the assistant, with its annotations (the
    reference requires the member, and citations belong to the text), without its log
    probabilities (optional, never read by a model, and many times the size of the text).

    The order of members and the bytes of every member that stays are kept.
    """
    raw = bytes(item)
    if stored:
        return raw
    try:
        members = _members.decode(raw)
        kind = _kind(members)
        if kind == "reasoning" and not _text_of(members.get("encrypted_content")):
            return None
        unwanted = {
            name
            for name in _BOOKKEEPING.get(kind, ()) & members.keys()
            if name != "status" or bytes(members[name]) in (b'"completed"', b"null")
        }
        content = None
        if kind == "message" and b'"logprobs"' in raw:
            content = _without_logprobs(members.get("content"))
    except _UNREADABLE:
        return raw
    if not unwanted and content is None:
        return raw
    kept = {name: value for name, value in members.items() if name not in unwanted}
    if content is not None:
        kept["content"] = msgspec.Raw(content)
    return _object(kept)


def _kind(members: Mapping[str, msgspec.Raw]) -> str:
    """The type of an item; one with a role and no type is a message, as the reference says."""
    kind = _text_of(members.get("type"))
    return kind or ("message" if "type" not in members and "role" in members else "")


def _text_of(raw: msgspec.Raw | None) -> str:
    value = None if raw is None else _any.decode(raw)
    return value if isinstance(value, str) else ""


def _without_logprobs(content: msgspec.Raw | None) -> bytes | None:
    """``content`` with ``logprobs`` cut out of its parts; None if there is nothing to cut."""
    if content is None or not bytes(content).startswith(b"["):
        return None
    cut = False
    parts = []
    for raw in _array.decode(content):
        part = bytes(raw)
        if part.startswith(b"{"):
            members = _members.decode(part)
            if "logprobs" in members and _text_of(members.get("type")) == "output_text":
                del members["logprobs"]
                part, cut = _object(members), True
        parts.append(part)
    return b"[" + b",".join(parts) + b"]" if cut else None


def _object(members: Mapping[str, msgspec.Raw | bytes]) -> bytes:
    """An object of ``members``, each value byte for byte."""
    parts = [msgspec.json.encode(name) + b":" + bytes(value) for name, value in members.items()]
    return b"{" + b",".join(parts) + b"}"


# ------------------------------------------------------------------ digests


def chain_digest(before: bytes, item: msgspec.Raw | bytes) -> bytes:
    """The digest of a list of items: that of all but the last, and the last.

    Lists have one digest if and only if they are the same context. The same are: members in another
    order, other white space and escapes, the bookkeeping there or not, a null member of an
    item or of a content part and none, empty annotations and none, log probabilities or not, a
    message with ``type`` or without, and a message whose content is a string or its one text part
    (``output_text`` from the assistant, ``input_text`` from anybody else). Everything else
    differs: above all what a tool was called with and what it said, to the byte, and an item that
    cannot be read, which equals nothing but its own bytes.
    """
    digest = hashlib.blake2b(before, digest_size=DIGEST_SIZE)
    try:
        value = _any.decode(item)
        canonical = _canonical.encode(_normal(value) if isinstance(value, dict) else value)
        digest.update(b"\0")
    except _UNREADABLE:
        canonical = bytes(item)
        digest.update(b"\1")
    digest.update(canonical)
    return digest.digest()


def _normal(item: Json) -> Json:
    """What of ``item`` a model would read, each thing said in one way."""
    kind = item.get("type")
    if "type" not in item and "role" in item:
        kind = "message"
    if not isinstance(kind, str):
        return item
    noise = _BOOKKEEPING.get(kind)
    if noise is None and (noise := _KEPT_WHOLE.get(kind)) is None:
        return item
    normal = {
        name: value
        for name, value in item.items()
        if value is not None and (name not in noise or (name == "status" and value != "completed"))
    }
    if kind == "message":
        normal["type"] = kind
        normal["content"] = _normal_content(normal.get("content"), normal.get("role"))
    elif kind == "reasoning":
        if not normal.get("encrypted_content") and item.get("id") is not None:
            normal["id"] = item["id"]  # all there is of it: the service has the rest
        if normal.get("content") == []:
            del normal["content"]
    elif isinstance(normal.get("output"), list):
        normal["output"] = [_normal_part(part) for part in normal["output"]]
    return normal


def _normal_content(content: Any, role: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "output_text" if role == "assistant" else "input_text", "text": content}]
    if isinstance(content, list):
        return [_normal_part(part) for part in content]
    return content


def _normal_part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    spoken = part.get("type") == "output_text"
    return {
        name: value
        for name, value in part.items()
        if value is not None
        and not (spoken and (name == "logprobs" or (name == "annotations" and value == [])))
    }


# ------------------------------------------------------------------ proofs


@attrs.frozen
class Proof:
    """Whether a list of items needs anything that only the upstream has (invariants 7, 8)."""

    orphans: tuple[str, ...]  # call ids of outputs whose call does not come before them
    pending: tuple[str, ...]  # call ids that no output answers: for the upstream to judge
    opaque: int  # items that only the upstream can resolve (item_reference), or nobody can read

    @property
    def self_contained(self) -> bool:
        """Whether the items can be sent without an anchor, on any socket.

        A call that is still pending does not speak against it: it was pending on the chain, too.
        """
        return not self.orphans and not self.opaque


class _Pairing(msgspec.Struct):
    type: Any = None
    role: Any = None
    call_id: Any = None
    id: Any = None
    approval_request_id: Any = None


_pairings = msgspec.json.Decoder(list[_Pairing])


def prove(text: bytes) -> Proof:
    """What is to be said for and against the items of ``text``, the inside of a JSON array."""
    try:
        items = _pairings.decode(b"[%b]" % text)
    except _UNREADABLE:
        return Proof((), (), 1)
    pending: dict[str, None] = {}
    called: set[str] = set()
    orphans: dict[str, None] = {}
    opaque = 0
    for item in items:
        kind = item.type if isinstance(item.type, str) else ""
        if kind == "item_reference" or (not kind and not isinstance(item.role, str)):
            opaque += 1
        elif kind == "mcp_approval_response" or kind.endswith("_output"):
            call = _answered(kind, item)
            pending.pop(call or "", None)
            if call is not None and call not in called:
                orphans[call] = None
        else:
            call = item.id if kind == "mcp_approval_request" else item.call_id
            if isinstance(call, str) and call:
                called.add(call)
                pending[call] = None
    return Proof(tuple(orphans), tuple(pending), opaque)


def _answered(kind: str, item: _Pairing) -> str | None:
    """The call that an output answers; None if it answers none, "" if it does not say which."""
    call = item.approval_request_id if kind == "mcp_approval_response" else item.call_id
    if call is None and kind == "local_shell_call_output":
        call = item.id  # the reference has this type name its call so
    if call is None and kind == "tool_search_output":
        return None  # the service searched for itself
    return call if isinstance(call, str) else ""


# ------------------------------------------------------------------ requests


class Prompt:
    """What one request says, item by item. Read once, then asked by everything in here.

    ``text`` is the inside of the ``input`` array with nothing between items but commas; ``items``
    are views of the request's own bytes, so a prompt is for as long as its turn runs, no longer.
    """

    __slots__ = ("_at", "_members", "_offsets", "_settings", "chain", "items", "request", "text")

    def __init__(self, request: CreateRequest, narrow: Iterable[bytes] = ()) -> None:
        """Read ``request``.

        Args:
            narrow: what else has to be equal for two requests to be of one conversation, such as
                the client's thread id. It can only keep conversations apart.

        Raises:
            ValueError: ``input`` is neither a string nor a list, so it has no items.
        """
        self.request = request
        self._members = _members.decode(request.frame)
        self.items, self.text = _split(self._members.get("input"))
        self._offsets: list[int] = []  # in text: where each item begins
        self._at: dict[int, int] = {}  # where each item ends, to how many items there are by then
        offset = 0
        for count, item in enumerate(self.items, 1):
            self._offsets.append(offset)
            offset += len(memoryview(item))
            self._at[offset] = count
            offset += 1
        self.chain = [ROOT]  # the digest of the first n items, as far as it is known
        self._settings = _settings_digest(self._members, request.store, narrow)

    @property
    def settings(self) -> bytes:
        """A digest of everything besides items that has to be equal along a conversation."""
        return self._settings

    @property
    def whole(self) -> bool:
        """Whether the items are all the context that the request itself brings."""
        return all(_absent(self._members.get(name)) for name in _HIDDEN_CONTEXT)

    def extend_chain(self) -> None:
        """Take one more item into ``chain``."""
        self.chain.append(chain_digest(self.chain[-1], self.items[len(self.chain) - 1]))

    def repeats(self, text: bytes, start: int) -> int | None:
        """Where items end that are ``text``, byte for byte, and begin with item ``start``."""
        if not text:
            return start
        if start >= len(self.items):
            return None
        offset = self._offsets[start]
        end = self._at.get(offset + len(text))
        return end if end is not None and self.text.startswith(text, offset) else None

    def wording(self, start: int, end: int) -> bytes:
        """What ``repeats_wording`` can find items ``start`` to ``end`` again by."""
        return _wording(self.text[self._offsets[start] : self._end(end)])

    def repeats_wording(self, wording: bytes, start: int) -> int | None:
        """Where items end that were ``wording``-ed so and begin with item ``start``."""
        if start >= len(self.items):
            return None
        offset = self._offsets[start]
        length = int.from_bytes(wording[:_LENGTH], "big")
        end = self._at.get(offset + length)
        if end is None or _wording(self.text[offset : offset + length]) != wording:
            return None
        return end

    def text_from(self, start: int) -> bytes:
        """``text`` without the first ``start`` items."""
        return self.text[self._offsets[start] :] if start < len(self.items) else b""

    def _end(self, count: int) -> int:
        return self._offsets[count] - 1 if count < len(self.items) else len(self.text)

    def frame(self, text: bytes, anchor: str | None) -> bytes:
        """The request's ``response.create`` with other items and another anchor, or none.

        Everything else goes as it came, byte for byte.
        """
        anew: dict[str, msgspec.Raw | bytes] = {}
        given: bytes = b"[%b]" % text
        for name, value in self._members.items():
            if name == "input":
                anew[name] = given
            elif name != "previous_response_id":
                anew[name] = value
        anew.setdefault("input", given)
        if anchor is not None:
            anew["previous_response_id"] = msgspec.json.encode(anchor)
        return _object(anew)


_LENGTH = 8  # bytes of a wording that hold the length of the text


def _wording(text: bytes) -> bytes:
    return len(text).to_bytes(_LENGTH, "big") + _digest(text)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def _absent(raw: msgspec.Raw | None) -> bool:
    return raw is None or bytes(raw) == b"null"


def _split(given: msgspec.Raw | None) -> tuple[list[msgspec.Raw], bytes]:
    """The items of ``input``, and what stands between the brackets of a compact array of them."""
    if given is None or _absent(given):
        return [], b""
    raw = bytes(given)
    if raw.startswith(b'"'):
        # What the API makes of a string.
        part = b'{"type":"message","role":"user","content":[{"type":"input_text","text":%b}]}' % raw
        return [msgspec.Raw(part)], part
    if not raw.startswith(b"["):
        raise ValueError("'input' is neither a string nor a list")
    items = _array.decode(raw)
    text = raw[1:-1]
    if sum(len(memoryview(item)) + 1 for item in items) != len(text) + 1:
        text = b",".join(map(bytes, items))
    return items, text


def _settings_digest(
    members: Mapping[str, msgspec.Raw], store: bool, narrow: Iterable[bytes]
) -> bytes:
    values: list[Any] = [store, list(narrow)]
    for name in _SETTINGS:
        raw = members.get(name)
        try:
            values.append(_canonical.encode(None if raw is None else _any.decode(raw)))
        except _UNREADABLE:
            values.append([bytes(raw or b"")])  # equal to its own bytes only
    return _digest(_canonical.encode(values))
