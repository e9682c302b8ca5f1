"""The items of a conversation: cut out, put into input form, compared, paired.

What belongs here: everything that knows what an item of the Responses API looks like. Items are raw
JSON and stay as they came. What the API *requires* of an item that comes back as input is cut out
of it, and two items are compared by what a model would read of them, through a digest of a
canonical form; nothing else is ever re-serialised. Which item follows which is transcript.py's.

The tables follow the API reference (the input item union) and what clients were seen to send back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

import attrs
import msgspec

from bridgecore.wire.jsontext import (
    Text,
    TooDeepError,
    UnreadableError,
    begins,
    read_array,
    read_members,
    read_value,
    reader,
    write_object,
)
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
# Compared without these, but sent back whole: a compaction is replayed as it was handed out.
_KEPT_WHOLE: Final[Mapping[str, frozenset[str]]] = {
    "compaction": frozenset({"id", "created_by"}),
}
# Members that clients add to items of any type when they send them back. No upstream put them there
# and no model reads them, so they are forwarded unchanged and not compared.
CLIENT_MEMBERS: Final = frozenset(
    {
        # Codex 0.171, built-in provider: turn id, time and kinds of content, on each item that it
        # sends (codex-rs protocol/src/models.rs; seen in the request bodies of `codex exec`).
        "internal_chat_message_metadata_passthrough",
    }
)

# MessagePack because it is canonical once keys are sorted: one encoding per value, types told
# apart, and no escapes to write.
_canonical = msgspec.msgpack.Encoder(order="sorted")

# A value has no canonical form if it cannot be read, or if MessagePack has no word for it: an
# integer of more than 64 bits, half of a surrogate pair.
_NO_FORM = (UnreadableError, OverflowError, ValueError)


# ------------------------------------------------------------------ input form


def input_form(item: Text, *, stored: bool) -> bytes | None:
    """An output item of a response as a later request can send it; None if it cannot be sent.

    A response of ``store=true`` (``stored``) has items the service can look up: they go back as
    they came. Otherwise the service's bookkeeping is cut out; ``reasoning`` is kept only with its
    ``encrypted_content`` or its readable ``content``, because without them there is nothing but an
    id that names nothing. Content stays ``output_text``, which the API takes from the assistant,
    with its annotations (the reference requires the member, and citations belong to the text),
    without its log probabilities (optional, never read by a model, and many times the size of the
    text). A ``status`` that says more than "completed" stays: an item of an incomplete response is
    sent back as the fragment that it is.

    The order of members and the bytes of every member that stays are kept.
    """
    raw = bytes(item)
    if stored:
        return raw
    try:
        members = read_members(item)
        kind = kind_of(members)
        if is_bare_thought(kind, members):
            return None
        unwanted = {
            name
            for name in _BOOKKEEPING.get(kind, ()) & members.keys()
            if name != "status" or bytes(members[name]) in (b'"completed"', b"null")
        }
        content = None
        if kind == "message" and b'"logprobs"' in raw:
            content = _without_logprobs(members.get("content"))
    except UnreadableError:
        return raw
    if not unwanted and content is None:
        return raw
    kept: dict[str, Text] = {n: value for n, value in members.items() if n not in unwanted}
    if content is not None:
        kept["content"] = content
    return write_object(kept)


def ignored(kind: str) -> frozenset[str]:
    """Members of an item that say nothing to a model; none if the kind is not known that well."""
    return _BOOKKEEPING.get(kind) or _KEPT_WHOLE.get(kind) or frozenset()


def is_bare_thought(kind: str, members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether an item is reasoning without its content, encrypted or readable (open models have
    the latter): then all there is of it is its id."""
    if kind != "reasoning" or _text_of(members.get("encrypted_content")):
        return False
    content = members.get("content")
    return content is None or read_value(content) in _NOTHING


_NOTHING: Final[tuple[object, ...]] = (None, [], "")


def kind_of(members: Mapping[str, msgspec.Raw]) -> str:
    """The type of an item; one with a role and no type is a message, as the reference says."""
    kind = _text_of(members.get("type"))
    return kind or ("message" if "type" not in members and "role" in members else "")


def _text_of(raw: Text | None) -> str:
    value = None if raw is None else read_value(raw)
    return value if isinstance(value, str) else ""


def _without_logprobs(content: msgspec.Raw | None) -> bytes | None:
    """``content`` with ``logprobs`` cut out of its parts; None if there is nothing to cut."""
    if content is None or not begins(content, b"["):
        return None
    cut = False
    parts: list[Text] = []
    for part in read_array(content):
        parts.append(part)
        if begins(part, b"{"):
            members = read_members(part)
            if "logprobs" in members and _text_of(members.get("type")) == "output_text":
                del members["logprobs"]
                parts[-1], cut = write_object(members), True
    return b"[" + b",".join(parts) + b"]" if cut else None


