"""What this replica knows of the ownership of one conversation. A table of rules.

What belongs here: ``step``, a pure function from that knowledge and an event to the next. Whether
the replica's lease is valid is a matter of ``lease``; a conversation is owned only with both.

A conversation that was begun here is ``NEW``: its key was drawn here, so no other replica can know
it until the store has it. It needs no claim, so a first turn does not wait for the store. When its
first response is committed, it is ``OWNED`` with epoch 1.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from bridgecore.ownership import store as st
from bridgecore.ownership.ruletable import RuleTable


# fmt: off
class ClaimStage(enum.Enum):
    """Whose a conversation is, as far as this replica knows."""
    __hash__ = object.__hash__  # by identity: looked up for every event
    NONE = "none"  # not this replica's
    NEW = "new"  # begun here; no commit of it is known to have succeeded
    OWNED = "owned"  # claimed, with ``epoch``

@attrs.frozen
class Claim:
    """The state. ``epoch``: of the claim; 0: it never had one. ``seen``: the highest epoch that any
    answer has named. ``offered``: a commit of the new conversation was asked for, so that the store
    may have it."""
    stage: ClaimStage = ClaimStage.NONE
    epoch: int = 0
    seen: int = 0
    offered: bool = False

# ---------------------------------------------------------------- events

@attrs.frozen
class Begun:
    """A turn has begun the conversation here."""

@attrs.frozen
class Granted:
    """The store has granted a claim. ``wanted``: a turn waits for it; it was asked for under the
    present lease, and its answer is not late."""
    epoch: int
    wanted: bool

@attrs.frozen
class Contradicted:
    """The store has named another owner, with ``epoch``."""
    epoch: int

@attrs.frozen
class Offered:
    """A commit is asked for."""

@attrs.frozen
class CommitAnswered:
    """The answer to a commit that was asked for under the present lease, with ``epoch``."""
    epoch: int
    answer: st.Committed | st.Fenced

@attrs.frozen
class LeaseLost:
    """The replica's lease has ended."""

@attrs.frozen
class Unused:
    """No turn runs or waits, and the session has ended."""

ClaimEvent: TypeAlias = (
    Begun | Granted | Contradicted | Offered | CommitAnswered | LeaseLost | Unused
)

# ---------------------------------------------------------------- effects

class ClaimEffect(enum.Enum):
    """What to do."""
    RELEASE = "release"  # ask ``st.Release`` with ``Claim.epoch``, which is kept for it
    FENCE = "fence"  # send no turn of the conversation any more: another replica has it
    DISTRUST = "distrust"  # the store has lost memory: claim again, above ``Claim.seen``
# fmt: on


@attrs.frozen
class ClaimTransition:
    """The result of ``step``; ``rule``: the id of the rule."""

    state: Claim
    effects: tuple[ClaimEffect, ...]
    rule: str


_Apply: TypeAlias = Callable[[Claim, Any], tuple[Claim, tuple[ClaimEffect, ...]]]


_table: RuleTable[ClaimStage, _Apply] = RuleTable(ClaimStage, ClaimEvent)
CLAIM_RULES = _table.rules


def step(claim: Claim, event: ClaimEvent) -> ClaimTransition:
    """Apply ``event``. A pure function; time does not matter here."""
    rule = CLAIM_RULES[claim.stage, type(event)]
    if rule.apply is None:
        return ClaimTransition(claim, (), rule.id)
    return ClaimTransition(*rule.apply(claim, event), rule.id)


_S = ClaimStage
_E = ClaimEffect
_Done: TypeAlias = tuple[Claim, tuple[ClaimEffect, ...]]

# ---------------------------------------------------------------- the rules


@_table.rule("begin", Begun, _S.NONE)
def _begin(claim: Claim, event: Begun) -> _Done:
    """The conversation is new, and this replica's without a claim."""
    return Claim(_S.NEW), ()


