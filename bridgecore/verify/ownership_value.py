"""Worlds of two replicas as values: equal for worlds with the same future.

What belongs here: times relative to now, queries by their order, owners by the order in which they
are met. What can happen in a world is in ``ownership_world``.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import attrs

from bridgecore.ownership import claims as cl
from bridgecore.ownership import lease as ls
from bridgecore.ownership import store as st
from bridgecore.verify.ownership_world import REPLICAS, Message, Phase, Query, World, row_of


def key(world: World) -> tuple[int, int, bytes]:
    """Equal for worlds with the same future. The last part leaves out what the bounds still
    allow."""
    return (world.faults, world.submitted, state(world))


def state(world: World) -> bytes:
    """Equal for worlds with the same future if more happens than the bounds allow."""
    # A digest, because millions of states are kept.
    return hashlib.blake2b(repr(_state(world)).encode(), digest_size=16).digest()


def _state(world: World) -> tuple[Any, ...]:
    fold = _Fold(world)
    processes = tuple(fold.process(replica) for replica in REPLICAS)
    messages = tuple(fold.message(query) for query in world.messages)
    turns = tuple(
        (conversation, turn.replica, turn.phase.value,
         turn.phase is Phase.COMMITTING and row_of(turn.number) in fold.rows)
        for conversation, turn in sorted(world.turns.items())
    )  # fmt: skip
    backup = (
        None if world.backup is None or world.rolled_back else fold.store(world.backup.snapshot())
    )
    lost = (world.rolled_back, tuple(sorted(world.lost)))
    content = fold.store(world.content)
    return (
        world.begun,
        processes,
        tuple(sorted(messages)),
        turns,
        content,
        backup,
        lost,
        tuple(fold.previous(replica) for replica in REPLICAS),
    )


_STAGES: Final = {stage: place for place, stage in enumerate(ls.LeaseStage)}
_CLAIM_STAGES: Final = {stage: place for place, stage in enumerate(cl.ClaimStage)}
_HOLDING: Final = (ls.LeaseStage.HELD, ls.LeaseStage.RENEWING)
_WAITING: Final = (ls.LeaseStage.JOINING, ls.LeaseStage.RENEWING)


class _Fold:
    """Turns the parts of a world into values that are equal if the parts are alike."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owners: dict[str, int] = {}
        self.turns = {turn.number: each for each, turn in world.turns.items()}
        self.rows = world.content[2]
        for process in world.processes:  # the present owners get the first numbers
            if process.holdings is not None:
                self.owner(process.holdings.owner)

    def owner(self, owner: st.Owner | None) -> int:
        if owner is None:
            return -1
        return self.owners.setdefault(owner.incarnation, len(self.owners))

    def previous(self, replica: int) -> int:
        """The lease in whose place the present one can be begun, if anything is left of it. To be
        called last."""
        holdings = self.world.processes[replica].holdings
        if holdings is None or holdings.previous is None:
            return -1
        return self.owners.get(holdings.previous, -1)

    def turn(self, number: int | None) -> int:
        return -1 if number is None else self.turns.get(number, -1)

    def process(self, replica: int) -> tuple[Any, ...]:
        process, now = self.world.processes[replica], self.world.clock(replica)
        if process.holdings is None:
            return (process.behind,)
        lease, claims, seen, asked, of_lease, waiting, unreleased = process.holdings.snapshot()
        stage = lease.stage
        return (
            process.behind,
            process.paused,
            process.woken,
            -1 if process.until is None else max(process.until - now, 0),
            tuple(sorted(process.offered)),
            tuple(sorted(process.heard.items())),
            self.world.kept(replica),
            _STAGES[stage],
            max(lease.until - now, 0) if stage in _HOLDING else 0,
            now - lease.asked if stage in _WAITING else 0,
            None if lease.wake is None else max(lease.wake - now, 0),
            lease.taken,
            tuple(
                sorted(
                    (key, _CLAIM_STAGES[claim.stage], claim.epoch, claim.seen, claim.offered)
                    for key, claim in claims
                )
            ),
            tuple(sorted(seen)),
            tuple(
                (
                    type(question).__name__,
                    query == of_lease,
                    self.owner(owner),
                    self.turn(turn),
                    max(deadline - now, 0),
                    distrusted,
                )
                for query, question, owner, turn, deadline, distrusted in asked
                if (replica, process.number, query) in self.world.messages
            ),
            tuple(
                (
                    self.turn(turn),
                    max(deadline - now, 0),
                    question.floor if isinstance(question, st.Resume) else question.conversation,
                )
                for turn, question, deadline in waiting
            ),
            tuple(sorted(unreleased)),
        )

    def message(self, query: Query) -> tuple[Any, ...]:
        message = self.world.messages[query]
        process = self.world.processes[query[0]]
        place = -1
        if not message.failed:  # its place among the open questions of its replica
            same = [each for each in self.world.messages if each[:2] == query[:2]]
            place = same.index(query)
        question, answer = message.question, message.answer
        about: tuple[Any, ...] = ()
        if isinstance(question, st.Resume):
            about = (question.response, question.floor)
        elif isinstance(question, st.Commit):
            about = (question.conversation, question.epoch, self._of_row(question))
        elif isinstance(question, st.Release):
            about = question.conversations
        elif isinstance(question, st.Join) and question.instead is not None:
            about = (self.owner(attrs.evolve(question.owner, incarnation=question.instead)),)
        told: tuple[Any, ...] = ()
        if answer is not None:
            told = (type(answer).__name__,)
            if isinstance(answer, st.Claimed):
                told += (answer.conversation, answer.epoch)
            elif isinstance(answer, st.OwnedElsewhere):
                told += (answer.conversation, answer.epoch, self.owner(answer.owner))
            elif isinstance(answer, st.NameTaken):
                told += (answer.remaining,)
            elif isinstance(answer, st.Committed | st.Fenced):
                told += (answer.epoch,)
        return (
            query[0],
            query[1] == process.number,
            place,
            type(question).__name__,
            self.owner(question.owner),
            about,
            self.turn(message.turn),
            self._age(query, message),
            told,
            message.slow,
            message.failed,
        )

    def _age(self, query: Query, message: Message) -> int:
        """How long ago it was asked, as far as that matters: what it extends."""
        if message.failed or not isinstance(message.question, st.Join | st.Renew):
            return 0
        return min(self.world.clock(query[0]) - message.asked, self.world.bounds.times.usable)

    def _of_row(self, commit: st.Commit) -> int:
        """The conversation whose open turn is committed; -1 if that turn has ended."""
        for response in commit.responses:
            for number, conversation in self.turns.items():
                if response.key == row_of(number):
                    return conversation
        return -1

    def store(self, content: tuple[Any, ...]) -> tuple[Any, ...]:
        leases, conversations, _ = content
        now = self.world.now
        return (
            tuple(
                sorted((self.owner(owner), until - now) for owner, until in leases if until > now)
            ),
            tuple(sorted((key, epoch, self.owner(owner)) for key, epoch, owner in conversations)),
        )
