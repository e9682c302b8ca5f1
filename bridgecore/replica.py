"""The bridge as one replica of several: claims before turns, commits before their ends.

What belongs here: the bridge's side of the store. Before a turn continues a response that this
process does not have, its conversation is claimed; before a client sees the terminal event of a
turn, what is needed to continue it is committed. So whatever id a client was shown can be continued
by any replica, and after a restart. What may be sent under which lease is decided in ``ownership``.

A commit that does not come in time delays nothing further: the terminal event is shown, and the log
and ``Accounts`` say that the turn is not durable. The next commit of its conversation includes what
is missing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Final, TypeAlias, assert_never

import attrs

from bridgecore.config import Config
from bridgecore.continuity.memory import Memory, Unstored
from bridgecore.intake import Arriving
from bridgecore.messages import AnswerEvents
from bridgecore.ownership import holdings as hd
from bridgecore.ownership.lease import LeaseTimes
from bridgecore.ownership.store import Answer, AskStore
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.transport import Log, LogLevel
from bridgecore.wire.decisions import hashed

ReplicaEffect: TypeAlias = AskStore | AnswerEvents | Log | hd.Resolved | hd.Fence
"""What the bridge has to do: the first three are passed on."""


@attrs.define(eq=False)
class _Ending:
    """A turn whose terminal event waits for its commit. ``answer``: the effect that shows it; None
    once it is shown, or its client has left. ``conversation``: what it is committed to."""

    answer: AnswerEvents | None
    scope: str
    unstored: Unstored
    conversation: bytes
    alone: bool = False  # in a conversation of its own, because its own one was fenced


class Replica:
    """This process as a replica. Methods take ``now`` in ns and return the effects, in order."""

    def __init__(self, config: Config, memory: Memory, seed: bytes) -> None:
        self._seed = seed
        self._memory = memory
        times = LeaseTimes(config.lease_ttl, config.lease_margin, config.store_timeout)
        self._holdings = hd.Holdings(config.replica, None, times, seed)
        self._endings: dict[int, _Ending] = {}  # by turn
        self._committing: Counter[bytes] = Counter()  # open commits of each conversation
        self._unused: set[bytes] = set()  # to be given back after them
        self._drawn = 0  # keys of conversations
        self._undurable = 0  # turns that were shown without a commit
        self._durable = True  # the latest commit was
        self._age = config.transcript_age
        self._sweep_at = 0  # ns, when the store is next asked to delete what is too old
        self.gone = False  # the lease is given up

    @property
    def turns(self) -> int:
        """How many turns have ended upstream and are not shown to their clients yet."""
        return sum(ending.answer is not None for ending in self._endings.values())

    @property
    def undurable(self) -> int:
        """How many turns were shown to their clients before the store had them."""
        return self._undurable

    def __contains__(self, turn: int) -> bool:
        return turn in self._endings

    def was_asked(self, query: int) -> bool:
        """Whether there was an ``AskStore`` with this number."""
        return self._holdings.was_asked(query)

    def next_timeout(self) -> int | None:
        """When to call ``timeout`` (ns); None: never."""
        return self._holdings.next_timeout()

    # ------------------------------------------------------------ the lease

    def start(self, now: int) -> list[ReplicaEffect]:
        """The process is ready: ask for a lease."""
        return self._carry_out(self._holdings.start(now), now)

    def leave(self, now: int) -> list[ReplicaEffect]:
        """The process is about to end, and no turn is left: give up the lease."""
        return self._carry_out(self._holdings.leave(now), now)

    def timeout(self, now: int) -> list[ReplicaEffect]:
        """A time of ``next_timeout`` may have come."""
        at = self._holdings.next_timeout()
        if at is None or now < at:
            return []
        return self._carry_out(self._holdings.timeout(now), now)

    def answered(self, query: int, answer: Answer, now: int) -> list[ReplicaEffect]:
        """The store has answered."""
        return self._carry_out(self._holdings.answered(query, answer, now), now)

    # ------------------------------------------------------------ conversations

    def begin(self) -> bytes:
        """The key of a new conversation, which is this replica's."""
        self._drawn += 1
        text = b"%b:conversation:%d" % (self._seed, self._drawn)
        key = hashlib.blake2b(text, digest_size=16).digest()
        self._holdings.begin(key)
        return key

    def may_send(self, conversation: bytes, now: int) -> bool:
        """Whether turns of a conversation may be sent upstream now."""
        return self._holdings.may_send(conversation, now)

    def epoch(self, conversation: bytes) -> int:
        """The epoch of a conversation that is owned here; 0 if it is new, or not owned."""
        return self._holdings.epoch(conversation)

    def unused(self, conversation: bytes, now: int) -> list[ReplicaEffect]:
        """The session of a conversation has ended: give it back, once its commits are over."""
        if self._committing[conversation]:
            self._unused.add(conversation)
            return []
        return self._carry_out(self._holdings.unused(conversation, now), now)

    # ------------------------------------------------------------ turns

    def resume(self, turn: Arriving, now: int) -> list[ReplicaEffect]:
        """Claim the conversation of the response that ``turn`` names; answered by ``Resolved``."""
        named = turn.request.previous_response_id or None
        alias = None if named is None else self._memory.alias(turn.scope, named)
        load = alias is None or not self._memory.holds(turn.scope, alias, now)
        asked = self._holdings.resume(turn.id, turn.scope, named, (), now, load=load)
        return self._carry_out(asked, now)

    def commit(
        self, answer: AnswerEvents, scope: str, ids: list[str], conversation: bytes, now: int
    ) -> list[ReplicaEffect]:
        """Commit a turn's response, and return ``answer``, its terminal event, after that."""
        unstored = self._memory.unstored(scope, ids, now)
        if unstored is None:
            return [answer]
        ending = _Ending(answer, scope, unstored, conversation)
        return self._commit(answer.turn, ending, now)

    def _commit(self, turn: int, ending: _Ending, now: int) -> list[ReplicaEffect]:
        self._endings[turn] = ending
        self._committing[ending.conversation] += 1
        responses = ending.unstored.responses
        effects = self._holdings.commit(turn, ending.conversation, responses, now)
        return self._carry_out(effects, now)

    def left(self, turn: int) -> None:
        """The client of a turn has left: its commit goes on, its terminal event is dropped. Also
        for a turn whose claim is being asked for."""
        if (ending := self._endings.get(turn)) is not None:
            ending.answer = None
        else:
            self._holdings.forget(turn)

    # ------------------------------------------------------------ effects of the holdings

    def _carry_out(self, effects: list[hd.HoldingsEffect], now: int) -> list[ReplicaEffect]:
        out: list[ReplicaEffect] = []
        for effect in effects:
            match effect:
                case AskStore() | hd.Resolved() | hd.Fence():
                    out.append(effect)
                case hd.Settled():
                    out += self._settled(effect, now)
                case hd.LeaseChanged():
                    event = "replica.lease_held" if effect.held else "replica.lease_lost"
                    level = LogLevel.INFO if effect.held else LogLevel.WARNING
                    out.append(self._log(level, event))
                case hd.NameInUse():
                    out.append(
                        self._log(LogLevel.ERROR, "replica.name_in_use", detail=_NAME_IN_USE)
                    )
                case hd.StoreDistrusted():
                    epochs = {"epoch": effect.epoch, "seen": effect.seen}
                    line = self._log(LogLevel.ERROR, _ROLLED_BACK, detail=_DISTRUSTED, **epochs)
                    out.append(line)
                case hd.Gone():
                    self.gone = True
                case _:
                    assert_never(effect)
        return out

    def _settled(self, settled: hd.Settled, now: int) -> list[ReplicaEffect]:
        """A commit is over: show the end of its turn, or commit it once more by itself.

        A commit that is fenced belongs to a conversation that another replica continues. The
        response exists all the same, and its client may continue it: it becomes a conversation of
        its own.
        """
        ending = self._endings.pop(settled.turn)
        key = ending.conversation
        out: list[ReplicaEffect] = []
        self._committing[key] -= 1
        if not self._committing[key]:
            del self._committing[key]
            if key in self._unused:
                self._unused.remove(key)
                out += self._carry_out(self._holdings.unused(key, now), now)
        if settled.fenced and not ending.alone:
            ending.alone, ending.conversation = True, self.begin()
            self._unused.add(ending.conversation)
            return out + self._commit(settled.turn, ending, now)
        if settled.durable:
            ending.unstored.committed()
            out += self._sweep(now)
        if ending.answer is not None:
            out.append(ending.answer)
        if settled.durable is not self._durable:
            self._durable = settled.durable
            out.append(self._durability())
        self._undurable += not settled.durable
        if not settled.durable:
            fields: dict[str, str | int] = {
                "turn": settled.turn,
                "response": hashed(ending.unstored.responses[-1].ids[0]),
            }
            out.append(self._log(LogLevel.DEBUG, "turn.not_durable", **fields))
        return out

    def _sweep(self, now: int) -> list[ReplicaEffect]:
        """Have the store delete what was not used for ``transcript_age``, now and then: after a
        commit, because a store that nothing is added to does not grow."""
        if now < self._sweep_at:
            return []
        self._sweep_at = now + min(self._age, _SWEEP)
        return self._carry_out(self._holdings.sweep(self._age, now), now)

    def _durability(self) -> Log:
        """A record of a change. One, and not one for each turn: all are not durable together."""
        if self._durable:
            return self._log(LogLevel.INFO, "store.back")
        return self._log(LogLevel.WARNING, "store.unavailable", detail=_UNAVAILABLE)

    def _log(self, level: LogLevel, event: str, **fields: str | int) -> Log:
        return Log(level, event, {"replica": self._holdings.replica, **fields})


# Time between two sweeps, unless transcripts live less long; what is too old may stay so long.
_SWEEP: Final = 600 * NS_PER_SECOND
_NAME_IN_USE = (
    "another process has a lease under this name and renews it: give each replica its own name "
    "(--replica); until then nothing that this one answers is durable"
)
_ROLLED_BACK = "store.rolled_back"
_DISTRUSTED = "the store has granted an epoch that it had granted before: it has lost memory"
_UNAVAILABLE = (
    "responses are not stored: they can be continued as long as this process lives, and not after"
)
