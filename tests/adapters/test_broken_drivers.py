"""Broken drivers, one for each check of ``DriverConformance``: the check must notice it.

What belongs here: mutants of a driver. Each is the driver for asyncio with a filter between it and
its machine, which changes one thing that the driver reports, or that it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import attrs
import pytest

from bridgecore import transport as tp
from bridgecore.recovery.timers import Deadline
from bridgecore.testing.conformance import ConformanceError, DriverConformance, RunningDriver
from bridgecore.testing.conformance.peers import certificates
from tests.adapters.test_conformance import in_thread
from tests.conftest import AsyncioBackend

T = TypeVar("T")
PATIENCE = 0.3  # seconds; what a broken driver does not do is waited for in vain
A_REST = 1.5  # seconds; a driver accepts again after one


class Broken:
    """A machine for the real driver; behind it is that of the check. This one changes nothing."""

    def __init__(self, machine: tp.Machine) -> None:
        self.machine = machine
        self.open: dict[int, None] = {}  # connections
        self.closing: set[int] = set()
        self.due: dict[int, int] = {}  # DataSent that are due

    # ------------------------------------------------------------ changed by a mutant

    def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
        """What is reported in place of ``event``."""
        return [event]

    def effects(self, effect: tp.TransportEffect) -> list[tp.TransportEffect | tp.TransportEvent]:
        """What is carried out in place of ``effect``. An event is reported."""
        return [effect]

    @classmethod
    def options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments for ``serve``."""
        return options

    def new_connection(self) -> int:
        return self.machine.new_connection()

    def next_timeout(self) -> Deadline | None:
        return self.machine.next_timeout()

    # ------------------------------------------------------------ the same for all

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        match event:
            case tp.Accepted() | tp.Connected():
                self.open[event.conn] = None
            case tp.DataSent():
                self.due[event.conn] -= 1
            case _:
                pass
        carried_out: list[tp.TransportEffect] = []
        reported = self.events(event)
        while reported:
            for effect in self.machine.handle(reported.pop(0), now):
                match effect:
                    case tp.Send(notify=True):
                        self.due[effect.conn] = self.due.get(effect.conn, 0) + 1
                    case tp.Close():
                        self.closing.add(effect.conn)
                    case _:
                        pass
                for changed in self.effects(effect):
                    if isinstance(changed, tp.TransportEffect):
                        carried_out.append(changed)
                    else:
                        reported.append(changed)
        return carried_out


def changing(**kinds: Callable[[Any], list[Any]]) -> type[Broken]:
    """A mutant that changes events or effects of these kinds."""

    class Mutant(Broken):
        def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
            return kinds.get(type(event).__name__, lambda same: [same])(event)

        def effects(
            self, effect: tp.TransportEffect
        ) -> list[tp.TransportEffect | tp.TransportEvent]:
            return kinds.get(type(effect).__name__, lambda same: [same])(effect)

    return Mutant


def nothing(_: object) -> list[Any]:
    return []


def wrong_error(error: tp.ConnectError) -> type[Broken]:
    return changing(ConnectFailed=lambda failed: [attrs.evolve(failed, error=error)])


class NumbersFromTwo(Broken):
    def new_connection(self) -> int:
        return super().new_connection() + 1


class ClosesAtTheEndOfTheStream(Broken):
    def effects(self, effect: tp.TransportEffect) -> list[tp.TransportEffect | tp.TransportEvent]:
        return [tp.Close(1), effect] if isinstance(effect, tp.Send) else [effect]


class ReportsDroppedDataAsSent(Broken):
    while_closing = False

    def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
        if not isinstance(event, tp.Disconnected):
            return [event]
        if (event.conn in self.closing) is not self.while_closing:
            return [event]
        return [*[tp.DataSent(event.conn)] * self.due.get(event.conn, 0), event]


class ReportsDataDroppedByCloseAsSent(ReportsDroppedDataAsSent):
    while_closing = True


class DoesNotReadOnWhenAWriteFails(Broken):
    def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
        return [] if isinstance(event, tp.DataReceived) and event.data == b"why" else [event]


class ForgetsWhatCloseHasFlushed(Broken):
    def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
        flushed = isinstance(event, tp.DataSent) and event.conn in self.closing
        return [] if flushed else [event]


class ServesOneAtATime(Broken):
    blocked = False

    def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
        self.blocked = self.blocked or isinstance(event, tp.WriteBlocked)
        return [event]

    def effects(self, effect: tp.TransportEffect) -> list[tp.TransportEffect | tp.TransportEvent]:
        return [] if self.blocked and isinstance(effect, tp.Send) else [effect]


class HoldsSmallWritesBack(Broken):
    def effects(self, effect: tp.TransportEffect) -> list[tp.TransportEffect | tp.TransportEvent]:
        if isinstance(effect, tp.Send) and effect.data == b"b":
            time.sleep(0.041)
        return [effect]


