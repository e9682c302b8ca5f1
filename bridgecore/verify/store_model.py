"""The reference model of a store: what it answers to each question.

What belongs here: the meaning of each question of ``bridgecore.ownership.store``, without a
database. The explorers of ownership run on it, the stores of ``bridgecore_stores`` are compared
with it, and the simulator's stores are made of it. It does no I/O and has no clock: time is an
argument. Public as ``bridgecore.testing.store.StoreModel``.
"""

from __future__ import annotations

from typing import Any, assert_never

import attrs

from bridgecore.ownership import store as st


@attrs.frozen
class _Lease:
    owner: st.Owner
    advertise: str | None
    until: int  # ns of the store's clock


@attrs.frozen
class _Conversation:
    epoch: int
    owner: st.Owner | None


@attrs.frozen
class _Row:
    conversation: bytes
    epoch: int  # the epoch that wrote it
    response: st.StoredResponse
    used: int  # ns


class StoreModel:
    """The content of a store, and its answers."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}  # by the name of the replica
        self._conversations: dict[bytes, _Conversation] = {}
        self._rows: dict[bytes, _Row] = {}  # by key
        self._named: dict[tuple[str, str], bytes] = {}  # by scope and id
        self._contexts: dict[tuple[str, bytes], bytes] = {}  # by scope and context
        self._notices: dict[bytes, tuple[int, bytes]] = {}  # by key: when it came (ns), and it

    def copy(self) -> StoreModel:
        """An independent copy: a backup to roll back to, or a state for the explorer."""
        other = type(self)()
        for name, value in vars(self).items():
            setattr(other, name, value.copy())
        return other

    def snapshot(self) -> tuple[Any, ...]:
        """The content as values, for an explorer: leases, as (owner, end in ns); conversations, as
        (key, epoch, owner); and the keys of the responses."""
        return (
            tuple((lease.owner, lease.until) for lease in self._leases.values()),
            tuple((key, each.epoch, each.owner) for key, each in self._conversations.items()),
            tuple(self._rows),
        )

    def __len__(self) -> int:
        """How many responses are stored."""
        return len(self._rows)

    def names(self) -> dict[tuple[str, str], bytes]:
        """The key of each response by its scope and each of its ids."""
        return self._named.copy()

    def key(self, scope: str, response: str) -> bytes | None:
        """The key of the response that an id names; None if it is not stored."""
        return self._named.get((scope, response))

    def response(self, key: bytes) -> st.StoredResponse | None:
        """The response with this key; None if it is not stored."""
        row = self._rows.get(key)
        return None if row is None else row.response

    def missing(self, key: bytes) -> bytes | None:
        """The key of the latest response that is not stored, of the one with this key and those
        that it continues; None if all are."""
        wanted: bytes | None = key
        while wanted is not None and (row := self._rows.get(wanted)) is not None:
            wanted = row.response.parent
        return wanted

    def epoch(self, conversation: bytes) -> int:
        """The present epoch of a conversation; 0 if it is not stored."""
        found = self._conversations.get(conversation)
        return 0 if found is None else found.epoch

    def owner(self, conversation: bytes, now: int) -> st.Owner | None:
        """The owner of a conversation whose lease has not ended; None if there is none."""
        found = self._conversations.get(conversation)
        owner = None if found is None else found.owner
        return owner if owner is not None and self._live(owner, now) else None

    def conversation_of(self, scope: str, response: str) -> bytes | None:
        """The conversation of a response; None if it is not stored. ``scope``: its tenant's
        digest."""
        key = self._named.get((scope, response))
        return None if key is None else self._rows[key].conversation

    def handle(self, question: st.Question, now: int) -> st.Answer:
        """Carry out ``question`` at ``now`` (ns of the store's clock)."""
        match question:
            case st.Join():
                return self._join(question, now)
            case st.Renew():
                if not self._live(question.owner, now):
                    return st.LeaseEnded()
                lease = self._leases[question.owner.replica]
                until = now + question.ttl
                self._leases[question.owner.replica] = attrs.evolve(lease, until=until)
                earliest = now - 2 * question.ttl
                notices = [(at, notice) for at, notice in self._notices.values() if at > earliest]
                return st.Renewed(tuple(notice for _, notice in sorted(notices)))
            case st.Leave():
                left = self._leases.get(question.owner.replica)
                if left is not None and left.owner == question.owner:
                    del self._leases[question.owner.replica]
                return st.Done()
            case st.Resume():
                return self._resume(question, now)
            case st.LookUp():
                return self._look_up(question, now)
            case st.Commit():
                return self._commit(question, now)
            case st.Release():
                for key, epoch in question.conversations:
                    if self._conversations.get(key) == _Conversation(epoch, question.owner):
                        self._conversations[key] = _Conversation(epoch, None)
                return st.Done()
            case st.Sweep():
                return st.Swept(self._sweep(now - question.age, now))
            case _:
                assert_never(question)

    def _live(self, owner: st.Owner, now: int) -> bool:
        lease = self._leases.get(owner.replica)
        return lease is not None and lease.owner == owner and now < lease.until

    def _join(self, join: st.Join, now: int) -> st.Answer:
        lease = self._leases.get(join.owner.replica)
        own = join.owner.incarnation, join.instead
        if lease is not None and lease.owner.incarnation not in own and now < lease.until:
            return st.NameTaken(lease.until - now)
        self._leases[join.owner.replica] = _Lease(join.owner, join.advertise, now + join.ttl)
        return st.Joined()

    def _resume(self, resume: st.Resume, now: int) -> st.Answer:
        if not self._live(resume.owner, now):
            return st.LeaseEnded()
        if resume.response is not None:
            found_at = self._named.get((resume.scope, resume.response))
        else:
            known = (self._contexts.get((resume.scope, each)) for each in resume.contexts)
            found_at = next((each for each in known if each is not None), None)
        if found_at is None:
            return st.NotStored()
        row = self._rows[found_at]
        key, found = row.conversation, self._conversations[row.conversation]
        owner = found.owner
        if owner is not None and owner != resume.owner and self._live(owner, now):
            lease = self._leases[owner.replica]
            return st.OwnedElsewhere(key, found.epoch, owner, lease.advertise, lease.until - now)
        path = self._path(row) if resume.load else [row]
        if path is None:
            return st.NotStored()
        epoch = found.epoch
        if owner != resume.owner or epoch <= resume.floor:
            epoch = max(epoch, resume.floor) + 1
        self._conversations[key] = _Conversation(epoch, resume.owner)
        self._rows[row.response.key] = attrs.evolve(row, used=now)
        return st.Claimed(key, epoch, tuple(each.response.payload for each in path))

    def _look_up(self, look_up: st.LookUp, now: int) -> st.Answer:
        key = self._named.get((look_up.scope, look_up.response))
        if key is None:
            return st.NotStored()
        row = self._rows[key]
        path = self._path(row) if look_up.load else [row]
        if path is None:
            return st.NotStored()
        self._rows[key] = attrs.evolve(row, used=now)
        return st.Found(row.conversation, tuple(each.response.payload for each in path))

    def _path(self, row: _Row) -> list[_Row] | None:
        """The responses up to ``row``; None if one of them was swept: half a transcript is none."""
        path = [row]
        while (parent := path[-1].response.parent) is not None:
            if parent not in self._rows:
                return None
            path.append(self._rows[parent])
        path.reverse()
        return path

    def _commit(self, commit: st.Commit, now: int) -> st.Answer:
        found = self._conversations.get(commit.conversation)
        wanted = _Conversation(commit.epoch or 1, commit.owner)
        if found is None and commit.epoch == 0:
            self._conversations[commit.conversation] = wanted
        elif found != wanted:
            return st.Fenced(0 if found is None else found.epoch)
        for response in commit.responses:
            row = _Row(commit.conversation, wanted.epoch, response, now)
            self._rows.setdefault(response.key, row)
            if response.notice is not None:
                self._notices[response.key] = now, response.notice
            for name in response.ids:
                self._named[response.scope, name] = response.key
            if response.context is not None:
                self._contexts[response.scope, response.context] = response.key
        parents = {response.parent for response in commit.responses} - {None}
        return st.Committed(wanted.epoch, missing=not parents <= self._rows.keys())

    def _sweep(self, before: int, now: int) -> int:
        """Delete what was last used before ``before`` (ns) and is continued by nothing, then what
        that leaves; and the conversations of which nothing is left."""
        count = 0
        while True:
            parents = {row.response.parent for row in self._rows.values()}
            old = {
                key for key, row in self._rows.items() if row.used < before and key not in parents
            }
            if not old:
                break
            count += len(old)
            for key in old:
                del self._rows[key]
            self._named = {name: key for name, key in self._named.items() if key not in old}
            self._contexts = {name: key for name, key in self._contexts.items() if key not in old}
        left = {row.conversation for row in self._rows.values()}
        for conversation in [*self._conversations]:
            if conversation not in left and self.owner(conversation, now) is None:
                del self._conversations[conversation]
        return count
