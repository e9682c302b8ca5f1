"""Recognises the beginning of an input that its client has sent before, by a digest of its bytes.

A client that keeps histories sends the same items again in every request, and adds a few at the
end. Once such an input was read and its history found, the part that the history covers is noted as
a ``Prefix``: its length and a digest of its bytes. If the next input begins with these bytes, their
items need not be read again, and neither compared with what is held: their chain digest is known.

This is as reliable as reading them. Equal bytes are the same items, and the noted bytes ended after
an item, so a comma after them is one between two items. What is sent in other bytes, by a client
that writes its JSON differently each time, is read item by item.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from hashlib import _Hash

# Bytes. Reading the items of a shorter beginning takes less time than this is worth.
SHORTEST: Final = 1 << 14
NEVER: Final = 1 << 62  # in its place: more than any body has, so that no prefix is added
PREFIX_OVERHEAD: Final = 700  # bytes of memory of a prefix, with its place in the table
_PROBE: Final = 48  # bytes
_MAX_ALIKE: Final = 8  # prefixes with equal probes that are kept, the latest ones
_MAX_DIGESTS: Final = 2  # digests computed in one search


@attrs.frozen
class Prefix:
    """The beginning of an ``input`` that was sent before.

    Attributes:
        length: its bytes, from after the opening bracket to the end of its last item.
        digest: of these bytes.
        probe: some bytes in the middle of it, by which it is found.
        tail: its last bytes.
        store: ``store`` of the request; chain digests depend on it (``chain_digest``).
        count: the number of its items.
        end: the chain digest of its items.
        repeats: whether some of its items were made by a model; None: not known.
    """

    length: int
    digest: bytes = attrs.field(repr=False)
    probe: bytes = attrs.field(repr=False)
    tail: bytes = attrs.field(repr=False)
    store: bool
    count: int
    end: bytes
    repeats: bool | None


class Digester:
    """The digest of the beginning of a text, up to a place that only moves forwards."""

    __slots__ = ("_hash", "_place", "_view")

    def __init__(self, text: bytes, begin: int) -> None:
        self._view = memoryview(text)
        self._place = begin
        # SHA-256, for which processors have instructions: faster than BLAKE2 on large texts.
        self._hash: _Hash = hashlib.sha256(usedforsecurity=False)

    def upto(self, end: int) -> bytes | None:
        """The digest up to ``end``; None if the place is already behind it."""
        if end < self._place:
            return None
        self._hash.update(self._view[self._place : end])
        self._place = end
        return self._hash.digest()


@attrs.frozen
class KnownStart:
    """A prefix that was found at the beginning of an input, and the digester that compared it."""

    prefix: Prefix
    digester: Digester


def note_prefix(
    text: bytes,
    begin: int,
    end: int,
    digester: Digester,
    *,
    store: bool,
    count: int,
    chain: bytes,
    repeats: bool | None,
) -> Prefix | None:
    """The items of ``text`` from ``begin`` to ``end`` as a prefix; None if ``digester`` has gone
    further.

    Args:
        store: ``store`` of the request.
        count: the number of items.
        chain: their chain digest.
        repeats: whether some of them were made by a model; None: not known.
    """
    length = end - begin
    if (digest := digester.upto(end)) is None:
        return None
    probe = _probe(text, begin, _largest_step(length))
    tail = text[end - _PROBE : end]
    return Prefix(length, digest, probe, tail, store, count, chain, repeats)


class PrefixTable:
    """The prefixes of one credential's requests.

    ``shortest``: the length in bytes from which on a prefix is worth adding, at least 64.
    """

    __slots__ = ("_by_probe", "shortest")

    def __init__(self, shortest: int = SHORTEST) -> None:
        self.shortest = shortest
        self._by_probe: dict[bytes, list[Prefix]] = {}

    def add(self, prefix: Prefix) -> None:
        """Add ``prefix``. The oldest one with an equal probe is dropped if there are too many."""
        alike = self._by_probe.setdefault(prefix.probe, [])
        alike.append(prefix)
        if len(alike) > _MAX_ALIKE:
            del alike[0]

    def remove(self, prefix: Prefix) -> None:
        """Remove ``prefix``, if it was not dropped before."""
        alike = self._by_probe.get(prefix.probe, [])
        alike[:] = [each for each in alike if each is not prefix]
        if not alike:
            self._by_probe.pop(prefix.probe, None)

    def find(self, text: bytes, begin: int, end: int, *, store: bool) -> KnownStart | None:
        """A prefix with which the items of ``text`` from ``begin`` to ``end`` begin, and after
        which they go on; None if none is known.

        A prefix is found by bytes at a place that follows from its length: the largest power of two
        that is not greater. So few places have to be looked at, whatever the lengths.
        """
        if not self._by_probe:
            return None
        step = _largest_step(end - begin)
        tries = 0
        while step >= _PROBE and tries < _MAX_DIGESTS:
            for prefix in reversed(self._by_probe.get(_probe(text, begin, step), ())):
                stop = begin + prefix.length
                if (
                    prefix.store is store
                    and stop < end
                    and text.startswith(b",", stop)
                    and text.startswith(prefix.tail, stop - _PROBE)
                ):
                    tries += 1
                    digester = Digester(text, begin)
                    if digester.upto(stop) == prefix.digest:
                        return KnownStart(prefix, digester)
                    if tries == _MAX_DIGESTS:
                        break
            step >>= 1
        return None


def _largest_step(length: int) -> int:
    """The largest power of two that is not greater than ``length``."""
    return 1 << (length.bit_length() - 1) if length > 0 else 0


def _probe(text: bytes, begin: int, step: int) -> bytes:
    return text[begin + step - _PROBE : begin + step]
