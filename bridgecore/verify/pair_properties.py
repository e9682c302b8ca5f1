"""The properties of two bridges that forward turns to each other, over one store.

What belongs here: what must hold, in words, with its cost to a user. They are checked where things
happen (pair_world.py); ``LIVENESS`` by ``explore_pair``, which continues each world without faults.
"""

from __future__ import annotations

from typing import Final

from bridgecore.errors import BridgecoreError
from bridgecore.verify.cost import CostedProperty, Rank


class PairProperty(CostedProperty):
    """The properties of two bridges over one store. The value says what must hold."""

    ONE_OWNER_SENDS = (
        "a turn that goes on with a stored conversation is sent upstream only by the replica "
        "that the store names as the live owner of the conversation at that moment",
        Rank.HARM,
        "two replicas run turns of one conversation: it splits in two",
    )
    NO_SEND_WITHOUT_A_LEASE = (
        "a turn that goes on with a stored conversation is sent upstream only until the lease "
        "of its sender ends, counted from the question, by the sender's own records of "
        "answers",
        Rank.HARM,
        "a replica runs turns of a conversation that another one has taken over",
    )
    DEPTH_ONE = (
        "a turn that was forwarded is not forwarded again",
        Rank.STUCK,
        "a turn goes round between replicas until its deadline",
    )
    FORWARD_IS_FOR_ITS_LEASE = (
        "a forward is served only under the lease that it names: one that comes too late, or "
        "to another process, is not sent upstream",
        Rank.HARM,
        "a late forward runs a turn that its client has long tried again",
    )
    SENT_ONCE = (
        "each attempt of a client is sent upstream once, by one replica, unless the upstream "
        "has refused it before",
        Rank.HARM,
        "a turn that runs twice: its tool calls, side effects and tokens",
    )
    UNKNOWN_IS_LEFT_TO_THE_CLIENT = (
        "a replica that does not know what became of a turn that it has forwarded does not "
        "send it again, neither upstream nor to the other replica",
        Rank.HARM,
        "a turn that runs twice: its tool calls, side effects and tokens",
    )
    CONTEXT_IS_MEANT = (
        "the context that the upstream has for a turn equals what its client means",
        Rank.HARM,
        "the model answers in the context of another conversation, or without a part of its own",
    )
    ONE_END = (
        "each attempt ends once at its client, with the answer that was made for it or an "
        "error; without further faults it ends",
        Rank.LOSS,
        "a client that gets two ends of its turn, or none",
    )
    LIVENESS = (
        "without further faults, a client that retries at one sound replica, after the time "
        "that its error names, gets an answer within bounded time and tries, unless the "
        "response that it continues was lost before the store had it",
        Rank.STUCK,
        "a conversation that no replica serves, however often its client retries",
    )
    NO_ERROR = (
        "a bridge raises no exception for an event that can happen",
        Rank.LOSS,
        "the turn ends with an internal error, and its conversation with it",
    )


ALL: Final = frozenset(PairProperty)


class PairViolationError(BridgecoreError):
    """The property ``prop`` does not hold; ``text`` says what was observed."""

    def __init__(self, prop: PairProperty, text: str) -> None:
        super().__init__(f"{prop.name}: {text}")
        self.prop = prop
        self.text = text