class KeepsWhatItReadsWhilePaused(Broken):
    paused = False

    def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
        return [] if self.paused and isinstance(event, tp.DataReceived) else [event]

    def effects(self, effect: tp.TransportEffect) -> list[tp.TransportEffect | tp.TransportEvent]:
        self.paused = self.paused or isinstance(effect, tp.PauseReading)
        return [] if isinstance(effect, tp.PauseReading) else [effect]


class ReportsTheEndAgain(Broken):
    ends = 0

    def effects(self, effect: tp.TransportEffect) -> list[tp.TransportEffect | tp.TransportEvent]:
        if isinstance(effect, tp.ResumeReading) and self.ends == 0:
            self.ends = 1
            return [effect, tp.EofReceived(1)]
        return [effect]


class RingsEarly(Broken):
    early = 90_000_000  # ns

    def next_timeout(self) -> Deadline | None:
        deadline = super().next_timeout()
        return None if deadline is None else attrs.evolve(deadline, at=deadline.at - self.early)

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        rung = isinstance(event, tp.TimeoutReached)
        return super().handle(event, now + self.early if rung else now)


class KeepsTheFirstDeadline(Broken):
    first: Deadline | None = None

    def next_timeout(self) -> Deadline | None:
        self.first = self.first or super().next_timeout()
        return self.first


class AsksForNoDeadlineBeforeAnEvent(Broken):
    asked = False

    def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
        self.asked = True
        return [event]

    def next_timeout(self) -> Deadline | None:
        return super().next_timeout() if self.asked else None


class TrustsAnyone(Broken):
    @classmethod
    def options(cls, options: dict[str, Any]) -> dict[str, Any]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return options | {"upstream_ssl": context}


class TrustsAnyName(Broken):
    @classmethod
    def options(cls, options: dict[str, Any]) -> dict[str, Any]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=certificates().authority)
        context.check_hostname = False
        return options | {"upstream_ssl": context}


class SpeaksNoTls(Broken):
    @classmethod
    def options(cls, options: dict[str, Any]) -> dict[str, Any]:
        return options | {"listener_ssl": None}


class StartsLate(Broken):
    def events(self, event: tp.TransportEvent) -> list[tp.TransportEvent]:
        if isinstance(event, tp.Started):
            return []
        return [event, tp.Started()] if isinstance(event, tp.Accepted) else [event]


class GoesOnAfterABug(Broken):
    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        with contextlib.suppress(Exception):
            return super().handle(event, now)
        return []

    def new_connection(self) -> int:
        with contextlib.suppress(Exception):
            return super().new_connection()
        return 1

    def next_timeout(self) -> Deadline | None:
        with contextlib.suppress(Exception):
            return super().next_timeout()
        return None


class ClosesInOrderWhenLeft(Broken):
    """Leaving is a request to drain here: see ``MutantConformance``."""

    def handle(self, event: tp.TransportEvent, now: int) -> list[tp.TransportEffect]:
        if isinstance(event, tp.DrainRequested):
            return [*(tp.Close(conn) for conn in self.open), tp.Stop()]
        return super().handle(event, now)


class LeavesLater(Broken):
    """It is left at the end of the test: see ``MutantConformance``."""


def sent_at_once(send: tp.Send) -> list[Any]:
    return [attrs.evolve(send, notify=False), tp.DataSent(send.conn)] if send.notify else [send]


