"""The bridge as one replica of several: claims before turns, commits before their ends.

What belongs here: the bridge's side of the store. Before a turn continues a response that this
process does not have, its conversation is claimed; before a client sees the terminal event of a
turn, what is needed to continue it is committed. So whatever id a client was shown can be continued
by any replica, and after a restart. What may be sent under which lease is decided in ``ownership``.

A commit that does not come in time delays nothing further: the terminal event is shown, and the log
says that the turn is not durable. What is missing is committed when the store answers again, by
itself or with the next turn of its conversation.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, TypeAlias, assert_never

import attrs

from bridgecore.api_error import NOT_DISPATCHED, STORE_UNAVAILABLE, ApiError
from bridgecore.config import Config
from bridgecore.continuity.memory import NOWHERE, Memory, Unstored
from bridgecore.continuity.stored import PURGE, is_deletion
from bridgecore.conversation import ForwardTarget, Returned
from bridgecore.forwarding import Forwarding
from bridgecore.intake import Arriving
from bridgecore.messages import AnswerEvents, ContextPrepared, ContextUnavailable
from bridgecore.ownership import holdings as hd
from bridgecore.ownership.lease import LeaseTimes
from bridgecore.ownership.store import (
    Answer,
    AskStore,
    Claimed,
    Found,
    NotStored,
    OwnedElsewhere,
)
from bridgecore.recovery.events import Standing
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.reference import Reference
from bridgecore.telemetry import Log, LogLevel
from bridgecore.telemetry.metrics import LEASES_LOST, NOT_DURABLE, OWNED, STORE_ANSWERS, Metric
from bridgecore.wire.decisions import hashed
from bridgecore.wire.headers import Headers


@attrs.frozen
class Lookup:
    """What the store is asked before a turn is placed: who owns the conversation of ``response``,
    or, for a turn that repeats a history, that of the first of ``contexts`` that it knows.
    ``load``: its transcript is asked for, too."""

    response: str | None
    contexts: tuple[bytes, ...] = ()
    load: bool = True


@attrs.frozen
class PlaceTurn:
    """The store has nothing against ``turn``: place it. ``claimed``: the key of the conversation
    that was claimed for it; None if the store does not know what the turn continues."""

    turn: int
    claimed: bytes | None


@attrs.frozen
class ForwardTurn:
    """Forward ``turn``, which was not placed, to ``owner``, which owns what it continues."""

    turn: int
    owner: ForwardTarget


@attrs.frozen
class RefuseTurn:
    """End ``turn``, which was not placed, with ``error``."""

    turn: int
    error: ApiError


@attrs.frozen
class FenceConversation:
    """Send nothing more of the conversation with this number: it is not this replica's."""

    number: int


ReplicaEffect: TypeAlias = (
    AskStore
    | AnswerEvents
    | ContextPrepared
    | ContextUnavailable
    | Log
    | PlaceTurn
    | ForwardTurn
    | RefuseTurn
    | FenceConversation
)
"""What the bridge has to do: the first five are the bridge's own effects."""


@attrs.define(eq=False)
class _Ending:
    """A turn whose terminal event waits for its commit. ``answer``: the effect that shows it; None
    if its client has left. ``conversation``: the key of what it is committed to. ``whole``: it is
    committed with all that it continues, of which the store had lost something."""

    answer: AnswerEvents | None
    unstored: Unstored
    conversation: bytes
    alone: bool = False  # in a conversation of its own, because its own one was fenced
    whole: bool = False


@attrs.frozen
class _Owed:
    """A response that is not durable: its scope and ids, and the key of its conversation.
    ``deletion``: that it was deleted is what is not durable."""

    scope: str
    ids: tuple[str, ...]
    conversation: bytes
    deletion: Unstored | None


