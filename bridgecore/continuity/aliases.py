"""Which conversation a response id belongs to.

What belongs here: the table from (credential scope, response id) to what the bridge knows about
that response. The scope is part of the key, so an id of somebody else looks exactly like one that
nobody has (invariants 3, 39). Bounded: the least recently used go first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import attrs

from bridgecore.recovery.events import Standing

# What tells one client's conversations from another's: the credential and whom it acts for.
_CREDENTIAL_HEADERS = frozenset(
    {b"authorization", b"openai-organization", b"openai-project", b"chatgpt-account-id"}
)


def credential_scope(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """A digest of the credential in ``headers`` (names in lower case): never the credential."""
    digest = hashlib.sha256()
    for name, value in sorted(headers):
        if name in _CREDENTIAL_HEADERS:
            digest.update(b"%d:%b%d:%b" % (len(name), name, len(value), value))
    return digest.hexdigest()


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
    """What a response id is found by. Ids can have any length, and many are never used again: a
    digest takes the place of a long one, so that the bound on entries is one on bytes."""
    if len(response) > _LONGEST_KEY:
        response = "#" + hashlib.sha256(response.encode(errors="surrogatepass")).hexdigest()
    return scope, response


class Aliases:
    """At most ``limit`` response ids, in at most some 500 bytes each."""

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
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
        self._entries[key] = alias
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def snapshot(self) -> tuple[tuple[tuple[str, str], int, Standing], ...]:
        """The entries as a value, the one used longest ago first."""
        return tuple(
            (key, alias.conversation, alias.standing) for key, alias in self._entries.items()
        )

    def __len__(self) -> int:
        return len(self._entries)