@_table.rule("granted", Granted, _S.NONE)
def _granted(claim: Claim, event: Granted) -> _Done:
    """Own the conversation, unless no turn waits for it or its epoch is not new.

    A claim that was granted too late is given back: its turn was refused, and another replica may
    be asked next. An epoch that is not above all others seen means that the store has lost memory,
    for example in a failover. Then the claim is not believed (EPOCHS_ONLY_GROW).
    """
    if not event.wanted:
        released = attrs.evolve(claim, epoch=event.epoch, seen=max(claim.seen, event.epoch))
        return released, (_E.RELEASE,)
    if event.epoch <= claim.seen:
        return claim, (_E.DISTRUST,)
    return Claim(_S.OWNED, event.epoch, event.epoch), ()


@_table.rule("granted-again", Granted, _S.OWNED, _S.NEW)
def _granted_again(claim: Claim, event: Granted) -> _Done:
    """A second turn has asked for a conversation that is owned here: the epoch stays, or grows."""
    if event.epoch < claim.epoch:
        return claim, (_E.DISTRUST,)
    return Claim(_S.OWNED, event.epoch, max(event.epoch, claim.seen)), ()


@_table.rule("contradicted", Contradicted, _S.OWNED, _S.NEW)
def _contradicted(claim: Claim, event: Contradicted) -> _Done:
    """The store names another owner of what is owned here. It decides: send nothing more."""
    return Claim(seen=max(claim.seen, event.epoch)), (_E.FENCE,)


@_table.rule("seen", Contradicted, _S.NONE)
def _seen(claim: Claim, event: Contradicted) -> _Done:
    """Another replica owns it: remember the epoch."""
    return attrs.evolve(claim, seen=max(claim.seen, event.epoch)), ()


@_table.rule("offered", Offered, _S.NEW)
def _offered(claim: Claim, event: Offered) -> _Done:
    """The store may have the new conversation from now on, so it is owned only with the lease."""
    return attrs.evolve(claim, offered=True), ()


@_table.rule("commit-answered", CommitAnswered, _S.NEW, _S.OWNED)
def _commit_answered(claim: Claim, event: CommitAnswered) -> _Done:
    """Committed: owned. Fenced: another replica has claimed it; send nothing more.

    A late answer to a commit of an earlier claim says nothing about the present one, unless it
    names a newer owner. (The claim of a new conversation has epoch 0 at first, then 1.)
    """
    answer = event.answer
    if (event.epoch or 1) != (claim.epoch or 1) and answer.epoch <= claim.epoch:
        return claim, ()
    seen = max(claim.seen, answer.epoch)
    if isinstance(answer, st.Fenced):
        return Claim(seen=seen), (_E.FENCE,)
    return Claim(_S.OWNED, answer.epoch, seen), ()


@_table.rule("lease-lost", LeaseLost, _S.OWNED)
def _lease_lost(claim: Claim, event: LeaseLost) -> _Done:
    """Without a lease nothing is owned: send nothing more (NO_SEND_WITHOUT_A_LEASE)."""
    return Claim(seen=claim.seen), (_E.FENCE,)


@_table.rule("lease-lost-new", LeaseLost, _S.NEW)
def _lease_lost_new(claim: Claim, event: LeaseLost) -> _Done:
    """A new conversation that the store cannot have yet stays this replica's."""
    if not claim.offered:
        return claim, ()
    return Claim(seen=claim.seen), (_E.FENCE,)


@_table.rule("unused", Unused, _S.OWNED)
def _unused(claim: Claim, event: Unused) -> _Done:
    """Give the conversation back, so that any replica can take its next turn at once."""
    return Claim(_S.NONE, claim.epoch, claim.seen), (_E.RELEASE,)


@_table.rule("unused-new", Unused, _S.NEW)
def _unused_new(claim: Claim, event: Unused) -> _Done:
    """A new conversation ends without having been stored, as far as is known."""
    return Claim(seen=claim.seen), ()


_table.ignore("begun-twice", Begun, "it was begun or claimed before", _S.NEW, _S.OWNED)
_table.ignore("offered-again", Offered, "the store knows it, or it is lost", _S.NONE, _S.OWNED)
_table.ignore("commit-late", CommitAnswered, "it was lost or given back in the meantime", _S.NONE)
_table.ignore("lease-lost-before", LeaseLost, "it is not owned", _S.NONE)
_table.ignore("unused-before", Unused, "it is not owned", _S.NONE)
_table.close()