class Replica:
    """This process as a replica. Methods take ``now`` in ns and return the effects, in order."""

    def __init__(self, config: Config, memory: Memory, seed: bytes) -> None:
        self._seed = seed
        self._memory = memory
        times = LeaseTimes(config.lease_ttl, config.lease_margin, config.store_timeout)
        self._url = config.advertise
        url = None if self._url is None else str(self._url)
        self._holdings = hd.Holdings(config.replica, url, times, seed)
        self._forwarding = Forwarding(config.cluster_secrets)
        # Turns that wait for a claim, with what was asked for them.
        self._resuming: dict[int, tuple[Arriving, Lookup]] = {}
        # Requests about contexts that wait for the store, and whether their transcript is loaded.
        self._looking_up: dict[int, tuple[Reference, bool]] = {}
        self._endings: dict[int, _Ending] = {}  # by turn
        # The conversations that have a session here: their keys by their numbers, and the inverse.
        self._keys: dict[int, bytes] = {}
        self._numbers: dict[bytes, int] = {}
        self._unused: set[bytes] = set()  # keys to be given back once their commits are over
        self._owed: OrderedDict[bytes, _Owed] = OrderedDict()  # by the key of the response
        # Those whose ids are looked up before they are committed: by the number of the look-up.
        self._late: dict[int, tuple[bytes, _Owed]] = {}
        # What the store has had and does not have any more, until it says whether it was purged:
        # turns that are in _resuming, requests about contexts, and commits that are in _endings.
        self._suspects: dict[int, int | Reference | hd.Settled] = {}
        # Commits and look-ups that are not those of a turn. Their numbers take the place of a
        # turn's, and are negative, because those of turns are not.
        self._others = 0
        self._drawn = 0  # keys of conversations
        self._answers = True  # the store has answered the latest commit
        self._not_durable = self._leases_lost = 0  # counts for the metrics
        self._age = config.transcript_age
        self._sweep_at = 0  # ns, when the store is next asked to delete what is too old
        self._leaving = False  # the process is about to end
        self.gone = False  # the lease is given up

    @property
    def holdings(self) -> hd.Holdings:
        """The lease and the claims, for an observer."""
        return self._holdings

    @property
    def turns(self) -> int:
        """How many turns have ended upstream and are not shown to their clients yet."""
        return sum(ending.answer is not None for ending in self._endings.values())

    def metrics(self) -> dict[Metric, int]:
        """What was counted, and how much there is at present."""
        return {
            STORE_ANSWERS: int(self._answers),
            NOT_DURABLE: self._not_durable,
            OWNED: self._holdings.claims,
            LEASES_LOST: self._leases_lost,
        }

    def __contains__(self, turn: int) -> bool:
        return turn in self._endings

    def was_asked(self, query: int) -> bool:
        """Whether there was an ``AskStore`` with this number."""
        return self._holdings.was_asked(query)

    def next_timeout(self) -> int | None:
        """When to call ``timeout`` (ns); None: never."""
        return self._holdings.next_timeout()

    # ------------------------------------------------------------ the lease

    def start(self, peer_port: int | None, now: int) -> list[ReplicaEffect]:
        """The process is ready: ask for a lease. ``peer_port``: where it takes forwards, if the
        system has chosen the port."""
        if self._url is not None and not self._url.port and peer_port is not None:
            self._holdings.advertise = str(attrs.evolve(self._url, port=peer_port))
        return self._carry_out(self._holdings.start(now), now)

    def leave(self, now: int) -> list[ReplicaEffect]:
        """The process is about to end, and no turn is left: commit what is not durable yet, and
        give up the lease once the store has answered or its time is over. To be called after each
        event until then."""
        out: list[ReplicaEffect] = []
        if not self._leaving:
            self._leaving = True
            out += self._commit_owed(now)
        if self._endings or self._late:
            return out
        return out + self._carry_out(self._holdings.leave(now), now)

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

    def adopt(self, number: int, claimed: bytes | None) -> bytes:
        """The key of the conversation ``number``, which has a session from now on: ``claimed``, or
        a new one if there is none or another session has it, because this turn branches off."""
        key = self._begin() if claimed is None or claimed in self._numbers else claimed
        self._unused.discard(key)  # it was to be given back after a commit that is not over yet
        self._keys[number], self._numbers[key] = key, number
        return key

    def decline(self, claimed: bytes | None, now: int) -> list[ReplicaEffect]:
        """Give back what was claimed for a turn, unless a session has it: there was no room for
        one, or the turn goes on in another conversation of its client."""
        if claimed is None or claimed in self._numbers:
            return []
        return self._give_back(claimed, now)

    def _begin(self) -> bytes:
        """The key of a new conversation, which is this replica's."""
        self._drawn += 1
        text = b"%b:conversation:%d" % (self._seed, self._drawn)
        key = hashlib.blake2b(text, digest_size=16).digest()
        self._holdings.begin(key)
        return key

    def retire(self, number: int, now: int) -> list[ReplicaEffect]:
        """The session of a conversation has ended: give it back, once its commits are over."""
        key = self._keys.pop(number)
        del self._numbers[key]
        if self._is_committing(key):
            self._unused.add(key)
            return []
        return self._give_back(key, now)

    def _is_committing(self, key: bytes) -> bool:
        return any(ending.conversation == key for ending in self._endings.values())

    def _give_back(self, key: bytes, now: int) -> list[ReplicaEffect]:
        return self._carry_out(self._holdings.unused(key, now), now)

    # ------------------------------------------------------------ turns

    def lookup(self, turn: Arriving, now: int) -> Lookup | None:
        """What has to be asked before ``turn`` is placed: it continues a response whose
        conversation is not this replica's, or whose transcript only the store has, or which another
        replica may have deleted. Or it repeats a history that is not held here. None: nothing."""
        named = turn.request.previous_response_id
        if not named:
            contexts = self._memory.contexts(turn.scope, turn.request, turn.received, now)
            return Lookup(None, contexts) if contexts else None
        known = self._knows(turn.scope, named, now)
        sure = known and not self._memory.is_doubted(turn.scope, named)
        owned = self._owns(turn.scope, named, now)
        return None if owned and sure else Lookup(named, load=not known)

    def resume(self, turn: Arriving, lookup: Lookup, now: int) -> list[ReplicaEffect]:
        """Claim the conversation that ``turn`` continues, unless it is known to be another
        replica's. Answered by ``PlaceTurn``, ``ForwardTurn`` or ``RefuseTurn``."""
        owner = self._forwarding.owner_of(turn)
        if owner is not None and (target := self._forwarding.forward(turn, owner)) is not None:
            return [ForwardTurn(turn.id, target)]
        return self._ask(turn, lookup, now)

    def _ask(self, turn: Arriving, lookup: Lookup, now: int) -> list[ReplicaEffect]:
        self._resuming[turn.id] = turn, lookup
        asked = self._holdings.resume(
            turn.id, turn.scope, lookup.response, now, load=lookup.load, contexts=lookup.contexts
        )
        return self._carry_out(asked, now)

    def _knows(self, scope: str, response: str, now: int) -> bool:
        """Whether all that can be known about a response is in memory. One that was not found
        before is not known: it can have been stored since."""
        alias = self._memory.alias(scope, response)
        if alias is None or alias.standing is Standing.UNKNOWN:
            return False
        return self._memory.holds(scope, alias, now)

    def _owns(self, scope: str, response: str, now: int) -> bool:
        """Whether a response is known to be of a conversation that is this replica's."""
        alias = self._memory.alias(scope, response)
        key = None if alias is None else self._keys.get(alias.conversation)
        return key is not None and self._holdings.may_send(key, now)

    def commit(
        self, answer: AnswerEvents, unstored: Unstored, conversation: bytes, now: int
    ) -> list[ReplicaEffect]:
        """Commit a turn's response, and return ``answer``, its terminal event, after that."""
        return self._commit(answer.turn, _Ending(answer, unstored, conversation), now)

    def _commit(self, turn: int, ending: _Ending, now: int) -> list[ReplicaEffect]:
        self._endings[turn] = ending
        responses = ending.unstored.responses
        effects = self._holdings.commit(turn, ending.conversation, responses, now)
        return self._carry_out(effects, now)

    def forget(self, deleted: Unstored, now: int) -> list[ReplicaEffect]:
        """Commit that a client has deleted a response; by itself, whosever its conversation is."""
        for response in deleted.responses[-1].ids:
            self._forwarding.forget(deleted.responses[-1].scope, response)
        ending = _Ending(None, deleted, self._begin(), alone=True)
        self._unused.add(ending.conversation)
        return self._commit(self._number(), ending, now)

    def _number(self) -> int:
        """A number for something that is not a turn's."""
        self._others += 1
        return -self._others

    def left(self, turn: int) -> None:
        """The client of a turn has left: its commit goes on, its terminal event is dropped. Also
        for a turn whose claim is being asked for."""
        if (ending := self._endings.get(turn)) is not None:
            ending.answer = None
        elif self._resuming.pop(turn, None) is not None:
            self._holdings.forget(turn)

    # ------------------------------------------------------------ requests about contexts

    def look_up(self, reference: Reference, now: int) -> list[ReplicaEffect]:
        """Prepare a request about the context of a response. Answered by ``ContextPrepared`` or
        ``ContextUnavailable``.

        The store is asked also for what is owned and held here, because only it knows whether the
        response was deleted at another replica. Nothing is claimed: the request continues nothing,
        and its conversation stays on the connection that its owner has.
        """
        alias = self._memory.alias(reference.scope, reference.response)
        if alias is not None and alias.standing is Standing.STORED:
            # The upstream has it and is asked about it under its id, whatever the store says.
            return [reference.prepare(self._memory, now)]
        known = self._knows(reference.scope, reference.response, now)
        return self._look_up(reference, now, load=not known)

    def _look_up(self, reference: Reference, now: int, *, load: bool) -> list[ReplicaEffect]:
        number = self._number()
        self._looking_up[number] = reference, load
        asked = self._holdings.look_up(number, reference.scope, reference.response, now, load=load)
        return self._carry_out(asked, now)

    def _looked_up(self, looked_up: hd.LookedUp, now: int) -> list[ReplicaEffect]:
        """The store has said what it knows of a response, or has not said it in time. What is owned
        and held here does not depend on it, as for a turn."""
        if (suspect := self._suspects.pop(looked_up.turn, None)) is not None:
            return self._judge(suspect, looked_up.answer, now)
        if (late := self._late.pop(looked_up.turn, None)) is not None:
            return self._commit_late(*late, looked_up.answer, now)
        reference, load = self._looking_up.pop(looked_up.turn)
        scope, named, answer = reference.scope, reference.response, looked_up.answer
        here = self._owns(scope, named, now) and self._knows(scope, named, now)
        if answer is None and not here:
            return [ContextUnavailable(reference.query, STORE_UNAVAILABLE)]
        if isinstance(answer, NotStored) and self._memory.was_durable(scope, named):
            return self._suspect(reference, now)
        if isinstance(answer, Found) and not self._memory.forget_deleted(
            scope, named, answer.path[-1], now
        ):
            if load:
                self._restore(scope, answer, now)
            elif self._is_stale(scope, named, answer.path[-1], now):
                return self._look_up(reference, now, load=True)
            else:
                self._memory.trust(scope, named)
        return [reference.prepare(self._memory, now)]

    # ------------------------------------------------------------ purges

    def _suspect(self, what: int | Reference | hd.Settled, now: int) -> list[ReplicaEffect]:
        """Ask the store whether it was purged: it has lost ``what``, the turn that continues it,
        or the request or the commit that is about it."""
        number = self._number()
        self._suspects[number] = what
        asked = self._holdings.look_up(number, PURGE, PURGE, now, load=False)
        return self._carry_out(asked, now)

    def _judge(
        self, suspect: int | Reference | hd.Settled, answer: Found | NotStored | None, now: int
    ) -> list[ReplicaEffect]:
        """The store has said whether it was purged, or has not said it in time: nothing is guessed
        then. What was purged is forgotten, what the store has lost by itself is continued."""
        purged = isinstance(answer, Found)
        if isinstance(suspect, hd.Settled):
            return self._judge_commit(suspect, answer, now)
        if isinstance(suspect, Reference):
            if answer is None:
                return [ContextUnavailable(suspect.query, STORE_UNAVAILABLE)]
            if purged:
                self._memory.forget(suspect.scope, suspect.response, now)
            return [suspect.prepare(self._memory, now)]
        if (found := self._resuming.pop(suspect, None)) is None:
            return []  # its client has left
        turn, named = found[0], found[1].response
        if answer is None:
            return [self._without_claim(turn, None)]
        if purged and named is not None:
            self._memory.forget(turn.scope, named, now)
        return [PlaceTurn(turn.id, None)]

    def _judge_commit(
        self, settled: hd.Settled, answer: Found | NotStored | None, now: int
    ) -> list[ReplicaEffect]:
        """The same about a response that was stored, although what it continues was missing."""
        ending = self._endings[settled.turn]
        if isinstance(answer, Found):
            self._memory.forget_purged(ending.unstored, now)
            return self._settled(settled, now)
        whole = self._memory.path_of(ending.unstored) if answer is not None else None
        if whole is None:
            unknown = attrs.evolve(settled, durable=False, missing=False, reason=_NO_WORD)
            return self._settled(unknown, now)
        ending.unstored = whole
        lost = self._log(LogLevel.WARNING, "store.lost_responses", detail=_LOST)
        return [lost, *self._commit(settled.turn, ending, now)]

    def _restore(self, scope: str, answer: Claimed | Found, now: int) -> None:
        """Keep what the store has loaded."""
        number = self._numbers.get(answer.conversation, NOWHERE)
        self._memory.restore(scope, answer.path, number, now)

    # ------------------------------------------------------------ forwards

    def takes(self, turn: Arriving, now: int) -> bool:
        """Whether ``turn``, if another replica has forwarded it, is for this one under its present
        lease. One that is late, or was sent to the wrong address, is not."""
        if turn.forward is None:
            return True
        return turn.forward.to == self._holdings.owner.incarnation and self._holdings.has_lease(now)

    def sign(self, turn: Arriving, frame: bytes, now: int) -> Headers:
        """The headers of the forward of ``turn``, whose frame is ``frame``."""
        return self._forwarding.sign(turn, self._holdings.owner, frame, now)

    def declined(
        self, turn: Arriving, owner: ForwardTarget, returned: Returned, now: int
    ) -> list[ReplicaEffect]:
        """``turn`` was forwarded to ``owner`` and was not sent: ask who owns the conversation now.
        ``returned``: how that became known."""
        strange = returned.by is not None and returned.by != owner.replica
        out: list[ReplicaEffect] = []
        if returned.rejected:
            out += self._warn(turn, owner, "forward.rejected", detail=_REJECTED)
        elif strange:
            itself = returned.by == self._holdings.replica
            detail = _LEADS_BACK if itself else _LEADS_ELSEWHERE
            answered = f"replica {returned.by}"
            out += self._warn(turn, owner, _MISDIRECTED, answered=answered, detail=detail)
        by_owner = not (returned.rejected or strange)
        self._forwarding.declined(turn, returned.failure, by_owner=by_owner)
        lookup = self.lookup(turn, now)
        if lookup is None:
            return [*out, PlaceTurn(turn.id, None)]
        return out + self.resume(turn, lookup, now)

    def forward_failed(
        self, turn: Arriving, owner: ForwardTarget, *, misdirected: bool
    ) -> list[Log]:
        """``turn`` was forwarded to ``owner`` and ends with an error. ``misdirected``: what has
        answered at its address is no replica. With the next try the store is asked: whoever has
        that address now might never say that it is not the owner."""
        if named := turn.request.previous_response_id:
            self._forwarding.forget(turn.scope, named)
        if not misdirected:
            return []
        return self._warn(turn, owner, _MISDIRECTED, answered="no replica", detail=_NO_REPLICA)

    def _warn(self, turn: Arriving, owner: ForwardTarget, event: str, **fields: str) -> list[Log]:
        """A record about the setting of ``owner``; once for its lease, because each turn of its
        conversations meets the same."""
        if not self._forwarding.note_wrong(owner.lease):
            return []
        about: dict[str, str | int] = {"turn": turn.id, "request_id": turn.request_id}
        whose = {"owner": owner.replica, "advertise": str(owner.url)}
        return [self._log(LogLevel.WARNING, event, **about, **whose, **fields)]

    def forward_ended(self, turn: int, scope: str = "", responses: Sequence[str] = ()) -> None:
        """A turn that was forwarded is over; its owner can continue ``responses``."""
        self._forwarding.ended(turn, scope, responses)

    # ------------------------------------------------------------ effects of the holdings

    def _carry_out(self, effects: list[hd.HoldingsEffect], now: int) -> list[ReplicaEffect]:
        out: list[ReplicaEffect] = []
        for effect in effects:
            match effect:
                case AskStore():
                    out.append(effect)
                case hd.Fence():
                    if (number := self._numbers.get(effect.conversation)) is not None:
                        out.append(FenceConversation(number))
                case hd.Resolved():
                    out += self._resolved(effect, now)
                case hd.LookedUp():
                    out += self._looked_up(effect, now)
                case hd.Settled():
                    out += self._settled(effect, now)
                case hd.LeaseChanged():
                    event = "replica.lease_held" if effect.held else "replica.lease_lost"
                    level = LogLevel.INFO if effect.held else LogLevel.WARNING
                    out.append(self._log(level, event))
                    self._leases_lost += not effect.held
                    if effect.held:
                        self._memory.missed_notices()
                        out += self._commit_owed(now)
                case hd.LeaseRenewed():
                    for notice in effect.notices:
                        self._memory.noticed(notice)
                    # The store answers: what it has missed can be committed, and what is too old
                    # deleted, although no turn ends.
                    out += self._commit_owed(now) + self._sweep(now)
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

    def _resolved(self, resolved: hd.Resolved, now: int) -> list[ReplicaEffect]:
        """The store has said who owns what a turn continues, or has not said it in time."""
        turn, lookup = self._resuming.pop(resolved.turn)
        answer, named = resolved.answer, lookup.response
        if isinstance(answer, OwnedElsewhere):
            target = self._forwarding.forward(turn, answer)
            if target is not None:
                return [ForwardTurn(turn.id, target)]
        if answer is None or isinstance(answer, OwnedElsewhere):
            return [self._without_claim(turn, answer)]
        if isinstance(answer, NotStored):
            if named is not None and self._memory.was_durable(turn.scope, named):
                self._resuming[turn.id] = turn, lookup
                return self._suspect(turn.id, now)
            return [PlaceTurn(turn.id, None)]
        last = answer.path[-1]
        if named is None or not self._memory.forget_deleted(turn.scope, named, last, now):
            if lookup.load:
                self._restore(turn.scope, answer, now)
            elif named is not None and self._is_stale(turn.scope, named, last, now):
                return self._ask(turn, attrs.evolve(lookup, load=True), now)
            elif named is not None:
                self._memory.trust(turn.scope, named)
        return [PlaceTurn(turn.id, answer.conversation)]

    def _is_stale(self, scope: str, response: str, payload: bytes, now: int) -> bool:
        """Whether what the store has of a response, ``payload``, has to be read with all before it:
        it was evicted in the meantime, or another replica has gone on under its id."""
        known = self._knows(scope, response, now)
        return not known or self._memory.differs(scope, response, payload, now)

    def _without_claim(
        self, turn: Arriving, owner: OwnedElsewhere | None
    ) -> PlaceTurn | RefuseTurn:
        """What becomes of a turn whose conversation is ``owner``'s, which cannot be reached; None:
        the store did not say whose."""
        if not turn.request.previous_response_id:
            # It has its whole history with it, so it can be answered without anything that is
            # stored. That only costs more tokens.
            return PlaceTurn(turn.id, None)
        if turn.forward is not None:
            return RefuseTurn(turn.id, NOT_DISPATCHED)  # its sender looks for the owner
        if owner is None:
            return RefuseTurn(turn.id, STORE_UNAVAILABLE)
        return RefuseTurn(turn.id, self._forwarding.unreachable(turn, owner))

    def _settled(self, settled: hd.Settled, now: int) -> list[ReplicaEffect]:
        """A commit is over: show the end of its turn, or commit it once more by itself.

        A commit that is fenced belongs to a conversation that was lost while its turn ran, with the
        lease or to another replica. The response exists all the same, and its client may continue
        it: it becomes a conversation of its own.

        A store that has lost what the response continues gets all of it, once, unless an operator
        has purged it. A response that a client could not continue from what is stored, because its
        transcript is not known or too large, is not durable, and a repetition would not change
        that.
        """
        ending = self._endings[settled.turn]
        if settled.missing and not ending.whole:
            ending.whole = True
            if self._memory.path_of(ending.unstored) is not None:
                return self._suspect(settled, now)
        del self._endings[settled.turn]
        key = ending.conversation
        out: list[ReplicaEffect] = []
        if key in self._unused and not self._is_committing(key):
            self._unused.remove(key)
            out += self._give_back(key, now)
        if settled.fenced and not ending.alone:
            ending.alone, ending.conversation = True, self._begin()
            self._unused.add(ending.conversation)
            return out + self._commit(settled.turn, ending, now)
        if settled.durable:
            ending.unstored.committed()
            out += self._sweep(now)
        if ending.answer is not None:
            out.append(ending.answer)
        answered = settled.durable or settled.missing
        if answered is not self._answers:
            self._answers = answered
            out.append(self._durability(settled.reason))
            if answered:
                out += self._commit_owed(now)
        if not answered:
            self._owe(ending)
        if settled.turn >= 0 and not (settled.durable and ending.unstored.continuable):
            self._not_durable += 1
            out.append(self._not_stored(settled, ending))
        return out

    def _not_stored(self, settled: hd.Settled, ending: _Ending) -> Log:
        """A record of a turn that is not durable. What the store causes is said once for all turns
        (``store.unavailable``), what concerns one conversation here."""
        cause, level = settled.reason or "store", LogLevel.DEBUG
        if settled.durable:
            cause, level = "no transcript", LogLevel.INFO
        elif settled.missing:
            cause, level = "the store does not have what it continues", LogLevel.INFO
        response = hashed(ending.unstored.responses[-1].ids[0])
        fields: dict[str, str | int] = {"turn": settled.turn, "response": response}
        return self._log(level, "turn.not_durable", **fields, cause=cause)

    def _owe(self, ending: _Ending) -> None:
        """Remember a response that is to be committed once the store answers again."""
        last = ending.unstored.responses[-1]
        deletion = ending.unstored if ending.unstored.alias.deleted else None
        self._owed[last.key] = _Owed(last.scope, last.ids, ending.conversation, deletion)
        if len(self._owed) > _MOST_OWED:
            self._owed.popitem(last=False)

    def _commit_owed(self, now: int) -> list[ReplicaEffect]:
        """Commit what is not durable. A response is looked up before: its client may have deleted
        it in the meantime, at another replica, and the latest response of an id counts."""
        owed, self._owed = self._owed, OrderedDict()
        out: list[ReplicaEffect] = []
        for key, each in owed.items():
            if each.deletion is not None:
                if self._memory.alias(each.scope, each.ids[0]) is None:
                    out += self.forget(each.deletion, now)
                continue  # else the upstream has used the id again
            if self._missing(each, now) is not None:
                number = self._number()
                self._late[number] = key, each
                asked = self._holdings.look_up(number, each.scope, each.ids[0], now, load=False)
                out += self._carry_out(asked, now)
        return out

    def _missing(self, owed: _Owed, now: int) -> Unstored | None:
        """What the store has to be given of a response; None if it was evicted, or deleted, or was
        committed with a later turn."""
        unstored = self._memory.unstored(owed.scope, owed.ids, now)
        if unstored is None or unstored.alias.durable or not unstored.continuable:
            return None
        return unstored

    def _commit_late(
        self, key: bytes, owed: _Owed, answer: Found | NotStored | None, now: int
    ) -> list[ReplicaEffect]:
        """Commit a response to its conversation if that is still this replica's, else as one of its
        own. ``answer``: what the store has under its id."""
        if answer is None:
            self._owed[key] = owed  # it is silent again
            return []
        if isinstance(answer, Found) and is_deletion(answer.path[-1]):
            for response in owed.ids:
                self._memory.forget(owed.scope, response, now)
            return []
        unstored = self._missing(owed, now)
        if unstored is None:
            return []
        ending = _Ending(None, unstored, owed.conversation)
        if not self._holdings.may_send(owed.conversation, now):
            ending.alone, ending.conversation = True, self._begin()
            self._unused.add(ending.conversation)
        return self._commit(self._number(), ending, now)

    def _sweep(self, now: int) -> list[ReplicaEffect]:
        """Have the store delete what was not used for ``transcript_age``, now and then."""
        if now < self._sweep_at:
            return []
        self._sweep_at = now + min(self._age, _SWEEP)
        return self._carry_out(self._holdings.sweep(self._age, now), now)

    def _durability(self, reason: str) -> Log:
        """A record of a change. One, and not one for each turn: all are not durable together."""
        if self._answers:
            return self._log(LogLevel.INFO, "store.back")
        return self._log(LogLevel.WARNING, "store.unavailable", reason=reason, detail=_UNAVAILABLE)

    def _log(self, level: LogLevel, event: str, **fields: str | int) -> Log:
        return Log(level, event, {"replica": self._holdings.replica, **fields})


