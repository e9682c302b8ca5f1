"""Tests of the base class of the adapters, without sockets: the alarm, and the order of events."""

from __future__ import annotations

from collections.abc import Callable

from bridgecore.ownership.store import Answer, Done, Failed, Leave, Owner, Question
from bridgecore.recovery.timers import Deadline, Timer
from bridgecore.transport import (
    Accepted,
    AcceptFailed,
    AskStore,
    Connect,
    ConnectionEffect,
    DataReceived,
    DrainRequested,
    Send,
    StoreAnswered,
    TimeoutReached,
    TransportEffect,
    TransportEvent,
)
from bridgecore.transport.driver import ACCEPT_REST, Driver

LEAVE = Leave(Owner("a", "1"))


class Socket:
    def __init__(self, conn: int = -1) -> None:
        self.conn = conn
        self.carried_out: list[ConnectionEffect] = []

    def carry_out(self, effect: ConnectionEffect) -> None:
        self.carried_out.append(effect)


class Machine:
    """Has the deadline ``due``, and answers each event with ``effects``."""

    due: int | None = None
    broken = False

    def __init__(self) -> None:
        self.seen: list[TransportEvent] = []
        self.effects: list[TransportEffect] = []

    def new_connection(self) -> int:
        return 1

    def handle(self, event: TransportEvent, now: int) -> list[TransportEffect]:
        self.seen.append(event)
        effects, self.effects = self.effects, []
        return effects

    def next_timeout(self) -> Deadline | None:
        if self.broken:
            raise ValueError("a bug")
        return None if self.due is None else Deadline(self.due, Timer.IDLE)


class Questions:
    """A store that is asked, and answers when a test wants it to."""

    def __init__(self) -> None:
        self.asked: list[Callable[[Answer], None]] = []

    def ask(self, question: Question, answered: Callable[[Answer], None]) -> None:
        self.asked.append(answered)


class Adapter(Driver[Socket]):
    """Has a clock that a test sets, and writes down when the alarm is set."""

    def __init__(self) -> None:
        self.inner = Machine()
        self.store = Questions()
        super().__init__(self.inner, None, lambda: None, self.store)
        self.woken: list[Callable[[], None]] = []  # from another thread
        self.later: list[Callable[[], None]] = []  # at the end of a pass
        self.now = 0
        self.alarms: list[int | None] = []
        self.crashes: list[Exception] = []
        self.listener: list[str] = []

    def moves(self, due: int | None) -> list[int | None]:
        """The machine's deadline is ``due`` after an event; the alarms that were set for it."""
        self.inner.due = due
        before = len(self.alarms)
        self.report(DrainRequested())
        return self.alarms[before:]

    def rings(self, now: int) -> tuple[int, list[int | None]]:
        """The alarm rings at ``now``; how many timeouts were reported, and the alarms set."""
        self.now = now
        timeouts, alarms = self.inner.seen.count(TimeoutReached()), len(self.alarms)
        self._ring()
        return self.inner.seen.count(TimeoutReached()) - timeouts, self.alarms[alarms:]

    def _clock(self) -> int:
        return self.now

    def _from_thread(self, call: Callable[[], None]) -> None:
        self.woken.append(call)

    def _soon(self, call: Callable[[], None]) -> None:
        self.later.append(call)

    def _set_alarm(self, at: int | None) -> None:
        self.alarms.append(at)

    def _connect(self, effect: Connect) -> Socket:
        return Socket(effect.conn)

    def _pause_listening(self) -> None:
        self.listener.append("paused")

    def _resume_listening(self) -> None:
        self.listener.append("resumed")

    def _stop_listening(self) -> None:
        self.listener.append("stopped")

    def _crashed(self, why: Exception) -> None:
        self.crashes.append(why)


# ------------------------------------------------------------------ the alarm


def test_a_later_deadline_leaves_the_alarm() -> None:
    adapter = Adapter()
    assert adapter.moves(10) == [10]
    assert adapter.moves(10) == adapter.moves(20) == adapter.moves(15) == []


def test_an_earlier_deadline_moves_the_alarm() -> None:
    adapter = Adapter()
    adapter.moves(10)
    assert adapter.moves(5) == [5]


def test_no_deadline_cancels_the_alarm() -> None:
    adapter = Adapter()
    assert adapter.moves(None) == []
    adapter.moves(10)
    assert adapter.moves(None) == [None]
    assert adapter.moves(None) == []
    assert adapter.moves(30) == [30]


