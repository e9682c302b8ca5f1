"""Questions to a store in short, and waiting for their answers.

What belongs here: what the checks of stores need, and say nothing about what an answer has to be.
"""

from __future__ import annotations

import hashlib
import queue
import time
from typing import Any, TypeVar

from bridgecore.ownership import store as st
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing.conformance.checks import ConformanceError, equal
from bridgecore.transport.driver import StoreClient

A, B = st.Owner("a", "first"), st.Owner("b", "second")
SCOPE = "scope of a tenant"

AnswerT = TypeVar("AnswerT", bound=st.Answer)


def key_of(name: str) -> bytes:
    """The key of a response, or of a conversation, that a check calls ``name``."""
    return hashlib.sha256(name.encode()).digest()[:16]


def response(
    name: str,
    parent: str | None = None,
    *,
    ids: tuple[str, ...] | None = None,
    context: bytes | None = None,
    scope: str = SCOPE,
    payload: bytes | None = None,
    notice: bytes | None = None,
) -> st.StoredResponse:
    """A response with the id ``name``, unless ``ids`` are given."""
    return st.StoredResponse(
        key_of(name),
        scope,
        (name,) if ids is None else ids,
        None if parent is None else key_of(parent),
        context,
        f"payload of {name}".encode() if payload is None else payload,
        notice,
    )


def commit(
    owner: st.Owner, conversation: str, epoch: int, *responses: st.StoredResponse
) -> st.Commit:
    """Store responses of the conversation that a check calls ``conversation``."""
    return st.Commit(owner, key_of(conversation), epoch, responses)


def resume(owner: st.Owner, name: str | None, **options: Any) -> st.Resume:
    """Look up the response with the id ``name``."""
    return st.Resume(owner, options.pop("scope", SCOPE), name, **options)


def look_up(owner: st.Owner, name: str, **options: Any) -> st.LookUp:
    """Look up the response with the id ``name``, and claim nothing."""
    return st.LookUp(owner, options.pop("scope", SCOPE), name, **options)


class Asking:
    """A client of a store, whose answers are waited for, up to ``patience`` seconds."""

    def __init__(self, client: StoreClient, patience: float = 20.0) -> None:
        self.client = client
        self._patience = patience

    def __call__(self, question: st.Question) -> st.Answer:
        """The answer of the store."""
        answers: queue.SimpleQueue[st.Answer] = queue.SimpleQueue()
        self.client.ask(question, answers.put)
        try:
            return answers.get(timeout=self._patience)
        except queue.Empty as error:
            raise ConformanceError(f"no answer within {self._patience} s to {question}") from error

    def gets(self, question: st.Question, expected: st.Answer, requirement: str) -> None:
        """Raise ``ConformanceError`` unless this is the answer to ``question``."""
        answer = self(question)
        if answer != expected:
            raise ConformanceError(
                f"{requirement}\nquestion: {question}\nexpected: {expected}\nanswer:   {answer}"
            )

    def gets_one_of(self, question: st.Question, kind: type[AnswerT], requirement: str) -> AnswerT:
        """The answer, which must be of this kind."""
        answer = self(question)
        if not isinstance(answer, kind):
            raise ConformanceError(
                f"{requirement}\nquestion: {question}\nexpected: a {kind.__name__}\n"
                f"answer:   {answer}"
            )
        return answer

    def until(self, question: st.Question, kind: type[AnswerT]) -> AnswerT:
        """Ask again and again, until the answer is of this kind: a store does not report that a
        lease has ended."""
        end = time.monotonic() + self._patience
        while not isinstance(answer := self(question), kind):
            if time.monotonic() >= end:
                raise ConformanceError(
                    f"the answer must become a {kind.__name__}\nquestion: {question}\n"
                    f"answer:   {answer}, for {self._patience} s"
                )
            time.sleep(0.002)
        return answer

    def sweeps_while_used(
        self, owner: st.Owner, use: st.Question, answered: type[AnswerT], count: int
    ) -> None:
        """Have ``owner`` sweep until ``count`` responses are deleted, while ``use`` uses one, which
        must be kept. The age is one that only what is not used exceeds: a tenth of a second."""
        end = time.monotonic() + self._patience
        swept = 0
        while swept < count and time.monotonic() < end:
            self.gets_one_of(use, answered, "what is used is kept")
            sweep = st.Sweep(owner, NS_PER_SECOND // 10)
            swept += self.gets_one_of(sweep, st.Swept, "a sweep is answered").count
            time.sleep(0.002)  # a store does not report that a response has become old
        equal(swept, count, "what is not used, and nothing continues, is swept")

    def join(
        self, owner: st.Owner, ttl: int = 1000 * NS_PER_SECOND, advertise: str | None = None
    ) -> None:
        """Begin a lease."""
        self.gets(st.Join(owner, advertise, ttl), st.Joined(), "a lease begins with Join")

    def begin(self, owner: st.Owner, conversation: str, *responses: st.StoredResponse) -> None:
        """Store the first responses of a conversation."""
        first = commit(owner, conversation, 0, *responses)
        self.gets(first, st.Committed(1), "a conversation begins with epoch 1")
