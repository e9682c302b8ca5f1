"""One process of a replica: an endpoint that can be paused.

What belongs here: the time in which a process handles nothing, and noticing what it has done.
Starting and ending processes is the task of ``cluster.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from bridgecore import transport as tp
from bridgecore.endpoint import Endpoint
from bridgecore.ownership.store import Claimed
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.simulate.shared_store import StorePath

_TIMEOUT = tp.TimeoutReached()


class Process:
    """A ``Machine`` that has ``endpoint`` handle what happens, unless it is paused.

    ``name``: of its replica. ``claimed``: called after it has handled that it was granted a
    conversation. ``stopped``: called when it has ended by itself.
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        path: StorePath,
        claimed: Callable[[Process, bytes], None],
        stopped: Callable[[Process], None],
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self.path = path
        self.over = False  # it has ended by itself
        self.draining = False
        self.woke = 0  # ns, when its latest pause ended
        self._claimed = claimed
        self._stopped = stopped
        self._until: int | None = None  # ns, when its pause ends
        self._held: list[tp.TransportEvent] = []

    @property
    def paused(self) -> bool:
        """Whether it handles nothing now."""
        return self._until is not None

    def pause(self, until: int) -> None:
        """Handle nothing until then (ns); what happens meanwhile is handled after that."""
        self._until = until

    def owns(self, conversation: bytes, now: int) -> bool:
        """Whether it would send a turn of ``conversation`` upstream at ``now`` (ns)."""
        holdings = self.endpoint.bridge.holdings
        return holdings is not None and holdings.may_send(conversation, now)

    # ------------------------------------------------------------ Machine

    def new_connection(self) -> int:
        """A number for a connection. The kernel accepts it, also during a pause."""
        return self.endpoint.new_connection()

    def next_timeout(self) -> Deadline | None:
        """That of the endpoint, or the end of the pause."""
        if self._until is not None:
            return Deadline(self._until, Timer.TURN)
        return self.endpoint.next_timeout()

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        """Handle ``event`` at ``now`` (ns), or keep it until the pause is over."""
        if self._until is None:
            return self._handle(event, now)
        if event != _TIMEOUT:
            self._held.append(event)
        if now < self._until:
            return []
        held, self._held, self._until = [*self._held, _TIMEOUT], [], None
        self.woke = now
        return [effect for each in held for effect in self._handle(each, now)]

    def _handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        effects = self.endpoint.handle(event, now)
        self.draining = self.draining or isinstance(event, tp.DrainRequested)
        if isinstance(event, tp.StoreAnswered) and isinstance(event.answer, Claimed):
            self._claimed(self, event.answer.conversation)
        if any(isinstance(effect, tp.Stop) for effect in effects):
            self.over = True
            self._stopped(self)
        return effects