# ------------------------------------------------------------------ digests


def chain_digest(before: bytes, item: Text, *, stored: bool = True) -> bytes:
    """The digest of a list of items: that of all but the last, and the last.

    Lists have one digest if and only if they are the same context. The same are: members in another
    order, other white space and escapes, the bookkeeping there or not, a member of
    ``CLIENT_MEMBERS`` or none, a null member of an item, of a content part or of an ``action`` and
    none (Codex leaves out the null ``url`` of a page that was opened), empty annotations and none,
    log probabilities or not, a message with ``type`` or without, a message whose content is a
    string or its one text part (``output_text`` from the assistant, ``input_text`` from anybody
    else), and ``arguments`` of a function call that are the same JSON value. Everything else
    differs: above all what a tool said, to the byte, and an item that cannot be read, which equals
    nothing but its own bytes.

    Without a store (``stored`` is False), reasoning without content is no item at all: its id names
    nothing, so no client can lawfully send it back, and those that keep histories leave it out.
    """
    try:
        value = read_value(item)
        if not stored and isinstance(value, dict) and _is_bare(value):
            return before
        # An array in MessagePack: it begins otherwise than what cannot be read.
        said = _canonical.encode((before, _normal(value) if isinstance(value, dict) else value))
    except _NO_FORM:
        said = b"\0%b%b" % (before, bytes(item))
    return _digest(said)


