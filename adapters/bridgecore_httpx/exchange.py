"""One turn of a client in this process: its request to the bridge, and the answer to be read.

What belongs here: carrying out the effects of a connection without a socket, and reporting its
events. The answer waits in memory until its reader takes it, in the same thread or another one.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from bridgecore import transport as tp
from bridgecore.transport.driver import DrivenConnection, Driver
from bridgecore.transport.sockets import HIGH_WATER

Headers = list[tuple[bytes, bytes]]


class Exchange:
    """A request and its answer; a ``DrivenConnection``.

    All methods except ``take`` are called in the thread of the event loop. ``over`` is the last
    thing that changes; a reader in another thread looks at it first.

    Args:
        driver: of the bridge.
        wake: called after each change that the reader may wait for; in the event loop's thread.
    """

    __slots__ = (
        *("_driver", "_lock", "_marks", "_parts", "_waiting", "_wake", "blocked"),
        *("conn", "cut", "head", "over", "paused"),
    )

    def __init__(self, driver: Driver[DrivenConnection], wake: Callable[[], None]) -> None:
        self.conn = -1
        self.head: tuple[int, Headers] | None = None  # status and headers of the answer
        self.over = False  # nothing will follow what waits
        self.cut = False  # and the answer is incomplete
        self.paused = False  # the bridge wants no more of the request for now
        self.blocked = False  # too much waits: call ``unblock`` after ``take``
        self._driver, self._wake = driver, wake
        self._lock = Lock()  # of the next three, which the reader's thread uses too
        self._parts: list[bytes] = []  # of the answer, that the reader has not taken
        self._waiting = 0  # bytes in them
        self._marks = 0  # DataSent to report once all is taken

    # ------------------------------------------------------------ for the client

    def begin(self, method: bytes, target: bytes, headers: Headers, scope: str | None) -> None:
        """Report the head of the request."""
        self._driver.report(tp.RequestBegun(-1, method, target, headers, scope), self)

    def receive(self, part: bytes) -> None:
        """Report a part of its body."""
        if part and not self.over:
            self._driver.report(tp.DataReceived(self.conn, part), self)

    def end(self) -> None:
        """Report that the body is complete."""
        if not self.over:
            self._driver.report(tp.RequestEnded(self.conn), self)

    def leave(self) -> None:
        """The client wants no more of the answer; ends the turn, if it still runs."""
        if not self.over:
            self.cut = self.over = True
            self._driver.report(tp.Disconnected(self.conn), self)

    def take(self) -> tuple[bytes, bool]:
        """What of the body has come since the last call, and whether nothing follows it. From any
        thread."""
        over = self.over
        with self._lock:
            parts, self._parts, self._waiting = self._parts, [], 0
        return (parts[0] if len(parts) == 1 else b"".join(parts)), over

    def unblock(self) -> None:
        """The reader has taken what waited."""
        if self._waiting > HIGH_WATER:
            return  # and more has come since, which it will take too
        if self.blocked and not self.over:
            self.blocked = False
            self._driver.report(tp.WriteUnblocked(self.conn), self)
        self._report_sent()

    def lose(self) -> None:
        """The bridge has stopped: the answer will not be completed."""
        if not self.over:
            self.cut = self.over = True
            self._wake()

    # ------------------------------------------------------------ for the driver

    def carry_out(self, effect: tp.ConnectionEffect) -> None:
        """Carry out an effect of the bridge."""
        if self.over:
            return
        match effect:
            case tp.Send():
                self._send(effect)
            case tp.Respond():
                self.head = (effect.status, effect.headers)
            case tp.Close() | tp.EndSending():
                # What waits needs no connection any more. ``Disconnected`` ends the request.
                self._report_sent()
                self._driver.report(tp.Disconnected(self.conn), self)
                self.over = True
            case tp.SendClose():
                raise AssertionError("a POST request cannot become a WebSocket")
            case tp.Abort():
                self.cut = self.over = True
            case tp.PauseReading():
                self.paused = True
            case tp.ResumeReading():
                self.paused = False
        self._wake()

    def _send(self, effect: tp.Send) -> None:
        with self._lock:
            self._parts.append(effect.data)
            self._waiting += len(effect.data)
            blocks = self._waiting > HIGH_WATER and not self.blocked
            self.blocked = self.blocked or blocks
        if blocks:
            self._driver.report(tp.WriteBlocked(self.conn), self)
        if effect.notify:
            self._marks += 1
            if not self.blocked:
                self._report_sent()

    def _report_sent(self) -> None:
        marks, self._marks = self._marks, 0
        for _ in range(marks):
            self._driver.report(tp.DataSent(self.conn), self)
