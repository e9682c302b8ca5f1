"""Which response an upstream event belongs to.

An upstream has been seen to repeat a terminal event, and to send deltas and ``response.done`` of a
response, after the next turn's frame went out. Such an event must reach neither the next turn's
client nor its session. Who decides, in the order in which an event meets them:

1. ``Stragglers``, here, by item ids and by bytes, before the session hears of the event. It is for
   events that name no response, such as deltas, and for upstreams that call all responses of a
   chain by one id. Of an ended response it knows the ids of its items and its terminal event. A
   session cannot do this: its events carry no bodies.
2. The session, by the id of the response that the event names: the rule "ended-response" of
   ``bridgecore.recovery.rules``. Which ids have ended is part of its state, because a loss is
   judged by it, too. Its word on a named event is final: it is ignored and counted.
3. ``running_only``, here, when events that the session held back are released. The session held
   them because their response was not known yet; by now it is, and those of an ended one are
   dropped.

What ``Stragglers`` calls late may turn out not to be. Some upstreams use the ids of items again in
each response, and a test server may say the same answer, byte for byte, to every turn. So what
looks late is kept until the running response has ended: if its terminal event lists the item, or
is itself said again together with all items that belong to it, it was the response's own, and
``claim`` gives it back.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from bridgecore.recovery.inflight import ANSWERING
from bridgecore.recovery.state import SessionState
from bridgecore.wire.responses import ITEM_ADDED, ITEM_DONE, EventKind, UpstreamEvent

# Stragglers come right behind the response that they belong to, so a few responses are enough.
_MAX_ITEMS: Final = 256  # ids of items of ended responses
_MAX_COPIES: Final = 16  # terminal events
_MAX_KEPT: Final = 256  # events that look late
_MAX_KEPT_SIZE: Final = 1024 * 1024  # bytes of them


def is_answering(state: SessionState) -> bool:
    """Whether a ``response.created`` has come for the running turn, though it may be in doubt."""
    doubtful = state.running is not None and state.running.doubtful is not None
    return doubtful or state.phase in ANSWERING


def running_names(state: SessionState) -> tuple[str | None, ...]:
    """What an event may name as its response if it belongs to the running turn. None: an event that
    names no response."""
    return (None,) if state.running is None else (None, *state.running.responses)


def running_only(
    held: Iterable[UpstreamEvent], state: SessionState, names: Sequence[str]
) -> list[UpstreamEvent]:
    """Of the events that were held back, those of the running response, whose ids are ``names``:
    all but those that name a response that has ended."""
    ended = set(state.ended).difference(names)
    return [event for event in held if event.response not in ended]


@attrs.define(eq=False)
class Stragglers:
    """The items and terminal events of responses that have ended on one connection."""

    # By the id of an item, the digest of the event that announced it, if one did: of the running
    # response, and of those that have ended.
    _items: dict[str, bytes | None] = attrs.Factory(dict)
    _ended: OrderedDict[str, bytes | None] = attrs.Factory(OrderedDict)
    # By the digest of a terminal event, the items of its response.
    _copies: OrderedDict[bytes, frozenset[str]] = attrs.Factory(OrderedDict)
    # The ids of responses that ended by response.completed: response.done may follow it.
    _completes: deque[str] = attrs.Factory(lambda: deque(maxlen=_MAX_COPIES))
    _kept: list[UpstreamEvent] = attrs.Factory(list)
    _kept_size: int = 0  # bytes
    _reuses: bool = False  # the upstream uses ids of items again

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


_COMPLETED: Final = b"response.completed"
_DONE: Final = b"response.done"
_ITEMS: Final = frozenset({ITEM_ADDED, ITEM_DONE})


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
