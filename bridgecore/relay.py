"""Relays deltas: the shortcut for reads of a link that bring output and nothing else.

What belongs here: recognising such a read. By far the most reads of a link are of this kind, and
nothing is decided about them: the session's state stays the same, and the events go to the client
as they came. Every other read is handled by ``Conversation.received``, message by message, and that
handles these reads, too, with the same result (``Config.shortcuts``).
"""

from __future__ import annotations

import attrs

from bridgecore.messages import AnswerEvents
from bridgecore.recovery.state import SessionState
from bridgecore.stragglers import Stragglers, running_names
from bridgecore.wire.responses import ITEM_ADDED, ITEM_DONE, EventKind, read_event

# Events of items are recorded by the turn, for its terminal event, and by its ``Stragglers``.
RECORDED = frozenset({ITEM_ADDED, ITEM_DONE})


@attrs.define(eq=False)
class Relay:
    """The running answer of a conversation, while no decision is made.

    ``state``: of the session, in its output. States are frozen, so while the session has this very
    object, nothing was decided: the turn, its link and the ids of its response are the same.
    """

    state: SessionState
    _turn: int
    _stragglers: Stragglers
    _names: tuple[str | None, ...]  # ids of the response; None for events that name none

    @classmethod
    def of(cls, state: SessionState, turn: int, stragglers: Stragglers) -> Relay:
        """The relay of ``turn`` while its session is in ``state``."""
        return cls(state, turn, stragglers, running_names(state))

    def read(self, messages: list[bytes]) -> AnswerEvents | None:
        """The messages of one read as events for the client; None if one of them is anything else
        than plain output of the running response. Changes nothing."""
        names, ended = self._names, self._stragglers.ended_items
        events = []
        for message in messages:
            event = read_event(message) if type(message) is bytes else None
            if (
                event is None
                or event.kind is not EventKind.OUTPUT
                or event.type in RECORDED
                or event.response not in names
                or event.item in ended
            ):
                return None
            events.append(event)
        return AnswerEvents(self._turn, events) if events else None
