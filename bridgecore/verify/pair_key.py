"""Compares worlds of two bridges: which of them have the same future.

What belongs here: the value by which the search recognises a world that it has met. It leaves out
what no longer matters (attempts that have ended, how long ago) and names that mean nothing (numbers
of links and questions, leases).
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeAlias

import attrs

from bridgecore.statevalue import LINK, QUESTION, Ref
from bridgecore.verify.pair_machine import INCARNATION, TICK, Digest
from bridgecore.verify.pair_records import OF_LEASE, TICKS, LinkKey, Passing
from bridgecore.verify.pair_world import World

Key: TypeAlias = tuple[frozenset[str] | None, int, bytes]

_NOTHING: Final = Digest("", (), {})  # of a process that has ended


def key_of(world: World) -> Key:
    """Equal for worlds with the same future. The last part leaves out what the bounds still
    allow."""
    left = world.faults if len(world.faults) < world.bounds.faults else None
    return left, len(world.attempts), _state_of(world)


def _state_of(world: World) -> bytes:
    """Equal for worlds with the same future if more happens than the bounds allow."""
    now = world.now
    texts: list[str] = []
    names: list[dict[Ref, int]] = []
    for process in world.processes:
        digest = _NOTHING if process.state is None else process.state.digest(now)
        until = None if process.until is None else max(0, process.until - now)
        lease = "" if process.state is None else process.lease
        flags = process.paused, process.woken, process.cut, process.draining
        texts.append(f"{lease} {until} {flags} {digest.text} {digest.leases}")
        names.append(digest.names)
    open_ = {client.attempt for client in world.clients}
    open_ |= {link.attempt for link in world.upstream.values()}
    open_ |= {one.attempt for one in world.passing.values()}
    around = (
        _questions(world, names),
        sorted(
            (key[0], names[key[0]].get(Ref(LINK, key[1]), -1), attrs.astuple(link))
            for key, link in world.upstream.items()
        ),
        sorted(map(repr, (_of_passing_key(world, names, *each) for each in world.passing.items()))),
        sorted((turn, number) for turn, (number, _) in world.turns.items()),
        [attrs.astuple(each) for each in world.attempts.values() if each.number in open_],
        _siblings(world),
        [attrs.astuple(client) for client in world.clients],
        _of_store(world),
    )
    texts.append(repr(around))
    leases: dict[str, str] = {}
    whole = INCARNATION.sub(
        lambda found: leases.setdefault(found[0], f"lease {len(leases)}"), "\n".join(texts)
    )
    # The leases in whose place the next ones are begun, as far as anything is left of them.
    before = [
        None if each.state is None or each.before is None else leases.get(each.before)
        for each in world.processes
    ]
    whole += repr(before)
    # A digest, because many states are kept.
    return hashlib.blake2b(whole.encode(), digest_size=16).digest()


def _siblings(world: World) -> list[tuple[object, ...]]:
    """The attempts by which what an open or later one continues has been continued, where."""
    anchors = {client.last for client in world.clients}
    present = {(replica, each.number) for replica, each in enumerate(world.processes)}
    return [
        (each.anchor, replica)
        for each in world.attempts.values()
        for replica, number in each.sent
        if each.done and each.anchor in anchors and (replica, number) in present
    ]


def _questions(world: World, names: list[dict[Ref, int]]) -> list[str]:
    return sorted(
        repr(
            (
                query[0],
                query[1] == world.processes[query[0]].number,
                names[query[0]].get(Ref(QUESTION, query[2]), -1),
                asked.question,
                # How long ago it was asked, as far as that matters: what it extends.
                min(world.now - asked.at, TICKS.usable)
                if isinstance(asked.question, OF_LEASE) and not asked.failed
                else 0,
                asked.answer,
                asked.slow,
                asked.failed,
            )
        )
        for query, asked in world.asked.items()
    )


def _of_passing_key(
    world: World, names: list[dict[Ref, int]], key: LinkKey, one: Passing
) -> tuple[object, ...]:
    sent = None if one.sent is None else (one.sent[0], one.sent[1].to)
    return (
        key[0],
        names[key[0]].get(Ref(LINK, key[1]), -1),
        one.number == world.processes[one.to].number,
        attrs.astuple(attrs.evolve(one, sent=None, number=0)),
        sent,
    )


def _of_store(world: World) -> tuple[object, ...]:
    leases, conversations, _ = world.store.snapshot()
    now = world.now * TICK
    rows = [world.conversation_of(f"r{number}") for number in world.attempts]
    return (
        sorted(
            (owner.replica, owner.incarnation, until - now)
            for owner, until in leases
            if until > now
        ),
        sorted(
            (key, epoch, None if owner is None else owner.incarnation)
            for key, epoch, owner in conversations
        ),
        rows,
    )
