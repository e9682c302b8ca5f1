"""What a broken property costs a user: a rank for each, and one sentence.

What belongs here: the ranks, the reason for each, and the base of the enums of properties, whose
members carry both. Found violations are told costliest first, because whoever reads about nine of
them acts on the first one.
"""

from __future__ import annotations

import enum


class Rank(enum.IntEnum):
    """How much a violation costs, the worst first. ``words`` says it in print.

    A property has the rank of the worst that its violation can mean to a user, as far as no other
    property would tell it.
    """

    # Nobody notices, and no retry makes it good: data of another tenant, an answer from the wrong
    # context, a tool that ran twice. A conversation that a client gives up belongs here, too: each
    # further turn costs its whole history, which is the dearest that a lost connection can become.
    HARM = 1
    # Noticed at once, but no retry helps: the client waits or fails until somebody intervenes.
    STUCK = 2
    # One answer is lost or damaged. The client retries, and pays for the turn a second time.
    LOSS = 3
    # Nothing is lost yet, but the error makes the client, or its operator, do the wrong thing.
    MISLED = 4
    # The client gets its answer. The operator pays: bytes, connections, memory.
    WASTE = 5

    @property
    def words(self) -> str:
        """The rank in print."""
        return _WORDS[self]


_WORDS = {
    Rank.HARM: "wrong context, a turn that runs twice, or a conversation lost",
    Rank.STUCK: "a client that no retry helps",
    Rank.LOSS: "an answer lost or damaged",
    Rank.MISLED: "an error that misleads",
    Rank.WASTE: "work or memory for nothing",
}


class CostedProperty(enum.Enum):
    """The base of the enums of properties. The value says what must hold, ``cost`` what a violation
    costs a user, and ``rank`` how much that is."""

    _value_: str
    rank: Rank
    cost: str

    def __new__(cls, must: str, rank: Rank, cost: str) -> CostedProperty:
        member = object.__new__(cls)
        member._value_ = must
        member.rank = rank
        member.cost = cost
        return member
