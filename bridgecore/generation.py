"""The state of one upstream connection of a conversation: held-back events and unsent frames.

What belongs here: what a conversation has to forget when its connection ends. A conversation may
use several connections one after the other; each is a *generation*. Which response an event of it
belongs to is found out in ``bridgecore.stragglers``.
"""

from __future__ import annotations

from typing import Final

import attrs

from bridgecore.messages import BridgeEffect
from bridgecore.stragglers import Stragglers
from bridgecore.wire.responses import EventKind, UpstreamEvent

# Events that are held back. Few come before the first output, so a full buffer means that the turn
# produces without end what is no output: it is then delivered, and cannot be replayed.
_MAX_HELD: Final = 256
# Noise (messages that are no events, such as blank frames) allowed between two events. A gateway
# that keeps its connections alive sends some every few seconds; one that sends more is broken.
_MAX_NOISE: Final = 1024  # frames
_MAX_NOISE_SIZE: Final = 1024 * 1024  # bytes


@attrs.define(eq=False)
class HeldEvents:
    """The hold-back buffer of a connection. ``limit``: bytes.

    Events wait in it because they came before ``response.created``, which clients need first, or
    because their turn may still be replayed and its client must not see two answers begin.
    """

    limit: int
    events: list[UpstreamEvent] = attrs.Factory(list)
    size: int = 0  # bytes

    def has_room_for(self, event: UpstreamEvent) -> bool:
        """Whether ``event`` fits."""
        return len(self.events) < _MAX_HELD and self.size + len(event.data) <= self.limit

    def hold(self, event: UpstreamEvent) -> None:
        """Add ``event`` at the end, or at the front if it is ``response.created``."""
        place = 0 if event.kind is EventKind.CREATED else len(self.events)
        self.events.insert(place, event)
        self.size += len(event.data)

    def take(self) -> list[UpstreamEvent]:
        """Empty the buffer; return its events, in order."""
        events, self.events, self.size = self.events, [], 0
        return events


@attrs.define(eq=False)
class Generation:
    """One link as its conversation sees it.

    ``number``: names it in messages; ``generation``: names it in events of the session. ``http``:
    it speaks HTTP.
    """

    number: int
    generation: int
    held: HeldEvents
    http: bool = False
    stragglers: Stragglers = attrs.Factory(Stragglers)
    noise: int = 0  # messages that are no events, since the last event
    noise_size: int = 0  # their bytes
    # The turn whose client reads too slowly. Until it has caught up, the link is not read.
    paused_for: int | None = None
    # The response that the connection was preloaded with: the client's id of it, and the id with
    # the same context on this connection.
    stand_in: tuple[str, str] | None = None
    # Frames to send once all messages of a read are handled (``reading``). The loss of the link may
    # be behind them in the same read, and then nothing must be sent.
    reading: bool = False
    unsent: list[BridgeEffect] = attrs.Factory(list)

    def count_noise(self, size: int) -> bool:
        """Count a message of ``size`` bytes that is no event; False if there were too many."""
        self.noise += 1
        self.noise_size += size
        return self.noise <= _MAX_NOISE and self.noise_size <= _MAX_NOISE_SIZE

    def end_read(self) -> list[BridgeEffect]:
        """End a read; return the effects to carry out if the link was not lost in it."""
        unsent, self.unsent, self.reading = self.unsent, [], False
        return unsent
