"""Frames that the upstream refused for their size.

What belongs here: remembering that a frame is larger than the upstream takes. It closes the
connection with 1009 (RFC 6455, section 7.4.1) or answers 413, has processed nothing, and will do so
again: to upload the same megabytes a second time costs time and a connection, and changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

_LIMIT: Final = 1024  # frames remembered, the least recently refused go first; about 100 bytes each


class RefusedFrames:
    """The frames that were too large, by credential scope, as digests."""

    __slots__ = ("_digests", "_sizes")

    def __init__(self) -> None:
        self._digests: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._sizes: dict[int, int] = {}  # how many of them have so many bytes

    def add(self, scope: str, frame: bytes) -> None:
        """Remember that ``frame`` is too large."""
        key = (scope, _digest(frame))
        if key not in self._digests:
            self._sizes[len(frame)] = self._sizes.get(len(frame), 0) + 1
        self._digests[key] = len(frame)
        self._digests.move_to_end(key)
        if len(self._digests) > _LIMIT:
            _, size = self._digests.popitem(last=False)
            self._sizes[size] -= 1
            if not self._sizes[size]:
                del self._sizes[size]

    def __contains__(self, key: tuple[str, bytes]) -> bool:
        """Whether the frame of (scope, frame) was too large. Only frames of a size that was refused
        are digested, so the question costs nothing as a rule."""
        scope, frame = key
        return len(frame) in self._sizes and (scope, _digest(frame)) in self._digests

    def snapshot(self) -> tuple[tuple[str, bytes], ...]:
        """The entries as a value, the one refused longest ago first."""
        return tuple(self._digests)


def _digest(frame: bytes) -> bytes:
    return hashlib.blake2b(frame, digest_size=16).digest()