def test_an_alarm_that_rings_early_reports_nothing_and_is_set_again() -> None:
    adapter = Adapter()
    adapter.moves(10)
    adapter.moves(20)
    assert adapter.rings(10) == (0, [20])
    adapter.inner.due = 40
    assert adapter.rings(20) == (0, [40])
    adapter.inner.due = None
    assert adapter.rings(40) == (0, [])
    assert adapter.moves(50) == [50]


def test_an_alarm_that_rings_in_time_is_a_timeout() -> None:
    adapter = Adapter()
    adapter.moves(10)
    assert adapter.rings(10) == (1, [10])  # the machine still has it: it is not forgotten
    adapter.inner.due = None
    assert adapter.rings(11) == (0, [])


def test_an_alarm_after_the_end_does_nothing() -> None:
    adapter = Adapter()
    adapter.moves(10)
    adapter._closed = True
    assert adapter.rings(10) == (0, [])


def test_a_bug_in_next_timeout_ends_the_server() -> None:
    for find in (Adapter._ring, lambda adapter: adapter.report(DrainRequested())):
        adapter = Adapter()
        adapter.moves(10)
        adapter.inner.broken = True
        find(adapter)
        assert [type(why) for why in adapter.crashes] == [ValueError]
        seen = len(adapter.inner.seen)
        adapter.report(DrainRequested())
        adapter._ring()
        assert (len(adapter.inner.seen), len(adapter.crashes)) == (seen, 1)


def test_the_alarm_ends_the_pause_of_the_listener() -> None:
    adapter = Adapter()
    adapter.inner.due = 2 * ACCEPT_REST
    adapter.accept_failed(OSError("no descriptor"))
    assert adapter.inner.seen == [AcceptFailed("no descriptor")]
    assert adapter.alarms == [ACCEPT_REST]
    assert adapter.listener == ["paused"]
    assert adapter.rings(ACCEPT_REST) == (1, [2 * ACCEPT_REST])
    assert adapter.listener == ["paused", "resumed"]


# ------------------------------------------------------------------ events and effects


def test_an_effect_reaches_its_connection_and_no_other() -> None:
    adapter, ours, other = Adapter(), Socket(), Send(2, b"to none")
    adapter.report(Accepted(-1), ours)
    adapter.inner.effects = [Send(1, b"a"), other]
    adapter.report(DataReceived(1, b"x"), ours)
    assert ours.carried_out == [Send(1, b"a")]


def test_the_questions_of_one_pass_are_asked_together_and_answered_together() -> None:
    adapter = Adapter()
    for query in (1, 2):
        adapter.inner.effects = [AskStore(query, LEAVE)]
        adapter.report(DrainRequested())
    (ask_all,) = adapter.later
    assert not adapter.store.asked
    ask_all()
    first, second = adapter.store.asked
    second(Done())
    first(Done())
    (take,) = adapter.woken  # the event loop is woken once
    take()
    assert adapter.inner.seen[2:] == [StoreAnswered(2, Done()), StoreAnswered(1, Done())]
    adapter.inner.effects = [AskStore(3, LEAVE)]
    adapter.report(DrainRequested())
    adapter.later[1]()
    adapter.store.asked[2](Done())
    assert len(adapter.woken) == 2


def test_without_a_store_a_question_fails() -> None:
    adapter = Adapter()
    adapter._store = None
    adapter.inner.effects = [AskStore(1, LEAVE)]
    adapter.report(DrainRequested())
    adapter.later[0]()
    adapter.woken[0]()
    assert adapter.inner.seen[1:] == [StoreAnswered(1, Failed("there is no store"))]


def test_an_event_that_an_effect_causes_waits_for_the_other_effects() -> None:
    class Echo(Socket):
        def carry_out(self, effect: ConnectionEffect) -> None:
            super().carry_out(effect)
            adapter.report(DataReceived(1, b"caused"), self)
            order.append((len(self.carried_out), len(adapter.inner.seen)))

    order: list[tuple[int, int]] = []
    adapter, ours = Adapter(), Echo()
    adapter.report(Accepted(-1), ours)
    adapter.inner.effects = [Send(1, b"a"), Send(1, b"b")]
    adapter.report(DataReceived(1, b"x"), ours)
    assert order == [(1, 2), (2, 2)]
    assert adapter.inner.seen[2:] == [DataReceived(1, b"caused")] * 2
