"""What an operator does with a store: look at it, delete from it, change its keys.

What belongs here: ``Maintenance``, which each back end offers for that, and what is the same for
all of them: counting, reading as a test, purging, and sealing again.

All of it runs beside processes that serve, and can be ended at any time and begun again. So
everything is in batches, each of which is a transaction: no other process waits for longer than one
batch takes. A batch says what it expects to find, and leaves alone what was changed meanwhile.

*How a secret is removed.* What an older key has sealed is sealed again with the newest one, and
what it has named (the contexts by which a repeated history is recognised) gets a name of the newest
one. The names of ids are not keyed and stay. A process whose file still has the older secret first
would go on using it, so what is left is counted afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol, TypeAlias

import attrs

from bridgecore.ownership.store import Commit, LookUp, Owner, StoredResponse
from bridgecore_stores.backend import Backend
from bridgecore_stores.sealing import Keys, id_of

SAMPLE: Final = 1000
"""Responses that ``read_responses`` reads, unless it reads all of them."""

GROUP_ROWS: Final = 100
"""Rows that one transaction changes."""

GROUP_BYTES: Final = 1_000_000
"""Bytes of payloads in one transaction, unless a single payload has more."""

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of rows that are done."""


@attrs.frozen
class LiveLease:
    """A lease that has not ended. ``advertise``: its URL for forwards, None if it has none.
    ``remaining``: ns."""

    replica: str
    advertise: str | None
    remaining: int


@attrs.frozen
class ResponseRow:
    """A stored response without its payload.

    ``head``: the first ``HEAD_SIZE`` bytes of the payload, which say what has sealed it; ``size``:
    bytes of the payload; ``used``: when it was last used, in ns since 1970 by the store's clock.
    """

    key: bytes
    head: bytes
    size: int
    used: int


@attrs.frozen
class ContextRow:
    """The name of a context. ``response``: the key of the response that it names; ``sealed``: what
    it is a digest of."""

    name: bytes
    response: bytes
    sealed: bytes


@attrs.frozen
class Replaced:
    """``row`` gets another ``payload``."""

    row: ResponseRow
    payload: bytes


@attrs.frozen
class Renamed:
    """The context of ``row`` gets another ``name`` and ``sealed``."""

    row: ContextRow
    name: bytes
    sealed: bytes