def _normal(item: Json) -> Json:
    """What of ``item`` a model would read, each thing said in one way. ``item`` is used up."""
    for name in CLIENT_MEMBERS & item.keys():
        del item[name]
    kind = item.get("type")
    if "type" not in item and "role" in item:
        kind = "message"
    if not isinstance(kind, str):
        return item
    noise = _BOOKKEEPING.get(kind)
    if noise is None and (noise := _KEPT_WHOLE.get(kind)) is None:
        return item
    named = item.get("id") if _is_bare(item) else None
    for name in noise:
        if name != "status" or item.get(name) == "completed":
            item.pop(name, None)
    _drop_nulls(item)
    if kind == "message":
        item["type"] = kind
        content = item.get("content")
        if isinstance(content, str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            item["content"] = [{"type": part, "text": content}]
        else:
            _normal_parts(content)
    elif kind == "reasoning":
        if named is not None:
            item["id"] = named  # all there is of it: the service has the rest
        if item.get("content") == []:
            del item["content"]
    elif kind == "function_call":
        _parse_arguments(item)
    else:
        _normal_parts(item.get("output"))
        action = item.get("action")  # of a search of the web, or of a shell
        if isinstance(action, dict):
            _drop_nulls(action)
    return item


def _is_bare(item: Json) -> bool:
    """``is_bare_thought`` of an item that is decoded already."""
    if item.get("type") != "reasoning":
        return False
    encrypted = item.get("encrypted_content")
    has_text = isinstance(encrypted, str) and encrypted != ""
    return not has_text and item.get("content") in _NOTHING


def _parse_arguments(call: Json) -> None:
    """Put the value of ``arguments`` in place of its text, if that is a JSON object or array.

    SDKs parse arguments and write them again with white space of their own. As an extension type,
    which no JSON is read as, so that a value never equals a text.
    """
    text = call.get("arguments")
    if isinstance(text, str) and text.lstrip()[:1] in ("{", "["):
        try:
            value = _canonical.encode(read_value(text.encode()))
        except _NO_FORM:  # then the text counts
            return
        call["arguments"] = msgspec.msgpack.Ext(0, value)


def _normal_parts(parts: Any) -> None:
    if not isinstance(parts, list):
        return
    for part in parts:
        if isinstance(part, dict):
            _drop_nulls(part)
            if part.get("type") == "output_text":
                part.pop("logprobs", None)
                if part.get("annotations") == []:
                    del part["annotations"]


def _drop_nulls(members: Json) -> None:
    if None in members.values():
        for name in [name for name, value in members.items() if value is None]:
            del members[name]


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


class Head(msgspec.Struct):
    """What an item is, and what it refers to: the members that tell, and no others."""

    type: Any = None
    role: Any = None
    call_id: Any = None
    id: Any = None
    approval_request_id: Any = None

    @property
    def kind(self) -> str:
        """Its type; empty if it has none."""
        return self.type if isinstance(self.type, str) else ""


_read_head: Final = reader(Head)
_read_heads: Final = reader(list[Head])


def read_head(item: Text) -> Head | None:
    """The head of ``item``; None if nobody can read it."""
    try:
        return _read_head(item)
    except UnreadableError:
        return None


def read_heads(text: bytes) -> list[Head | None]:
    """The heads of the items of ``text``, the inside of a JSON array; one None if nobody can read
    it."""
    try:
        return [*_read_heads(b"[%b]" % text)]
    except UnreadableError:
        return [None]


def referred(head: Head | None) -> str | None:
    """The id that an ``item_reference`` names; None if the item is none. The API reference lets
    its ``type`` be left out."""
    if head is None or head.role is not None or head.type not in (None, "item_reference"):
        return None
    return head.id if isinstance(head.id, str) and head.id else None


def has_id(head: Head | None, name: str) -> bool:
    """Whether the item is one that has the id ``name``, and no reference to it."""
    return head is not None and head.id == name and head.type not in (None, "item_reference")


_LONGEST_REFERENCE: Final = 4096  # bytes: most items are longer than any reference


def prove(heads: Iterable[Head | None]) -> Proof:
    """What is to be said for and against sending the items with these ``heads``."""
    pending: dict[str, None] = {}
    called: set[str] = set()
    orphans: dict[str, None] = {}
    opaque = 0
    for head in heads:
        kind = "" if head is None else head.kind
        if (
            head is None
            or kind == "item_reference"
            or (not kind and not isinstance(head.role, str))
        ):
            opaque += 1
        elif _is_answer(kind):
            call = _answered(head)
            pending.pop(call or "", None)
            if call is not None and call not in called:
                orphans[call] = None
        elif (call := _called(head)) is not None:
            called.add(call)
            pending[call] = None
    return Proof(tuple(orphans), tuple(pending), opaque)


def calls(heads: Iterable[Head | None]) -> frozenset[str]:
    """The ids of the calls among the items, be they answered there or not."""
    found = (_called(head) for head in heads if head is not None and not _is_answer(head.kind))
    return frozenset(call for call in found if call is not None)


def repeats_answers(heads: Sequence[Head | None]) -> bool:
    """Whether one of the items is one that a model made: then they are a history and no beginning.
    False if one of them cannot be read."""
    return None not in heads and any(
        head is not None
        and (head.role == "assistant" or head.kind in _MADE or head.kind.endswith("_call"))
        for head in heads
    )


_MADE: Final = frozenset({"reasoning", "compaction", "item_reference", "mcp_approval_request"})


def _is_answer(kind: str) -> bool:
    return kind == "mcp_approval_response" or kind.endswith("_output")


def _called(head: Head) -> str | None:
    """The id by which an item that is no answer can be answered; None if it asks for none."""
    call = head.id if head.kind == "mcp_approval_request" else head.call_id
    return call if isinstance(call, str) and call else None


def _answered(head: Head) -> str | None:
    """The call that an output answers; None if it answers none, "" if it does not say which."""
    kind = head.kind
    call = head.approval_request_id if kind == "mcp_approval_response" else head.call_id
    if call is None and kind == "local_shell_call_output":
        call = head.id  # the reference has this type name its call so
    if call is None and kind == "tool_search_output":
        return None  # the service searched for itself
    return call if isinstance(call, str) else ""


# ------------------------------------------------------------------ requests

_NULL: Final = msgspec.Raw(b"null")  # to the API, as good as absent


# What of a request has to be equal along a conversation. A chain carries nothing on but items: all
# of these are said anew by every request. But Codex, which continues chains itself, begins anew
# when one of the first ten or ``store`` changes (docs, "Protocol notes"); the two after those
# decide what becomes of a context that grows too long.
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
# Items that the request does not show come with these.
_HIDING: Final = ("conversation", "prompt")


def _settings_digest(request: CreateRequest, narrow: Iterable[bytes]) -> bytes:
    values: list[Any] = [request.store, list(narrow)]
    for name in (*_SETTINGS, *_HIDING):
        raw = request.members.get(name, _NULL)
        try:
            values.append(_canonical.encode(None if raw == _NULL else read_value(raw)))
        except TooDeepError:
            raise ValueError(f"'{name}' is nested too deeply") from None
        except _NO_FORM:
            values.append([bytes(raw)])  # equal to its own bytes only
    return _digest(_canonical.encode(values))


class Prompt:
    """What one request says, item by item.

    ``text`` is the inside of the ``input`` array with nothing between items but commas; ``items``
    are views of the request's own bytes, so a prompt is for as long as its turn runs, no longer.
    Of an item, its head is read once, when it is first asked for.

    ``anchor`` is the response that the items follow: ``previous_response_id``, by the id under
    which the bridge knows that response. ``resolved`` has the items that an ``item_reference``
    stands for, by its place among ``items``, as far as the bridge holds them.
    """

    __slots__ = (
        "_heads",
        "anchor",
        "bounds",
        "cache_key",
        "chain",
        "items",
        "request",
        "resolved",
        "settings",
        "text",
        "whole",
    )

    def __init__(self, request: CreateRequest, narrow: Iterable[bytes] = ()) -> None:
        """Read ``request``.

        Args:
            narrow: what else has to be equal for two requests to be of one conversation, such as
                the client's thread id. It can only keep conversations apart.

        Raises:
            ValueError: ``input`` is neither a string nor a list that can be read, so it has no
                items; or a setting is nested too deeply to be compared.
        """
        self.request = request
        members = request.members
        self.items = _read_items(members.get("input", _NULL))
        self._heads: dict[int, Head | None] = {}
        self.text = b",".join(self.items)
        # Where in text each item begins, and where one more would.
        self.bounds = [0, *accumulate([len(item) + 1 for item in self.items])]
        # The digests of what the items follow and the first n of them, as far as they are known.
        self.chain = [ROOT]
        self.anchor = request.previous_response_id
        self.resolved: dict[int, bytes] = {}
        # Everything besides items that has to be equal along a conversation, as a digest.
        self.settings = _settings_digest(request, narrow)
        # Whether the items are all the context that the request itself brings.
        self.whole = all(members.get(name, _NULL) == _NULL for name in _HIDING)
        # As it came; None: there is none.
        cache_key = members.get("prompt_cache_key", _NULL)
        self.cache_key = None if cache_key == _NULL else cache_key

    def heads(self) -> list[Head | None]:
        """The heads of all items."""
        if not self._heads:  # then it is quicker to read them in one go
            found = read_heads(self.text) if self.items else []
            if len(found) == len(self.items):
                self._heads = dict(enumerate(found))
        return [self._head(place) for place in range(len(self.items))]

    def meant_head(self, place: int) -> Head | None:
        """The head of the item at ``place``, or of the one that it refers to."""
        item = self.resolved.get(place)
        return self._head(place) if item is None else read_head(item)

    def meant_heads(self) -> list[Head | None]:
        """The heads of all items, and of those that are referred to in place of references."""
        if not self.resolved:
            return self.heads()
        return [self.meant_head(place) for place in range(len(self.items))]

    def reference(self, place: int) -> str | None:
        """The id that the item at ``place`` refers to; None if it is no reference."""
        if len(self.items[place]) > _LONGEST_REFERENCE:
            return None
        return referred(self._head(place))

    def _head(self, place: int) -> Head | None:
        if place not in self._heads:
            self._heads[place] = read_head(self.items[place])
        return self._heads[place]

    def begin_chain(self, before: bytes) -> None:
        """Let ``chain`` begin at the digest ``before``, of what the items follow."""
        if self.chain[0] != before:
            self.chain = [before]

    def extend_chain(self) -> None:
        """Take one more item into ``chain``."""
        item = self.meant(len(self.chain) - 1)
        self.chain.append(chain_digest(self.chain[-1], item, stored=self.request.store))

    def complete_chain(self) -> None:
        """Take all items into ``chain``."""
        while len(self.chain) <= len(self.items):
            self.extend_chain()

    def leaves_out(self, place: int) -> bool:
        """Whether the item at ``place``, which is in ``chain``, is none without a store (see
        ``chain_digest``)."""
        return self.chain[place] == self.chain[place + 1]

    def meant(self, place: int) -> Text:
        """The item at ``place``, or the one that it refers to."""
        return self.resolved.get(place) or self.items[place]

    def meant_text(self, start: int = 0) -> bytes:
        """``text_from`` with the items that are referred to in place of the references."""
        if not self.resolved:
            return self.text_from(start)
        return b",".join(map(self.meant, range(start, len(self.items))))

    def wording(self, start: int, end: int) -> bytes:
        """The digest of items ``start`` to ``end``, byte for byte: equal if they are."""
        return _digest(self.text[self.bounds[start] : self.bounds[end] - 1])

    def text_from(self, start: int) -> bytes:
        """``text`` without the first ``start`` items."""
        return self.text[self.bounds[start] :]

    def frame(self, text: bytes, anchor: str | None) -> bytes:
        """The request's ``response.create`` with other items and another anchor, or none.

        Everything else goes as it came, byte for byte.
        """
        named = None if anchor is None else msgspec.json.encode(anchor)
        return self.request.frame_with(input=b"[%b]" % text, previous_response_id=named)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def _read_items(given: msgspec.Raw) -> list[msgspec.Raw]:
    """The items that ``input`` is: those of a list, or what the API makes of anything else."""
    if begins(given, b"["):
        try:
            return read_array(given)
        except UnreadableError:
            raise ValueError("'input' cannot be read") from None
    if given == _NULL:
        return []
    if not begins(given, b'"'):
        raise ValueError("'input' is neither a string nor a list")
    part = b'{"type":"input_text","text":%b}' % given
    return [msgspec.Raw(b'{"type":"message","role":"user","content":[%b]}' % part)]