MUTANTS: dict[str, type[Broken]] = {
    "received_data_is_reported_and_data_is_sent": changing(
        EofReceived=lambda event: [tp.Disconnected(event.conn)]
    ),
    "connections_are_numbered_by_the_machine_and_kept_apart": NumbersFromTwo,
    "stop_listening_keeps_what_was_accepted": changing(StopListening=nothing),
    "stop_is_passed_on": changing(Stop=nothing),
    "the_end_of_the_peers_stream_leaves_the_other_direction_open": ClosesAtTheEndOfTheStream,
    "end_sending_flushes_and_still_reads": changing(EndSending=lambda it: [tp.Close(it.conn)]),
    "close_flushes_to_a_peer_that_reads_late": changing(Close=lambda it: [tp.Abort(it.conn)]),
    "abort_resets_and_nothing_follows_it": changing(Abort=lambda it: [tp.Close(it.conn)]),
    "a_reset_by_the_peer_is_disconnected": changing(
        Disconnected=lambda event: [tp.EofReceived(event.conn), event]
    ),
    "what_a_reset_has_dropped_is_not_reported_as_sent": ReportsDroppedDataAsSent,
    "a_reset_while_close_flushes_is_not_reported_as_sent": ReportsDataDroppedByCloseAsSent,
    "data_received_before_a_reset_is_reported_although_a_write_failed": (
        DoesNotReadOnWhenAWriteFails
    ),
    "data_received_before_a_reset_is_reported_although_writes_waited": (
        DoesNotReadOnWhenAWriteFails
    ),
    "leaving_resets_every_connection": ClosesInOrderWhenLeft,
    "data_flushed_by_close_survives_leaving": changing(Close=nothing),
    "data_is_reported_as_sent_when_a_late_reader_has_taken_it": changing(Send=sent_at_once),
    "data_that_close_flushes_is_reported_before_the_end": ForgetsWhatCloseHasFlushed,
    "data_that_close_flushes_by_tls_is_reported_before_the_end": ForgetsWhatCloseHasFlushed,
    "each_notify_is_answered_once_and_never_inside_an_event": changing(
        Send=lambda send: [attrs.evolve(send, notify=True)]
    ),
    "small_writes_do_not_block": changing(Send=lambda send: [send, tp.WriteBlocked(send.conn)]),
    "others_are_served_while_a_peer_does_not_read": ServesOneAtATime,
    "data_is_not_held_back_to_fill_segments": HoldsSmallWritesBack,
    "no_data_is_reported_while_reading_is_paused": changing(PauseReading=nothing),
    "what_a_paused_connection_does_not_read_stays_with_the_peer": KeepsWhatItReadsWhilePaused,
    "resuming_after_the_end_does_not_report_it_again": ReportsTheEndAgain,
    "a_timeout_is_reported_when_it_has_come": RingsEarly,
    "a_deadline_that_moves_is_followed": KeepsTheFirstDeadline,
    "a_deadline_that_was_there_before_serving_counts": AsksForNoDeadlineBeforeAnEvent,
    "connect": changing(Connected=nothing),
    "a_refused_connect_is_reported": wrong_error(tp.ConnectError.OTHER),
    "a_connect_to_a_name_without_address_is_reported": wrong_error(tp.ConnectError.REFUSED),
    "connect_with_tls": changing(Connect=lambda it: [attrs.evolve(it, tls=False)]),
    "an_unknown_authority_is_not_trusted": TrustsAnyone,
    "a_certificate_for_another_name_is_not_trusted": TrustsAnyName,
    "a_handshake_that_fails_is_reported": wrong_error(tp.ConnectError.REFUSED),
    "data_is_reported_as_sent_by_tls_when_a_late_reader_has_taken_it": changing(Send=sent_at_once),
    "abort_ends_an_attempt_to_connect": changing(Abort=nothing),
    "leaving_ends_attempts_to_connect": LeavesLater,
    "a_listener_can_speak_tls": SpeaksNoTls,
    "close_flushes_what_was_sent_at_once": changing(Close=lambda it: [tp.Abort(it.conn)]),
    "close_flushes_what_was_sent_before_the_handshake": changing(
        Close=lambda it: [tp.Abort(it.conn)]
    ),
    "end_sending_flushes_what_was_sent_before_the_handshake": changing(
        EndSending=lambda it: [tp.Close(it.conn)]
    ),
    "a_client_that_does_not_speak_tls_is_disconnected": changing(Disconnected=nothing),
    "a_client_beyond_the_descriptors_is_accepted_later": changing(
        AcceptFailed=lambda event: [event] * 5
    ),
    "accepting_is_tried_again_after_a_second": changing(Accepted=nothing),
    "a_connect_without_descriptors_fails_as_local": wrong_error(tp.ConnectError.REFUSED),
    "started_is_the_first_event_with_a_store": StartsLate,
    "questions_are_passed_to_the_store_and_answers_reported": changing(
        StoreAnswered=lambda event: [attrs.evolve(event, query=1)]
    ),
    "a_bug_in_handle_ends_the_driver": GoesOnAfterABug,
    "a_bug_in_next_timeout_ends_the_driver": GoesOnAfterABug,
    "a_bug_in_new_connection_ends_the_driver": GoesOnAfterABug,
}


class Loop(AsyncioBackend):
    """asyncio, without looking for what is left behind, which takes longer than most checks."""

    def run(self, body: Callable[..., Awaitable[T]], *args: object) -> T:
        async def main() -> T:
            return await body(*args)

        return asyncio.run(main())


class MutantConformance(DriverConformance):
    def __init__(
        self, mutant: type[Broken], left: contextlib.ExitStack, patience: float = PATIENCE
    ) -> None:
        self._mutant = mutant
        self._left = left
        self.patience = patience

    @contextlib.contextmanager
    def serve(self, machine: tp.Machine, **options: Any) -> Iterator[RunningDriver]:
        driven = in_thread(Loop(), self._mutant(machine), **self._mutant.options(options))
        if self._mutant is LeavesLater:
            yield self._left.enter_context(driven)
            return
        with driven as running:
            yield running
            if self._mutant is ClosesInOrderWhenLeft:
                running.request_drain()
                running.wait_stopped(20.0)


def test_each_check_has_a_mutant() -> None:
    assert {f"test_{name}" for name in MUTANTS} == {
        name for name in vars(DriverConformance) if name.startswith("test_")
    }


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_driver_is_noticed(name: str) -> None:
    with contextlib.ExitStack() as left:
        patience = A_REST if name == "accepting_is_tried_again_after_a_second" else PATIENCE
        suite = MutantConformance(MUTANTS[name], left, patience)
        with pytest.raises(ConformanceError):
            getattr(suite, f"test_{name}")()
