"""A machine for the checks of drivers: records events, answers them with a function of the check.

What belongs here: what a check needs in place of an ``Endpoint``, and the rules that hold for the
events of every check. The machine is driven in the driver's thread and looked at in the check's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.testing.conformance.checks import ConformanceError
from bridgecore.transport import (
    Accepted,
    AcceptFailed,
    Connected,
    ConnectFailed,
    DataReceived,
    Disconnected,
    RequestBegun,
    TransportEffect,
    TransportEvent,
)

Answer = Callable[[TransportEvent], "Sequence[TransportEffect] | None"]
E = TypeVar("E", bound=TransportEvent)


class RecordingMachine:
    """A machine that does what ``answer`` says, and records every event and its time.

    ``seen`` and ``times``: the events, and when they were reported, in ns; ``due``: what
    ``next_timeout`` says. A wait takes up to ``patience`` seconds.
    """

    def __init__(self, answer: Answer = lambda _: None, patience: float = 20.0) -> None:
        self.answer = answer
        self.patience = patience
        self.seen: list[TransportEvent] = []
        self.times: list[int] = []
        self.due: int | None = None
        self._violations: list[str] = []
        self._open: set[int] = set()  # connections that the driver has reported
        self._gone: set[int] = set()
        self._handling = False
        self._numbers = 0
        self._changed = threading.Condition()

    # ------------------------------------------------------------ for the driver

    def new_connection(self) -> int:
        """A number for a connection that was just accepted."""
        self._numbers += 1
        return self._numbers

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        """Record ``event``, and answer it."""
        with self._changed:
            if self._handling:
                self._violations.append(f"{event} was reported while another event was handled")
            self._handling = True
            self._check(event, now)
            self.seen.append(event)
            self.times.append(now)
        try:
            effects = list(self.answer(event) or ())
        finally:
            self._handling = False
        with self._changed:
            self._changed.notify_all()
        return effects

    def next_timeout(self) -> Deadline | None:
        """``due`` as a deadline."""
        return None if self.due is None else Deadline(self.due, Timer.IDLE)

    def _check(self, event: TransportEvent, now: int) -> None:
        if type(now) is not int or (self.times and now < self.times[-1]):
            self._violations.append(
                f"{event} was reported at {now!r}; times must be integers that never decrease"
            )
        if isinstance(event, AcceptFailed) or (conn := getattr(event, "conn", None)) is None:
            return
        if conn in self._gone:
            self._violations.append(f"{event} was reported after the end of the connection")
        elif isinstance(event, Accepted | RequestBegun | Connected):
            self._open.add(conn)
        elif isinstance(event, ConnectFailed):
            self._gone.add(conn)
        elif conn not in self._open:
            self._violations.append(f"{event} was reported before Accepted or Connected")
        elif isinstance(event, Disconnected):
            self._gone.add(conn)
        elif isinstance(event, DataReceived) and not event.data:
            self._violations.append("DataReceived was reported without data")

    # ------------------------------------------------------------ for the check

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind so far."""
        return [event for event in [*self.seen] if isinstance(event, kind)]

    def saw(self, kind: type[E], count: int = 1) -> E:
        """Wait for ``count`` events of a kind; the last of them."""
        end = time.monotonic() + self.patience
        with self._changed:
            while len(found := self.of(kind)) < count:
                if not self._changed.wait(max(0, end - time.monotonic())):
                    raise ConformanceError(
                        f"{kind.__name__} must be reported{'' if count == 1 else f' {count} times'}"
                        f", and was not within {self.patience} s. Events: {self.events()}"
                    )
            return found[count - 1]

    def events(self) -> list[TransportEvent]:
        """The events so far. How received bytes are divided is left to the system, so the data
        of neighbouring ``DataReceived`` of a connection is put together."""
        found: list[TransportEvent] = []
        for event in [*self.seen]:
            last = found[-1] if found else None
            if (
                isinstance(event, DataReceived)
                and isinstance(last, DataReceived)
                and event.conn == last.conn
            ):
                found[-1] = DataReceived(event.conn, last.data + event.data)
            else:
                found.append(event)
        return found

    def data(self) -> bytes:
        """All received bytes."""
        return b"".join(event.data for event in self.of(DataReceived))

    def verify(self) -> None:
        """Raise ``ConformanceError`` if an event broke a rule that holds for all events."""
        if self._violations:
            raise ConformanceError("\n".join(self._violations))
