"""A store in a SQLite file, for the processes of one host.

What belongs here: its tables, and each question as SQL.

*Durability.* With ``synchronous=NORMAL`` and a write-ahead log, a commit is a write and not an
fsync: it costs microseconds instead of milliseconds. What is committed survives the end of any
process, ``kill -9`` included, because it is in the page cache of the kernel. A power cut or a crash
of the kernel loses the commits since the last checkpoint, and never damages the file. All
processes that knew a lost epoch have then ended as well, so nothing is fenced wrongly.

*Time.* Leases are measured with the monotonic clock, which the processes of a host share. It begins
anew at a reboot: a lease with more time left than it was given is from before, and has ended. A
lease also ends with its process (``leaselocks.py``). When a response was used is measured with the
wall clock, because it has to outlast a reboot; a step of that clock makes a response seem older or
younger by as much.

*A file that is removed or replaced* while it is open goes on without a name, and what is written to
it is lost. So each transaction first looks whether the path still leads to the open file.

*Network file systems.* The write-ahead log needs memory that is shared by all processes, which
those do not have. They are refused where ``/proc/mounts`` tells.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, assert_never

import attrs

from bridgecore.ownership import store as st
from bridgecore_stores.backend import (
    NOTICES_KEPT,
    ConnectionLostError,
    Connector,
    StoreError,
    StoreUnavailableError,
)
from bridgecore_stores.leaselocks import LeaseLocks, file_identity
from bridgecore_stores.maintenance import ContextRow, LiveLease, Renamed, Replaced, ResponseRow
from bridgecore_stores.sealing import (
    HEAD_SIZE,
    NAME_SIZE,
    Keys,
    Named,
    alias_name,
    named_by,
    names_of,
    notices_of,
    unseal_path,
)

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE lease (
            replica TEXT PRIMARY KEY, incarnation TEXT NOT NULL, advertise TEXT,
            until INTEGER NOT NULL, -- ns of the monotonic clock
            ttl INTEGER NOT NULL -- ns
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE conversation (
            id BLOB PRIMARY KEY, epoch INTEGER NOT NULL, replica TEXT, incarnation TEXT
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE response (
            key BLOB NOT NULL UNIQUE, conversation BLOB NOT NULL,
            epoch INTEGER NOT NULL, -- that wrote it
            parent BLOB,
            used INTEGER NOT NULL, -- ns of the wall clock
            payload BLOB NOT NULL
        ) STRICT""",
        "CREATE INDEX response_parent ON response (parent) WHERE parent IS NOT NULL",
        "CREATE INDEX response_conversation ON response (conversation)",
        "CREATE INDEX response_used ON response (used, key)",
        # Ids and contexts alike: the digest by which a response is found.
        """CREATE TABLE name (
            name BLOB PRIMARY KEY, response BLOB NOT NULL
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX name_response ON name (response)",
        # At most one row: who sweeps, and until when.
        """CREATE TABLE sweeper (
            one INTEGER PRIMARY KEY CHECK (one = 1), replica TEXT NOT NULL,
            incarnation TEXT NOT NULL, until INTEGER NOT NULL
        ) STRICT""",
    ),
    (
        # Of a context: what its name is a digest of, sealed. NULL for an id, and for contexts of
        # version 1, which are not found any more when the secret that named them is removed.
        "ALTER TABLE name ADD COLUMN context BLOB",
    ),
    (
        """CREATE TABLE notice (
            key BLOB PRIMARY KEY, -- of the response
            at INTEGER NOT NULL, -- ns of the monotonic clock
            sealed BLOB NOT NULL
        ) STRICT, WITHOUT ROWID""",
    ),
)
"""The statements of each version of the tables; version n is the first n of them."""

SWEEP_BATCH: Final = 100
"""Responses that one transaction of a sweep looks at. Measured: 16 ms if all are deleted, two
thirds of which are the pause after it."""

RESPONSES_BATCH: Final = 1000
"""Rows of which one query of a maintenance command reads all but the payload."""

SWEEP_TTL: Final = 60_000_000_000
"""ns after which another replica may sweep although the last one has not said that it is done."""

_NETWORKED: Final = frozenset({"9p", "cifs", "fuse.sshfs", "nfs", "nfs4", "smb3", "smbfs"})

# A path is as long as its transcript. More can only be a circle, which would never end.
_LONGEST_PATH = 1_000_000

_FIRST = -(2**63)  # before all times
# Bytes that a trial writes: more than fits into the pages that are there already.
_TRIAL_SIZE = 65_536
_OLDEST_SQLITE = (3, 37, 0)  # has STRICT tables and RETURNING

_PATH = f"""
WITH RECURSIVE path (key, parent, payload, depth) AS (
    SELECT key, parent, payload, 0 FROM response WHERE key = ?
    UNION ALL
    SELECT next.key, next.parent, next.payload, path.depth + 1
    FROM path JOIN response AS next ON next.key = path.parent WHERE path.depth < {_LONGEST_PATH}
) SELECT key, parent, payload FROM path ORDER BY depth DESC"""


def connector(url: str, keys: Keys, timeout: int) -> Connector[Sqlite]:
    """Makes the connections of one store to the file of ``sqlite:PATH``.

    Raises:
        StoreError: the URL names no file, or one that cannot be used.
    """
    path = url.partition(":")[2]
    if not path or path.startswith(":memory:"):
        raise StoreError(
            "sqlite: needs the path of a file, such as sqlite:/var/lib/bridge/store.db"
        )
    file = Path(path).absolute()
    if not file.parent.is_dir():
        raise StoreError(f"{file.parent}: there is no such directory for the store")
    kind = _file_system(file.parent)
    if kind in _NETWORKED:
        raise StoreError(
            f"{file}: SQLite cannot share a file on a network file system ({kind}): "
            "use a local disk, or PostgreSQL or Valkey"
        )
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreError(
            f"the store needs SQLite {'.'.join(map(str, _OLDEST_SQLITE))} or newer, this Python "
            f"has {sqlite3.sqlite_version}"
        )
    locks = LeaseLocks(file.with_name(file.name + ".replicas"))
    # SQLite has one writer at a time.
    return Connector(lambda: Sqlite(file, keys, timeout, locks), 1, locks.close)


class Sqlite:
    """One connection to the file."""

    errors = (sqlite3.Error, ConnectionLostError)

    def __init__(self, file: Path, keys: Keys, timeout: int, locks: LeaseLocks) -> None:
        self._file = file
        self._keys = keys
        self._timeout = timeout
        self._locks = locks
        self._database: sqlite3.Connection | None = None
        self._opened_file: tuple[int, int] | None = None  # device and inode

    def open(self, *, first: bool = False) -> None:
        """See ``Backend.open``."""
        try:
            if not first:
                self._check_version(self._version(self._connect()))
                return
            # Only its owner may read the file; SQLite gives its log the same mode.
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))
            # SQLite cannot wait for another process that changes the mode of the log.
            with self._locks.alone():
                self._connect().execute("PRAGMA journal_mode = WAL")
                with self._transaction() as database:
                    self._migrate(database)
        except OSError as error:
            raise StoreError(f"{self._file}: cannot be written: {error.strerror}") from None
        except sqlite3.Error as error:
            if not self._file.exists():
                raise StoreUnavailableError(f"{self._file}: {_REMOVED}") from error
            wrong = _error_code(error) == sqlite3.SQLITE_NOTADB
            kind = StoreError if wrong else StoreUnavailableError
            raise kind(f"{self._file}: {self.reason(error)}") from error

    def _connect(self) -> sqlite3.Connection:
        # Looked at before it is opened: if it is replaced in between, the first transaction fails.
        self._opened_file = file_identity(self._file)
        self._database = database = sqlite3.connect(
            self._file.as_uri() + "?mode=rw",  # one that was removed is not made anew, empty
            uri=True,
            timeout=self._timeout / 1e9,
            isolation_level=None,
        )
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        # In one transaction that only one process can have, so that two do not migrate at once.
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = self._version(database) if tables else 0
        if version:
            self._check_version(version, oldest=1)
        if not tables:
            database.execute("CREATE TABLE meta (version INTEGER NOT NULL) STRICT")
            database.execute("INSERT INTO meta VALUES (0)")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                database.execute(statement)
        # Also if nothing is new: the write shows whether the file can be written.
        database.execute("UPDATE meta SET version = ?", (len(MIGRATIONS),))

    def _version(self, database: sqlite3.Connection) -> int:
        found = database.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'"
        ).fetchone()
        if found is None:
            raise StoreError(f"{self._file}: is a database of another program")
        return int(database.execute("SELECT version FROM meta").fetchone()[0])

    def _check_version(self, version: int, oldest: int = len(MIGRATIONS)) -> None:
        if not oldest <= version <= len(MIGRATIONS):
            raise StoreError(
                f"{self._file}: its tables have version {version}, this program uses version "
                f"{len(MIGRATIONS)}: all replicas need the same version of bridgecore"
            )

    def close(self) -> None:
        """See ``Backend.close``. The locks stay: they are those of the store."""
        if self._database is not None:
            database, self._database = self._database, None
            with contextlib.suppress(sqlite3.Error):
                database.close()

    def reason(self, error: Exception) -> str:
        """See ``Backend.reason``."""
        if isinstance(error, StoreError):
            return str(error)
        if isinstance(error, sqlite3.Error):
            name = str(getattr(error, "sqlite_errorname", "SQLite error"))
            return _REASONS.get(_error_code(error), name)
        if isinstance(error, ConnectionLostError):
            return _REPLACED
        if isinstance(error, OSError):
            return f"lock of the lease: {error.strerror}"
        return type(error).__name__

    def carry_out(self, questions: Sequence[st.Question]) -> list[st.Answer]:
        """See ``Backend.carry_out``."""
        if isinstance(questions[0], st.Sweep):
            return [st.Swept(self.sweep(questions[0].owner, questions[0].age) or 0)]
        # Sealing takes as long as the SQL. Nothing else can be written during a transaction.
        sealed = {
            id(question): _sealed(self._keys, question)
            for question in questions
            if isinstance(question, st.Commit)
        }
        with self._transaction() as database:
            return [self._handle(database, each, sealed.get(id(each))) for each in questions]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that may write from its start: one that begins as a reader fails, instead
        of waiting, if another process has written since."""
        database = self._database
        assert database is not None
        if file_identity(self._file) != self._opened_file:
            raise ConnectionLostError
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise

    def _handle(
        self, database: sqlite3.Connection, question: st.Question, sealed: _Sealed | None
    ) -> st.Answer:
        match question:
            case st.Join():
                return self._join(database, question)
            case st.Renew():
                if not self._live(database, question.owner):
                    return st.LeaseEnded()
                database.execute(
                    "UPDATE lease SET until = ?, ttl = ? WHERE replica = ?",
                    (time.monotonic_ns() + question.ttl, question.ttl, question.owner.replica),
                )
                return st.Renewed(self._notices(database, 2 * question.ttl))
            case st.Leave():
                database.execute(
                    "DELETE FROM lease WHERE replica = ? AND incarnation = ?",
                    (question.owner.replica, question.owner.incarnation),
                )
                self._locks.drop(question.owner)
                return st.Done()
            case st.Resume():
                return self._resume(database, question)
            case st.LookUp():
                return self._look_up(database, question)
            case st.Commit():
                assert sealed is not None
                return self._commit(database, question, sealed)
            case st.Release():
                owner = question.owner
                database.executemany(
                    "UPDATE conversation SET replica = NULL, incarnation = NULL "
                    "WHERE id = ? AND epoch = ? AND replica = ? AND incarnation = ?",
                    [
                        (conversation, epoch, owner.replica, owner.incarnation)
                        for conversation, epoch in question.conversations
                    ],
                )
                return st.Done()
            case st.Sweep():
                raise AssertionError("a sweep has transactions of its own")
            case _:
                assert_never(question)

    def _live(self, database: sqlite3.Connection, owner: st.Owner) -> tuple[int, str | None] | None:
        """The ns that are left of the lease of ``owner``, and its URL; None if it has ended."""
        row = database.execute(
            "SELECT until, ttl, advertise FROM lease WHERE replica = ? AND incarnation = ?",
            (owner.replica, owner.incarnation),
        ).fetchone()
        if row is None:
            return None
        until, ttl, advertise = row
        left = until - time.monotonic_ns()
        # More than it was given: it is from before a reboot.
        if not 0 < left <= ttl or not self._locks.held(owner):
            return None
        return left, advertise

    def _join(self, database: sqlite3.Connection, join: st.Join) -> st.Answer:
        owner = join.owner
        row = database.execute(
            "SELECT incarnation FROM lease WHERE replica = ?", (owner.replica,)
        ).fetchone()
        if row is not None and row[0] != owner.incarnation:
            other = st.Owner(owner.replica, row[0])
            live = None if row[0] == join.instead else self._live(database, other)
            if live is not None:
                return st.NameTaken(live[0])
            self._locks.drop(other)
        self._locks.take(owner)
        database.execute(
            "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?)",
            (
                owner.replica,
                owner.incarnation,
                join.advertise,
                time.monotonic_ns() + join.ttl,
                join.ttl,
            ),
        )
        return st.Joined()

    def _resume(self, database: sqlite3.Connection, resume: st.Resume) -> st.Answer:
        me = resume.owner
        if not self._live(database, me):
            return st.LeaseEnded()
        key = self._find(database, names_of(self._keys, resume))
        row = database.execute(
            "SELECT id, conversation.epoch, replica, incarnation FROM response "
            "JOIN conversation ON id = conversation WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return st.NotStored()
        conversation, epoch, replica, incarnation = row
        owner = None if replica is None else st.Owner(replica, incarnation)
        if owner is not None and owner != me:
            live = self._live(database, owner)
            if live is not None:
                left, advertise = live
                return st.OwnedElsewhere(conversation, epoch, owner, advertise, left)
        # Read before it is claimed: who cannot read it must not keep others from it.
        path = self._load(database, key, resume.load)
        if path is None:
            return st.NotStored()
        if owner != me or epoch <= resume.floor:
            epoch = max(epoch, resume.floor) + 1
            database.execute(
                "UPDATE conversation SET epoch = ?, replica = ?, incarnation = ? WHERE id = ?",
                (epoch, me.replica, me.incarnation, conversation),
            )
        self._use(database, key)
        return st.Claimed(conversation, epoch, path)

    def _look_up(self, database: sqlite3.Connection, look_up: st.LookUp) -> st.Answer:
        key = self._find(database, [alias_name(look_up.scope, look_up.response)])
        row = database.execute("SELECT conversation FROM response WHERE key = ?", (key,)).fetchone()
        path = self._load(database, key, look_up.load)
        if row is None or path is None:
            return st.NotStored()
        self._use(database, key)
        return st.Found(row[0], path)

    def _use(self, database: sqlite3.Connection, key: bytes | None) -> None:
        database.execute("UPDATE response SET used = ? WHERE key = ?", (time.time_ns(), key))

    def _find(self, database: sqlite3.Connection, names: Iterable[bytes]) -> bytes | None:
        for name in names:
            row = database.execute("SELECT response FROM name WHERE name = ?", (name,)).fetchone()
            if row is not None:
                return bytes(row[0])
        return None

    def _load(
        self, database: sqlite3.Connection, key: bytes | None, whole: bool
    ) -> tuple[bytes, ...] | None:
        if whole:
            rows = database.execute(_PATH, (key,)).fetchall()
        else:
            rows = database.execute(
                "SELECT key, NULL, payload FROM response WHERE key = ?", (key,)
            ).fetchall()
        return unseal_path(self._keys, rows)

    def _commit(
        self, database: sqlite3.Connection, commit: st.Commit, sealed: _Sealed
    ) -> st.Answer:
        me, conversation = commit.owner, commit.conversation
        wanted = (commit.epoch or 1, me.replica, me.incarnation)
        found = database.execute(
            "SELECT epoch, replica, incarnation FROM conversation WHERE id = ?", (conversation,)
        ).fetchone()
        if found is None and commit.epoch == 0:
            database.execute(
                "INSERT INTO conversation VALUES (?, ?, ?, ?)", (conversation, *wanted)
            )
        elif found != wanted:
            return st.Fenced(0 if found is None else found[0])
        now = time.time_ns()
        for response, payload in zip(commit.responses, sealed.payloads, strict=True):
            database.execute(
                "INSERT INTO response (key, conversation, epoch, parent, used, payload) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                (response.key, conversation, wanted[0], response.parent, now, payload),
            )
        database.executemany(
            "INSERT OR REPLACE INTO name VALUES (?, ?, ?)",
            [(name, named.response, named.context) for name, named in sealed.names.items()],
        )
        for key, notice in sealed.notices:
            self._keep_notice(database, key, notice)
        parents = {response.parent for response in commit.responses}
        parents -= {None, *(response.key for response in commit.responses)}
        missing = any(
            database.execute("SELECT 1 FROM response WHERE key = ?", (parent,)).fetchone() is None
            for parent in parents
        )
        return st.Committed(wanted[0], missing)

    def _notices(self, database: sqlite3.Connection, age: int) -> tuple[bytes, ...]:
        """The notices that are younger than ``age`` ns."""
        now = time.monotonic_ns()
        rows = database.execute(
            "SELECT key, sealed FROM notice WHERE at > ? AND at <= ?", (now - age, now)
        )
        return self._keys.unseal_notices(rows)

    def _keep_notice(self, database: sqlite3.Connection, key: bytes, notice: bytes) -> None:
        now = time.monotonic_ns()
        database.execute("INSERT OR REPLACE INTO notice VALUES (?, ?, ?)", (key, now, notice))
        # Renewals have returned the old ones to each replica. A time in the future is from before a
        # reboot, at which the monotonic clock begins anew.
        database.execute("DELETE FROM notice WHERE at < ? OR at > ?", (now - NOTICES_KEPT, now))

    # ------------------------------------------------------------ sweeping

    def sweep(
        self, owner: st.Owner, age: int, progress: Callable[[int], None] = lambda _: None
    ) -> int | None:
        """See ``Maintenance.sweep``."""
        with self._sweep_batch(owner) as database:
            if database is None:
                return None
        before = time.time_ns() - age
        count, last = 0, (_FIRST, b"")
        progress(count)
        while True:
            with self._sweep_batch(owner) as database:
                if database is None:
                    return count
                rows = database.execute(
                    "SELECT used, key FROM response WHERE (used, key) > (?, ?) AND used < ? "
                    f"ORDER BY used, key LIMIT {SWEEP_BATCH}",
                    (*last, before),
                ).fetchall()
                for last in rows:
                    count += self._delete(database, last[1], before)
            progress(count)
            if not rows:
                break
        after: bytes | None = b""
        while after is not None:
            with self._sweep_batch(owner) as database:
                if database is None:
                    return count
                after = self._delete_unowned(database, after)
        with self._transaction() as database:
            self._delete_leases(database)
            database.execute(
                "DELETE FROM sweeper WHERE replica = ? AND incarnation = ?",
                (owner.replica, owner.incarnation),
            )
        return count

    @contextlib.contextmanager
    def _sweep_batch(self, owner: st.Owner) -> Iterator[sqlite3.Connection | None]:
        """A transaction of a sweep; None if ``owner`` is not the one that sweeps."""
        with self._batch() as database:
            yield database if self._take_sweep(database, owner) else None

    @contextlib.contextmanager
    def _batch(self) -> Iterator[sqlite3.Connection]:
        """One transaction of many."""
        began = time.monotonic()
        with self._transaction() as database:
            yield database
        # Writers that wait for a transaction of SQLite look again at intervals. They find it free
        # only if this thread leaves it free for longer than it takes it.
        time.sleep(2 * (time.monotonic() - began))

    def _take_sweep(self, database: sqlite3.Connection, owner: st.Owner) -> bool:
        now = time.monotonic_ns()
        row = database.execute("SELECT replica, incarnation, until FROM sweeper").fetchone()
        own = row is None or st.Owner(row[0], row[1]) == owner
        if not own and 0 < row[2] - now <= SWEEP_TTL:
            return False
        database.execute(
            "INSERT OR REPLACE INTO sweeper VALUES (1, ?, ?, ?)",
            (owner.replica, owner.incarnation, now + SWEEP_TTL),
        )
        return True

    def _delete(self, database: sqlite3.Connection, key: bytes | None, before: int) -> int:
        """Delete a response that is old and continued by nothing, and then what it continued, as
        far as that is now the same; how many."""
        count = 0
        while key is not None:
            row = database.execute(
                "DELETE FROM response WHERE key = ? AND used < ? "
                "AND NOT EXISTS (SELECT 1 FROM response AS child WHERE child.parent = ?) "
                "RETURNING parent",
                (key, before, key),
            ).fetchone()
            if row is None:
                break
            database.execute("DELETE FROM name WHERE response = ?", (key,))
            count += 1
            key = row[0]
        return count

    def _delete_unowned(self, database: sqlite3.Connection, after: bytes) -> bytes | None:
        """Delete conversations with neither a response nor an owner, of a batch of those after
        ``after``; the last one of the batch, None if it is empty."""
        rows = database.execute(
            "SELECT id, replica, incarnation, EXISTS "
            "(SELECT 1 FROM response WHERE response.conversation = conversation.id) "
            f"FROM conversation WHERE id > ? ORDER BY id LIMIT {SWEEP_BATCH}",
            (after,),
        ).fetchall()
        for conversation, replica, incarnation, kept in rows:
            owner = None if replica is None else st.Owner(replica, incarnation)
            if not kept and (owner is None or self._live(database, owner) is None):
                database.execute("DELETE FROM conversation WHERE id = ?", (conversation,))
        return rows[-1][0] if rows else None

    def _delete_leases(self, database: sqlite3.Connection) -> None:
        """Delete the leases that have ended: a replica without a name of its own gets a new one at
        each start."""
        leases = database.execute("SELECT replica, incarnation FROM lease").fetchall()
        for owner in (st.Owner(*row) for row in leases):
            if self._live(database, owner) is None:
                database.execute("DELETE FROM lease WHERE replica = ?", (owner.replica,))
                self._locks.drop(owner)

    # ------------------------------------------------------------ maintenance

    def open_existing(self) -> None:
        """See ``Maintenance.open_existing``."""
        if not self._file.exists():
            raise StoreError(
                f"{self._file}: there is no such file: correct the path, or let 'bridgecore serve' "
                "create the store"
            )
        self.open()

    def try_writing(self) -> None:
        """See ``Maintenance.try_writing``. Pages are taken and, because deleted content is
        overwritten, also written: so this finds a full disk."""
        name = os.urandom(NAME_SIZE)
        with self._transaction() as database:
            database.execute("INSERT INTO name VALUES (?, x'', ?)", (name, bytes(_TRIAL_SIZE)))
            database.execute("DELETE FROM name WHERE name = ?", (name,))

    def live_leases(self) -> list[LiveLease]:
        """See ``Maintenance.live_leases``."""
        found = []
        rows = self._rows("SELECT replica, incarnation FROM lease ORDER BY replica")
        for owner in (st.Owner(*row) for row in rows):
            try:
                live = self._live(self._opened, owner)
            except OSError as error:
                raise StoreUnavailableError(self.reason(error)) from None
            if live is not None:
                found.append(LiveLease(owner.replica, live[1], live[0]))
        return found

    def count_conversations(self) -> int:
        """See ``Maintenance.count_conversations``."""
        return int(self._rows("SELECT count(*) FROM conversation")[0][0])

    def unused_for(self, besides: bytes = b"") -> int | None:
        """See ``Maintenance.unused_for``."""
        (found,) = self._rows("SELECT max(used) FROM response WHERE key <> ?", besides)
        used = found[0]
        return None if used is None else max(0, time.time_ns() - int(used))

    def responses(self) -> Iterator[list[ResponseRow]]:
        """See ``Maintenance.responses``. In the order of their places in the file, so that each
        page is read once."""
        after = 0
        while rows := self._rows(
            f"SELECT rowid, {_RESPONSE_ROW} FROM response WHERE rowid > ? "
            f"ORDER BY rowid LIMIT {RESPONSES_BATCH}",
            after,
        ):
            after = rows[-1][0]
            yield [ResponseRow(*row[1:]) for row in rows]

    def latest_responses(self, limit: int) -> list[ResponseRow]:
        """See ``Maintenance.latest_responses``."""
        rows = self._rows(
            f"SELECT {_RESPONSE_ROW} FROM response ORDER BY used DESC, key DESC LIMIT ?", limit
        )
        return [ResponseRow(*row) for row in rows]

    def contexts(self) -> Iterator[list[ContextRow]]:
        """See ``Maintenance.contexts``."""
        after = b""
        while rows := self._rows(
            "SELECT name, response, context FROM name "
            f"WHERE name > ? AND context IS NOT NULL ORDER BY name LIMIT {RESPONSES_BATCH}",
            after,
        ):
            after = rows[-1][0]
            yield [ContextRow(*row) for row in rows]

    def payloads(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See ``Maintenance.payloads``."""
        marks = ",".join("?" * len(keys))
        return dict(self._rows(f"SELECT key, payload FROM response WHERE key IN ({marks})", *keys))

    def replace_payloads(self, replaced: Sequence[Replaced]) -> None:
        """See ``Maintenance.replace_payloads``."""
        with self._batch() as database:
            database.executemany(
                f"UPDATE response SET payload = ? WHERE key = ? AND {_HEAD} = ?",
                [(each.payload, each.row.key, each.row.head) for each in replaced],
            )

    def rename_contexts(self, renamed: Sequence[Renamed]) -> None:
        """See ``Maintenance.rename_contexts``."""
        with self._batch() as database:
            for each in renamed:
                gone = database.execute(
                    "DELETE FROM name WHERE name = ? AND response = ?",
                    (each.row.name, each.row.response),
                )
                if gone.rowcount:
                    database.execute(
                        "INSERT INTO name VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING",
                        (each.name, each.row.response, each.sealed),
                    )

    def finish(self) -> None:
        """See ``Maintenance.finish``. The log has the pages as they were before: it is emptied,
        unless another process reads it."""
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    @property
    def _opened(self) -> sqlite3.Connection:
        assert self._database is not None
        return self._database

    def _rows(self, statement: str, *arguments: bytes | int) -> list[Any]:
        return self._opened.execute(statement, arguments).fetchall()


@attrs.frozen
class _Sealed:
    """What a commit stores: the sealed ``payloads`` of its responses, in their order, their
    ``names``, and the sealed notices of those that have one, with their keys."""

    payloads: list[bytes]
    names: dict[bytes, Named]
    notices: list[tuple[bytes, bytes]]


def _sealed(keys: Keys, commit: st.Commit) -> _Sealed:
    payloads = [keys.seal(response.payload, response.key) for response in commit.responses]
    return _Sealed(payloads, named_by(keys, commit.responses), notices_of(keys, commit.responses))


_HEAD = f"substr(payload, 1, {HEAD_SIZE})"
_RESPONSE_ROW = f"key, {_HEAD}, length(payload), used"


def _error_code(error: sqlite3.Error) -> int:
    """The primary result code of an error of SQLite; 0 if it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


_REMOVED: Final = (
    "the file of the store was removed or moved: put it back, or restart a process, which makes an "
    "empty one"
)
_REPLACED: Final = "the file of the store was removed or replaced: try again"
_REASONS: Final = {
    sqlite3.SQLITE_BUSY: "the database is locked by another process: try again",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened: check the owner of file and folder",
    sqlite3.SQLITE_CORRUPT: "the database is damaged: restore it from a backup",
    sqlite3.SQLITE_FULL: "disk full: make room for the file of the store",
    sqlite3.SQLITE_IOERR: "I/O error of the disk",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database",
    sqlite3.SQLITE_READONLY: "the database is read-only: make file and folder writable",
}


def _file_system(folder: Path) -> str:
    """The type of the file system that ``folder`` is on; empty if the host does not tell."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    resolved = folder.resolve()
    best, kind = -1, ""
    for line in lines:
        fields = line.split(" ")
        # Spaces in a path are written as an octal escape there.
        mount = Path(fields[1].replace("\\040", " "))
        if len(mount.parts) >= best and resolved.is_relative_to(mount):
            best, kind = len(mount.parts), fields[2]
    return kind
