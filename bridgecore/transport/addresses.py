"""Addresses of names: the order in which to try them, and how long they are remembered.

What belongs here: what both adapters do with what the system's resolver has found. The look-up
itself is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Final, TypeAlias

from bridgecore.recovery.timers import NS_PER_SECOND

# How long the addresses of a name are used, ns. A look-up takes a thread and milliseconds, which a
# thousand conversations that begin at once should not pay each. The resolver does not say for how
# long they are valid. Providers and clusters use 30 to 60 s when they move names between hosts, and
# the system or its network caches, too: half of the shortest adds little to the time of a move.
REMEMBERED: Final = 15 * NS_PER_SECOND

Name: TypeAlias = tuple[str, int]  # host, port
Address: TypeAlias = tuple[int, int, Any]  # family, protocol, socket address


class AddressBook:
    """The addresses of names that were looked up less than ``REMEMBERED`` ago.

    An adapter forgets a name when a connection to it has failed, because the service may have
    moved: the next attempt asks again.
    """

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[Name, tuple[int, Sequence[Address]]] = {}

    def get(self, name: Name, now: int) -> Sequence[Address] | None:
        """The addresses of ``name``; None if they have to be looked up. ``now``: ns."""
        until, addresses = self._found.get(name, (now, ()))
        return addresses if now < until else None

    def keep(self, name: Name, addresses: Sequence[Address], now: int) -> None:
        """Remember what was found at ``now`` (ns). Names that are out of date are dropped."""
        self._found = {known: entry for known, entry in self._found.items() if now < entry[0]}
        self._found[name] = now + REMEMBERED, addresses

    def forget(self, name: Name) -> None:
        """Have the next connection look ``name`` up."""
        self._found.pop(name, None)


def by_turns(found: Sequence[Any]) -> list[Address]:
    """The addresses that ``getaddrinfo`` found, alternating between IPv4 and IPv6 (RFC 8305,
    section 4), so that the second attempt works if one of the two networks does not."""
    first: list[Address] = []
    other: list[Address] = []
    for family, _, proto, _, address in found:
        (first if family == found[0][0] else other).append((family, proto, address))
    return [one for pair in zip_longest(first, other) for one in pair if one is not None]
