"""Addresses of names: which look-ups are needed, how long addresses are remembered, and the order
in which they are tried.

What belongs here: what both adapters do before and after they ask the system's resolver. Asking it,
and waiting for its answer, is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, Final, Generic, TypeAlias, TypeVar

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.transport.sockets import EXHAUSTED

# How long the addresses of a name are used, ns. A look-up takes a thread and milliseconds, which a
# thousand conversations that begin at once should not pay each. The resolver does not say for how
# long they are valid. Providers and clusters use 30 to 60 s when they move names between hosts, and
# the system or its network caches, too: half of the shortest adds little to the time of a move.
REMEMBERED: Final = 15 * NS_PER_SECOND
# Seconds until the next address of a name is tried in parallel (RFC 8305, section 5).
NEXT_ADDRESS: Final = 0.25

Name: TypeAlias = tuple[str, int]  # host, port
Address: TypeAlias = tuple[int, int, Any]  # family, protocol, socket address
L = TypeVar("L")


class AddressBook(Generic[L]):
    """The addresses of names that were looked up less than ``REMEMBERED`` ago, and the look-ups
    that are running. ``L``: one of these, which an adapter can wait for.

    An adapter forgets a name when a connection to it has failed, because the service may have
    moved: the next attempt asks again.
    """

    __slots__ = ("_found", "running")

    def __init__(self) -> None:
        self._found: dict[Name, tuple[int, Sequence[Address]]] = {}
        self.running: dict[Name, L] = {}

    def get(self, name: Name, now: int) -> Sequence[Address] | None:
        """The addresses of ``name``; None if they have to be looked up. ``now``: ns."""
        until, addresses = self._found.get(name, (now, ()))
        return addresses if now < until else None

    def look_up(self, name: Name, begin: Callable[[Name], L]) -> L:
        """The look-up of ``name``: the one that is running, because another connect waits for it,
        or the one that ``begin`` begins. The adapter calls ``ended`` at its end."""
        lookup = self.running.get(name)
        if lookup is None:
            lookup = self.running[name] = begin(name)
        return lookup

    def ended(self, name: Name, addresses: Sequence[Address], now: int) -> None:
        """Remember what the look-up of ``name`` has found at ``now`` (ns); nothing if it failed.
        Names that are out of date are dropped."""
        del self.running[name]
        if addresses:
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


def in_one(failures: Sequence[OSError]) -> OSError:
    """The failures of all addresses of a name as one; one of ``EXHAUSTED``, if there is any."""
    for exc in failures:
        if exc.errno in EXHAUSTED:
            return exc
    if len(failures) == 1:
        return failures[0]
    return OSError("; ".join(str(exc) for exc in failures))
