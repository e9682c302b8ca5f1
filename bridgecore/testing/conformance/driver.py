"""What every driver must do: the contract of ``bridgecore.transport`` as checks over real sockets.

What belongs here: what does not depend on the event loop, or on there being one. Each check drives
a small machine, made of one function from event to effects, while its other end is a plain blocking
socket. ``bridgecore_asyncio`` and ``bridgecore_trio`` pass all of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from bridgecore import transport as tp
from bridgecore.ownership import store as st
from bridgecore.recovery.timers import Deadline
from bridgecore.testing.conformance.checks import ConformanceError, equal, expect, skip
from bridgecore.testing.conformance.peers import (
    HOST,
    Listener,
    Peer,
    certificates,
    closed_port,
    connect,
    no_descriptor_left,
    refuses,
)
from bridgecore.testing.conformance.recording import Answer, RecordingMachine
from bridgecore.transport.driver import StoreClient

BIG = bytes(range(256)) * 4096 * 24  # 24 MiB: more than any socket buffer holds
LATE = b"too late" * 10_000  # more than a driver writes without yielding to others
MS = 1_000_000  # ns
CONN = 77  # the number of a connection that a machine of a check opens


class RunningDriver(Protocol):
    """A driver that runs a machine, as a check sees it. Used from the thread of the check."""

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""

    def request_drain(self) -> None:
        """Have the machine handle ``DrainRequested``. Checks use it to make the machine act."""

    def wait_stopped(self, timeout: float) -> bool:
        """Wait until the machine's ``Stop`` was carried out, for up to ``timeout`` seconds; whether
        it was."""


class DriverConformance(ABC):
    """Checks of a driver. Derive a class from it, and say in ``serve`` how to run the driver.

    pytest runs the checks if the name of the class begins with ``Test``, ``run_checks`` without
    pytest. The driver runs in another thread than the check, or in several.

    ``patience``: seconds that a check waits for what must happen. ``listener_tls``: False if the
    driver accepts no TLS, because a proxy does; then these checks are skipped.
    """

    patience: float = 20.0
    listener_tls: bool = True

    @abstractmethod
    def serve(
        self,
        machine: tp.Machine,
        *,
        upstream_ssl: ssl.SSLContext | None = None,
        listener_ssl: ssl.SSLContext | None = None,
        store: StoreClient | None = None,
    ) -> AbstractContextManager[RunningDriver]:
        """Run ``machine``, on a free port of 127.0.0.1, until the context is left.

        Entering it returns when the driver listens. Leaving it ends the driver at once: all
        connections are aborted, and their sockets are closed when it returns. If the machine has
        raised an exception, leaving raises it.

        Args:
            machine: what to run.
            upstream_ssl: for connections that the machine opens with TLS. None: certificates are
                verified against the system's trust store.
            listener_ssl: for accepted connections. None: no TLS.
            store: where the questions of ``AskStore`` go. None: there is none.
        """

    # ------------------------------------------------------------ accepting

    def test_received_data_is_reported_and_data_is_sent(self) -> None:
        """What a peer sends is reported, between ``Accepted`` and the end of its stream; what the
        machine sends arrives. After ``Close`` the connection ends, which ``Disconnected`` says."""
        machine = self._machine(_echo)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.send(b"hello")
            equal(peer.receive_exactly(5), b"hello", "the data of a Send must arrive")
            peer.end_sending()
            equal(peer.receive_all(), b"", "nothing but the data of a Send may arrive")
            machine.saw(tp.Disconnected)
        expected = [
            tp.Accepted(1),
            tp.DataReceived(1, b"hello"),
            tp.EofReceived(1),
            tp.Disconnected(1),
        ]
        equal(machine.events(), expected, "each thing that happens must be reported, in order")

    def test_connections_are_numbered_by_the_machine_and_kept_apart(self) -> None:
        """An accepted connection gets its number from ``new_connection``; effects go to the
        connection whose number they have."""
        machine = self._machine(_echo)
        with self._running(machine) as driver, contextlib.ExitStack() as stack:
            peers = [stack.enter_context(self._connect(driver)) for _ in range(20)]
            machine.saw(tp.Accepted, 20)
            for index, peer in enumerate(peers):
                peer.send(b"%02d" % index)
            for index, peer in enumerate(peers):
                sent = b"%02d" % index
                equal(peer.receive_exactly(2), sent, "data must go to the connection it is for")
        numbers = sorted(event.conn for event in machine.of(tp.Accepted))
        equal(numbers, [*range(1, 21)], "connections have the numbers of new_connection()")

    def test_stop_listening_keeps_what_was_accepted(self) -> None:
        """``StopListening`` begins a drain: no client is accepted, and those that are connected
        are served on."""
        machine = self._machine(_on_drain(tp.StopListening(), then=_echo))
        with self._running(machine) as driver, self._connect(driver) as peer:
            machine.saw(tp.Accepted)
            driver.request_drain()
            end = time.monotonic() + self.patience
            # The driver may close its listener a moment after the effect, and the operating system
            # reports that to no client. So it is tried again and again.
            while not refuses(driver.port):
                expect(time.monotonic() < end, "after StopListening no client may be accepted")
                time.sleep(0.01)
            peer.send(b"still here")
            equal(peer.receive_exactly(10), b"still here", "accepted connections must go on")

    def test_stop_is_passed_on(self) -> None:
        """``Stop`` says that the machine has drained. The program around the driver waits for it
        before it ends the process."""
        machine = self._machine(_on_drain(tp.Stop()))
        with self._running(machine) as driver:
            driver.request_drain()
            expect(driver.wait_stopped(self.patience), "Stop must end wait_stopped()")
        equal(machine.events(), [tp.DrainRequested()], "a request to drain is reported once")

    # ------------------------------------------------------------ ends

    def test_the_end_of_the_peers_stream_leaves_the_other_direction_open(self) -> None:
        """A client may half-close when it has sent its request (RFC 9112, section 9.6). It still
        gets its answer."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.EofReceived):
                return [tp.Send(1, BIG), tp.Close(1)]
            return []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.send(b"all I have")
            peer.end_sending()
            _arrived(peer.receive_all(), BIG, "data sent after EofReceived must arrive")
            machine.saw(tp.Disconnected)
        equal(machine.data(), b"all I have", "data before the end of the stream is reported")

    def test_end_sending_flushes_and_still_reads(self) -> None:
        """``EndSending`` ends the stream after all data, and in one direction only: the peer may be
        in the middle of sending."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            match event:
                case tp.Accepted():
                    return [tp.Send(1, BIG), tp.EndSending(1)]
                case tp.EofReceived():
                    return [tp.Close(1)]
                case _:
                    return []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            _arrived(peer.receive_all(), BIG, "EndSending must flush, then end the stream")
            peer.send(b"last words")
            peer.end_sending()
            machine.saw(tp.Disconnected)
        equal(machine.data(), b"last words", "after EndSending the driver must still read")

    def test_close_flushes_to_a_peer_that_reads_late(self) -> None:
        """The end of an answer is sent with ``Send`` and ``Close``, so ``Close`` must not drop what
        waits. What the machine sends after ``Close`` is dropped."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.DataReceived):
                return [tp.Send(1, BIG), tp.Close(1), tp.Send(1, b"too late")]
            return []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.send(b"go")
            machine.saw(tp.WriteBlocked)
            equal(machine.of(tp.Disconnected), [], "Close must wait for the peer to read")
            _arrived(peer.receive_all(), BIG, "Close must flush, and drop what is sent after it")
            machine.saw(tp.Disconnected)

    def test_abort_resets_and_nothing_follows_it(self) -> None:
        """``Abort`` ends a connection by RST, so that the peer does not take what it has for the
        whole. No later effect or event is about it, not even a ``DataSent`` that is due."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.DataReceived):
                return [
                    tp.Send(1, b"partly", notify=True),
                    tp.Abort(1),
                    tp.Send(1, b"gone"),
                    tp.Close(1),
                    tp.Abort(1),
                ]
            return []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.send(b"go")
            peer.expect_reset()
            driver.request_drain()
            machine.saw(tp.DrainRequested)
        expected = [tp.Accepted(1), tp.DataReceived(1, b"go"), tp.DrainRequested()]
        equal(machine.events(), expected, "nothing about an aborted connection is reported")

    def test_a_reset_by_the_peer_is_disconnected(self) -> None:
        """A reset is ``Disconnected`` and not ``EofReceived``: the peer does not read on."""
        machine = self._machine(_echo)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.send(b"x")
            peer.receive_exactly(1)
            peer.reset()
            machine.saw(tp.Disconnected)
        expected = [tp.Accepted(1), tp.DataReceived(1, b"x"), tp.Disconnected(1)]
        equal(machine.events(), expected, "a reset must be reported as Disconnected alone")

    def test_what_a_reset_has_dropped_is_not_reported_as_sent(self) -> None:
        """The machine takes what is not reported by ``DataSent`` for unsent, and may send it
        again on another connection; what is reported, it does not."""
        machine = self._machine(_on_accepted(tp.Send(1, BIG, notify=True)))
        with self._running(machine) as driver, self._connect(driver) as peer:
            machine.saw(tp.WriteBlocked)
            peer.reset()
            machine.saw(tp.Disconnected)
        equal(machine.of(tp.DataSent), [], "DataSent must not be reported for dropped data")

    def test_a_reset_while_close_flushes_is_not_reported_as_sent(self) -> None:
        """Like without ``Close``: only data that the operating system has taken counts as sent."""
        machine = self._machine(_on_accepted(tp.Send(1, BIG, notify=True), tp.Close(1)))
        with self._running(machine) as driver, self._connect(driver) as peer:
            machine.saw(tp.WriteBlocked)
            peer.reset()
            machine.saw(tp.Disconnected)
        expected = [tp.Accepted(1), tp.WriteBlocked(1), tp.Disconnected(1)]
        equal(machine.events(), expected, "a reset while Close flushes is Disconnected alone")

    def test_data_received_before_a_reset_is_reported_although_a_write_failed(self) -> None:
        """A peer that sends why it closes, and resets because it does not read on: the reason was
        received before the next write fails, and it decides what becomes of the turn."""
        self._reset_with_a_reason(b"unread", blocked=False)

    def test_data_received_before_a_reset_is_reported_although_writes_waited(self) -> None:
        """The same while data waits to be written."""
        self._reset_with_a_reason(BIG, blocked=True)

    def _reset_with_a_reason(self, unread: bytes, *, blocked: bool) -> None:
        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            match event:
                case tp.DataReceived(data=b"go"):
                    return [tp.Send(event.conn, unread)]
                case tp.DrainRequested():
                    busy.release()  # the driver cannot read now, until its peer has gone
                    gone.acquire(timeout=self.patience)
                    return [tp.Send(len(machine.of(tp.Accepted)), LATE, notify=True)]
                case _:
                    return []

        machine = self._machine(answer)
        busy, gone = threading.Semaphore(0), threading.Semaphore(0)
        with self._running(machine) as driver:
            for turn in range(1, 11):
                with self._connect(driver) as peer:
                    peer.send(b"go")
                    if blocked:
                        machine.saw(tp.WriteBlocked, turn)
                    else:
                        peer.receive(1)
                    driver.request_drain()
                    expect(busy.acquire(timeout=self.patience), "DrainRequested must be reported")
                    peer.send(b"why")
                # It is closed with bytes unread: the system sends RST.
                gone.release()
                machine.saw(tp.Disconnected, turn)
        equal(machine.data(), b"gowhy" * 10, "data before a reset must be reported")
        equal(machine.of(tp.DataSent), [], "DataSent must not be reported for dropped data")

    def test_leaving_resets_every_connection(self) -> None:
        """Leaving is for a program that fails: peers must not take what they have for the whole,
        and the port must be free for the next process. The machine is not asked any more."""
        machine = self._machine(_echo)
        with contextlib.ExitStack() as stack:
            with self._running(machine) as driver:
                port = driver.port
                peer = stack.enter_context(self._connect(driver))
                machine.saw(tp.Accepted)
            peer.expect_reset()
        expect(refuses(port), "nothing may listen any more when the context is left")
        equal(machine.events(), [tp.Accepted(1)], "nothing is reported when the context is left")

    def test_data_flushed_by_close_survives_leaving(self) -> None:
        """``Close`` is complete when the operating system has the data. What ends after it does not
        harm the connection, or the last answers of a drained process would be cut off."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.DataReceived):
                return [tp.Send(1, b"goodbye"), tp.Close(1), tp.Stop()]
            return []

        machine = self._machine(answer)
        with contextlib.ExitStack() as stack:
            with self._running(machine) as driver:
                peer = stack.enter_context(self._connect(driver))
                peer.send(b"go")
                expect(driver.wait_stopped(self.patience), "Stop must end wait_stopped()")
            equal(peer.receive_all(), b"goodbye", "data before Close must survive leaving")

    # ------------------------------------------------------------ marks

    def test_data_is_reported_as_sent_when_a_late_reader_has_taken_it(self) -> None:
        """A large request is sent in parts, each after the ``DataSent`` of the one before, so that
        a pong does not wait behind all of it. While bytes wait, the write is blocked."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            return [tp.Send(1, BIG, notify=True)] if isinstance(event, tp.DataReceived) else []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.send(b"go")
            machine.saw(tp.WriteBlocked)
            driver.request_drain()
            machine.saw(tp.DrainRequested)
            _arrived(peer.receive_exactly(len(BIG)), BIG, "the data of a Send must arrive")
            machine.saw(tp.DataSent)
        expected = [
            tp.WriteBlocked(1),
            tp.DrainRequested(),
            tp.WriteUnblocked(1),
            tp.DataSent(1),
        ]
        equal(machine.events()[2:6], expected, "a blocked write is reported, and its end")

    def test_data_that_close_flushes_is_reported_before_the_end(self) -> None:
        """``DataSent`` comes before ``Disconnected``: after that the machine has forgotten the
        connection, and takes the data for lost."""
        self._flush_and_close(None, None)

    def test_data_that_close_flushes_by_tls_is_reported_before_the_end(self) -> None:
        """The same by TLS, which has a buffer of its own."""
        self._needs_listener_tls()
        self._flush_and_close(certificates().this_host, certificates().trust)

    def _flush_and_close(
        self, listener: ssl.SSLContext | None, trust: ssl.SSLContext | None
    ) -> None:
        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.DataReceived):
                large, small = tp.Send(1, BIG, notify=True), tp.Send(1, b"end", notify=True)
                return [large, small, tp.Close(1)]
            return []

        machine = self._machine(answer)
        with (
            self._running(machine, listener_ssl=listener) as driver,
            self._connect(driver, trust) as peer,
        ):
            peer.send(b"go")
            machine.saw(tp.WriteBlocked)
            _arrived(peer.receive_all(), BIG + b"end", "Close must flush")
            machine.saw(tp.Disconnected)
        expected = [
            tp.WriteBlocked(1),
            tp.WriteUnblocked(1),
            tp.DataSent(1),
            tp.DataSent(1),
            tp.Disconnected(1),
        ]
        equal(machine.events()[2:], expected, "what Close has flushed is reported, then the end")

    def test_each_notify_is_answered_once_and_never_inside_an_event(self) -> None:
        """A ``Send`` without ``notify`` has no ``DataSent``. If the operating system takes the data
        at once, ``DataSent`` still waits until all effects of the event are carried out: a machine
        is not written to be entered twice."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.Accepted):
                log = tp.Log(tp.LogLevel.INFO, "between", {})
                first, second = tp.Send(1, b"a", notify=True), tp.Send(1, b"c", notify=True)
                return [first, log, tp.Send(1, b"b"), second, tp.Close(1)]
            return []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            equal(peer.receive_all(), b"abc", "data must be sent in the order of the effects")
            machine.saw(tp.Disconnected)
        expected = [tp.Accepted(1), tp.DataSent(1), tp.DataSent(1), tp.Disconnected(1)]
        equal(machine.events(), expected, "one DataSent for each Send with notify")

    def test_small_writes_do_not_block(self) -> None:
        """A turn whose client is blocked stops reading its upstream. So what the operating system
        takes at once is not reported as blocked."""
        sends = [tp.Send(1, b"x" * 1000) for _ in range(50)]
        machine = self._machine(_on_accepted(*sends))
        with self._running(machine) as driver, self._connect(driver) as peer:
            equal(peer.receive_exactly(50_000), b"x" * 50_000, "the data of a Send must arrive")
            driver.request_drain()
            machine.saw(tp.DrainRequested)
            equal(machine.events(), [tp.Accepted(1), tp.DrainRequested()], "nothing is blocked")

    def test_others_are_served_while_a_peer_does_not_read(self) -> None:
        """A slow reader costs its own turn, and no other one."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            match event:
                case tp.DataReceived(data=b"large"):
                    return [tp.Send(event.conn, BIG)]
                case tp.DataReceived():
                    return [tp.Send(event.conn, event.data)]
                case _:
                    return []

        machine = self._machine(answer)
        with (
            self._running(machine) as driver,
            self._connect(driver) as slow,
            self._connect(driver) as other,
        ):
            slow.send(b"large")
            machine.saw(tp.WriteBlocked)
            other.send(b"hello")
            equal(other.receive_exactly(5), b"hello", "other connections must be served")

    def test_data_is_not_held_back_to_fill_segments(self) -> None:
        """A delta is sent when it is written (TCP_NODELAY). Observed as quick answers: with Nagle's
        algorithm the second of two writes waits 40 ms for the acknowledgement of the first."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.DataReceived):
                return [tp.Send(1, b"a"), tp.Send(1, b"b"), tp.Send(1, b"c")]
            return []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            begun = time.monotonic()
            for _ in range(20):
                peer.send(b"?")
                equal(peer.receive_exactly(3), b"abc", "the data of a Send must arrive")
            expect(time.monotonic() - begun < 20 * 0.04, "small writes must not be held back")

    # ------------------------------------------------------------ reading

    def test_no_data_is_reported_while_reading_is_paused(self) -> None:
        """``PauseReading`` is how a slow client slows the upstream down: what is not read fills the
        peer's buffers. It holds for the end of the stream, too. Nothing is lost by it."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            match event:
                case tp.DataReceived(data=b"pause"):
                    return [tp.PauseReading(1)]
                case tp.DrainRequested():
                    machine.due = machine.times[-1] + 30 * MS
                case tp.TimeoutReached() if machine.times[-1] >= (machine.due or 0):
                    machine.due = None
                    return [tp.ResumeReading(1)]
                case _:
                    pass
            return []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.send(b"pause")
            machine.saw(tp.DataReceived)
            peer.send(b"more")
            peer.end_sending()
            driver.request_drain()
            machine.saw(tp.EofReceived)
        seen = [e for e in machine.events() if not isinstance(e, tp.DrainRequested)]
        while seen.count(tp.TimeoutReached()) > 1:  # one that was too early
            seen.remove(tp.TimeoutReached())
        expected = [
            tp.Accepted(1),
            tp.DataReceived(1, b"pause"),
            tp.TimeoutReached(),
            tp.DataReceived(1, b"more"),
            tp.EofReceived(1),
        ]
        equal(seen, expected, "nothing is reported between PauseReading and ResumeReading")

    def test_what_a_paused_connection_does_not_read_stays_with_the_peer(self) -> None:
        """A driver that reads on, and keeps what it reads, would fill the memory instead."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            return [tp.PauseReading(1)] if isinstance(event, tp.DataReceived) else []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.send(b"pause")
            machine.saw(tp.DataReceived)
            peer.sock.settimeout(0.3)
            sent = 0
            with contextlib.suppress(TimeoutError):  # the buffers of the system are full
                while sent < len(BIG):
                    sent += peer.sock.send(BIG[sent : sent + 65536])
            expect(sent < len(BIG), "a paused connection must not be read from")

    def test_resuming_after_the_end_does_not_report_it_again(self) -> None:
        """The machine pauses and resumes without knowing whether the stream has ended."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            match event:
                case tp.EofReceived():
                    return [tp.PauseReading(1), tp.ResumeReading(1), tp.Send(1, b"once")]
                case tp.DrainRequested():
                    return [tp.Send(1, b"twice"), tp.Close(1)]
                case _:
                    return []

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            peer.end_sending()
            equal(peer.receive_exactly(4), b"once", "EofReceived is reported once")
            driver.request_drain()
            equal(peer.receive_all(), b"twice", "EofReceived is reported once")
            machine.saw(tp.Disconnected)
        equal(len(machine.of(tp.EofReceived)), 1, "EofReceived is reported once")

    # ------------------------------------------------------------ time

    def test_a_timeout_is_reported_when_it_has_come(self) -> None:
        """Not before, and soon after: deadlines close connections, and end turns that hang. Times
        are nanoseconds of a clock that goes as fast as the system's."""
        fired: list[int] = []

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.DrainRequested):
                machine.due = machine.times[-1] + 100 * MS
            elif isinstance(event, tp.TimeoutReached) and machine.times[-1] >= (machine.due or 0):
                fired.append(time.monotonic_ns())
                machine.due = None
                return [tp.Stop()]
            return []

        machine = self._machine(answer)
        with self._running(machine) as driver:
            begun = time.monotonic_ns()
            driver.request_drain()
            expect(driver.wait_stopped(self.patience), "TimeoutReached must be reported")
        expect(fired and fired[0] - begun >= 99 * MS, "TimeoutReached must not be reported early")
        expect(len(machine.of(tp.TimeoutReached)) < 10, "TimeoutReached must not be reported often")

    def test_a_deadline_that_moves_is_followed(self) -> None:
        """``next_timeout`` is asked after each event: a deadline can come earlier, come later, or
        be gone."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            now = machine.times[-1]
            match event:
                case tp.DataReceived(data=b"late"):
                    machine.due = now + 3600 * 1000 * MS
                case tp.DataReceived(data=b"soon"):
                    machine.due = now + 5 * MS
                case tp.DataReceived(data=b"none"):
                    machine.due = None
                case tp.TimeoutReached() if machine.due is not None and now >= machine.due:
                    machine.due = None
                    return [tp.Send(1, b"t")]
                case _:
                    return []
            return [tp.Send(1, b"k")]

        machine = self._machine(answer)
        with self._running(machine) as driver, self._connect(driver) as peer:
            for word, reply in ((b"late", b"k"), (b"soon", b"kt"), (b"late", b"k")):
                peer.send(word)
                equal(peer.receive_exactly(len(reply)), reply, "a deadline must be followed")
            peer.send(b"soon")
            equal(peer.receive_exactly(1), b"k", "a deadline must not be reported at once")
            peer.send(b"none")
            expect(set(peer.receive_exactly(1)) <= set(b"kt"), "a deadline must be followed")

    def test_a_deadline_that_was_there_before_serving_counts(self) -> None:
        """``next_timeout`` is asked before the first event, too."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            machine.due = None
            return [tp.Stop()]

        machine = self._machine(answer)
        machine.due = 1
        with self._running(machine) as driver:
            expect(driver.wait_stopped(self.patience), "TimeoutReached must be reported")
        equal(machine.events(), [tp.TimeoutReached()], "TimeoutReached must be reported once")

    # ------------------------------------------------------------ connecting

    def test_connect(self) -> None:
        """A ``Connect`` is answered by ``Connected`` when the connection is open. Its number is the
        machine's. From then on it is like one that was accepted."""
        with self._listen() as listener:
            machine = self._machine(_dial(listener.port))
            with self._running(machine) as driver:
                driver.request_drain()
                with listener.accept() as peer:
                    machine.saw(tp.Connected)
                    peer.send(b"ping")
                    equal(peer.receive_exactly(4), b"ping", "the data of a Send must arrive")
                    peer.end_sending()
                    equal(peer.receive_all(), b"", "Close must close")
                machine.saw(tp.Disconnected)
        expected = [
            tp.DrainRequested(),
            tp.Connected(CONN),
            tp.DataReceived(CONN, b"ping"),
            tp.EofReceived(CONN),
            tp.Disconnected(CONN),
        ]
        equal(machine.events(), expected, "each thing that happens must be reported, in order")

    def test_a_refused_connect_is_reported(self) -> None:
        """Nothing listens there: another connection could succeed later, so it must be known
        apart from other failures."""
        for host in (HOST, "localhost"):
            self._fails(host, closed_port(), tp.ConnectError.REFUSED)

    def test_a_connect_to_a_name_without_address_is_reported(self) -> None:
        """``RESOLVE`` is for the operator: probably the URL is wrong. A name that cannot be one is
        no exception in the driver."""
        for host in ("nonexistent.invalid", "bad..name", "x" * 64 + ".invalid"):
            self._fails(host, 80, tp.ConnectError.RESOLVE)

    def _fails(self, host: str, port: int, error: tp.ConnectError) -> None:
        machine = self._machine(_dial(port, host=host))
        with self._running(machine) as driver:
            driver.request_drain()
            self._check_failure(machine, error)

    def _check_failure(self, machine: RecordingMachine, error: tp.ConnectError) -> None:
        """``Connect`` was answered by one ``ConnectFailed``, with this reason and a detail that
        fits into a line of a log."""
        failed = machine.saw(tp.ConnectFailed)
        equal((failed.conn, failed.error), (CONN, error), "ConnectFailed must say why")
        expect(failed.detail and "\n" not in failed.detail, "ConnectFailed has a line for the log")
        expected = [tp.DrainRequested(), failed]
        equal(machine.events(), expected, "a Connect is answered by one ConnectFailed")

    def test_connect_with_tls(self) -> None:
        """``Connected`` is reported after the handshake. The certificate must be for the ``host``
        of the ``Connect``, which may be a name or an address."""
        for host in (HOST, "localhost"):
            with self._listen(certificates().this_host) as listener:
                machine = self._machine(_dial(listener.port, host=host, tls=True))
                with self._running(machine, upstream_ssl=certificates().trust) as driver:
                    driver.request_drain()
                    with listener.accept() as peer:
                        machine.saw(tp.Connected)
                        peer.send(b"ping")
                        equal(peer.receive_exactly(4), b"ping", "the data of a Send must arrive")
                    machine.saw(tp.Disconnected)
            expected = [tp.EofReceived(CONN), tp.Disconnected(CONN)]
            equal(machine.events()[-2:], expected, "the end of a TLS stream is an end, too")

    def test_an_unknown_authority_is_not_trusted(self) -> None:
        """Without ``upstream_ssl`` the system's trust store decides. A client's key must not go to
        a stranger."""
        self._tls_fails(None, certificates().this_host)

    def test_a_certificate_for_another_name_is_not_trusted(self) -> None:
        """A valid certificate of another host is not enough."""
        self._tls_fails(certificates().trust, certificates().another_host)

    def _tls_fails(self, trust: ssl.SSLContext | None, context: ssl.SSLContext) -> None:
        def accept() -> None:
            with contextlib.suppress(ConformanceError, OSError), listener.accept() as peer:
                peer.receive()  # with TLS 1.3 the client's alert comes after the handshake

        with self._listen(context) as listener:
            machine = self._machine(_dial(listener.port, tls=True))
            with self._running(machine, upstream_ssl=trust) as driver, _in_thread(accept):
                driver.request_drain()
                self._check_failure(machine, tp.ConnectError.TLS)

    def test_a_handshake_that_fails_is_reported(self) -> None:
        """The other end does not speak TLS, or closes the connection at once. ``TLS`` is for the
        operator: probably the URL or the port is wrong."""
        for said in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""):
            with self._listen() as listener:
                machine = self._machine(_dial(listener.port, tls=True))
                with self._running(machine, upstream_ssl=certificates().trust) as driver:
                    driver.request_drain()
                    with listener.accept() as peer:
                        if said:
                            peer.send(said)
                        peer.end_sending()
                        self._check_failure(machine, tp.ConnectError.TLS)

    def test_data_is_reported_as_sent_by_tls_when_a_late_reader_has_taken_it(self) -> None:
        """Data that TLS has encrypted, and the operating system has not taken, is not sent."""

        def then(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            match event:
                case tp.Connected():
                    return [tp.Send(CONN, BIG, notify=True)]
                case tp.DataReceived():
                    return [tp.Send(CONN, b"small", notify=True), tp.Close(CONN)]
                case _:
                    return []

        with self._listen(certificates().this_host) as listener:
            machine = self._machine(_dial(listener.port, tls=True, then=then))
            with self._running(machine, upstream_ssl=certificates().trust) as driver:
                driver.request_drain()
                with listener.accept() as peer:
                    machine.saw(tp.WriteBlocked)
                    equal(machine.of(tp.DataSent), [], "data that waits is not sent")
                    _arrived(peer.receive_exactly(len(BIG)), BIG, "the data of a Send must arrive")
                    machine.saw(tp.DataSent)
                    peer.send(b"go")
                    equal(peer.receive_exactly(5), b"small", "the data of a Send must arrive")
                    machine.saw(tp.Disconnected)
        expected = [
            tp.Connected(CONN),
            tp.WriteBlocked(CONN),
            tp.WriteUnblocked(CONN),
            tp.DataSent(CONN),
            tp.DataReceived(CONN, b"go"),
            tp.DataSent(CONN),
            tp.Disconnected(CONN),
        ]
        equal(machine.events()[1:], expected, "a blocked write is reported, and its end")

    def test_abort_ends_an_attempt_to_connect(self) -> None:
        """In the middle of a handshake that never ends, and before the attempt has begun. An
        ``Abort`` is answered by nothing."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if not isinstance(event, tp.DrainRequested):
                return []
            if len(machine.of(tp.DrainRequested)) == 1:
                return [tp.Connect(CONN, HOST, listener.port, True)]
            never = tp.Connect(CONN + 1, HOST, listener.port, False)
            return [tp.Abort(CONN), never, tp.Abort(CONN + 1), tp.Stop()]

        machine = self._machine(answer)
        with (
            self._listen() as listener,
            self._running(machine, upstream_ssl=certificates().trust) as driver,
        ):
            driver.request_drain()
            with listener.accept() as peer:
                equal(peer.receive()[:1], b"\x16", "a TLS handshake begins with a ClientHello")
                driver.request_drain()
                expect(driver.wait_stopped(self.patience), "Stop must end wait_stopped()")
                peer.expect_end()
        expected = [tp.DrainRequested(), tp.DrainRequested()]
        equal(machine.events(), expected, "nothing is reported of an aborted Connect")

    def test_leaving_ends_attempts_to_connect(self) -> None:
        """An attempt does not outlive the context."""
        with self._listen() as listener, contextlib.ExitStack() as stack:
            machine = self._machine(_dial(listener.port, tls=True))
            with self._running(machine, upstream_ssl=certificates().trust) as driver:
                driver.request_drain()
                peer = stack.enter_context(listener.accept())
                peer.receive()
            peer.expect_end()
        equal(machine.events(), [tp.DrainRequested()], "nothing is reported of it")

    # ------------------------------------------------------------ accepting TLS

    def test_a_listener_can_speak_tls(self) -> None:
        """``Accepted`` is reported before the handshake. What is sent then is not lost, and is
        sent when the handshake has ended."""
        self._needs_listener_tls()

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.Accepted):
                return [tp.Send(1, b"welcome", notify=True)]
            return _echo(event)

        machine = self._machine(answer)
        part = BIG[: 1 << 20]
        with self._running(machine, listener_ssl=certificates().this_host) as driver:
            with self._connect(driver, certificates().trust) as peer:
                equal(peer.receive_exactly(7), b"welcome", "data before the handshake must arrive")
                machine.saw(tp.DataSent)
                peer.send(part)
                _arrived(peer.receive_exactly(len(part)), part, "the data of a Send must arrive")
            machine.saw(tp.Disconnected)

    def test_close_flushes_what_was_sent_at_once(self) -> None:
        """A client is refused with ``Send`` and ``Close`` as soon as it is accepted."""
        self._refuse(None, None)

    def test_close_flushes_what_was_sent_before_the_handshake(self) -> None:
        """The same by TLS: ``Close`` waits for the handshake."""
        self._needs_listener_tls()
        self._refuse(certificates().this_host, certificates().trust)

    def _refuse(self, listener: ssl.SSLContext | None, trust: ssl.SSLContext | None) -> None:
        busy, late = tp.Send(1, b"busy", notify=True), tp.Send(1, b"too late", notify=True)
        machine = self._machine(_on_accepted(busy, tp.Close(1), late))
        with (
            self._running(machine, listener_ssl=listener) as driver,
            self._connect(driver, trust) as peer,
        ):
            equal(peer.receive_all(), b"busy", "Close must flush, and drop what is sent after it")
            machine.saw(tp.Disconnected)
        expected = [tp.Accepted(1), tp.DataSent(1), tp.Disconnected(1)]
        equal(machine.events(), expected, "only what was sent before Close is reported as sent")

    def test_end_sending_flushes_what_was_sent_before_the_handshake(self) -> None:
        """And what the peer sends then is still reported."""
        self._needs_listener_tls()

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            match event:
                case tp.Accepted():
                    return [tp.Send(1, b"hello"), tp.EndSending(1)]
                case tp.DataReceived():
                    return [tp.Close(1)]
                case _:
                    return []

        machine = self._machine(answer)
        with (
            self._running(machine, listener_ssl=certificates().this_host) as driver,
            self._connect(driver, certificates().trust) as peer,
        ):
            equal(peer.receive_exactly(5), b"hello", "EndSending must flush")
            peer.send(b"bye")
            machine.saw(tp.Disconnected)
        expected = [tp.Accepted(1), tp.DataReceived(1, b"bye"), tp.Disconnected(1)]
        equal(machine.events(), expected, "after EndSending the driver must still read")

    def test_a_client_that_does_not_speak_tls_is_disconnected(self) -> None:
        """Its handshake fails after it was accepted: the machine must be able to forget it."""
        self._needs_listener_tls()
        machine = self._machine()
        with (
            self._running(machine, listener_ssl=certificates().this_host) as driver,
            self._connect(driver) as peer,
        ):
            peer.send(b"GET / HTTP/1.1\r\n\r\n")
            machine.saw(tp.Disconnected)
        expected = [tp.Accepted(1), tp.Disconnected(1)]
        equal(machine.events(), expected, "a failed handshake is Disconnected")

    # ------------------------------------------------------------ no descriptor left

    def test_a_client_beyond_the_descriptors_is_accepted_later(self) -> None:
        """``AcceptFailed`` has the machine close idle connections. The driver does not try again
        until a connection has ended or a second has passed: trying at once would be a busy loop,
        because the client keeps the listener readable. It serves the others meanwhile."""
        machine = self._machine(_echo)
        with (
            socket.socket() as late,
            self._running(machine) as driver,
            self._connect(driver) as first,
        ):
            late.settimeout(self.patience)
            machine.saw(tp.Accepted)
            with no_descriptor_left():
                begun = time.monotonic()
                late.connect((HOST, driver.port))  # the system accepts it
                failed = machine.saw(tp.AcceptFailed)
                expect(failed.detail, "AcceptFailed has the message of the system")
                for _ in range(100):
                    first.send(b"x")
                    equal(first.receive_exactly(1), b"x", "the others must be served meanwhile")
                attempts = len(machine.of(tp.AcceptFailed))
                expect(
                    attempts <= 1 + (time.monotonic() - begun),
                    f"accepting must be tried once a second, not {attempts} times",
                )
                first.end_sending()
                machine.saw(tp.Disconnected)
                machine.saw(tp.Accepted, 2)
                served = Peer(late, self.patience)
                served.send(b"here")
                equal(served.receive_exactly(4), b"here", "it is served when it is accepted")

    def test_accepting_is_tried_again_after_a_second(self) -> None:
        """Descriptors are also freed by what is no connection of the driver."""
        machine = self._machine(_echo)
        with (
            socket.socket() as late,
            self._running(machine) as driver,
            no_descriptor_left() as held,
        ):
            late.settimeout(self.patience)
            late.connect((HOST, driver.port))
            machine.saw(tp.AcceptFailed)
            os.close(held.pop())
            machine.saw(tp.Accepted)

    def test_a_connect_without_descriptors_fails_as_local(self) -> None:
        """``LOCAL`` says that the upstream is not to blame: the machine closes idle connections and
        connects again. By name, too, where the resolver has no descriptor either."""
        for host in (HOST, "localhost"):
            with self._listen() as listener:
                machine = self._machine(_dial(listener.port, host=host))
                with self._running(machine) as driver, no_descriptor_left():
                    driver.request_drain()
                    self._check_failure(machine, tp.ConnectError.LOCAL)

    # ------------------------------------------------------------ a store

    def test_started_is_the_first_event_with_a_store(self) -> None:
        """The machine begins its lease before it serves anyone."""
        machine = self._machine(_echo)
        with self._running(machine, store=_Answering()) as driver, self._connect(driver):
            machine.saw(tp.Accepted)
        equal(machine.events()[0], tp.Started(), "Started must be reported before anything else")

    def test_questions_are_passed_to_the_store_and_answers_reported(self) -> None:
        """Each ``AskStore`` is answered by one ``StoreAnswered`` with its ``query``, whatever
        thread the store answers in, and in the order of the answers."""
        owner = st.Owner("replica", "incarnation")
        asked = [tp.AskStore(n, st.Renew(owner, n)) for n in range(1, 4)]
        machine = self._machine(_on_drain(*asked))
        store = _Answering()
        with self._running(machine, store=store) as driver:
            driver.request_drain()
            machine.saw(tp.StoreAnswered, 3)
        questions = [each.question for each in asked]
        equal(store.asked, questions, "each question must be passed to the store, in order")
        answers = [tp.StoreAnswered(n, st.Swept(n)) for n in range(1, 4)]
        equal(machine.of(tp.StoreAnswered), answers, "each answer must be reported, in order")

    # ------------------------------------------------------------ bugs

    def test_a_bug_in_handle_ends_the_driver(self) -> None:
        """A machine that raises is in an unknown state, and is not driven any more. All connections
        are reset, and the program around the driver gets the exception."""

        def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
            if isinstance(event, tp.DataReceived):
                raise _BrokenError
            return []

        with contextlib.ExitStack() as stack:
            peer: Peer | None = None
            with _raises_broken(), self._running(self._machine(answer)) as driver:
                peer = stack.enter_context(self._connect(driver))
                peer.send(b"x")
                peer.expect_reset()

    def test_a_bug_in_next_timeout_ends_the_driver(self) -> None:
        """The same where the deadline is asked for."""

        class Bad(RecordingMachine):
            def next_timeout(self) -> Deadline | None:
                if self.seen:
                    raise _BrokenError
                return None

        self._breaks(Bad(patience=self.patience))

    def test_a_bug_in_new_connection_ends_the_driver(self) -> None:
        """The same where a connection gets its number."""

        class Bad(RecordingMachine):
            def new_connection(self) -> int:
                raise _BrokenError

        self._breaks(Bad(patience=self.patience))

    def _breaks(self, machine: RecordingMachine) -> None:
        with _raises_broken(), self._running(machine) as driver, socket.socket() as peer:
            peer.settimeout(self.patience)
            with contextlib.suppress(ConnectionError):  # the driver may have ended by now
                peer.connect((HOST, driver.port))
                Peer(peer, self.patience).expect_end()

    # ------------------------------------------------------------ used by the checks

    def _machine(self, answer: Answer = lambda _: None) -> RecordingMachine:
        return RecordingMachine(answer, self.patience)

    @contextlib.contextmanager
    def _running(
        self,
        machine: RecordingMachine,
        *,
        upstream_ssl: ssl.SSLContext | None = None,
        listener_ssl: ssl.SSLContext | None = None,
        store: StoreClient | None = None,
    ) -> Iterator[RunningDriver]:
        """``serve``; at the end, the rules that hold for all events."""
        with self.serve(
            machine, upstream_ssl=upstream_ssl, listener_ssl=listener_ssl, store=store
        ) as driver:
            yield driver
        machine.verify()

    def _connect(self, driver: RunningDriver, trust: ssl.SSLContext | None = None) -> Peer:
        return connect(driver.port, self.patience, trust)

    def _listen(self, context: ssl.SSLContext | None = None) -> Listener:
        return Listener(self.patience, context)

    def _needs_listener_tls(self) -> None:
        if not self.listener_tls:
            skip("the driver accepts no TLS")


class _BrokenError(Exception):
    """Raised by a machine with a bug."""


class _Answering:
    """A store that answers each ``Renew`` with a number of it, from a thread of its own."""

    def __init__(self) -> None:
        self.asked: list[st.Question] = []

    def ask(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        self.asked.append(question)
        number = question.ttl if isinstance(question, st.Renew) else 0
        thread = threading.Thread(target=answered, args=(st.Swept(number),))
        thread.start()
        thread.join()


@contextlib.contextmanager
def _raises_broken() -> Iterator[None]:
    try:
        yield
    except _BrokenError:
        return
    raise ConformanceError("leaving the context must raise what the machine has raised")


@contextlib.contextmanager
def _in_thread(function: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=function)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _arrived(received: bytes, sent: bytes, requirement: str) -> None:
    """``equal`` for data that is too large to be shown."""
    expect(received == sent, f"{requirement}: {len(received)} bytes came of {len(sent)}")


def _echo(event: tp.TransportEvent) -> list[tp.TransportEffect]:
    match event:
        case tp.DataReceived():
            return [tp.Send(event.conn, event.data)]
        case tp.EofReceived():
            return [tp.Close(event.conn)]
        case _:
            return []


def _nothing(event: tp.TransportEvent) -> list[tp.TransportEffect]:
    return []


def _on_accepted(*effects: tp.TransportEffect) -> Answer:
    return lambda event: effects if isinstance(event, tp.Accepted) else []


def _on_drain(*effects: tp.TransportEffect, then: Answer = _nothing) -> Answer:
    """Answer a request to drain, which a check can make at any time."""
    return lambda event: effects if isinstance(event, tp.DrainRequested) else then(event)


def _dial(port: int, *, host: str = HOST, tls: bool = False, then: Answer = _echo) -> Answer:
    return _on_drain(tp.Connect(CONN, host, port, tls), then=then)