# Responses that are not durable and are remembered, about 200 KB. With more, the oldest are lost
# with this process, as all are if the store does not come back.
_MOST_OWED: Final = 1024
# Time between two sweeps, unless transcripts live less long; what is too old may stay so long.
_SWEEP: Final = 600 * NS_PER_SECOND
_NAME_IN_USE = (
    "another process has a lease under this name and renews it: give each replica its own name "
    "(--replica); until then nothing that this one answers is durable"
)
_REJECTED = (
    "the owner of the conversation has refused the signature of a forward: all replicas need the "
    "same cluster_keys; or its advertise URL leads to a replica of another cluster"
)
_MISDIRECTED = "forward.misdirected"
_LEADS_BACK = (
    "the advertise URL of the owner leads back to this replica: give each replica a URL of its own"
)
_LEADS_ELSEWHERE = (
    "the advertise URL of the owner leads to another replica: give each replica a URL of its own; "
    "if the owner was killed, its lease has to end first"
)
_NO_REPLICA = (
    "what answers at the advertise URL of the owner is not a replica's port for forwards: correct "
    "the URL at the owner; the port of the setting 'port' takes clients only"
)
_NO_WORD = "it did not say whether it was purged"
_LOST = "the store has lost what a response continues, and gets the whole conversation once more"
_ROLLED_BACK = "store.rolled_back"
_DISTRUSTED = "the store has granted an epoch that it had granted before: it has lost memory"
_UNAVAILABLE = "responses are not stored: until the store is back they are lost with this process"
