"""The store of simulated replicas, and the way of each of them to it.

What belongs here: latencies, lost questions and answers, and failovers to an older copy. What a
store answers is defined by ``StoreModel``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from bridgecore.continuity.stored import unpack
from bridgecore.ownership import store as st
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.simulate.chance import Rng
from bridgecore.testing.network import MILLISECOND
from bridgecore.testing.store import Clock, StoreModel


class Loss(enum.Enum):
    """What is lost on the way to the store."""

    QUESTIONS = "nothing is carried out"
    ANSWERS = "what is carried out is not answered"


class ResponseFate(enum.Enum):
    """What a store knows of a response."""

    STORED = "the store has it and all that it continues"
    BARE = "the store has it without its transcript"
    FORGOTTEN = "it was lost in a failover"
    SEVERED = "the store has it without one that it continues, which was lost in a failover"
    INCOMPLETE = "the store has it without one that it continues"
    UNKNOWN = "the store never had it"


class SharedStore:
    """The content of the store, and what it has forgotten.

    ``latency``: ns that each way takes at most.
    """

    def __init__(self) -> None:
        self.model = StoreModel()
        self.latency = 5 * MILLISECOND
        self.down = 0  # ns, until when it carries out nothing
        self.forgotten: set[bytes] = set()  # keys of responses, lost in a failover
        self._named: dict[tuple[str, str], bytes] = {}  # of those, their keys by scope and id
        self.distrusted: set[bytes] = set()  # conversations whose owner or epoch was lost

    def fail_over(self, backup: StoreModel) -> int:
        """Go on with ``backup``; how many ids are lost with it."""
        kept, named = backup.names(), self.model.names()
        lost = {name: key for name, key in named.items() if name not in kept}
        before, after = _owners(self.model), _owners(backup)
        self.distrusted |= {key for key, owner in before.items() if after.get(key) != owner}
        self.forgotten |= set(lost.values())
        self._named |= lost
        self.model = backup
        return len(lost)

    def fate(self, scope: str, response: str) -> ResponseFate:
        """What has become of a response that a client was shown."""
        key = self.model.key(scope, response) or self._named.get((scope, response))
        if key is None:
            return ResponseFate.UNKNOWN
        missing = self.model.missing(key)
        if missing is None:
            row = self.model.response(key)
            found = None if row is None else unpack(row.payload)
            bare = found is not None and found.segment is None
            return ResponseFate.BARE if bare else ResponseFate.STORED
        if missing not in self.forgotten:
            return ResponseFate.INCOMPLETE
        return ResponseFate.FORGOTTEN if missing == key else ResponseFate.SEVERED


def _owners(model: StoreModel) -> dict[bytes, tuple[int, st.Owner | None]]:
    return {key: (epoch, owner) for key, epoch, owner in model.snapshot()[1]}


class StorePath:
    """The way of one process to the store. It is given to the network as the process's store.

    ``loss``: what is lost on it now, if anything.
    """

    def __init__(self, clock: Clock, store: SharedStore, rng: Rng) -> None:
        self.loss: Loss | None = None
        self._clock = clock
        self._store = store
        self._rng = rng
        self._order: dict[bytes, int] = {}  # ns, when the last question about each arrives

    def __call__(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        """Carry out a question of the process, or lose it."""
        at = self._clock.now + self._rng.between(1, self._store.latency)
        for key in _touches(question):  # no driver lets these overtake each other
            at = self._order[key] = max(at, self._order.get(key, 0) + 1)
        self._clock.at(at, lambda: self._arrives(question, answered))

    def _arrives(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        now, store = self._clock.now, self._store
        for key in _touches(question):
            if self._order.get(key) == now:
                del self._order[key]
        if self.loss is Loss.QUESTIONS or now < store.down:
            self._fail(answered)
            return
        answer = store.model.handle(question, now)
        self._clock.at(
            now + self._rng.between(1, store.latency), lambda: self._returns(answer, answered)
        )

    def _returns(self, answer: st.Answer, answered: Callable[[st.Answer], None]) -> None:
        if self.loss is None:
            answered(answer)
        else:
            self._fail(answered)

    def _fail(self, answered: Callable[[st.Answer], None]) -> None:
        """The driver gives up: at once if its connection breaks, else after a time."""
        after = self._rng.pick((1, 1000 * MILLISECOND, 3 * NS_PER_SECOND))
        self._clock.at(
            self._clock.now + after, lambda: answered(st.Failed("the connection was lost"))
        )


def _touches(question: st.Question) -> tuple[bytes, ...]:
    """What a question changes: conversations, or the lease (``b""``)."""
    if isinstance(question, st.Commit):
        return (question.conversation,)
    if isinstance(question, st.Release):
        return tuple(key for key, _ in question.conversations)
    if isinstance(question, st.Join | st.Renew | st.Leave):
        return (b"",)
    return ()
