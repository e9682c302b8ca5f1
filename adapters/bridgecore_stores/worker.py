"""A store in threads: takes questions without waiting, and calls back with the answers.

What belongs here: queues, threads and groups, for every back end alike. There are four lanes, each
with its own threads and connections:

* **leases** (Join, Renew, Leave): one thread. A renewal that waits behind other work would cost
  the lease, and with it everything that the replica owns;
* **commits** (Commit, Release): one thread, which carries out waiting commits together, and then
  waiting releases as one. Most of a commit is the end of its transaction, the round trip and the
  change of threads, and a thread that is always the same one finds its connection warm. A drain
  releases thousands of conversations at once, each of which would take a transaction of its own;
* **reads** (Resume, LookUp): as many threads as the back end can use;
* **upkeep** (Sweep): one thread, because it can take long.

Commits are carried out in the order in which they were asked: of two responses with one id the
later one counts. A release does not overtake a commit. It may come after later ones, because it
names the epoch that it gives back.
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

RELEASES: Final = 1000
"""Releases carried out as one. It bounds how long the next commit waits for them."""

GATHER: Final = 4_000_000
"""Time between the beginnings of two groups of commits, in ns, while there are several at a time.
Carrying out each commit as it comes takes twice the CPU time, most of it for waking up threads. A
commit that comes alone after another one does not wait: nothing would come that it could wait for.
"""


@attrs.define(eq=False)
class _Entry:
    """A question that waits."""

    question: st.Question
    answered: Callable[[st.Answer], None]
    asked: int  # ns


class Store:
    """A store: it carries out questions in its own threads. Made by ``open_store``."""

    def __init__(self, connector: Connector[Backend], timeout: int) -> None:
        self._leases = _Lane("leases", connector.connect, 1, timeout)
        self._commits = _Lane("commits", connector.connect, 1, timeout)
        self._reads = _Lane("reads", connector.connect, connector.workers, timeout)
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
                self._leases.add(question, answered)
            case st.Commit() | st.Release():
                self._commits.add(question, answered)
            case st.Resume() | st.LookUp():
                self._reads.add(question, answered)
            case _:
                self._upkeep.add(question, answered)

    def close(self, timeout: int) -> None:
        """Carry out what is queued, for up to ``timeout`` ns; then answer the rest with ``Failed``
        and close the connections. A second call does nothing.

        A question that is being carried out at the end is still answered, by its own timeout.
        """
        until = time.monotonic_ns() + timeout
        lanes = (self._leases, self._commits, self._reads, self._upkeep)
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
        self._gathering = False  # the thread waits for more commits, and looks for them by itself
        self._gather_until = 0  # ns, when the next group of commits is taken
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

    def add(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        """Queue a question, or answer that it cannot be."""
        entry = _Entry(question, answered, time.monotonic_ns())
        with self._changed:
            refusal = "the store is closed" if self._stopping else None
            if refusal is None and len(self._queue) >= QUEUE_SIZE:
                refusal = "queue full"
            if refusal is None:
                self._queue.append(entry)
                if not (self._gathering and isinstance(question, st.Commit | st.Release)):
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
                # A release that comes late does no harm, and without it the conversation would be
                # kept from the other replicas.
                released, asked = _partition(entries)
                late = [entry for entry in asked if now - entry.asked > self._timeout]
                timely = [entry for entry in asked if now - entry.asked <= self._timeout]
                answers = connection.carry_out([entry.question for entry in timely])
                for entry in late:
                    _answer(entry, st.Failed("waited too long for the store"))
                for entry, answer in zip(timely, answers, strict=True):
                    _answer(entry, answer)
                for owner, some in released.items():
                    gone = [pair for _, release in some for pair in release.conversations]
                    (answer,) = connection.carry_out([st.Release(owner, tuple(gone))])
                    for entry, _ in some:
                        _answer(entry, answer)
        finally:
            connection.close()

    def _take(self) -> list[_Entry]:
        """The next question, or commits and releases that are carried out together; empty at the
        end."""
        with self._changed:
            while not self._queue:
                if self._stopping:
                    return []
                self._changed.wait()
            first = self._queue[0].question
            if not isinstance(first, st.Commit | st.Release):
                return [self._queue.popleft()]
            if isinstance(first, st.Commit):
                self._gather()
            taken: list[_Entry] = []
            commits = 0
            while self._queue and commits < GROUP and len(taken) - commits < RELEASES:
                taken.append(self._queue.popleft())
                commits += isinstance(taken[-1].question, st.Commit)
            if commits > 1:
                self._gather_until = time.monotonic_ns() + GATHER
            return taken

    def _gather(self) -> None:
        """Wait for more commits, until ``GATHER`` after the latest group of several."""
        self._gathering = True
        while not self._stopping and len(self._queue) < GROUP:
            left = self._gather_until - time.monotonic_ns()
            if left <= 0 or self._changed.wait(left / 1e9):
                break
        self._gathering = False


def _partition(
    entries: list[_Entry],
) -> tuple[dict[st.Owner, list[tuple[_Entry, st.Release]]], list[_Entry]]:
    """Releases, by owner, and everything else."""
    released: dict[st.Owner, list[tuple[_Entry, st.Release]]] = {}
    others: list[_Entry] = []
    for entry in entries:
        if isinstance(entry.question, st.Release):
            released.setdefault(entry.question.owner, []).append((entry, entry.question))
        else:
            others.append(entry)
    return released, others


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
