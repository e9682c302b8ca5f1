"""All that one replica owns: its lease, its claims, and its open questions to the store.

What belongs here: joining the rules of ``lease`` and of ``claims``. ``Holdings`` numbers the
questions, gives up those that are not answered in time, and tells what that means for a turn that
waits for a claim, a look-up or a commit. It knows turns and conversations by their names only.

A question without an answer is unknown: a claim counts as not granted, a commit as not durable. If
the answer comes after that, the claim is given back. The driver reports one answer to each question
in the end, if only ``Failed``.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, Final, TypeAlias, assert_never

import attrs

from bridgecore.ownership import claims as cl
from bridgecore.ownership import lease as ls
from bridgecore.ownership import store as st

# ---------------------------------------------------------------- effects


@attrs.frozen
class Resolved:
    """What the store says about the response that ``turn`` continues. ``None``: it did not say it
    in time, or there is no lease to claim with."""

    turn: int
    answer: st.Claimed | st.OwnedElsewhere | st.NotStored | None


@attrs.frozen
class Settled:
    """The commit for ``turn`` is over. ``durable``: the store has it for certain. ``fenced``: it
    was refused, because the conversation is not this replica's any more. ``missing``: the store has
    lost what it continues, so it cannot be read yet. ``reason``: for the log, why it is not
    durable, if the store or its silence is the reason."""

    turn: int
    durable: bool
    fenced: bool = False
    missing: bool = False
    reason: str = ""


@attrs.frozen
class LeaseRenewed:
    """The store has renewed the lease: it can be reached. ``notices``: see ``Renewed``."""

    notices: tuple[bytes, ...] = attrs.field(default=(), repr=False)


@attrs.frozen
class LookedUp:
    """What the store says about the response that was looked up for ``turn``. ``None``: it did not
    say it in time."""

    turn: int
    answer: st.Found | st.NotStored | None


@attrs.frozen
class Fence:
    """Send no turn of ``conversation`` any more: it is not this replica's."""

    conversation: bytes


@attrs.frozen
class LeaseChanged:
    """The lease was gained or, if ``held`` is False, lost."""

    held: bool


@attrs.frozen
class NameInUse:
    """Another process renews a lease under the name of this replica."""


@attrs.frozen
class StoreDistrusted:
    """The store has granted an epoch that is not new: it has lost memory. The claim is asked for
    again, above all epochs seen."""

    epoch: int
    seen: int


@attrs.frozen
class Gone:
    """The lease is given up: the process can end."""


HoldingsEffect: TypeAlias = (
    st.AskStore
    | Resolved
    | LookedUp
    | Settled
    | Fence
    | LeaseChanged
    | NameInUse
    | StoreDistrusted
    | LeaseRenewed
    | Gone
)

# ---------------------------------------------------------------- questions


@attrs.frozen
class _Asked:
    """An open question. ``owner``: under which lease it was asked. ``turn``: for which turn; None:
    for the lease, or no turn waits any more. ``deadline``: ns, when it counts as lost.
    ``distrusted``: it is asked a second time, because the first answer was not believed."""

    question: st.Question
    owner: st.Owner
    turn: int | None
    deadline: int
    distrusted: bool = False


# Highest epochs that are remembered of conversations that are not owned here, besides those that
# the store may still have to release. They only serve to notice a store that has lost memory, so
# forgetting the oldest costs no safety with a sound store.
_REMEMBERED: Final = 65_536


