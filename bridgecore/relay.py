"""Relays deltas: the shortcut for reads of a link that bring output and nothing else.

What belongs here: recognising such a read. By far the most reads of a link are of this kind, and
nothing is decided about them: the session's state stays the same, and the events go to the client
as they came. Every other read is handled by ``Conversation.received``, message by message, and that
handles these reads, too, with the same result (``Config.shortcuts``).
"""

from __future__ import annotations

import attrs

from bridgecore.generation import Generation
from bridgecore.messages import AnswerEvents
from bridgecore.recovery.session import Session
from bridgecore.recovery.state import SessionState
from bridgecore.stragglers import running_names
from bridgecore.wire.responses import EventKind, read_event


@attrs.define(eq=False)
class Relay:
    """The running answer of a conversation, while no decision is made.

    States of sessions are frozen. So while the session has the very object ``state``, of its
    output, nothing was decided: the turn, its link and the ids of its response are the same.
    """

    turn: int
    _session: Session
    _state: SessionState
    _link: Generation
    _names: tuple[str | None, ...]  # ids of the response; None for events that name none

    @classmethod
    def of(cls, turn: int, session: Session, link: Generation) -> Relay:
        """The relay of ``turn``, which ``session`` runs on ``link``, in the present state."""
        return cls(turn, session, session.state, link, running_names(session.state))

    @property
    def valid(self) -> bool:
        """Whether nothing was decided since the relay was made."""
        return self._session.state is self._state

    def take(self, messages: list[bytes], now: int) -> AnswerEvents | None:
        """Handle the messages of one read, at ``now`` (ns), if each of them is plain output of the
        running response; otherwise do nothing and return None."""
        if self._session.state is not self._state:
            return None
        stragglers = self._link.stragglers
        events = []
        for message in messages:
            event = read_event(message) if type(message) is bytes else None
            if (
                event is None
                or event.kind is not EventKind.OUTPUT
                or event.response not in self._names
                or stragglers.concerns(event)
            ):
                return None
            events.append(event)
        if not events:
            return None
        self._link.noise = self._link.noise_size = 0
        self._session.touch(now)
        return AnswerEvents(self.turn, events)
