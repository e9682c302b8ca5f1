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
    """What the bridge knows about one response id. ``conversation`` may have been retired.

    ``tokens``: of its context, its own output included, as the upstream counted; 0: not known.
    """

    conversation: int
    standing: Standing
    tokens: int = 0


class Aliases:
    """At most ``limit`` response ids."""

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[tuple[str, str], Alias] = OrderedDict()

    def get(self, scope: str, response: str) -> Alias | None:
        """What is known about ``response``; using it keeps it."""
        alias = self._entries.get((scope, response))
        if alias is not None:
            self._entries.move_to_end((scope, response))
        return alias

    def put(self, scope: str, response: str, alias: Alias) -> None:
        """Remember ``alias``."""
        self._entries[scope, response] = alias
        self._entries.move_to_end((scope, response))
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def snapshot(self) -> tuple[tuple[tuple[str, str], int, Standing], ...]:
        """The entries as a value, the one used longest ago first."""
        return tuple(
            (key, alias.conversation, alias.standing) for key, alias in self._entries.items()
        )

    def __len__(self) -> int:
        return len(self._entries)
