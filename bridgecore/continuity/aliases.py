"""Maps response ids to conversations.

What belongs here: the table from (credential scope, response id) to what the bridge knows about
that response. The scope is part of the key, so another credential's id looks exactly like one that
was never seen (CREDENTIALS_ARE_KEPT_APART, FOREIGN_IS_UNKNOWN). Bounded in bytes, because a client
can send any string as an id; the least recently used entries are evicted.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from bridgecore.recovery.events import Standing
from bridgecore.wire.headers import CREDENTIAL_HEADERS


def credential_scope(
    headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes] = CREDENTIAL_HEADERS
) -> str:
    """A digest that identifies the credential in ``headers`` without revealing it.

    Lengths are part of what is digested, so that no two sets of headers run together into one text.

    Args:
        headers: names in any case, and values.
        names: the names, in lower case, of the headers that make up the credential.
    """
    digest = hashlib.sha256()
    for name, value in sorted((name.lower(), value) for name, value in headers):
        if name in names:
            digest.update(b"%d:%b%d:%b" % (len(name), name, len(value), value))
    return digest.hexdigest()


def named_scope(name: str) -> str:
    """The scope of a tenant that an embedder names. Never equal to that of a credential."""
    return hashlib.sha256(b"named:" + name.encode("utf-8", "surrogatepass")).hexdigest()


class Alias(msgspec.Struct, gc=False):
    """What the bridge knows about one response.

    Not tracked by the garbage collector, which would visit each of a million in every full
    collection: its fields are atoms, so it cannot be part of a cycle.

    ``conversation``: the number of its conversation, which may have ended. ``tokens``: the tokens
    of its context and its output, as the upstream counted; 0: not known. ``response``: its id in
    its terminal event, if known. If the upstream used another id in ``response.created``, both ids
    have this same object. ``durable``: a store has its transcript. ``deleted``: a client has
    deleted it; then it is unknown under each of its ids. ``doubted``: it may have been deleted at
    another replica; the store knows.
    """

    conversation: int
    standing: Standing
    tokens: int = 0
    response: str | None = None
    durable: bool = False
    deleted: bool = False
    doubted: bool = False


_LONGEST_KEY = 128  # characters; longer ids are stored as a digest


def _key(scope: str, response: str) -> tuple[str, str]:
    """The key of a response id. A long id is replaced by its digest, so that few long ids cannot
    use up the table."""
    if len(response) > _LONGEST_KEY:
        response = "#" + hashlib.sha256(response.encode(errors="surrogatepass")).hexdigest()
    return scope, response


# Memory of an entry besides the characters of its key: hash table, string headers, the alias.
_OVERHEAD = 512  # bytes, measured on 64-bit CPython


def _size(key: tuple[str, str]) -> int:
    """The memory of an entry in bytes, rounded up."""
    # CPython uses up to four bytes for each character of a string that is not all ASCII.
    return _OVERHEAD + sum(len(text) * (1 if text.isascii() else 4) for text in key)


class Aliases:
    """The table of aliases, in at most ``limit`` bytes, overhead included."""

    __slots__ = ("_entries", "_limit", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[tuple[str, str], Alias] = OrderedDict()

    def get(self, scope: str, response: str) -> Alias | None:
        """The alias of ``response``, which becomes the most recently used; None if unknown."""
        key = _key(scope, response)
        alias = self._entries.get(key)
        if alias is not None:
            self._entries.move_to_end(key)
        return None if alias is None or alias.deleted else alias

    def peek(self, scope: str, response: str) -> Alias | None:
        """The alias of ``response``, without counting as a use; None if unknown."""
        alias = self._entries.get(_key(scope, response))
        return None if alias is None or alias.deleted else alias

    def is_deleted(self, scope: str, response: str) -> bool:
        """Whether a client has deleted ``response``, as far as that is remembered."""
        alias = self._entries.get(_key(scope, response))
        return alias is not None and alias.deleted

    def doubt(self, scope: str, response: str) -> None:
        """Another replica may have deleted ``response``."""
        alias = self._entries.get(_key(scope, response))
        if alias is not None:
            alias.doubted = True

    def doubt_all(self) -> None:
        """Another replica may have deleted any of them."""
        for alias in self._entries.values():
            alias.doubted = True

    def trust(self, scope: str, response: str) -> None:
        """The store was asked whether ``response`` was deleted."""
        alias = self._entries.get(_key(scope, response))
        if alias is not None:
            alias.doubted = False

    def is_doubted(self, scope: str, response: str) -> bool:
        """Whether the store has to be asked whether ``response`` was deleted."""
        alias = self._entries.get(_key(scope, response))
        return alias is not None and alias.doubted

    def put(self, scope: str, response: str, alias: Alias) -> None:
        """Store ``alias`` as that of ``response``, and evict as many entries as necessary."""
        key = _key(scope, response)
        if key not in self._entries:
            self._size += _size(key)
        self._entries[key] = alias
        self._entries.move_to_end(key)
        while self._size > self._limit:
            oldest, _ = self._entries.popitem(last=False)
            self._size -= _size(oldest)

    def delete(self, scope: str, response: str) -> str:
        """Forget ``response`` under each of its ids, and return the one in its terminal event, as
        far as it is known. That it was deleted is remembered, for as long as an alias would be: a
        store may still have it."""
        alias = self.get(scope, response)
        if alias is None:
            alias = Alias(0, Standing.UNKNOWN)
        alias.deleted = True  # one object for all ids of the response
        name = alias.response or response
        for each in {response: None, name: None}:
            self.put(scope, each, alias)
        return name

    def snapshot(self) -> tuple[tuple[tuple[str, str], int, Standing, bool, bool], ...]:
        """The entries as a value for the explorer, the least recently used first."""
        return tuple(
            (key, alias.conversation, alias.standing, alias.durable, alias.doubted)
            if not alias.deleted
            else (key, 0, Standing.UNKNOWN, False, False)
            for key, alias in self._entries.items()
        )

    @property
    def size(self) -> int:
        """The memory of the entries in bytes, overhead included."""
        return self._size

    def __len__(self) -> int:
        return len(self._entries)
