"""The form in which a response is kept in a store: packing and unpacking.

What belongs here: the payload of a ``StoredResponse``. It has what ``Alias`` and ``Node`` have, so
that a response which comes back from a store is continued like one that never left memory. The
digests of its items are part of it: they are the keys by which a repeated history is recognised,
and computing them again would take longer than everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

import attrs
import msgspec

from bridgecore.continuity.aliases import Alias
from bridgecore.continuity.items import DIGEST_SIZE, ROOT
from bridgecore.continuity.nodes import Node
from bridgecore.ownership.store import StoredResponse
from bridgecore.recovery.events import Standing

# To be increased when a payload or the digest of an item is formed otherwise. A payload of another
# version cannot be read: its conversation is not found, and its client starts it anew.
VERSION: Final = 1


class Segment(msgspec.Struct, array_like=True, frozen=True):
    """The part of a transcript that one response adds: the fields of its ``Node``.

    ``items``: the response's own items, the request's new ones included, as raw JSON. ``chain``:
    the chain digests after each of them. ``start``: the one before the first.
    """

    items: list[bytes]
    start: bytes
    chain: bytes
    settings: bytes
    readable: bool
    cut: int
    pruned: bytes | None

    @property
    def end(self) -> bytes:
        """The chain digest after the last item."""
        return self.chain[-DIGEST_SIZE:] if self.chain else self.start


_Id: TypeAlias = str | tuple[bytes]
"""An id as it is kept; see ``_written``."""


class Payload(msgspec.Struct, array_like=True, frozen=True):
    """What is kept of one response. ``ids``: see ``_written``. ``segment``: None if its context is
    not known: the request had context besides its items, or its transcript was not held."""

    version: int
    ids: list[_Id]
    stored: bool  # by the upstream
    tokens: int
    segment: Segment | None


class _Notice(msgspec.Struct, array_like=True, frozen=True):
    """A ``Notice`` as it is kept. ``ids``: see ``_written``."""

    version: int
    scope: str
    ids: list[_Id]


@attrs.frozen
class Notice:
    """The notice of a deletion for other replicas: which response it was."""

    scope: str
    ids: tuple[str, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Payload).decode
_decode_notice = msgspec.msgpack.Decoder(_Notice).decode


def _written(ids: Sequence[str]) -> list[_Id]:
    """Ids as MessagePack can have them. An upstream can choose any JSON string, and one with half a
    surrogate pair is no text: its bytes are kept, in an array of their own."""
    return [each if _is_text(each) else (each.encode(errors="surrogatepass"),) for each in ids]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_ids(ids: Sequence[_Id]) -> tuple[str, ...]:
    return tuple(
        each if isinstance(each, str) else each[0].decode(errors="surrogatepass") for each in ids
    )


def pack(scope: str, ids: Sequence[str], alias: Alias, node: Node | None) -> StoredResponse:
    """A response as a store keeps it. ``ids``: that of its terminal event first. ``node``: its
    transcript, if that is held; those before it are kept apart."""
    stored = alias.standing is Standing.STORED
    segment = None if node is None else _segment(node)
    payload = Payload(VERSION, _written(ids), stored, alias.tokens, segment)
    return StoredResponse(
        key=_key(scope, ids[0], b"" if node is None else node.end),
        scope=scope,
        ids=tuple(ids),
        parent=None if node is None or node.parent is None else node_key(scope, node.parent),
        context=None if node is None else node.end,
        payload=_encode(payload),
    )


def deletion(scope: str, ids: Sequence[str]) -> StoredResponse:
    """What takes the place of a response that a client has deleted. In a store the latest response
    of an id counts; this one has no content, so ``unpack`` gives nothing for it. What it replaces
    has no id any more, and is deleted when it was unused for long enough. Its notice makes other
    replicas ask the store, although they own the conversation and have the response in memory."""
    payload = Payload(VERSION, [], False, 0, None)
    notice = _Notice(VERSION, scope, _written(ids))
    key = _key(scope, ids[0], b"deleted")
    return StoredResponse(
        key, scope, tuple(ids), None, None, _encode(payload), notice=_encode(notice)
    )


PURGE: Final = "purge"
"""The scope and the id of the record of a purge. No credential has this scope, so no client can
name it."""


def purge_record() -> StoredResponse:
    """What an operator leaves in a store who deletes from it beside processes that use it. It has
    no content. By its notice they learn that what they have in memory may be gone; and one that
    misses a response looks for this record, because a store that has lost responses by itself gets
    them once more."""
    payload, notice = Payload(VERSION, [], False, 0, None), _Notice(VERSION, PURGE, [PURGE])
    key = _key(PURGE, PURGE, b"")
    return StoredResponse(
        key, PURGE, (PURGE,), None, None, _encode(payload), notice=_encode(notice)
    )


def read_notice(notice: bytes) -> Notice | None:
    """Read the notice of a ``deletion`` or of a ``purge_record``; None if it is of another version
    or damaged."""
    try:
        found = _decode_notice(notice)
        ids = _read_ids(found.ids)
    except (msgspec.DecodeError, UnicodeDecodeError):  # ValidationError included
        return None
    return Notice(found.scope, ids) if found.version == VERSION else None


def _segment(node: Node) -> Segment:
    start = ROOT if node.parent is None else node.parent.end
    chain = b"" if node.end == start and not node.encoded else node.chain + node.end
    items = node.table.items(node.encoded)
    return Segment(items, start, chain, node.settings, node.readable, node.cut, node.pruned)


def node_key(scope: str, node: Node) -> bytes:
    """The key of a held response in a store."""
    return _key(scope, node.response_id, node.end)


def _key(scope: str, response: str, end: bytes) -> bytes:
    """A digest that names a response for ever: of its id, which some upstreams use again, and of
    its context."""
    one, two = scope.encode(), response.encode(errors="surrogatepass")
    framed = b"%d:%b%d:%b%d:%b" % (len(one), one, len(two), two, len(end), end)
    return hashlib.blake2b(framed, digest_size=16).digest()


def is_deletion(payload: bytes) -> bool:
    """Whether a payload is that of a ``deletion``."""
    found = _read(payload)
    return found is not None and not found.ids


@attrs.frozen
class Unpacked:
    """A response that came back from a store. ``segment``: its transcript, if it is known."""

    ids: tuple[str, ...]
    stored: bool
    tokens: int
    segment: Segment | None


def unpack(payload: bytes) -> Unpacked | None:
    """Read a payload; None if it is of another version, damaged, or that of a ``deletion``."""
    found = _read(payload)
    if found is None or not found.ids:
        return None
    try:
        ids = _read_ids(found.ids)
    except UnicodeDecodeError:
        return None
    return Unpacked(ids, found.stored, found.tokens, found.segment)


def _read(payload: bytes) -> Payload | None:
    try:
        found = _decode(payload)
    except msgspec.DecodeError:  # ValidationError included
        return None
    return found if found.version == VERSION else None
