"""What an upstream still sends of responses that have ended.

What belongs here: telling, on one connection, an event of the response that runs from a copy or a
straggler of an earlier one. Upstreams have been seen to repeat a terminal event, and to send deltas
and ``response.done`` of a response, after the next turn's frame went out. An event that names its
response is matched by that name in ``recovery`` (see "ended-response" among its rules). This module
is for what names no response, such as a delta, or the same one as the turn at hand, because some
upstreams call all responses of a chain by one id. It knows two things of an earlier response: the
ids of its items, and its terminal event.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from typing import Final

from bridgecore.wire.responses import ITEM_ADDED, EventKind, UpstreamEvent

# Stragglers come right behind the response that they belong to, so a few responses are enough.
_MAX_ITEMS: Final = 256  # ids of items of ended responses
_MAX_COPIES: Final = 16  # terminal events


class Stragglers:
    """The items and terminal events of responses that have ended on one connection."""

    __slots__ = ("_copies", "_ended", "_items")

    def __init__(self) -> None:
        self._items: dict[str, None] = {}  # announced in the running response
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._copies: deque[bytes] = deque(maxlen=_MAX_COPIES)

    def is_late(self, event: UpstreamEvent, *, answering: bool) -> bool:
        """Whether ``event`` belongs to a response that has ended. ``answering``: the response that
        runs has been created.

        An item of the running response may have the id of an earlier one, where an upstream gives
        all first items one id. Then it is announced anew, by ``response.output_item.added``.
        """
        if event.kind is EventKind.ENDED:
            return bool(self._copies) and _digest(event.data) in self._copies
        if event.item is None or event.item not in self._ended:
            return False
        return not (answering and event.type == ITEM_ADDED)

    def announced(self, event: UpstreamEvent) -> None:
        """An item of the running response was announced by ``event``."""
        if event.item is not None and len(self._items) < _MAX_ITEMS:
            self._items[event.item] = None
            self._ended.pop(event.item, None)

    def ended(self, event: UpstreamEvent) -> None:
        """The running response has ended, by ``event``."""
        self._copies.append(_digest(event.data))
        self._ended.update(self._items)
        self._items.clear()
        while len(self._ended) > _MAX_ITEMS:
            self._ended.popitem(last=False)

    def snapshot(self) -> tuple[object, ...]:
        """What is known, as a value."""
        return tuple(self._items), tuple(self._ended), tuple(self._copies)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
