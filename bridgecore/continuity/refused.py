"""Remembers frames that the upstream refused for their size.

An upstream refuses a frame that is too large with close code 1009 (RFC 6455, section 7.4.1) or an
error with status 413. It processed nothing, and would refuse the same frame again: uploading the
same megabytes a second time would cost time and a connection, with the same result. Frames are
remembered as digests, because they are large and contain user data.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

# Frames remembered; the least recently refused are evicted. An entry takes about 100 bytes.
_LIMIT: Final = 1024


class RefusedFrames:
    """A set of (credential scope, frame) pairs, as digests."""

    __slots__ = ("_digests", "_sizes")

    def __init__(self) -> None:
        self._digests: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._sizes: dict[int, int] = {}  # frame size: how many frames have it

    def add(self, scope: str, frame: bytes) -> None:
        """Remember that the upstream refused ``frame`` for its size."""
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
        """Whether the frame of (scope, frame) was refused. A digest is computed only if some
        refused frame has the same size, so the check usually costs one dictionary look-up."""
        scope, frame = key
        return len(frame) in self._sizes and (scope, _digest(frame)) in self._digests

    def snapshot(self) -> tuple[tuple[str, bytes], ...]:
        """The entries as a value for the explorer, the least recently refused first."""
        return tuple(self._digests)


def _digest(frame: bytes) -> bytes:
    return hashlib.blake2b(frame, digest_size=16).digest()
