"""The values of which a world of two bridges consists: what its parts are, and what is bounded.

What belongs here: the records that a ``World`` (pair_world.py) keeps in its tables, and ``Move``.
They never change, so that a copy of a world shares them. How they follow each other is in
pair_world.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import attrs

from bridgecore.ownership import store as st
from bridgecore.ownership.forwards import Forward
from bridgecore.ownership.lease import LeaseTimes
from bridgecore.verify.pair_machine import MachineState

TICKS: Final = LeaseTimes(ttl=4, margin=1, timeout=1, retry=1)
"""The times of leases and questions, in ticks."""
FAULTS: Final = frozenset(
    ("slow", "fail", "cut", "pause", "crash", "drain", "evict", "lose", "break", "leave")
)
"""The kinds of faults: pair_moves.py says what they are."""
REPLICAS: Final = (0, 1)
OF_LEASE: Final = (st.Join, st.Renew)
"""The questions whose answers extend a lease."""

Context: TypeAlias = tuple[str, ...]  # texts of the items
Query: TypeAlias = tuple[int, int, int]  # replica, number of the process, query
LinkKey: TypeAlias = tuple[int, int]  # replica, link
TurnKey: TypeAlias = tuple[int, int]  # replica, turn


@attrs.frozen
class PairBounds:
    """What an exploration leaves out. ``clients``: each has one conversation of ``turns`` turns.
    ``attempts``: of all clients together. ``faults``: how many there are, of those ``kinds``, each
    kind once."""

    name: str
    clients: int
    turns: int
    attempts: int
    faults: int
    kinds: frozenset[str] = FAULTS
    max_worlds: int = 2_000_000


class Move(NamedTuple):
    """One thing that can happen, and the replica, link, query or client it happens to."""

    what: str
    about: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.what, *map(str, self.about)])


@attrs.frozen
class Process:
    """A replica and what the world records of it. ``state``: None: it has crashed or ended.
    ``number``: how many processes of this replica there were. ``woken``: it was paused in this
    tick, so what is due may come after other events. ``cut``: it does not reach the store.

    ``lease``: the incarnation that it has asked a lease for last; ``before``: that of the lease in
    whose place it did; ``until``: the tick at which ``lease`` ends by its own clock, as follows
    from the answers delivered.
    """

    state: MachineState | None = None
    number: int = 0
    paused: bool = False
    woken: bool = False
    cut: bool = False
    draining: bool = False
    lease: str = ""
    before: str | None = None
    until: int | None = None


@attrs.frozen
class Asked:
    """A question on its way to the store, or, once there is an ``answer``, on its way back.
    ``at``: the tick at which it was asked. ``failed``: ``Failed`` was reported."""

    question: st.Question
    at: int
    answer: st.Answer | None = None
    slow: bool = False
    failed: bool = False


@attrs.frozen
class Upstream:
    """A connection to the upstream, as that knows it. ``cached``: the response that it can
    continue, and the context up to its end. ``attempt``: what it is answering, in the ``context``,
    which is None if the frame names a response that it does not know. ``shown``: events of the
    answer that were sent."""

    open: bool = False
    cached: tuple[str, Context] | None = None
    attempt: int | None = None
    context: Context | None = None
    shown: int = 0


@attrs.frozen
class Passing:
    """A connection to the other replica's process ``number``. ``attempt``: what it carries.
    ``sent``: the forward, until it has arrived. ``turn``: its number at the receiver, while that
    has not ended it. ``back``: what the receiver has answered and the sender has not read.
    ``begun``: the receiver has answered events. ``closed``: by the sender; ``dead``: its receiver
    is gone."""

    to: int
    number: int
    open: bool = False
    attempt: int | None = None
    sent: tuple[bytes, Forward, tuple[tuple[bytes, bytes], ...]] | None = None
    turn: int | None = None
    back: tuple[Said, ...] = ()
    begun: bool = False
    slow: bool = False
    closed: bool = False
    dead: bool = False


class Said(NamedTuple):
    """Part of the answer to a forward: messages, or the end of it without any. ``last``: the answer
    is complete."""

    messages: tuple[bytes, ...]
    last: bool


@attrs.frozen
class Attempt:
    """One attempt of a client to have a turn answered.

    ``replica``: where it asked. ``meaning``: the context that it means. ``anchor``: the response
    that it continues. ``known``: the store had that when it asked. ``sent``: the processes that
    have sent it upstream, as replica and number. ``done``: the upstream has answered all of it.
    ``lost``: its replica does not know what became of it. ``branch``: it may begin a conversation
    of its own. ``arrived``: how often it was taken as a forward. ``foreign``: the latest forward of
    it named another lease than that of its receiver.
    """

    number: int
    client: int
    replica: int
    meaning: Context
    anchor: str | None
    known: bool
    sent: tuple[tuple[int, int], ...] = ()
    done: bool = False
    lost: bool = False
    branch: bool = False
    arrived: int = 0
    foreign: bool = False


@attrs.frozen
class Client:
    """A client: the context that it knows, the response at its end, the open attempt. ``over``: it
    got ``previous_response_not_found``."""

    context: Context = ()
    last: str | None = None
    turns: int = 0
    attempt: int | None = None
    over: bool = False
