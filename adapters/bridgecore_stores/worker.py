"""A store in threads: takes questions without waiting, and calls back with the answers.

What belongs here: queues, threads and groups, for every back end alike. There are three lanes, each
with its own threads and connections:

* **leases** (Join, Renew, Leave): one thread. A renewal that waits behind other work would cost
  the lease, and with it everything that the replica owns;
* **work** (Resume, Commit, Release): as many threads as the back end can use. Waiting commits are
  carried out together, because most of a commit is the end of its transaction and the round trip:
  by one thread at a time, so that they do not each have a transaction of their own;
* **upkeep** (Sweep): one thread, because it can take long.

Questions about the same conversation are carried out in the order in which they were asked: of two
responses with one id the later one counts, and a release must not overtake a commit.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from bridgecore.ownership import store as st
from bridgecore_stores.backend import Backend, ConnectionLostError, Connector

QUEUE_SIZE: Final = 10_000
"""Questions that wait in a lane. With more the store is out of reach, and memory would grow."""

GROUP: Final = 64
"""Commits carried out together. It bounds how long one of them waits for the others."""

GATHER: Final = 2_000_000
"""Time between the beginnings of two groups of commits, in ns. Carrying out each commit as it comes
takes twice the CPU time, most of it for waking up threads. Whoever commits rarely does not wait."""

# How many waiting questions are looked at for more commits.
_LOOKED_AT = 4 * GROUP


@attrs.define(eq=False)
class _Entry:
    """A question that waits. ``touches``: the conversations whose order matters."""

    question: st.Question
    answered: Callable[[st.Answer], None]
    asked: int  # ns
    touches: tuple[bytes, ...]


class Store:
    """A store: it carries out questions in its own threads. Made by ``open_store``."""

    def __init__(self, connector: Connector[Backend], timeout: int) -> None:
        self._leases = _Lane("leases", connector.connect, 1, timeout)
        self._work = _Lane("work", connector.connect, connector.workers, timeout)
        self._upkeep = _Lane("upkeep", connector.connect, 1, timeout)
        self._closed = connector.closed

    def ask(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        """Have ``question`` carried out, and ``answered`` called with its answer, exactly once.

        Returns at once, and may be called from any thread. ``answered`` is called from a thread of
        the store, or from this one if the question is refused: it must return at once and raise
        nothing.
        """
        match question:
            case st.Join() | st.Renew() | st.Leave():
                self._leases.add(question, answered, ())
            case st.Commit():
                self._work.add(question, answered, (question.conversation,))
            case st.Release():
                touched = tuple(conversation for conversation, _ in question.conversations)
                self._work.add(question, answered, touched)
            case st.Resume():
                self._work.add(question, answered, ())
            case _:
                self._upkeep.add(question, answered, ())

    def close(self, timeout: int) -> None:
        """Carry out what is queued, for up to ``timeout`` ns; then answer the rest with ``Failed``
        and close the connections. A second call does nothing.

        A question that is being carried out at the end is still answered, by its own timeout.
        """
        until = time.monotonic_ns() + timeout
        lanes = (self._leases, self._work, self._upkeep)
        for lane in lanes:
            lane.stop()
        for lane in lanes:
            lane.wait(until)
        self._closed()


class _Lane:
    """A queue, and the threads that carry out what is in it."""

    def __init__(
        self, name: str, connect: Callable[[], Backend], threads: int, timeout: int
    ) -> None:
        self._timeout = timeout
        self._queue: deque[_Entry] = deque()
        self._busy: set[bytes] = set()  # conversations that a thread works on
        self._committing = False  # a thread carries out commits
        self._gathering = False  # a thread waits for more of them
        self._group = 0  # ns, when the latest group was taken
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            # Daemons: a process that ends without `close` must not wait for a database.
            threading.Thread(
                target=self._run, args=(connect(),), name=f"bridgecore-store-{name}", daemon=True
            )
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def add(
        self,
        question: st.Question,
        answered: Callable[[st.Answer], None],
        touches: tuple[bytes, ...],
    ) -> None:
        """Queue a question, or answer that it cannot be."""
        entry = _Entry(question, answered, time.monotonic_ns(), touches)
        with self._changed:
            refusal = "the store is closed" if self._stopping else None
            if refusal is None and len(self._queue) >= QUEUE_SIZE:
                refusal = "queue full"
            if refusal is None:
                self._queue.append(entry)
                # The thread that gathers or carries out commits looks for this one by itself.
                expected = self._committing or self._gathering
                if not (expected and isinstance(question, st.Commit)):
                    self._changed.notify()
        if refusal is not None:
            _answer(entry, st.Failed(refusal))

    def stop(self) -> None:
        """Take no more questions; the threads end when the queue is empty."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def wait(self, until: int) -> None:
        """Wait for the threads until ``until`` (ns), then answer what is left."""
        for thread in self._threads:
            thread.join(max(0, until - time.monotonic_ns()) / 1e9)
        with self._changed:
            left = [*self._queue]
            self._queue.clear()
            self._changed.notify_all()
        for entry in left:
            _answer(entry, st.Failed("the store is closed"))

    def _run(self, backend: Backend) -> None:
        connection = _Connection(backend)
        try:
            while entries := self._take():
                now = time.monotonic_ns()
                late = [entry for entry in entries if now - entry.asked > self._timeout]
                timely = [entry for entry in entries if now - entry.asked <= self._timeout]
                answers = connection.carry_out([entry.question for entry in timely])
                self._finish(entries)
                for entry in late:
                    _answer(entry, st.Failed("waited too long for the store"))
                for entry, answer in zip(timely, answers, strict=True):
                    _answer(entry, answer)
        finally:
            connection.close()

    def _take(self) -> list[_Entry]:
        """The next question, or commits that are carried out together; empty at the end."""
        with self._changed:
            while not (taken := self._next(commits=self._pause() <= 0)):
                if self._stopping and not self._queue:
                    return []
                self._await_more()
            for entry in taken:
                self._busy.update(entry.touches)
            if isinstance(taken[0].question, st.Commit):
                self._committing = True
                self._group = time.monotonic_ns()
            return taken

    def _pause(self) -> int:
        """How long no group of commits may begin, ns."""
        return 0 if self._stopping else self._group + GATHER - time.monotonic_ns()

    def _await_more(self) -> None:
        """Wait for something that this thread can do; one of the threads also for the end of the
        pause between two groups of commits."""
        pause = self._pause()
        waiting = bool(self._queue) and isinstance(self._queue[0].question, st.Commit)
        if pause > 0 and waiting and not self._gathering and not self._committing:
            self._gathering = True
            self._changed.wait(pause / 1e9)
            self._gathering = False
        else:
            self._changed.wait()

    def _next(self, *, commits: bool) -> list[_Entry]:
        taken: list[_Entry] = []
        kept: list[_Entry] = []
        # Conversations that another thread works on, or an earlier question that is kept.
        blocked = set(self._busy)
        while self._queue and len(taken) < GROUP and len(kept) < _LOOKED_AT:
            entry = self._queue.popleft()
            together = isinstance(entry.question, st.Commit)
            fits = commits and not self._committing if together else not taken
            if fits and blocked.isdisjoint(entry.touches):
                taken.append(entry)
                if not together:
                    break
            else:
                kept.append(entry)
                blocked.update(entry.touches)
        self._queue.extendleft(reversed(kept))
        return taken

    def _finish(self, entries: list[_Entry]) -> None:
        with self._changed:
            if isinstance(entries[0].question, st.Commit):
                self._committing = False
            for entry in entries:
                self._busy.difference_update(entry.touches)
            if self._queue:
                self._changed.notify()
            if self._stopping:  # a thread that found only blocked questions looks again
                self._changed.notify_all()


class _Connection:
    """A connection that is opened when it is needed, and opened anew after an exception."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._open = False

    def carry_out(self, questions: list[st.Question]) -> list[st.Answer]:
        if not questions:
            return []
        used = self._open
        try:
            try:
                return self._try(questions)
            except ConnectionLostError:
                # An idle connection ends when a server restarts. That is noticed only now, and a
                # question can be asked again without harm. A new connection is not tried twice.
                if not used:
                    raise
                self.close()
                return self._try(questions)
        except Exception as error:
            self.close()
            return [st.Failed(self._backend.reason(error))] * len(questions)

    def _try(self, questions: list[st.Question]) -> list[st.Answer]:
        if not self._open:
            self._open = True  # also if it fails: then it is closed
            self._backend.open()
        return self._backend.carry_out(questions)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._backend.close()


def _answer(entry: _Entry, answer: st.Answer) -> None:
    try:
        entry.answered(answer)
    except Exception:
        # A bug of the caller. It is shown like that of any thread, and costs no other answer.
        threading.excepthook(
            threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()])
        )
