"""Base class of the adapters: order of events, numbers of connections, pauses of the listener.

What belongs here: what every adapter would otherwise implement again, and needs no socket. The
server of an adapter derives from ``Driver`` and adds the clock, the sockets and the timer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from bridgecore import transport as tp
from bridgecore.ownership.store import Answer, Failed, Question
from bridgecore.recovery.timers import NS_PER_SECOND

# How long a listener pauses that could not accept, if no connection ends in the meantime, ns. It
# has to try again: descriptors are also used and freed elsewhere, for example by name look-ups.
ACCEPT_REST = NS_PER_SECOND
"""How long a listener that could not accept rests, in ns."""


class DrivenConnection(Protocol):
    """A connection of an adapter. ``conn``: its number, -1 until it has one."""

    conn: int

    def carry_out(self, effect: tp.ConnectionEffect) -> None:
        """Carry out an effect on this connection."""


C = TypeVar("C", bound=DrivenConnection)


class StoreClient(Protocol):
    """A store as a driver uses it. ``bridgecore_stores`` has such clients."""

    def ask(self, question: Question, answered: Callable[[Answer], None]) -> None:
        """Carry out ``question`` elsewhere, and call ``answered`` once, from any thread. Returns
        at once."""


class Driver(ABC, Generic[C]):
    """Reports events to ``machine`` one at a time and carries out its effects in order.

    An event that an effect causes at once, such as ``DataSent``, is queued and reported when all
    effects of the current event are carried out: ``handle`` is never entered twice. No event of a
    connection is reported after its ``Abort``. If ``machine.handle`` raises, which is a bug,
    ``_crashed`` is called and the machine is not driven any more.
    """

    def __init__(
        self,
        machine: tp.Machine,
        log: Callable[[tp.Log], None] | None,
        stop: Callable[[], None],
        store: StoreClient | None = None,
    ) -> None:
        self.machine = machine
        self._store = store
        self._log = log  # called with every Log
        self._stop = stop  # called when the machine has drained
        self._connections: dict[int, C] = {}  # those that the machine knows
        self._events: deque[tuple[tp.TransportEvent, C | None]] = deque()
        self._answers: deque[tp.StoreAnswered] = deque()  # of the store, from its threads
        self._woken = False  # ``_take_answers`` is about to be called
        self._questions: list[tuple[Question, Callable[[Answer], None]]] = []  # of this pass
        self._busy = False
        self._closed = False
        self._accept_at: int | None = None  # ns, when to accept again; None: not paused
        self._alarm_at: int | None = None  # ns, when the alarm rings; None: never

    def accept_failed(self, why: OSError) -> None:
        """Pause the listener: a waiting connection could not be accepted, as descriptors or memory
        have run out.

        It resumes when a connection has ended, which frees a descriptor, or after ``ACCEPT_REST``.
        Trying again at once would be a busy loop, because the waiting connection keeps the listener
        readable.
        """
        if not self._closed:
            self._accept_at = self._clock() + ACCEPT_REST
            self._pause_listening()
            self.report(tp.AcceptFailed(str(why)))

    def report(self, event: tp.TransportEvent, about: C | None = None) -> None:
        """Have the machine handle ``event``, and carry out the effects. ``about``: the
        connection."""
        if self._accept_at is not None:
            self._accept_again(event, self._accept_at)
        if self._busy:
            self._events.append((event, about))
            return
        if self._closed:
            return
        self._busy = True
        try:
            self._handle(event, about)
            while self._events:
                self._handle(*self._events.popleft())
            self._arm()
        except Exception as exc:
            self._crash(exc)
        self._busy = False

    def _handle(self, event: tp.TransportEvent, about: C | None) -> None:
        connections = self._connections
        if about is not None:
            if type(event) is tp.Accepted or type(event) is tp.RequestBegun:
                event.conn = about.conn = self.machine.new_connection()
                connections[about.conn] = about
            elif about.conn not in connections:
                return  # the connection was aborted when this was queued
            elif type(event) is tp.Disconnected or type(event) is tp.ConnectFailed:
                del connections[about.conn]
        for effect in self.machine.handle(event, self._clock()):
            if type(effect) is not tp.Send:
                self._carry_out(effect)
            elif (known := connections.get(effect.conn)) is not None:
                known.carry_out(effect)  # by far the most frequent effect

    def _accept_again(self, event: tp.TransportEvent, at: int) -> None:
        ended = isinstance(event, tp.Disconnected) or (
            isinstance(event, tp.ConnectFailed) and event.error is not tp.ConnectError.LOCAL
        )
        if not self._closed and (ended or self._clock() >= at):
            self._accept_at = None
            self._resume_listening()

    def _arm(self) -> None:
        """Set the alarm to the machine's next deadline or to the end of the listener's pause.

        An alarm that is set for an earlier time is left: most deadlines move on with every event,
        and setting an alarm costs more than ringing once too early, see ``_ring``.
        """
        at = self._next()
        ring = self._alarm_at
        if at != ring and (at is None or ring is None or at < ring):
            self._set_alarm(at)
            self._alarm_at = at

    def _next(self) -> int | None:
        """The machine's next deadline or the end of the listener's pause, in ns."""
        deadline = self.machine.next_timeout()
        at = self._accept_at
        if deadline is not None and (at is None or deadline.at < at):
            at = deadline.at
        return at

    def _ring(self) -> None:
        """The time of the alarm has come: report it, unless the deadline has moved on."""
        if self._closed:
            return
        self._alarm_at = None
        try:
            at = self._next()
            if at is None or at > self._clock():
                self._arm()
                return
        except Exception as exc:
            self._crash(exc)
            return
        self.report(tp.TimeoutReached())

    def _crash(self, why: Exception) -> None:
        self._closed = True
        self._crashed(why)

    def _carry_out(self, effect: tp.TransportEffect) -> None:
        match effect:
            case tp.Log():
                if self._log is not None:
                    self._log(effect)
            case tp.Connect():
                self._connections[effect.conn] = self._connect(effect)
            case tp.AskStore():
                self._ask(effect)
            case tp.StopListening():
                self._accept_at = None
                self._stop_listening()
            case tp.Stop():
                self._stop()
            case _:
                known = self._connections.get(effect.conn)
                if isinstance(effect, tp.Abort):
                    self._connections.pop(effect.conn, None)
                if known is not None:
                    known.carry_out(effect)

    def _ask(self, effect: tp.AskStore) -> None:
        """Pass a question to the store. It answers from a thread of its own."""
        query = effect.query

        def answered(answer: Answer) -> None:
            # A store answers many questions at once. Waking the event loop takes a system call, so
            # it is done once for all that come before it looks. An answer is added before the flag
            # is read, and the flag is reset before the answers are taken: none is overlooked.
            self._answers.append(tp.StoreAnswered(query, answer))
            if not self._woken:
                self._woken = True
                self._from_thread(self._take_answers)

        # Asked at the end of this pass of the event loop, with all others of the pass. Most of what
        # a question costs is the round trip and the change of threads, which several share then.
        self._questions.append((effect.question, answered))
        if len(self._questions) == 1:
            self._soon(self._ask_all)

    def _ask_all(self) -> None:
        """Pass the questions of a pass of the event loop to the store."""
        questions, self._questions = self._questions, []
        for question, answered in questions:
            if self._store is None:
                answered(Failed("there is no store"))
            else:
                self._store.ask(question, answered)

    def _take_answers(self) -> None:
        """Report what the store has answered by now."""
        self._woken = False
        while self._answers:
            self.report(self._answers.popleft())

    # ------------------------------------------------------------ implemented by an adapter

    @abstractmethod
    def _clock(self) -> int:
        """The time in ns of a monotonic clock."""

    @abstractmethod
    def _from_thread(self, call: Callable[[], None]) -> None:
        """Have the event loop call ``call`` soon. May be called from any thread, and after the end:
        then nothing is called."""

    @abstractmethod
    def _soon(self, call: Callable[[], None]) -> None:
        """Have the event loop call ``call`` after what it is doing. Called from the event loop."""

    @abstractmethod
    def _set_alarm(self, at: int | None) -> None:
        """Call ``_ring`` at ``at`` (ns; None: never), instead of at the time set before."""

    @abstractmethod
    def _connect(self, effect: tp.Connect) -> C:
        """Begin to connect; return the connection, which reports the result."""

    @abstractmethod
    def _pause_listening(self) -> None:
        """Stop accepting until ``_resume_listening`` is called."""

    @abstractmethod
    def _resume_listening(self) -> None:
        """Accept again."""

    @abstractmethod
    def _stop_listening(self) -> None:
        """Close the listener."""

    @abstractmethod
    def _crashed(self, why: Exception) -> None:
        """The machine, or carrying out an effect, has raised ``why``: make the server raise it."""
