"""Items of the Responses API: reading, converting output to input, comparing, pairing calls.

What belongs here: everything that depends on what an item looks like. Items are kept as the raw
JSON that came, and are changed only where the API does not accept an output item as input
(``input_form``). Two items are compared by a digest of what a model would read of them
(``chain_digest``). The order of items along a conversation is transcript.py's subject.

Sources: the API reference (the union of input items), and what clients were seen to send back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

import attrs
import msgspec

from bridgecore.continuity.prefixes import Digester, KnownStart, Prefix, note_prefix
from bridgecore.wire.jsontext import (
    NULL,
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
from bridgecore.wire.requests import CreateRequest

Json: TypeAlias = dict[str, Any]

DIGEST_SIZE: Final = 16  # bytes: a collision is likely only among 2^64 items of one credential
ROOT: Final = bytes(DIGEST_SIZE)  # the chain digest of an empty list

# Members that the service adds to an item, by item type: bookkeeping, which a model does not read.
# With store=false the ids refer to nothing, and the service refuses an id that it cannot find; an
# item without a status counts as "completed". `status` is listed only where the reference does not
# require it. A type that is not listed is left alone: any member of an unknown type may matter, and
# in these known types `id` is required or is a handle that other items refer to:
# mcp_approval_request, mcp_call, mcp_list_tools, image_generation_call, code_interpreter_call,
# file_search_call, computer_call, program, program_output.
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
# Members left out of a comparison but sent back: the API wants a compaction exactly as it came.
_KEPT_WHOLE: Final[Mapping[str, frozenset[str]]] = {
    "compaction": frozenset({"id", "created_by"}),
}
# Members that clients add to items of any type when they send them back. No model reads them, so
# they are not compared; they are forwarded unchanged.
CLIENT_MEMBERS: Final = frozenset(
    {
        # Codex 0.171, built-in provider: turn id, time and kinds of content, on each item that it
        # sends (codex-rs protocol/src/models.rs; seen in the request bodies of `codex exec`).
        "internal_chat_message_metadata_passthrough",
    }
)

# MessagePack, because it is canonical once keys are sorted: one encoding for each value, distinct
# encodings for distinct types, and no escaping.
_canonical = msgspec.msgpack.Encoder(order="sorted")

# A value has no canonical form if it cannot be decoded, or not encoded in MessagePack: an integer
# of more than 64 bits, half of a surrogate pair.
_NO_FORM = (UnreadableError, OverflowError, ValueError)


# ------------------------------------------------------------------ input form


def input_form(item: Text, *, stored: bool) -> bytes | None:
    """Convert an output item to the form in which a later request can send it; None if it cannot.

    With ``stored`` (a response of ``store=true``) the service can look the item up by its id, so it
    is returned as it came. Otherwise:

    * Bookkeeping is removed: its ids refer to nothing, and would be refused.
    * ``reasoning`` without ``encrypted_content`` or readable ``content`` cannot be sent: nothing
    but
      an id is left of it.
    * ``output_text`` stays, because the API accepts it from the assistant; so do its annotations,
      which the reference requires. Log probabilities are removed: they are optional, no model reads
      them, and they are many times the size of the text.
    * A ``status`` other than "completed" stays: a fragment is sent back as a fragment.

    The order of members, and the bytes of every member that stays, are kept.
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
    """The members of an item of type ``kind`` that no model reads; none for an unlisted type."""
    return _BOOKKEEPING.get(kind) or _KEPT_WHOLE.get(kind) or frozenset()


