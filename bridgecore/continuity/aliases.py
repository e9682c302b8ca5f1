"""Which conversation a response id belongs to.

What belongs here: the table from (credential scope, response id) to what the bridge knows about
that response. The scope is part of the key, so an id of somebody else looks exactly like one that
nobody has (invariants 3, 39). Bounded in bytes, because a client can send any string as an id: the
least recently used go first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import attrs

from bridgecore.recovery.events import Standing
from bridgecore.wire.headers import CREDENTIAL_HEADERS


def credential_scope(
    headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes] = CREDENTIAL_HEADERS
) -> str:
    """A digest of the credential in ``headers``: never the credential.

    ``names``: the headers, in lower case, that belong to it.
    """
    digest = hashlib.sha256()
    for name, value in sorted((name.lower(), value) for name, value in headers):
        if name in names:
            digest.update(b"%d:%b%d:%b" % (len(name), name, len(value), value))
    return digest.hexdigest()


def named_scope(name: str) -> str:
    """The scope of a tenant that an embedder calls ``name``. No credential has the same one."""
    return hashlib.sha256(b"named:" + name.encode("utf-8", "surrogatepass")).hexdigest()


@attrs.define
class Alias:
    """What the bridge knows about one response. ``conversation`` may have been retired.

    ``tokens``: of its context, its own output included, as the upstream counted; 0: not known.
    ``response``: the id that its terminal event gave it, if that is known; an upstream that calls
    it otherwise in ``response.created`` has the one ``Alias`` found under both ids.
    """

    conversation: int
    standing: Standing
    tokens: int = 0
    response: str | None = None


_LONGEST_KEY = 128  # characters of an id that is kept as it is


def _key(scope: str, response: str) -> tuple[str, str]:
    """What a response id is found by. Ids can be long, and many are never used again: a digest
    takes the place of a long one, so that there is room for more of them."""
    if len(response) > _LONGEST_KEY:
        response = "#" + hashlib.sha256(response.encode(errors="surrogatepass")).hexdigest()
    return scope, response


# What an entry takes besides the characters of its key: tables, string headers, the alias.
_OVERHEAD = 512  # bytes, measured


def _size(key: tuple[str, str]) -> int:
    """Bytes that an entry takes, rounded up."""
    # A string takes up to four bytes for each character if one of them is not ASCII.
    return _OVERHEAD + sum(len(text) * (1 if text.isascii() else 4) for text in key)


class Aliases:
    """What is known about response ids, in at most ``limit`` bytes."""

    __slots__ = ("_entries", "_limit", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[tuple[str, str], Alias] = OrderedDict()

    def get(self, scope: str, response: str) -> Alias | None:
        """What is known about ``response``; using it keeps it."""
        key = _key(scope, response)
        alias = self._entries.get(key)
        if alias is not None:
            self._entries.move_to_end(key)
        return alias

    def put(self, scope: str, response: str, alias: Alias) -> None:
        """Remember ``alias``."""
        key = _key(scope, response)
        if key not in self._entries:
            self._size += _size(key)
        self._entries[key] = alias
        self._entries.move_to_end(key)
        while self._size > self._limit:
            oldest, _ = self._entries.popitem(last=False)
            self._size -= _size(oldest)

    def snapshot(self) -> tuple[tuple[tuple[str, str], int, Standing], ...]:
        """The entries as a value, the one used longest ago first."""
        return tuple(
            (key, alias.conversation, alias.standing) for key, alias in self._entries.items()
        )

    @property
    def size(self) -> int:
        """The bytes that the entries take, overhead included."""
        return self._size

    def __len__(self) -> int:
        return len(self._entries)
