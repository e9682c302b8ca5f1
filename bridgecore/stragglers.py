"""What an upstream still sends of responses that have ended.

What belongs here: telling, on one connection, an event of the response that runs from a copy or a
straggler of an earlier one. Upstreams have been seen to repeat a terminal event, and to send deltas
and ``response.done`` of a response, after the next turn's frame went out. An event that names its
response is matched by that name in ``recovery`` (see "ended-response" among its rules). This module
is for what names no response, such as a delta, or the same one as the turn at hand, because some
upstreams call all responses of a chain by one id. It knows two things of an earlier response: the
ids of its items, and its terminal event.

Some upstreams use the ids of items again in each response, and a test server may say the same
answer, byte for byte, to every turn. Such an event looks late and is not. So what looks late is
kept until the response that runs has ended: if its terminal event lists the item, or is itself
said again together with all items that belong to it, it was the response's own.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from bridgecore.wire.responses import ITEM_ADDED, ITEM_DONE, EventKind, UpstreamEvent

# Stragglers come right behind the response that they belong to, so a few responses are enough.
_MAX_ITEMS: Final = 256  # ids of items of ended responses
_MAX_COPIES: Final = 16  # terminal events
_MAX_KEPT: Final = 256  # events that look late
_MAX_KEPT_SIZE: Final = 1024 * 1024  # bytes of them


class Stragglers:
    """The items and terminal events of responses that have ended on one connection."""

    __slots__ = ("_completes", "_copies", "_ended", "_items", "_kept", "_kept_size", "_reuses")

    def __init__(self) -> None:
        # By the id of an item, the digest of the event that announced it, if one did: of the
        # running response, and of those that have ended.
        self._items: dict[str, bytes | None] = {}
        self._ended: OrderedDict[str, bytes | None] = OrderedDict()
        # By the digest of a terminal event, the items of its response.
        self._copies: OrderedDict[bytes, frozenset[str]] = OrderedDict()
        # The ids of responses that ended by response.completed: response.done may follow it.
        self._completes: deque[str] = deque(maxlen=_MAX_COPIES)
        self._kept: list[UpstreamEvent] = []
        self._kept_size = 0
        self._reuses = False  # the upstream uses ids of items again

    def begin(self) -> None:
        """A turn's frame goes out: no response runs now."""
        self._items.clear()
        self._forget_kept()

    def is_late(self, event: UpstreamEvent, *, answering: bool) -> bool:
        """Whether ``event`` looks like one of a response that has ended; then it is kept, see
        ``claim``. ``answering``: a ``response.created`` has come for the response that runs."""
        late = self._looks_late(event, answering)
        if late and event.kind is not EventKind.ENDED:
            self._keep(event)
        return late

    def _looks_late(self, event: UpstreamEvent, answering: bool) -> bool:
        if event.kind is EventKind.ENDED:
            if event.type == _DONE and self._completes:
                return event.response is None or event.response in self._completes
            items = self._copies.get(_digest(event.data)) if self._copies else None
            if items is None:
                return False
            kept = {each.item for each in self._kept if each.type in _ITEMS and each.item}
            return not (answering and items == {*self._items, *kept})
        if event.item is None or event.item not in self._ended:
            return False
        announced = self._ended[event.item]
        if announced is None:  # not in its own response either
            return not self._reuses
        if event.type != ITEM_ADDED or not answering:
            return True
        # An item with the same id as one before is announced anew, and not by the same words: a
        # copy repeats everything, the sequence number included.
        return announced == _digest(event.data) and not self._reuses

    def _keep(self, event: UpstreamEvent) -> None:
        size = self._kept_size + len(event.data)
        if len(self._kept) < _MAX_KEPT and size <= _MAX_KEPT_SIZE:
            self._kept.append(event)
            self._kept_size = size

    def _forget_kept(self) -> None:
        self._kept.clear()
        self._kept_size = 0

    def note(self, event: UpstreamEvent) -> None:
        """``event`` is the running response's own."""
        if event.item is None or event.type not in _ITEMS:
            return
        if len(self._items) < _MAX_ITEMS or event.item in self._items:
            if event.type == ITEM_ADDED:
                self._items[event.item] = _digest(event.data)
            else:
                self._items.setdefault(event.item, None)
            self._ended.pop(event.item, None)

    def claim(self, terminal: UpstreamEvent, items: Iterable[str]) -> list[UpstreamEvent]:
        """The running response has ended, by ``terminal``, which lists ``items``. What looked late
        and was its own, in the order in which it came."""
        if not self._kept:
            return []
        mine = set(items) - set(self._items)
        if _digest(terminal.data) in self._copies:
            mine.update(each.item for each in self._kept if each.item is not None)
        claimed = [each for each in self._kept if each.item in mine]
        self._reuses = self._reuses or bool(claimed)
        self._forget_kept()
        for event in claimed:
            self.note(event)
        return claimed

    def ended(self, terminal: UpstreamEvent, names: Iterable[str]) -> None:
        """The running response, which was called by ``names``, has ended by ``terminal``."""
        digest = _digest(terminal.data)
        self._copies[digest] = frozenset(self._items)
        self._copies.move_to_end(digest)
        if len(self._copies) > _MAX_COPIES:
            self._copies.popitem(last=False)
        if terminal.type == _COMPLETED:
            self._completes.extend(names)
        for item, announced in self._items.items():
            self._ended[item] = announced
            self._ended.move_to_end(item)
        self._items.clear()
        while len(self._ended) > _MAX_ITEMS:
            self._ended.popitem(last=False)

    def snapshot(self) -> tuple[object, ...]:
        """What is known, as a value."""
        kept = tuple(event.data for event in self._kept)
        ended = tuple(self._ended.items())
        copies = tuple(self._copies.items()), tuple(self._completes)
        return tuple(self._items.items()), ended, copies, kept, self._reuses


_COMPLETED: Final = b"response.completed"
_DONE: Final = b"response.done"
_ITEMS: Final = frozenset({ITEM_ADDED, ITEM_DONE})


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
