"""One connection generation of a conversation, between its opening and its end.

What belongs here: what is known of one connection and gone with it: which events are held back,
which responses have ended on it, what is not to be sent yet. The events of a connection are
matched with responses in ``bridgecore.stragglers``.
"""

from __future__ import annotations

from typing import Final

import attrs

from bridgecore.messages import BridgeEffect
from bridgecore.stragglers import Stragglers
from bridgecore.wire.responses import EventKind, UpstreamEvent

_MAX_HELD: Final = 256  # events
# Frames without meaning are skipped, so many between two that have one: a gateway that keeps its
# connections warm sends one every few seconds; one that sends nothing else is broken.
_MAX_NOISE: Final = 1024  # frames
_MAX_NOISE_SIZE: Final = 1024 * 1024  # bytes


@attrs.define(eq=False)
class HeldEvents:
    """Events held back: they came before ``response.created``, which clients insist be first, or
    the turn that they answer may yet be replayed. ``limit``: bytes."""

    limit: int
    events: list[UpstreamEvent] = attrs.Factory(list)
    size: int = 0  # bytes

    def has_room_for(self, event: UpstreamEvent) -> bool:
        """Whether ``event`` can be held, too."""
        return len(self.events) < _MAX_HELD and self.size + len(event.data) <= self.limit

    def hold(self, event: UpstreamEvent) -> None:
        """Keep ``event`` behind the others; ``response.created`` before them."""
        place = 0 if event.kind is EventKind.CREATED else len(self.events)
        self.events.insert(place, event)
        self.size += len(event.data)

    def take(self) -> list[UpstreamEvent]:
        """All events, in order; none is held any more."""
        events, self.events, self.size = self.events, [], 0
        return events


@attrs.define(eq=False)
class Generation:
    """One link, as the conversation that opened it knows it.

    ``number``: the link's, in messages; ``generation``: the session's.
    """

    number: int
    generation: int
    held: HeldEvents
    stragglers: Stragglers = attrs.Factory(Stragglers)
    noise: int = 0  # frames without meaning, since the last one that had one
    noise_size: int = 0  # bytes of them
    # The turn whose client reads too slowly: until it has caught up, the link is not read.
    paused_for: int | None = None
    # The response that the connection was preloaded with: the client's id of it, and the id with
    # the same context on this connection.
    stand_in: tuple[str, str] | None = None
    # While the messages of one read are gone through, frames wait here: whether they can be sent is
    # known when all of them are read, as the last may be the connection's end.
    reading: bool = False
    unsent: list[BridgeEffect] = attrs.Factory(list)

    def count_noise(self, size: int) -> bool:
        """Count a frame of ``size`` bytes without meaning; False if there were too many."""
        self.noise += 1
        self.noise_size += size
        return self.noise <= _MAX_NOISE and self.noise_size <= _MAX_NOISE_SIZE

    def end_read(self) -> list[BridgeEffect]:
        """The messages of a read were gone through; what is to be sent if the link still stands."""
        unsent, self.unsent, self.reading = self.unsent, [], False
        return unsent