def is_bare_thought(kind: str, members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether an item is reasoning without encrypted content or readable content (which open
    models have), so that only its id is left."""
    if kind != "reasoning" or _text_of(members.get("encrypted_content")):
        return False
    content = members.get("content")
    return content is None or read_value(content) in _NOTHING


_NOTHING: Final[tuple[object, ...]] = (None, [], "")


def kind_of(members: Mapping[str, msgspec.Raw]) -> str:
    """The type of an item. With a role and no type it is a message, according to the reference."""
    kind = _text_of(members.get("type"))
    return kind or ("message" if "type" not in members and "role" in members else "")


def _text_of(raw: Text | None) -> str:
    value = None if raw is None else read_value(raw)
    return value if isinstance(value, str) else ""


def _without_logprobs(content: msgspec.Raw | None) -> bytes | None:
    """``content`` without the ``logprobs`` of its parts; None if it has none."""
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
    """The digest of a list of items, from ``before``, the digest of all but the last, and the last.

    Two lists have equal digests if and only if they are the same context for a model. Ignored are

    * the order of members, white space and escapes;
    * bookkeeping, members of ``CLIENT_MEMBERS``, log probabilities, empty annotations;
    * null members of an item, a content part or an ``action`` (Codex leaves out the null ``url`` of
      a page that was opened);
    * whether a message has its ``type``, and whether its content is a string or one text part
      (``output_text`` from the assistant, ``input_text`` from any other role);
    * how the ``arguments`` of a function call are written, if they are the same JSON value.

    Everything else counts, in particular every byte of a tool's output. An item that cannot be read
    equals its own bytes only.

    With ``stored`` False, reasoning without content is skipped, so that the digest stays
    ``before``: its id refers to nothing, so clients that keep histories leave it out.
    """
    try:
        value = read_value(item)
        if not stored and isinstance(value, dict) and _is_bare(value):
            return before
        # A MessagePack array never begins with a zero byte, so this differs from unreadable items.
        said = _canonical.encode((before, _normal(value) if isinstance(value, dict) else value))
    except _NO_FORM:
        said = b"\0%b%b" % (before, bytes(item))
    return _digest(said)


def _normal(item: Json) -> Json:
    """The canonical form of what a model reads of ``item``, which is modified."""
    for name in CLIENT_MEMBERS:
        item.pop(name, None)
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
            item["id"] = named  # the id is all it has; the service stores the rest
        if item.get("content") == []:
            del item["content"]
    elif kind == "function_call":
        _parse_arguments(item)
    else:
        _normal_parts(item.get("output"))
        action = item.get("action")  # of a web search or a shell call
        if isinstance(action, dict):
            _drop_nulls(action)
    return item


def _is_bare(item: Json) -> bool:
    """``is_bare_thought`` for a decoded item."""
    if item.get("type") != "reasoning":
        return False
    encrypted = item.get("encrypted_content")
    has_text = isinstance(encrypted, str) and encrypted != ""
    return not has_text and item.get("content") in _NOTHING


def _parse_arguments(call: Json) -> None:
    """Replace the text of ``arguments`` by its value, if that is a JSON object or array.

    SDKs parse arguments and write them again with different white space. The value is wrapped in an
    extension type, which no JSON decodes to, so that a value never equals a text.
    """
    text = call.get("arguments")
    if isinstance(text, str) and text.lstrip()[:1] in ("{", "["):
        try:
            value = _canonical.encode(read_value(text.encode()))
        except _NO_FORM:  # compare the text instead
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
    """Whether a list of items is complete without anything that only the upstream has.

    Only proven lists are sent without an anchor (FORM_IS_POSSIBLE, OUTPUTS_HAVE_CALLS).
    """

    orphans: tuple[str, ...]  # call ids of outputs whose call does not come before them
    pending: tuple[str, ...]  # call ids that no output answers
    opaque: int  # items that only the upstream can resolve (item_reference), or that are unreadable

    @property
    def self_contained(self) -> bool:
        """Whether the items can be sent without an anchor, on any connection.

        Pending calls do not matter: they are pending behind the anchor, too, so the upstream would
        judge the turn alike.
        """
        return not self.orphans and not self.opaque


class Head(msgspec.Struct):
    """The members of an item that tell its type and what it refers to. Decoding only these skips
    the content, which is most of an item."""

    type: Any = None
    role: Any = None
    call_id: Any = None
    id: Any = None
    approval_request_id: Any = None

    @property
    def kind(self) -> str:
        """The type; empty if there is none."""
        return self.type if isinstance(self.type, str) else ""


_read_head: Final = reader(Head)
_read_heads: Final = reader(list[Head])


def read_head(item: Text) -> Head | None:
    """The head of ``item``; None if it cannot be read."""
    try:
        return _read_head(item)
    except UnreadableError:
        return None


def read_heads(text: bytes) -> list[Head | None]:
    """The heads of the items of ``text``, the inside of a JSON array; a single None if it cannot be
    read."""
    try:
        return [*_read_heads(b"[%b]" % text)]
    except UnreadableError:
        return [None]


def referred(head: Head | None) -> str | None:
    """The id that an ``item_reference`` names; None for any other item. Its ``type`` is optional in
    the API reference."""
    if head is None or head.role is not None or head.type not in (None, "item_reference"):
        return None
    return head.id if isinstance(head.id, str) and head.id else None


def has_id(head: Head | None, name: str) -> bool:
    """Whether the item has the id ``name`` itself, rather than referring to it."""
    return head is not None and head.id == name and head.type not in (None, "item_reference")


# Bytes. A longer item is not an ``item_reference``, and need not be read to find out.
_LONGEST_REFERENCE: Final = 4096


def prove(heads: Iterable[Head | None]) -> Proof:
    """Check whether the items with these ``heads`` are complete; see ``Proof``."""
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
    """The call ids of the calls among the items, answered or not."""
    found = (_called(head) for head in heads if head is not None and not _is_answer(head.kind))
    return frozenset(call for call in found if call is not None)


def repeats_answers(heads: Iterable[Head | None]) -> bool:
    """Whether an item was made by a model, so that the items are the history of a conversation and
    not its start. False if an item before the first such one cannot be read. The heads after it are
    not asked for."""
    for head in heads:
        if head is None:
            return False
        if _is_made(head):
            return True
    return False


def _is_made(head: Head) -> bool:
    """Whether a model has made the item."""
    return head.role == "assistant" or head.kind in _MADE or head.kind.endswith("_call")


_MADE: Final = frozenset({"reasoning", "compaction", "item_reference", "mcp_approval_request"})


def _is_answer(kind: str) -> bool:
    return kind == "mcp_approval_response" or kind.endswith("_output")


def _called(head: Head) -> str | None:
    """The id with which an output answers this call or approval request; None for other items."""
    call = head.id if head.kind == "mcp_approval_request" else head.call_id
    return call if isinstance(call, str) and call else None


def _answered(head: Head) -> str | None:
    """The id of the call that an output answers; None if it answers none, "" if it names none."""
    kind = head.kind
    call = head.approval_request_id if kind == "mcp_approval_response" else head.call_id
    if call is None and kind == "local_shell_call_output":
        call = head.id  # in the API reference this type has its call's id in ``id``
    if call is None and kind == "tool_search_output":
        return None  # the service ran the search itself
    return call if isinstance(call, str) else ""


# ------------------------------------------------------------------ requests


# The members of a request that must be equal for its history to be replaced by an anchor. An anchor
# carries items only, so every request states these anew, and the upstream accepts a change. But a
# client that continues chains itself, Codex, starts a new one when one of the first ten or
# ``store`` changes (docs, "Protocol notes"), so the bridge does, too. The last two decide what
# becomes of a context that grows too long.
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
# Members with which the upstream adds items that the request does not contain.
_HIDING: Final = ("conversation", "prompt")


# The place of each of them in what is digested.
_PLACES: Final = {name: place for place, name in enumerate((*_SETTINGS, *_HIDING))}
_ABSENT: Final = _canonical.encode(None)


def _settings_digest(request: CreateRequest, narrow: Iterable[bytes]) -> bytes:
    values: list[bytes | list[bytes]] = [_ABSENT] * len(_PLACES)
    for name, raw in request.members.items():
        place = _PLACES.get(name)
        if place is None or raw == NULL:
            continue
        try:
            values[place] = _canonical.encode(read_value(raw))
        except TooDeepError:
            raise ValueError(f"'{name}' is nested too deeply") from None
        except _NO_FORM:
            values[place] = [bytes(raw)]  # no canonical form: equal to its own bytes only
    return _digest(_canonical.encode([request.store, [*narrow], *values]))


class Prompt:
    """The input of one request, as items, with what is computed from them.

    ``items``: views of the request's own bytes, so a prompt must not be kept longer than its turn.
    ``text``: a text in which they stand one after another, with only a comma between two: item n
    begins at ``bounds[n]`` and ends before the byte ``bounds[n + 1] - 1``. Heads and digests are
    computed on first use and kept, because most requests need only some of them.

    ``anchor``: the response that the items follow: ``previous_response_id``, as the id under which
    the bridge stores that response. ``resolved``: the items that ``item_reference`` items refer to,
    by their index in ``items``, as far as the bridge holds them.

    ``known``: how many items were recognised together as a ``Prefix``. These are not read: nothing
    is known of them but their digest, ``chain[known]``, until ``read_all`` reads them.
    """

    __slots__ = (
        "_digester",
        "_heads",
        "_prefix",
        "anchor",
        "bounds",
        "cache_key",
        "chain",
        "items",
        "known",
        "request",
        "resolved",
        "settings",
        "text",
        "whole",
    )

    def __init__(
        self,
        request: CreateRequest,
        narrow: Iterable[bytes] = (),
        start: KnownStart | None = None,
    ) -> None:
        """Read ``request``.

        Args:
            narrow: further values that must be equal for two requests to be of one conversation,
                such as the client's thread id. They only keep conversations apart.
            start: a prefix of the input, found by ``PrefixTable.find``.

        Raises:
            ValueError: ``input`` is not a string or a readable list, so it has no items; or a
                setting is nested too deeply to be compared.
        """
        self.request = request
        members = request.members
        self._heads: dict[int, Head | None] = {}
        self._digester: Digester | None = None
        self._prefix: Prefix | None = None
        if start is None or not self._read_after(start):
            self._read()
        self.anchor = request.previous_response_id
        self.resolved: dict[int, bytes] = {}
        # A digest of everything besides items that must be equal along a conversation.
        self.settings = _settings_digest(request, narrow)
        # False: the upstream adds items that the request does not contain.
        self.whole = not [1 for name in _HIDING if members.get(name, NULL) != NULL]
        # The raw JSON value; None if absent.
        cache_key = members.get("prompt_cache_key")
        self.cache_key = None if cache_key is None or cache_key == NULL else cache_key

    def _read(self) -> None:
        """Read all items."""
        given = self.request.members.get("input", NULL)
        self.items = _read_items(given)
        self.text, begin = _text_of_items(self.request, self.items)
        # The offset in ``text`` of each item, and of the one that would follow the last.
        self.bounds = [*accumulate([len(item) + 1 for item in self.items], initial=begin)]
        # chain[n]: the chain digest of the anchor's context and the first n items, as far as known.
        self.chain = [ROOT]
        self.known = 0

    def _read_after(self, start: KnownStart) -> bool:
        """Read the items after ``start``; False if there is white space between them, so that
        ``text`` has to be another one."""
        assert self.request.input_text is not None
        text, begin = self.request.input_text
        after = begin + 1 + start.prefix.length + 1
        rest = b"[%b" % text[after : begin + len(self.request.members["input"])]
        items = _read_items(msgspec.Raw(rest))
        if 1 + sum(map(len, items)) + len(items) != len(rest):
            return False
        prefix = start.prefix
        count = prefix.count
        self.items = [_NOT_READ] * count + items
        self.text = text
        self.bounds = [begin + 1] * count
        self.bounds += accumulate([len(item) + 1 for item in items], initial=after)
        self.chain = [ROOT, *[_NOT_READ_DIGEST] * (count - 1), prefix.end]
        self.known = count
        self._prefix, self._digester = prefix, start.digester
        return True

    def read_all(self) -> None:
        """Read the items that were recognised together, too."""
        if self.known:
            self._read()
            self._heads.clear()

    def prefix(self, count: int) -> Prefix | None:
        """The first ``count`` items as a prefix, to recognise them in the next request; None if it
        would not be worth it, or they mean something else in another request.

        ``chain`` must be known up to there, and begin at ``ROOT``.
        """
        given = self.request.input_text
        if given is None or self.text is not given[0]:
            return None  # the client's own bytes have white space between items
        if self.resolved or not self.known <= count or self.chain[0] != ROOT:
            return None
        begin, end = self.bounds[0], self.bounds[count] - 1
        if self._digester is None:
            self._digester = Digester(self.text, begin)
        repeats = None
        if self.cache_key is not None:
            heads = [self._head(place) for place in range(self.known, count)]
            if None in heads:
                return None
            before = self._prefix is not None and self.known > 0 and self._prefix.repeats
            repeats = before or repeats_answers(heads)
        return note_prefix(
            self.text,
            begin,
            end,
            self._digester,
            store=self.request.store,
            count=count,
            chain=self.chain[count],
            repeats=repeats,
        )

    def repeats_answers(self) -> bool:
        """``repeats_answers`` of all items."""
        if self.known and self._prefix is not None and self._prefix.repeats is not None:
            heads = [self._head(place) for place in range(self.known, len(self.items))]
            return None not in heads and (self._prefix.repeats or repeats_answers(heads))
        self.read_all()
        return repeats_answers(self._head(place) for place in range(len(self.items)))

    def heads(self) -> list[Head | None]:
        """The heads of all items."""
        self.read_all()
        if not self._heads:  # decoding all of them in one call is faster
            found = read_heads(self.text_from(0)) if self.items else []
            if len(found) == len(self.items):
                self._heads = dict(enumerate(found))
        return [self._head(place) for place in range(len(self.items))]

    def ends(self, after: int) -> list[bytes]:
        """The chain digests at which a response may have ended, the last first: after items that a
        model has made, where others follow. ``after``: the first items that are left out."""
        made = [head is not None and _is_made(head) for head in self.heads()]
        self.begin_chain(ROOT)
        self.complete_chain()
        places = range(len(made) - 1, max(after, 0), -1)
        return [self.chain[place] for place in places if made[place - 1] and not made[place]]

    def meant_head(self, place: int) -> Head | None:
        """The head of the item at ``place``, or of the one that it refers to."""
        item = self.resolved.get(place)
        return self._head(place) if item is None else read_head(item)

    def meant_heads(self) -> list[Head | None]:
        """The heads of all items, with references replaced by the items that they refer to."""
        if not self.resolved:
            return self.heads()
        return [self.meant_head(place) for place in range(len(self.items))]

    def reference(self, place: int) -> str | None:
        """The id that the item at ``place`` refers to; None if it is not a reference."""
        if len(self.items[place]) > _LONGEST_REFERENCE:
            return None
        return referred(self._head(place))

    def _head(self, place: int) -> Head | None:
        if place not in self._heads:
            self._heads[place] = read_head(self.items[place])
        return self._heads[place]

    def begin_chain(self, before: bytes) -> None:
        """Start ``chain`` at ``before``, the digest of the context that the items follow."""
        if self.chain[0] != before:
            self.chain = [before]

    def extend_chain(self) -> None:
        """Add the digest of one more item to ``chain``."""
        item = self.meant(len(self.chain) - 1)
        self.chain.append(chain_digest(self.chain[-1], item, stored=self.request.store))

    def complete_chain(self) -> None:
        """Add the digests of all remaining items to ``chain``."""
        while len(self.chain) <= len(self.items):
            self.extend_chain()

    def leaves_out(self, place: int) -> bool:
        """Whether ``chain_digest`` skipped the item at ``place``, which must be in ``chain``."""
        return self.chain[place] == self.chain[place + 1]

    def meant(self, place: int) -> Text:
        """The item at ``place``, or the one that it refers to."""
        return self.resolved.get(place) or self.items[place]

    def meant_text(self, start: int = 0) -> bytes:
        """``text_from`` with references replaced by the items that they refer to."""
        if not self.resolved:
            return self.text_from(start)
        return b",".join(map(self.meant, range(start, len(self.items))))

    def wording(self, start: int, end: int) -> bytes:
        """A digest of the bytes of the items from ``start`` up to ``end``, exclusive."""
        return _digest(self.text[self.bounds[start] : self.bounds[end] - 1])

    def text_from(self, start: int) -> bytes:
        """The items after the first ``start``, as the inside of an ``input`` array."""
        return self.text[self.bounds[start] : self.bounds[-1] - 1]

    def frame(self, text: bytes, anchor: str | None) -> bytes:
        """The request's ``response.create`` with the items ``text`` and ``anchor``, or without one.

        Everything else is unchanged, byte for byte.
        """
        named = None if anchor is None else msgspec.json.encode(anchor)
        return self.request.frame_with(input=b"[%b]" % text, previous_response_id=named)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


# In place of items that were recognised together, and of the chain digests between them.
_NOT_READ: Final = msgspec.Raw(b"")
_NOT_READ_DIGEST: Final = b""


def _text_of_items(request: CreateRequest, items: Sequence[Text]) -> tuple[bytes, int]:
    """The ``text`` of a prompt with ``items``, and where the first begins in it.

    It is the text that they came in, unless there is white space between them, because a copy of
    megabytes takes longer than anything else that is done with them.
    """
    if request.input_text is not None and items:
        text, begin = request.input_text
        # The opening bracket; then of each item its bytes and the comma or bracket after it.
        if 1 + sum(map(len, items)) + len(items) == len(request.members["input"]):
            return text, begin + 1
    return b",".join(items), 0


def _read_items(given: msgspec.Raw) -> list[msgspec.Raw]:
    """The items of ``input``: of a list, or the one message that the API makes of a string."""
    if begins(given, b"["):
        try:
            return read_array(given)
        except UnreadableError:
            raise ValueError("'input' cannot be read") from None
    if given == NULL:
        return []
    if not begins(given, b'"'):
        raise ValueError("'input' is neither a string nor a list")
    part = b'{"type":"input_text","text":%b}' % given
    return [msgspec.Raw(b'{"type":"message","role":"user","content":[%b]}' % part)]