class Holdings:
    """What one replica owns.

    Args:
        replica: its name.
        advertise: its URL for forwards; None: it is not forwarded to.
        times: of the lease.
        seed: random bytes, new for each process: incarnations are digests of it.

    Methods take ``now`` in ns and return the effects, in order.
    """

    # The rules that are applied: an explorer watches them, or puts others in their place.
    lease_step = staticmethod(ls.step)
    claim_step = staticmethod(cl.step)

    def __init__(
        self, replica: str, advertise: str | None, times: ls.LeaseTimes, seed: bytes
    ) -> None:
        self.replica = replica
        self.advertise = advertise
        self.times = times
        self._seed = seed
        self._lease = ls.Lease()
        # Asked for with every event of a bridge, and changed by few, so it is kept.
        self._owner = self._lease.incarnation, self._owner_under(self._lease.incarnation)
        self._next: int | None = None
        self._next_known = False
        self._claims: dict[bytes, cl.Claim] = {}  # NEW and OWNED
        self._seen: OrderedDict[bytes, int] = OrderedDict()  # of those that are not owned here
        self._asked: dict[int, _Asked] = {}  # by query
        self._of_lease = 0  # the query of the lease's open question
        self._waiting: list[
            tuple[int, st.Resume | st.Commit, int]
        ] = []  # until the lease begins: with deadline
        # Given back, but the store has not said that it knows: conversations with their epochs.
        self._unreleased: dict[bytes, int] = {}
        # How many open questions would release a conversation: an index over ``_asked``.
        self._releasing: dict[bytes, int] = {}
        self._queries = 0
        self._out: list[HoldingsEffect] = []

    def copy(self) -> Holdings:
        """An independent copy, for an explorer."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._claims = self._claims.copy()
        other._seen = self._seen.copy()
        other._asked = self._asked.copy()
        other._waiting = self._waiting.copy()
        other._unreleased = self._unreleased.copy()
        other._releasing = self._releasing.copy()
        other._out = self._out.copy()
        return other

    def snapshot(self) -> tuple[Any, ...]:
        """All that decides about the future, as values, for an explorer: the lease; claims, and
        highest epochs, by conversation; open questions by query, which of them is the lease's, what
        waits for the lease, and what is to be given back once more."""
        return (
            self._lease,
            tuple(self._claims.items()),
            tuple(self._seen.items()),
            tuple(
                (query, asked.question, asked.owner, asked.turn, asked.deadline, asked.distrusted)
                for query, asked in self._asked.items()
            ),
            self._of_lease,
            tuple(self._waiting),
            tuple(self._unreleased.items()),
        )

    # ------------------------------------------------------------ state

    @property
    def owner(self) -> st.Owner:
        """This replica under its present lease."""
        number, owner = self._owner
        if number != self._lease.incarnation:
            number = self._lease.incarnation
            owner = self._owner_under(number)
            self._owner = number, owner
        return owner

    @property
    def previous(self) -> str | None:
        """The incarnation of the lease before the present one; None if this is the first."""
        number = self._lease.incarnation - 1
        return self._owner_under(number).incarnation if number > 0 else None

    def _owner_under(self, incarnation: int) -> st.Owner:
        text = b"%b/%d" % (self._seed, incarnation)
        return st.Owner(self.replica, hashlib.blake2b(text, digest_size=16).hexdigest())

    @property
    def claims(self) -> int:
        """How many conversations are owned, new ones included."""
        return len(self._claims)

    def has_lease(self, now: int) -> bool:
        """Whether conversations can be claimed."""
        return self._lease.valid(now)

    def may_send(self, conversation: bytes, now: int) -> bool:
        """Whether a turn of ``conversation`` may be sent upstream now."""
        claim = self._claims.get(conversation)
        if claim is None:
            return False
        if claim.stage is cl.ClaimStage.NEW and not claim.offered:
            return True
        return self._lease.valid(now)

    def epoch(self, conversation: bytes) -> int:
        """The epoch of a conversation that is owned here; 0 if it is new, or not owned."""
        claim = self._claims.get(conversation)
        return 0 if claim is None else claim.epoch

    def was_asked(self, query: int) -> bool:
        """Whether there was an ``AskStore`` with this number."""
        return 0 < query <= self._queries

    def next_timeout(self) -> int | None:
        """When to call ``timeout`` (ns); None: never."""
        if not self._next_known:
            self._next, self._next_known = self._find_next(), True
        return self._next

    def _find_next(self) -> int | None:
        # Questions are kept in the order in which they were asked, and all have the same time.
        open_ = (asked.deadline for asked in self._asked.values() if asked.turn is not None)
        times = [next(open_, None), self._lease.wake]
        times += [deadline for _, _, deadline in self._waiting]
        return min((at for at in times if at is not None), default=None)

    # ------------------------------------------------------------ events

    def start(self, now: int) -> list[HoldingsEffect]:
        """The process is ready: ask for a lease."""
        return self._lease_event(ls.Started(), now)

    def leave(self, now: int) -> list[HoldingsEffect]:
        """The process is about to end: give up the lease, and with it all claims."""
        return self._lease_event(ls.LeaveRequested(), now)

    def timeout(self, now: int) -> list[HoldingsEffect]:
        """A time of ``next_timeout`` may have come. If none has, nothing happens."""
        if self._lease.wake is not None and self._lease.wake <= now:
            self._step_lease(ls.Due(), now)
        for query, asked in list(self._asked.items()):
            if asked.deadline <= now and asked.turn is not None:
                self._give_up(query, asked)
        for entry in [entry for entry in self._waiting if entry[2] <= now]:
            self._waiting.remove(entry)
            turn, question, _ = entry
            if isinstance(question, st.Resume):
                self._out.append(Resolved(turn, None))
            else:
                self._out.append(Settled(turn, durable=False, reason=_NO_LEASE))
        return self._take()

    def begin(self, conversation: bytes) -> None:
        """A turn begins ``conversation`` here; its key was drawn here."""
        self._step_claim(conversation, cl.Begun(), 0)

    def resume(
        self,
        turn: int,
        scope: str,
        response: str | None,
        now: int,
        *,
        load: bool,
        contexts: tuple[bytes, ...] = (),
    ) -> list[HoldingsEffect]:
        """Claim the conversation of a response for ``turn``; answered by ``Resolved``. While the
        lease is asked for, the claim waits for it. Without ``response``, that of the first of
        ``contexts`` that is known."""
        question = st.Resume(self.owner, scope, response, contexts, load=load)
        if self._lease.valid(now):
            self._ask(question, turn, now)
        elif self._lease.stage is ls.LeaseStage.JOINING:
            self._waiting.append((turn, question, now + self.times.timeout))
        else:
            self._out.append(Resolved(turn, None))
        return self._take()

    def look_up(
        self, turn: int, scope: str, response: str, now: int, *, load: bool
    ) -> list[HoldingsEffect]:
        """Look up a response for ``turn`` without claiming anything, with or without a lease;
        answered by ``LookedUp``."""
        self._ask(st.LookUp(self.owner, scope, response, load), turn, now)
        return self._take()

    def forget(self, turn: int) -> None:
        """``turn`` is gone: answers to its questions are not reported any more."""
        self._next_known = False
        self._waiting = [entry for entry in self._waiting if entry[0] != turn]
        for query, asked in self._asked.items():
            if asked.turn == turn:
                self._asked[query] = attrs.evolve(asked, turn=None)

    def commit(
        self, turn: int, conversation: bytes, responses: tuple[st.StoredResponse, ...], now: int
    ) -> list[HoldingsEffect]:
        """Store what ``turn`` has added to its conversation; answered by ``Settled``. At once, and
        as fenced, if the conversation is not this replica's any more; as not durable if there is no
        lease. While the lease is asked for, the commit waits for it: a turn may end just after the
        start."""
        if conversation not in self._claims:
            self._out.append(Settled(turn, durable=False, fenced=True))
        elif self._lease.stage is ls.LeaseStage.JOINING:
            question = st.Commit(self.owner, conversation, 0, responses)
            self._waiting.append((turn, question, now + self.times.timeout))
        else:
            self._commit(turn, conversation, responses, now)
        return self._take()

    def _commit(
        self, turn: int, conversation: bytes, responses: tuple[st.StoredResponse, ...], now: int
    ) -> None:
        if conversation not in self._claims or not self._lease.valid(now):
            self._out.append(Settled(turn, durable=False, reason=_NO_LEASE))
            return
        self._step_claim(conversation, cl.Offered(), now)
        epoch = self._claims[conversation].epoch
        self._ask(st.Commit(self.owner, conversation, epoch, responses), turn, now)

    def unused(self, conversation: bytes, now: int) -> list[HoldingsEffect]:
        """The session of ``conversation`` has ended: give it back."""
        if conversation in self._claims:
            self._step_claim(conversation, cl.Unused(), now)
        return self._take()

    def sweep(self, age: int, now: int) -> list[HoldingsEffect]:
        """Have the store delete what was not used for ``age`` ns."""
        if self._lease.valid(now):
            self._ask(st.Sweep(self.owner, age), None, now)
        return self._take()

    def answered(self, query: int, answer: st.Answer, now: int) -> list[HoldingsEffect]:
        """The store has answered the question with this number."""
        asked = self._asked.pop(query, None)
        if asked is None:
            return []  # it was answered before
        if isinstance(asked.question, st.Release):
            self._note_released(asked.question)
        if query == self._of_lease:
            self._step_lease(ls.Answered(answer), now)
            if isinstance(answer, st.Renewed) and self._lease.valid(now):
                self._release_again(now)
                self._out.append(LeaseRenewed(answer.notices))
            return self._take()
        if isinstance(asked.question, st.Join | st.Renew | st.Leave):
            return []  # given up; a newer question of the lease was asked
        present = asked.owner == self.owner and self._lease.valid(now)
        if isinstance(answer, st.LeaseEnded) and asked.owner == self.owner:
            self._step_lease(ls.Refuted(), now)
            if isinstance(asked.question, st.Resume) and asked.turn is not None:
                # It waits for the next lease, which has been asked for.
                self._waiting.append((asked.turn, asked.question, asked.deadline))
                return self._take()
            present = False
        if isinstance(asked.question, st.Resume):
            self._resumed(asked, asked.question, answer, now, present=present)
        elif isinstance(asked.question, st.LookUp):
            if asked.turn is not None:
                found = answer if isinstance(answer, st.Found | st.NotStored) else None
                self._out.append(LookedUp(asked.turn, found))
        elif isinstance(asked.question, st.Commit):
            self._committed(asked, asked.question, answer, present=present)
        elif isinstance(asked.question, st.Release) and isinstance(answer, st.Failed) and present:
            for key, epoch in asked.question.conversations:
                # Of two that have failed, the later claim is what the store may still have.
                self._unreleased[key] = max(epoch, self._unreleased.get(key, 0))
        return self._take()

    # ------------------------------------------------------------ answers

    def _resumed(
        self, asked: _Asked, question: st.Resume, answer: st.Answer, now: int, *, present: bool
    ) -> None:
        resolved: st.Claimed | st.OwnedElsewhere | st.NotStored | None = None
        if isinstance(answer, st.Claimed) and present:
            key, wanted = answer.conversation, asked.turn is not None
            effects = self._step_claim(key, cl.Granted(answer.epoch, wanted), now)
            if cl.ClaimEffect.DISTRUST in effects:
                if asked.distrusted or not self._is_being_released(key):
                    self._out.append(StoreDistrusted(answer.epoch, self._highest(key)))
                if not asked.distrusted and asked.turn is not None:
                    again = attrs.evolve(question, floor=self._highest(key))
                    self._ask(again, asked.turn, now, distrusted=True)
                    return
            else:
                resolved = answer
        elif isinstance(answer, st.OwnedElsewhere):
            self._step_claim(answer.conversation, cl.Contradicted(answer.epoch), now)
            resolved = answer
        elif isinstance(answer, st.NotStored):
            resolved = answer
        if asked.turn is not None:
            self._out.append(Resolved(asked.turn, resolved))

    def _committed(
        self, asked: _Asked, question: st.Commit, answer: st.Answer, *, present: bool
    ) -> None:
        if isinstance(answer, st.Committed | st.Fenced) and present:
            event = cl.CommitAnswered(question.epoch, answer)
            self._step_claim(question.conversation, event, 0)
        if asked.turn is not None:
            durable, fenced = isinstance(answer, st.Committed), isinstance(answer, st.Fenced)
            missing = isinstance(answer, st.Committed) and answer.missing
            reason = answer.reason if isinstance(answer, st.Failed) else ""
            self._out.append(Settled(asked.turn, durable and not missing, fenced, missing, reason))

    def _release_again(self, now: int) -> None:
        """Repeat what the store may not have carried out. It answers again, and as the lease goes
        on, a conversation that is not given back would be kept from all other replicas."""
        lost = tuple(
            (key, epoch) for key, epoch in self._unreleased.items() if key not in self._claims
        )
        self._unreleased.clear()
        if lost:
            self._ask(st.Release(self.owner, lost), None, now)

    def _is_being_released(self, conversation: bytes) -> bool:
        """Whether the store may not know yet that a conversation was given back. Then it grants the
        same epoch once more, without having lost any memory."""
        return conversation in self._unreleased or conversation in self._releasing

    def _note_released(self, release: st.Release) -> None:
        for key, _ in release.conversations:
            self._releasing[key] -= 1
            if not self._releasing[key]:
                del self._releasing[key]

    def _give_up(self, query: int, asked: _Asked) -> None:
        """Stop waiting for an answer: what becomes of the question is unknown."""
        turn = asked.turn
        self._asked[query] = attrs.evolve(asked, turn=None)
        if turn is None:
            return
        if isinstance(asked.question, st.Resume):
            self._out.append(Resolved(turn, None))
        elif isinstance(asked.question, st.LookUp):
            self._out.append(LookedUp(turn, None))
        elif isinstance(asked.question, st.Commit):
            self._out.append(Settled(turn, durable=False, reason=_NO_ANSWER))

    # ------------------------------------------------------------ steps

    def _ask(
        self, question: st.Question, turn: int | None, now: int, *, distrusted: bool = False
    ) -> int:
        self._queries += 1
        deadline = now + self.times.timeout
        asked = _Asked(question, self.owner, turn, deadline, distrusted)
        self._asked[self._queries] = asked
        if isinstance(question, st.Release):
            for key, _ in question.conversations:
                self._releasing[key] = self._releasing.get(key, 0) + 1
        self._out.append(st.AskStore(self._queries, question))
        return self._queries

    def _lease_event(self, event: ls.LeaseEvent, now: int) -> list[HoldingsEffect]:
        self._step_lease(event, now)
        return self._take()

    def _step_lease(self, event: ls.LeaseEvent, now: int) -> None:
        transition = self.lease_step(self._lease, event, self.times, now)
        before, self._lease = self._lease, transition.state
        if before.stage in _WAITING_FOR_THE_STORE and self._lease.stage is not before.stage:
            self._of_lease = 0  # its question was answered or is given up
        for effect in transition.effects:
            match effect:
                case ls.LeaseEffect.JOIN:
                    # What the store has carried out late may have extended a lease that was lost.
                    instead, ttl = self.previous, self.times.ttl
                    join = st.Join(self.owner, self.advertise, ttl, instead)
                    self._of_lease = self._ask(join, None, now)
                case ls.LeaseEffect.RENEW:
                    renew = st.Renew(self.owner, self.times.ttl)
                    self._of_lease = self._ask(renew, None, now)
                case ls.LeaseEffect.LEAVE:
                    self._of_lease = self._ask(st.Leave(self.owner), None, now)
                case ls.LeaseEffect.GAINED:
                    self._out.append(LeaseChanged(held=True))
                    waiting, self._waiting = self._waiting, []
                    for turn, question, _ in waiting:
                        if isinstance(question, st.Resume):
                            self._ask(attrs.evolve(question, owner=self.owner), turn, now)
                        else:
                            self._commit(turn, question.conversation, question.responses, now)
                case ls.LeaseEffect.LOST:
                    self._out.append(LeaseChanged(held=False))
                    self._unreleased.clear()  # it ends with the lease
                    for conversation in list(self._claims):
                        self._step_claim(conversation, cl.LeaseLost(), now)
                case ls.LeaseEffect.NAME_TAKEN:
                    self._out.append(NameInUse())
                case ls.LeaseEffect.LEFT:
                    self._out.append(Gone())
                case _:
                    assert_never(effect)

    def _step_claim(
        self, conversation: bytes, event: cl.ClaimEvent, now: int
    ) -> tuple[cl.ClaimEffect, ...]:
        claim = self._claims.get(conversation)
        if claim is None:
            claim = cl.Claim(seen=self._seen.get(conversation, 0))
        transition = self.claim_step(claim, event)
        state = transition.state
        if state.stage is cl.ClaimStage.NONE:
            self._claims.pop(conversation, None)
            self._remember(conversation, state.seen)
        else:
            self._claims[conversation] = state
        for effect in transition.effects:
            if effect is cl.ClaimEffect.RELEASE:
                if self._lease.valid(now):
                    released = ((conversation, state.epoch),)
                    self._ask(st.Release(self.owner, released), None, now)
            elif effect is cl.ClaimEffect.FENCE:
                self._out.append(Fence(conversation))
        return transition.effects

    def _remember(self, conversation: bytes, epoch: int) -> None:
        if epoch:
            self._seen[conversation] = epoch
            self._seen.move_to_end(conversation)
            # A release that is carried out late gives back the epoch that it names. Were the same
            # one believed again in the meantime, it would take from this replica what it owns.
            kept = len(self._releasing) + len(self._unreleased)
            while len(self._seen) > _REMEMBERED + kept:
                oldest, seen = self._seen.popitem(last=False)
                if self._is_being_released(oldest):
                    self._seen[oldest] = seen  # the last to be forgotten

    def _highest(self, conversation: bytes) -> int:
        claim = self._claims.get(conversation)
        return self._seen.get(conversation, 0) if claim is None else claim.seen

    def _take(self) -> list[HoldingsEffect]:
        self._next_known = False
        out, self._out = self._out, []
        return out


# Why a commit is not durable, if the store has not said it.
_NO_ANSWER: Final = "it did not answer in time"
_NO_LEASE: Final = "this replica has no lease"
_WAITING_FOR_THE_STORE = (
    ls.LeaseStage.JOINING,
    ls.LeaseStage.RENEWING,
    ls.LeaseStage.LEAVING,
)
