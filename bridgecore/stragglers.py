"""Finds late events: those of a response that has ended, received during the next turn.

Upstreams have been seen to repeat a terminal event, and to send deltas and ``response.done`` of a
response after the next turn's frame was sent. Such an event must not reach the next turn's client,
nor its session. Events are checked in three places, in this order:

1. By ``Stragglers``, here, by item ids and by bytes, before the session gets the event. This finds
   late events that name no response, such as deltas, and those of upstreams that use one id for all
   responses of a chain. Of each ended response it keeps the ids of its items and a digest of its
   terminal event. A session cannot check this, because its events have no bodies.
2. By the session, by the id of the response that the event names: the rule ``ended-response`` of
   ``bridgecore.recovery.rules``. The ended ids are part of its state because decisions about a loss
   depend on them, too. An event that it ignores is counted and dropped.
3. By ``running_only``, here, when held-back events are released. They were held back because it was
   not known yet which response was running; those of an ended one are dropped now.

An event that ``Stragglers`` takes for late may belong to the running response all the same: some
upstreams reuse item ids in each response, and a test server may give the same answer, byte for
byte, to every turn. So it is kept until the running response has ended. If the terminal event lists
the item, or is itself a repetition of an earlier one, together with all of its items, then the kept
events belong to this response, and ``claim`` returns them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from bridgecore.recovery.inflight import ANSWERING
from bridgecore.recovery.state import SessionState
from bridgecore.wire.responses import ITEM_ADDED, ITEM_DONE, EventKind, UpstreamEvent

# Late events come soon after the end of their response, so the latest few responses are enough.
_MAX_ITEMS: Final = 256  # ids of items of ended responses
_MAX_COPIES: Final = 16  # terminal events
_MAX_KEPT: Final = 256  # events taken for late; the bounds are those of memory
_MAX_KEPT_SIZE: Final = 1024 * 1024  # bytes of them


def is_answering(state: SessionState) -> bool:
    """Whether a ``response.created`` was received for the running turn, even a doubtful one."""
    doubtful = state.running is not None and state.running.doubtful is not None
    return doubtful or state.phase in ANSWERING


def running_names(state: SessionState) -> tuple[str | None, ...]:
    """The ids of the running turn's response; None is among them, for events that name no
    response."""
    return (None,) if state.running is None else (None, *state.running.responses)


def running_only(
    held: Iterable[UpstreamEvent], state: SessionState, names: Sequence[str]
) -> list[UpstreamEvent]:
    """The held-back events without those of an ended response. ``names``: the ids of the running
    one, which upstreams may have used for an ended one, too."""
    ended = set(state.ended).difference(names)
    return [event for event in held if event.response not in ended]


@attrs.define(eq=False)
class Stragglers:
    """The items and terminal events of the latest ended responses of one connection."""

    # Item id -> digest of the response.output_item.added event, None if there was none: of the
    # running response, and of those that have ended.
    _items: dict[str, bytes | None] = attrs.Factory(dict)
    _ended: OrderedDict[str, bytes | None] = attrs.Factory(OrderedDict)
    # Digest of a terminal event -> ids of the items of its response.
    _copies: OrderedDict[bytes, frozenset[str]] = attrs.Factory(OrderedDict)
    # Ids of responses that ended with response.completed, after which response.done may come.
    _completes: tuple[str, ...] = ()
    _kept: list[UpstreamEvent] = attrs.Factory(list)
    _kept_size: int = 0  # bytes
    _reuses: bool = False  # the upstream has been seen to reuse item ids

    def concerns(self, event: UpstreamEvent) -> bool:
        """Whether ``event``, output of the running response, has to be looked at here: it names an
        item of an ended response, so it may be late, or it is one that ``note`` records."""
        return event.item in self._ended or event.type in _ITEMS

    def begin(self) -> None:
        """A turn's frame is being sent: no response is running."""
        self._items.clear()
        self._forget_kept()

    def is_late(self, event: UpstreamEvent, *, answering: bool) -> bool:
        """Whether ``event`` looks like one of an ended response. If so it is kept for ``claim``.
        ``answering``: a ``response.created`` was received for the running turn."""
        late = self._looks_late(event, answering)
        if late and event.kind is not EventKind.ENDED:
            self._keep(event)
        return late

    def _looks_late(self, event: UpstreamEvent, answering: bool) -> bool:
        if event.kind is EventKind.ENDED:
            if event.type == _DONE and self._completes:
                return event.response is None or event.response in self._completes
            items = self._copies.get(event.digest) if self._copies else None
            if items is None:
                return False
            kept = {each.item for each in self._kept if each.type in _ITEMS and each.item}
            return not (answering and items == {*self._items, *kept})
        if event.item is None or event.item not in self._ended:
            return False
        announced = self._ended[event.item]
        if announced is None:  # it had no output_item.added in its own response either
            return not self._reuses
        if event.type != ITEM_ADDED or not answering:
            return True
        # output_item.added with a known id. A repetition is identical, with its sequence number; a
        # new item that reuses the id is not.
        return announced == event.digest and not self._reuses

    def _keep(self, event: UpstreamEvent) -> None:
        size = self._kept_size + len(event.data)
        if len(self._kept) < _MAX_KEPT and size <= _MAX_KEPT_SIZE:
            self._kept.append(event)
            self._kept_size = size

    def _forget_kept(self) -> None:
        self._kept.clear()
        self._kept_size = 0

    def note(self, event: UpstreamEvent) -> None:
        """Record an item event of the running response."""
        if event.item is None or event.type not in _ITEMS:
            return
        if len(self._items) < _MAX_ITEMS or event.item in self._items:
            if event.type == ITEM_ADDED:
                self._items[event.item] = event.digest
            else:
                self._items.setdefault(event.item, None)
            self._ended.pop(event.item, None)

    def claim(self, terminal: UpstreamEvent, items: Iterable[str]) -> list[UpstreamEvent]:
        """The running response has ended with ``terminal``, which lists ``items``. Returns the kept
        events that belong to it, in order of arrival."""
        if not self._kept:
            return []
        mine = set(items) - set(self._items)
        if terminal.digest in self._copies:
            mine.update(each.item for each in self._kept if each.item is not None)
        claimed = [each for each in self._kept if each.item in mine]
        self._reuses = self._reuses or bool(claimed)
        self._forget_kept()
        for event in claimed:
            self.note(event)
        return claimed

    def ended(self, terminal: UpstreamEvent, names: Iterable[str]) -> None:
        """Move the items of the running response, whose ids are ``names``, to the ended ones."""
        digest = terminal.digest
        self._copies[digest] = frozenset(self._items)
        self._copies.move_to_end(digest)
        if len(self._copies) > _MAX_COPIES:
            self._copies.popitem(last=False)
        if terminal.type == _COMPLETED:
            self._completes = (*self._completes, *names)[-_MAX_COPIES:]
        for item, announced in self._items.items():
            self._ended[item] = announced
            self._ended.move_to_end(item)
        self._items.clear()
        while len(self._ended) > _MAX_ITEMS:
            self._ended.popitem(last=False)


_COMPLETED: Final = b"response.completed"
_DONE: Final = b"response.done"
_ITEMS: Final = frozenset({ITEM_ADDED, ITEM_DONE})