class Maintenance(Backend, Protocol):
    """A back end with what an operator needs. Used by one thread, after ``open_existing``."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What its methods raise, besides ``StoreError``, when the store fails; for ``reason``."""

    def open_existing(self) -> None:
        """Connect to a store that is there. Creates nothing and changes no tables.

        Raises:
            StoreError: the URL is wrong, there is no store, or it has another version.
            StoreUnavailableError: the store cannot be reached or read.
        """

    def try_writing(self) -> None:
        """Write something that no question looks at, and take it back."""

    def live_leases(self) -> list[LiveLease]:
        """The leases that have not ended, by name."""

    def count_conversations(self) -> int:
        """How many conversations are stored."""

    def unused_for(self, besides: bytes = b"") -> int | None:
        """For how long no response was used, in ns; that with the key ``besides`` does not count.
        None if none is stored."""

    def responses(self) -> Iterator[list[ResponseRow]]:
        """All responses, in batches, none of which is empty. Whether those that are stored
        meanwhile are among them is open."""

    def latest_responses(self, limit: int) -> list[ResponseRow]:
        """The responses that were used last, the latest first."""

    def contexts(self) -> Iterator[list[ContextRow]]:
        """All names of contexts, in batches, none of which is empty."""

    def payloads(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The sealed payloads of these responses, as far as they are stored."""

    def replace_payloads(self, replaced: Sequence[Replaced]) -> None:
        """Change payloads, in one transaction, of responses that still have the same head. That
        they were used is not changed by it."""

    def rename_contexts(self, renamed: Sequence[Renamed]) -> None:
        """Change names of contexts, in one transaction. One that names another response by now is
        left alone. If the new name is in use, it stays as it is, and the old one is deleted: what
        the newer key has named was stored later."""

    def sweep(self, owner: Owner, age: int, progress: Progress) -> int | None:
        """Do what ``Sweep`` does; how many responses were deleted, None if another owner sweeps.

        ``progress`` is called with 0 before the first one is deleted, and may ask questions:
        whatever it uses is not deleted, because from then on the age of a response is settled.
        """

    def finish(self) -> None:
        """Remove from the files what was deleted or replaced, as far as that can be asked for."""


# ------------------------------------------------------------ looking


@attrs.define
class KeyUse:
    """What one key is needed for: the ``responses`` that it has sealed, with their ``size`` in
    bytes, and the ``contexts`` that it has named."""

    responses: int = 0
    size: int = 0
    contexts: int = 0


@attrs.frozen
class Stats:
    """What a store has. ``oldest``, ``newest``: when a response was used, in ns since 1970 by the
    clock of the store; None without responses. ``keys``: by the id of the key; first those of the
    file, in its order, even if nothing needs them. ``secrets``: how many those are."""

    conversations: int
    responses: int
    size: int
    oldest: int | None
    newest: int | None
    keys: dict[bytes, KeyUse]
    secrets: int
    leases: list[LiveLease]

    @property
    def older(self) -> int:
        """How many payloads and names need another key than the newest one."""
        return sum(use.responses + use.contexts for use in [*self.keys.values()][1:])


def count(store: Maintenance, keys: Keys, progress: Progress) -> Stats:
    """Count what a store has, in one pass over its rows."""
    uses = {key_id: KeyUse() for key_id in keys.ids}
    times: list[int] = []
    done = 0
    for batch in store.responses():
        for row in batch:
            use = uses.setdefault(id_of(row.head), KeyUse())
            use.responses += 1
            use.size += row.size
        used = [*times, *(row.used for row in batch)]
        times = [min(used), max(used)]
        done += len(batch)
        progress(done)
    for contexts in store.contexts():
        for context in contexts:
            uses.setdefault(id_of(context.sealed), KeyUse()).contexts += 1
        done += len(contexts)
        progress(done)
    return Stats(
        conversations=store.count_conversations(),
        responses=sum(use.responses for use in uses.values()),
        size=sum(use.size for use in uses.values()),
        oldest=times[0] if times else None,
        newest=times[1] if times else None,
        keys=uses,
        secrets=len(keys.ids),
        leases=store.live_leases(),
    )


@attrs.define
class Readings:
    """What came of reading responses, in numbers of them. ``newest``, ``older``: read with the
    newest key, or with another one of the file; ``foreign``: sealed with a secret that is not in
    the file; ``damaged``: sealed with one that is, and changed since."""

    newest: int = 0
    older: int = 0
    foreign: int = 0
    damaged: int = 0

    @property
    def total(self) -> int:
        """How many were read, or could not be."""
        return self.newest + self.older + self.foreign + self.damaged


def read_responses(store: Maintenance, keys: Keys, every: bool, progress: Progress) -> Readings:
    """Read responses as a test: the ``SAMPLE`` that were used last, or ``every`` one."""
    readings = Readings()
    batches = store.responses() if every else [store.latest_responses(SAMPLE)]
    for group in _groups(batches):
        payloads = store.payloads([row.key for row in group])
        for key, sealed in payloads.items():  # without those that were deleted since
            if keys.unseal(sealed, key) is None:
                if id_of(sealed) in keys.ids:
                    readings.damaged += 1
                else:
                    readings.foreign += 1
            elif keys.is_newest(sealed):
                readings.newest += 1
            else:
                readings.older += 1
        progress(readings.total)
    return readings


# ------------------------------------------------------------ purging


def purge_responses(
    store: Maintenance,
    owner: Owner,
    record: StoredResponse,
    conversation: bytes,
    age: int,
    progress: Progress,
) -> int | None:
    """Do what ``Maintenance.sweep`` does, and leave ``record``, in a new ``conversation``, for the
    processes that have in memory what is deleted. Its notice reaches them with their next renewal,
    and it is there before anything is missing that they could look for."""

    def begun(count: int) -> None:
        if count == 0:
            store.carry_out([Commit(owner, conversation, 0, (record,))])
            # A record of an earlier purge stays as it is and would be deleted now; this uses it.
            store.carry_out([LookUp(owner, record.scope, record.ids[0], load=False)])
        progress(count)

    return store.sweep(owner, age, begun)


# ------------------------------------------------------------ changing keys


@attrs.define
class Rotation:
    """What came of a change of keys. ``responses``, ``contexts``: how many were sealed again or got
    another name; ``unreadable``: how many of both no key of the file can read: they stay as they
    are."""

    responses: int = 0
    contexts: int = 0
    unreadable: int = 0


def rotate(store: Maintenance, keys: Keys, progress: Progress) -> Rotation:
    """Have nothing need another key than the newest one, as far as it can be read. Ended early, it
    goes on where it was when it is begun again, because what is done already is passed over."""
    done = Rotation()
    old = ([row for row in batch if not keys.is_newest(row.head)] for batch in store.responses())
    for group in _groups(old):
        payloads = store.payloads([row.key for row in group])
        replaced = []
        for row in group:
            if (sealed := payloads.get(row.key)) is None or keys.is_newest(sealed):
                continue  # deleted or sealed again since
            payload = keys.unseal(sealed, row.key)
            if payload is None:
                done.unreadable += 1
            else:
                replaced.append(Replaced(row, keys.seal(payload, row.key)))
        if replaced:
            store.replace_payloads(replaced)
        done.responses += len(replaced)
        progress(done.responses)
    for batch in store.contexts():
        # In pieces, as the payloads are.
        for first in range(0, len(batch), GROUP_ROWS):
            renamed = []
            for context in batch[first : first + GROUP_ROWS]:
                if keys.is_newest(context.sealed):
                    continue
                new = keys.rename_context(context.name, context.sealed)
                if new is None:
                    done.unreadable += 1
                else:
                    renamed.append(Renamed(context, *new))
            if renamed:
                store.rename_contexts(renamed)
            done.contexts += len(renamed)
            progress(done.responses + done.contexts)
    store.finish()
    return done


def _groups(batches: Iterable[Sequence[ResponseRow]]) -> Iterator[list[ResponseRow]]:
    """The rows of all batches, in groups whose payloads can be held and written at once."""
    group: list[ResponseRow] = []
    size = 0
    for batch in batches:
        for row in batch:
            if group and (len(group) >= GROUP_ROWS or size + row.size > GROUP_BYTES):
                yield group
                group, size = [], 0
            group.append(row)
            size += row.size
    if group:
        yield group
