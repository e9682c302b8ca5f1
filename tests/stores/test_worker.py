"""Queues and threads: order, groups and limits, on a back end whose pace the test sets."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import attrs
import pytest

from bridgecore.ownership import store as st
from bridgecore.testing.conformance.asking import A, commit, key_of, look_up, resume
from bridgecore_stores import Store, worker
from bridgecore_stores.backend import ConnectionLostError, Connector
from tests.stores.asking import NS, PATIENCE


class Gate:
    """Back ends that wait before each group until the test lets them go on.

    ``groups``: what was given to them; ``errors``: what the next ones raise instead.
    """

    def __init__(self) -> None:
        self.groups: queue.SimpleQueue[list[st.Question]] = queue.SimpleQueue()
        self.errors: list[Exception] = []
        self.opened = 0
        self._permits = threading.Semaphore(0)

    def connect(self) -> GatedBackend:
        return GatedBackend(self)

    def let(self, count: int = 1) -> None:
        self._permits.release(count)

    def next(self) -> list[st.Question]:
        return self.groups.get(timeout=PATIENCE)

    def carry_out(self, questions: Sequence[st.Question]) -> list[st.Answer]:
        self.groups.put([*questions])
        assert self._permits.acquire(timeout=PATIENCE)
        if self.errors:
            raise self.errors.pop(0)
        return [st.Committed(1) if isinstance(q, st.Commit) else st.Done() for q in questions]


@attrs.frozen
class GatedBackend:
    gate: Gate

    def open(self, *, first: bool = False) -> None:
        self.gate.opened += 1

    def carry_out(self, questions: Sequence[st.Question]) -> list[st.Answer]:
        return self.gate.carry_out(questions)

    def close(self) -> None:
        """Nothing is to be closed."""

    def reason(self, error: Exception) -> str:
        return f"reason {type(error).__name__}"


Answers = queue.SimpleQueue[st.Answer]


def _store(gate: Gate, workers: int = 1, timeout: int = 1000 * NS) -> Store:
    return Store(Connector(gate.connect, workers), timeout)


def _get(answers: Answers) -> st.Answer:
    return answers.get(timeout=PATIENCE)


def test_waiting_commits_are_carried_out_together_and_in_order() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate)
    first = commit(A, "first", 0)
    store.ask(first, answers.put)
    assert gate.next() == [first]
    commits = [commit(A, str(n % 7), n) for n in range(100)]
    release = st.Release(A, ((commits[0].conversation, 1),))
    questions: list[st.Question] = [*commits, release]
    for question in questions:
        store.ask(question, answers.put)
    gate.let(10)
    assert gate.next() == commits[: worker.GROUP]
    assert gate.next() == commits[worker.GROUP :]
    assert gate.next() == [release]
    assert [_get(answers) for _ in range(102)].count(st.Committed(1)) == 101
    store.close(NS)


@pytest.mark.parametrize("question", [resume(A, "x"), look_up(A, "x")], ids=["claim", "look-up"])
def test_reading_does_not_wait_for_commits(question: st.Question) -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate)
    store.ask(commit(A, "c", 1), answers.put)
    assert isinstance(gate.next()[0], st.Commit)
    store.ask(question, answers.put)
    assert gate.next() == [question]
    gate.let(10)
    _get(answers)
    _get(answers)
    store.close(NS)


def test_a_release_does_not_overtake_a_commit() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate, workers=2)
    one, two, other = commit(A, "c", 1), commit(A, "c", 2), commit(A, "d", 3)
    release = st.Release(A, ((one.conversation, 1), (other.conversation, 1)))
    store.ask(one, answers.put)
    assert gate.next() == [one]
    for question in (two, release, other):
        store.ask(question, answers.put)
    # `two` waits for `one`, and the release for `two`. That `other` is before it does no harm.
    assert gate.groups.empty()
    gate.let(10)
    assert [gate.next(), gate.next()] == [[two, other], [release]]
    for _ in range(4):
        _get(answers)
    store.close(NS)


def test_releases_are_carried_out_as_one_however_long_they_waited() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate, timeout=100 * NS)
    store.ask(commit(A, "first", 0), answers.put)
    gate.next()
    other = st.Owner("a", "another lease")
    keys = [key_of(str(number)) for number in range(worker.RELEASES + 2)]
    for key in keys[:-1]:
        store.ask(st.Release(A, ((key, 1),)), answers.put)
    store.ask(st.Release(other, ((keys[-1], 1),)), answers.put)
    gate.let(10)
    pairs = tuple((key, 1) for key in keys)
    assert gate.next() == [st.Release(A, pairs[: worker.RELEASES])]
    assert gate.next() == [st.Release(A, pairs[worker.RELEASES : -1])]
    assert gate.next() == [st.Release(other, pairs[-1:])]
    assert [_get(answers) for _ in range(len(keys) + 1)].count(st.Done()) == len(keys)
    store.close(NS)
    late = _store(gate, timeout=0)
    late.ask(st.Release(A, pairs[:1]), answers.put)
    assert gate.next() == [st.Release(A, pairs[:1])]
    assert _get(answers) == st.Done()
    late.close(NS)


def test_leases_do_not_wait_for_anything_else() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate)
    waiting: list[st.Question] = [resume(A, "x"), st.Sweep(A, 0)]
    for question in waiting:
        store.ask(question, answers.put)
    assert {type(gate.next()[0]), type(gate.next()[0])} == {st.Resume, st.Sweep}
    store.ask(st.Renew(A, NS), answers.put)
    assert gate.next() == [st.Renew(A, NS)]
    gate.let(3)
    store.close(NS)


def test_a_full_queue_refuses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "QUEUE_SIZE", 2)
    gate, answers, refused = Gate(), Answers(), Answers()
    store = _store(gate)
    store.ask(resume(A, "x"), answers.put)
    gate.next()
    for _ in range(2):
        store.ask(resume(A, "x"), answers.put)
    store.ask(resume(A, "x"), refused.put)
    assert refused.get_nowait() == st.Failed("queue full")
    gate.let(10)
    assert [_get(answers) for _ in range(3)] == [st.Done()] * 3
    store.close(NS)


def test_what_waited_too_long_is_not_carried_out() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate, timeout=0)
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Failed("waited too long for the store")
    assert gate.groups.empty()
    store.close(NS)


def test_an_exception_is_the_answer_and_costs_the_connection() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate)
    gate.let(10)
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Done()
    gate.errors = [ValueError("data")]
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Failed("reason ValueError")
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Done()
    assert gate.opened == 2
    store.close(NS)


def test_a_lost_connection_is_replaced_once() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate)
    gate.let(10)
    gate.errors = [ConnectionLostError()]
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Failed("reason ConnectionLostError")  # it was a new one
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Done()
    gate.errors = [ConnectionLostError()]
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Done()
    gate.errors = [ConnectionLostError(), ConnectionLostError()]
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Failed("reason ConnectionLostError")
    store.close(NS)


def test_close_carries_out_what_is_queued() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate)
    for n in range(3):
        store.ask(resume(A, str(n)), answers.put)
    gate.let(3)
    store.close(1000 * NS)
    assert [answers.get_nowait() for _ in range(3)] == [st.Done()] * 3
    store.ask(resume(A, "x"), answers.put)
    assert answers.get_nowait() == st.Failed("the store is closed")
    store.close(NS)


def test_close_answers_what_it_has_no_time_for() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate)
    for n in range(3):
        store.ask(resume(A, str(n)), answers.put)
    gate.next()
    store.close(0)
    assert [answers.get_nowait() for _ in range(2)] == [st.Failed("the store is closed")] * 2
    gate.let()
    assert _get(answers) == st.Done()  # the one that was being carried out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_caller_that_raises_costs_no_other_answer() -> None:
    gate, answers = Gate(), Answers()
    store = _store(gate)
    gate.let(2)

    def raises(answer: st.Answer) -> None:
        raise RuntimeError("a bug of the caller")

    store.ask(resume(A, "x"), raises)
    store.ask(resume(A, "x"), answers.put)
    assert _get(answers) == st.Done()
    store.close(NS)
