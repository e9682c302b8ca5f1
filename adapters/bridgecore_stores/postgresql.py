"""A store in PostgreSQL.

What belongs here: a connection with a limit on every wait, and each question as a call of a
function (``migrations/``), a look-up as the query itself. Each question is one statement, and so
one round trip and one transaction; several commits are sent together and are one transaction, too.

psycopg's own cursors wait without a limit for a server that no longer answers. So this uses its
layer below, ``psycopg.pq``, and waits by itself: a connection whose answer is late is thrown away.
The server gives up by ``statement_timeout`` at about the same time.

Nothing is kept in a session, neither settings nor prepared statements nor locks, because PgBouncer
in transaction mode gives each transaction another one.
"""

from __future__ import annotations

import importlib.resources
import re
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from types import NoneType
from typing import Any, Final, TypeAlias, assert_never

import attrs
import psycopg
from psycopg import conninfo, pq

from bridgecore.ownership import store as st
from bridgecore_stores.backend import (
    NOTICES_KEPT,
    ConnectionLostError,
    Connector,
    StoreError,
    StoreUnavailableError,
)
from bridgecore_stores.maintenance import ContextRow, LiveLease, Renamed, Replaced, ResponseRow
from bridgecore_stores.sealing import (
    HEAD_SIZE,
    Keys,
    alias_name,
    named_by,
    names_of,
    notices_of,
    unseal_path,
)

SWEEP_BATCH: Final = 200
"""Responses that one transaction of a sweep looks at. Measured: 20 ms if all are deleted, on a
server of the same host."""

RESPONSES_BATCH: Final = 1000
"""Rows of which one statement of a maintenance command reads all but the payload."""

# Sent at the same time, so they wait for the network together.
_WORKERS = 4
_OLDEST_LIBPQ = 140_000  # the first one with pipelines
# Of the advisory lock of migrations, in a transaction: any number that no other program uses.
_MIGRATION_LOCK = 0x62726964
_DEADLOCK = "40P01"
# Insufficient privilege; no schema of the search path exists or may be used.
_NOT_ALLOWED = "42501"
_MAY_NOT_CREATE = (_NOT_ALLOWED, "3F000")

_Row: TypeAlias = list[bytes | None]
_Value: TypeAlias = bytes | str | int | list[bytes | None] | list[bytes] | None


def connector(url: str, keys: Keys, timeout: int) -> Connector[Postgresql]:
    """Makes the connections of one store to the database of ``postgresql://...``.

    Raises:
        StoreError: the URL is wrong, or the client library too old.
    """
    if pq.version() < _OLDEST_LIBPQ:
        raise StoreError("the store needs libpq 14 or newer: pip install 'psycopg[binary]'")
    seconds = timeout / 1e9
    defaults: dict[str, str | int] = {
        "application_name": "bridgecore",
        "connect_timeout": max(1, round(seconds)),
        # A server that is gone is noticed also while nothing is sent.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": timeout // 1_000_000,
    }
    try:
        given = conninfo.conninfo_to_dict(url)
        text = conninfo.make_conninfo(url, **{k: v for k, v in defaults.items() if k not in given})
    except psycopg.Error:
        # Its message would have the URL in it, and with it the password.
        raise StoreError("the URL of the PostgreSQL store is not valid") from None
    return Connector(lambda: Postgresql(text, keys, timeout), _WORKERS)


class ServerError(Exception):
    """The server refused a statement. ``state``: its SQLSTATE (PostgreSQL, appendix A)."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


class Postgresql:
    """One connection to the database."""

    errors = (ServerError, ConnectionLostError, TimeoutError)

    def __init__(self, dsn: str, keys: Keys, timeout: int) -> None:
        self._dsn = dsn
        self._keys = keys
        self._timeout = timeout
        self._connection: pq.abc.PGconn | None = None
        self._poll = select.poll()
        self._until = 0.0  # when a wait has to end, by time.monotonic()

    # ------------------------------------------------------------ opening

    def open(self, *, first: bool = False) -> None:
        """See ``Backend.open``."""
        self._until = time.monotonic() + self._timeout / 1e9
        self._connect()
        if first:
            try:
                self._migrate()
            except ServerError as error:
                if error.state != _NOT_ALLOWED:
                    raise
                raise StoreError(f"PostgreSQL: {self.reason(error)}") from error
        else:
            self._check_version(self._version())

    def _connect(self) -> None:
        options = conninfo.conninfo_to_dict(self._dsn).get("options") or ""
        limit = f"-c statement_timeout={max(1, self._timeout // 1_000_000)}"
        message = self._try_to_connect(
            conninfo.make_conninfo(self._dsn, options=f"{options} {limit}".strip())
        )
        if message is not None and "startup parameter" in message:
            # PgBouncer does not know `options`. The limit of this side is left.
            message = self._try_to_connect(self._dsn)
        if message is not None:
            raise _why_not(message, self._dsn)

    def _try_to_connect(self, dsn: str) -> str | None:
        """What is wrong, None if nothing is."""
        self.close()
        self._connection = connection = pq.PGconn.connect_start(dsn.encode())
        while True:
            if connection.status == pq.ConnStatus.BAD:
                return connection.get_error_message()
            match connection.connect_poll():
                case pq.PollingStatus.OK:
                    break
                case pq.PollingStatus.READING:
                    self._wait(select.POLLIN)
                case pq.PollingStatus.WRITING:
                    self._wait(select.POLLOUT)
                case _:
                    return connection.get_error_message()
        connection.nonblocking = 1
        connection.enter_pipeline_mode()
        return None

    def _migrate(self) -> None:
        scripts = [
            file.read_text(encoding="utf-8")
            for file in sorted(
                importlib.resources.files("bridgecore_stores").joinpath("migrations").iterdir(),
                key=lambda file: file.name,
            )
            if re.fullmatch(r"\d{4}_postgresql\.sql", file.name)
        ]
        assert len(scripts) == VERSION
        connection = self._connection
        assert connection is not None
        # Scripts of several statements need the simple protocol, which a pipeline does not have.
        connection.exit_pipeline_mode()
        try:
            # Only one at a time. The lock is that of the transaction, and ends with it.
            self._simple(f"BEGIN; SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            if self._simple("SELECT to_regclass('bridgecore_meta')") == [[None]]:
                self._create_meta()
            version = int((self._simple("SELECT max(version) FROM bridgecore_meta")[0][0]) or 0)
            if version:
                self._check_version(version, oldest=1)
            for script in scripts[version:]:
                self._simple(script)
            # Also if nothing is new: the write shows whether the database can be written.
            self._simple(
                f"DELETE FROM bridgecore_meta; INSERT INTO bridgecore_meta VALUES ({VERSION})"
            )
            self._simple("COMMIT")
        finally:
            if connection.transaction_status == pq.TransactionStatus.IDLE:
                connection.enter_pipeline_mode()

    def _create_meta(self) -> None:
        try:
            self._simple("CREATE TABLE bridgecore_meta (version int NOT NULL)")
        except ServerError as error:
            if error.state in _MAY_NOT_CREATE:
                raise _may_not_create(self._dsn) from error
            raise

    def _version(self) -> int:
        rows = self._ask("SELECT to_regclass('bridgecore_meta')::text")
        if rows[0][0] is None:
            return 0
        return _number(self._ask("SELECT max(version)::bigint FROM bridgecore_meta")[0][0])

    def _check_version(self, version: int, oldest: int | None = None) -> None:
        if not (VERSION if oldest is None else oldest) <= version <= VERSION:
            raise StoreError(
                f"the tables in PostgreSQL have version {version}, this program uses version "
                f"{VERSION}: all replicas need the same version of bridgecore"
            )

    def close(self) -> None:
        """See ``Backend.close``."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.finish()
            self._poll = select.poll()  # the next descriptor may have the same number

    def reason(self, error: Exception) -> str:
        """See ``Backend.reason``."""
        if isinstance(error, StoreError):
            return str(error)
        if isinstance(error, ServerError):
            return _REASONS.get(error.state) or f"PostgreSQL error {error.state}"
        if isinstance(error, TimeoutError):
            return "PostgreSQL did not answer in time"
        if isinstance(error, ConnectionLostError | psycopg.OperationalError):
            return "the connection to PostgreSQL was lost"
        return type(error).__name__

    # ------------------------------------------------------------ questions

    def carry_out(self, questions: Sequence[st.Question]) -> list[st.Answer]:
        """See ``Backend.carry_out``."""
        self._until = time.monotonic() + self._timeout / 1e9
        # In one order in all replicas, or groups could wait for each other. Those of one
        # conversation keep their order.
        order = sorted(range(len(questions)), key=lambda n: _conversation_of(questions[n]))
        calls = [self._call(questions[n]) for n in order]
        try:
            results = self._send(calls)
        except ServerError as error:
            if error.state != _DEADLOCK:
                raise
            results = self._send(calls)  # nothing of it was carried out, and the other one has been
        answers: dict[int, st.Answer] = {}
        for n, rows in zip(order, results, strict=True):
            answers[n] = self._answer(questions[n], rows)
        return [answers[n] for n in range(len(questions))]

    def _call(self, question: st.Question) -> tuple[str, list[_Value]]:
        """The function of a question, and its arguments."""
        owner: list[_Value] = [question.owner.replica, question.owner.incarnation]
        match question:
            case st.Join():
                join: list[_Value] = [*owner, question.advertise, _microseconds(question.ttl)]
                if question.instead is None:
                    return _JOIN, join
                return _JOIN_INSTEAD, [*join, question.instead]
            case st.Renew():
                return _RENEW, [*owner, _microseconds(question.ttl)]
            case st.Leave():
                return _LEAVE, owner
            case st.Resume():
                names = names_of(self._keys, question)
                return _RESUME, [*owner, names, question.floor, question.load]
            case st.LookUp():
                return _LOOK_UP, [alias_name(question.scope, question.response), question.load]
            case st.Commit():
                responses = question.responses
                # In one order in all replicas, as above.
                named = sorted(named_by(self._keys, responses).items(), key=lambda item: item[0])
                arguments = [
                    *owner,
                    question.conversation,
                    question.epoch,
                    [each.key for each in responses],
                    [each.parent for each in responses],
                    [self._keys.seal(each.payload, each.key) for each in responses],
                    [name for name, _ in named],
                    [each.response for _, each in named],
                    [each.context for _, each in named],
                ]
                notices = notices_of(self._keys, responses)
                if not notices:
                    return _COMMIT, arguments
                noticed: list[bytes] = [key for key, _ in notices]
                sealed: list[bytes] = [each for _, each in notices]
                kept = _microseconds(NOTICES_KEPT)
                return _COMMIT_WITH_NOTICES, [*arguments, noticed, sealed, kept]
            case st.Release():
                conversations = sorted(question.conversations)
                return _RELEASE, [
                    *owner,
                    [conversation for conversation, _ in conversations],
                    "{" + ",".join(str(epoch) for _, epoch in conversations) + "}",
                ]
            case st.Sweep():
                return _TAKE_SWEEP, owner
            case _:
                assert_never(question)

    def _answer(self, question: st.Question, rows: list[_Row]) -> st.Answer:
        match question:
            case st.Join():
                remaining = _number(rows[0][0])
                return st.NameTaken(remaining) if remaining else st.Joined()
            case st.Renew():
                if not rows:
                    return st.LeaseEnded()
                notices = [(row[0] or b"", row[1] or b"") for row in rows[1:]]
                return st.Renewed(self._keys.unseal_notices(notices))
            case st.Leave() | st.Release():
                return st.Done()
            case st.Resume():
                return self._resumed(question, rows)
            case st.LookUp():
                path = unseal_path(
                    self._keys, [(row[1] or b"", row[2], row[3] or b"") for row in rows]
                )
                return st.NotStored() if path is None else st.Found(rows[0][0] or b"", path)
            case st.Commit():
                epoch = _number(rows[0][0])
                if epoch <= 0:
                    return st.Fenced(-1 - epoch)
                return st.Committed(epoch, missing=rows[0][1] == _TRUE)
            case st.Sweep():
                if rows[0][0] != _TRUE:
                    return st.Swept(0)
                return st.Swept(self._sweep(question.owner, question.age, lambda _: None))
            case _:
                assert_never(question)

    def _resumed(self, resume: st.Resume, rows: list[_Row]) -> st.Answer:
        outcome, conversation, epoch, replica, incarnation, advertise, remaining, taken = rows[0][
            :8
        ]
        if outcome == b"ended":
            return st.LeaseEnded()
        if outcome == b"missing" or conversation is None:
            return st.NotStored()
        if outcome == b"elsewhere":
            return st.OwnedElsewhere(
                conversation,
                _number(epoch),
                st.Owner((replica or b"").decode(), (incarnation or b"").decode()),
                None if advertise is None else advertise.decode(),
                _number(remaining),
            )
        path = unseal_path(
            self._keys,
            [(row[8] or b"", row[9] if resume.load else None, row[10] or b"") for row in rows],
        )
        if path is None:
            if taken == _TRUE:  # who cannot read it must not keep others from it
                self._send(
                    [self._call(st.Release(resume.owner, ((conversation, _number(epoch)),)))]
                )
            return st.NotStored()
        return st.Claimed(conversation, _number(epoch), path)

    def _sweep(self, sweeper: st.Owner, age: int, progress: Callable[[int], None]) -> int:
        owner: list[_Value] = [sweeper.replica, sweeper.incarnation]
        before = self._ask(_BEFORE, _microseconds(age))[0][0]
        count = 0
        progress(count)
        last: _Row = [_BEGINNING, b""]
        while rows := self._batch(_SWEEP, [before, last[0], last[1], SWEEP_BATCH]):
            last = rows[0][:2]
            count += _number(rows[0][2])
            progress(count)
            if self._batch(_TAKE_SWEEP, owner)[0][0] != _TRUE:
                return count  # this one took so long that another has begun
        conversation: bytes | None = b""
        while conversation is not None:
            conversation = self._batch(_FORGET, [conversation, SWEEP_BATCH])[0][0]
        self._batch(_END_SWEEP, owner)
        return count

    def _batch(self, statement: str, arguments: Sequence[_Value] = ()) -> list[_Row]:
        """A transaction of many. The limit on waits is that of each, not that of all."""
        return self._transaction([(statement, [*arguments])])[0]

    def _transaction(self, calls: Sequence[tuple[str, list[_Value]]]) -> list[list[_Row]]:
        self._until = time.monotonic() + self._timeout / 1e9
        try:
            return self._send(calls)
        except ServerError as error:
            if error.state != _DEADLOCK:
                raise
            return self._send(calls)  # nothing of it was carried out, and the other one has been

    # ------------------------------------------------------------ maintenance

    def open_existing(self) -> None:
        """See ``Maintenance.open_existing``."""
        self._until = time.monotonic() + self._timeout / 1e9
        self._connect()
        version = self._version()
        if version == 0:
            raise StoreError(
                "PostgreSQL: there is no store in this database: correct the URL, or let "
                "'bridgecore serve' create it"
            )
        self._check_version(version)

    def try_writing(self) -> None:
        """See ``Maintenance.try_writing``."""
        self._batch("UPDATE bridgecore_meta SET version = version")

    def live_leases(self) -> list[LiveLease]:
        """See ``Maintenance.live_leases``."""
        return [
            LiveLease(
                (replica or b"").decode(),
                None if advertise is None else advertise.decode(),
                _number(remaining),
            )
            for replica, advertise, remaining in self._batch(_LEASES)
        ]

    def count_conversations(self) -> int:
        """See ``Maintenance.count_conversations``."""
        return _number(self._batch("SELECT count(*) FROM bridgecore_conversation")[0][0])

    def unused_for(self, besides: bytes = b"") -> int | None:
        """See ``Maintenance.unused_for``."""
        found = self._batch(_UNUSED_FOR, [besides])[0][0]
        return None if found is None else max(0, _number(found) * 1000)

    def responses(self) -> Iterator[list[ResponseRow]]:
        """See ``Maintenance.responses``."""
        after: bytes | None = b""
        while rows := self._batch(_RESPONSES, [after, RESPONSES_BATCH]):
            after = rows[-1][0]
            yield [_response_row(row) for row in rows]

    def latest_responses(self, limit: int) -> list[ResponseRow]:
        """See ``Maintenance.latest_responses``."""
        return [_response_row(row) for row in self._batch(_LATEST, [limit])]

    def contexts(self) -> Iterator[list[ContextRow]]:
        """See ``Maintenance.contexts``."""
        after: bytes | None = b""
        while rows := self._batch(_CONTEXTS, [after, RESPONSES_BATCH]):
            after = rows[-1][0]
            yield [
                ContextRow(name or b"", response or b"", sealed or b"")
                for name, response, sealed in rows
            ]

    def payloads(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See ``Maintenance.payloads``."""
        return {key or b"": sealed or b"" for key, sealed in self._batch(_PAYLOADS, [[*keys]])}

    def replace_payloads(self, replaced: Sequence[Replaced]) -> None:
        """See ``Maintenance.replace_payloads``."""
        self._batch(
            _REPLACE,
            [
                [each.row.key for each in replaced],
                [each.row.head for each in replaced],
                [each.payload for each in replaced],
            ],
        )

    def rename_contexts(self, renamed: Sequence[Renamed]) -> None:
        """See ``Maintenance.rename_contexts``. The responses are locked first, by a statement of
        its own: a sweep then deletes them with their new names, or has deleted both before."""
        rows = [each.row for each in renamed]
        responses: list[bytes] = [row.response for row in rows]
        self._transaction(
            [
                (_LOCK, [responses]),
                (
                    _RENAME,
                    [
                        [row.name for row in rows],
                        responses,
                        [each.name for each in renamed],
                        [each.sealed for each in renamed],
                    ],
                ),
            ]
        )

    def sweep(self, owner: st.Owner, age: int, progress: Callable[[int], None]) -> int | None:
        """See ``Maintenance.sweep``."""
        if self._batch(_TAKE_SWEEP, [owner.replica, owner.incarnation])[0][0] != _TRUE:
            return None
        return self._sweep(owner, age, progress)

    def finish(self) -> None:
        """See ``Maintenance.finish``. The server reuses the space by itself (autovacuum)."""

    # ------------------------------------------------------------ the wire

    def _ask(self, statement: str, *arguments: _Value) -> list[_Row]:
        return self._send([(statement, [*arguments])])[0]

    def _send(self, calls: Sequence[tuple[str, list[_Value]]]) -> list[list[_Row]]:
        """Carry out statements in one transaction, that of their pipeline; the rows of each.

        Raises:
            ServerError: one was refused, and so none was carried out.
            ConnectionLostError: the connection has ended.
            TimeoutError: there was no answer in time.
        """
        try:
            return self._in_pipeline(calls)
        except psycopg.OperationalError:  # of the library, not of the server
            raise ConnectionLostError from None

    def _in_pipeline(self, calls: Sequence[tuple[str, list[_Value]]]) -> list[list[_Row]]:
        connection = self._connection
        assert connection is not None
        for statement, arguments in calls:
            encoded = [_ENCODERS[type(argument)](argument) for argument in arguments]
            connection.send_query_params(
                statement.encode(),
                [value for _, value in encoded],
                param_formats=[form for form, _ in encoded],
                result_format=pq.Format.BINARY,
            )
        connection.pipeline_sync()
        self._flush(connection)
        results: list[list[_Row]] = []
        state: str | None = None
        while True:
            result = self._result(connection)
            if result is None:
                continue  # the end of the results of one statement
            match result.status:
                case pq.ExecStatus.PIPELINE_SYNC:
                    break
                case pq.ExecStatus.TUPLES_OK | pq.ExecStatus.COMMAND_OK:
                    results.append(_rows(result))
                case pq.ExecStatus.PIPELINE_ABORTED:
                    pass  # for the error of an earlier one
                case _:
                    state = state or _state(connection, result)
        if state is not None:
            raise ServerError(state)
        return results

    def _simple(self, statements: str) -> list[_Row]:
        """Carry out statements by the simple protocol; the rows of the last one, as text."""
        connection = self._connection
        assert connection is not None
        connection.send_query(statements.encode())
        self._flush(connection)
        rows: list[_Row] = []
        while (result := self._result(connection)) is not None:
            if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
                raise ServerError(_state(connection, result))
            rows = _rows(result)
        return rows

    def _flush(self, connection: pq.abc.PGconn) -> None:
        while connection.flush():
            # Also what comes is read, or both sides could wait for each other to read.
            if self._wait(select.POLLIN | select.POLLOUT) & ~select.POLLOUT:
                connection.consume_input()

    def _result(self, connection: pq.abc.PGconn) -> pq.abc.PGresult | None:
        while connection.is_busy():
            self._wait(select.POLLIN)
            connection.consume_input()
        return connection.get_result()

    def _wait(self, events: int) -> int:
        """Wait for the socket; which of the events have come.

        Raises:
            TimeoutError: there was none in time.
        """
        connection = self._connection
        assert connection is not None
        self._poll.register(connection.socket, events)
        left = max(0.0, self._until - time.monotonic())
        came = self._poll.poll(left * 1000)
        if not came:
            raise TimeoutError
        return came[0][1]


# ------------------------------------------------------------ statements

VERSION: Final = 5
"""The version of the tables: how many scripts there are in ``migrations/``."""

_JOIN = "SELECT bridgecore_join_1($1, $2, $3, $4::bigint)"
# CASE evaluates them in this order. No function, for the same reason as with ``_LOOK_UP``.
_JOIN_INSTEAD = (
    "SELECT CASE WHEN bridgecore_leave_1($1, $5) IS NOT NULL "
    "THEN bridgecore_join_1($1, $2, $3, $4::bigint) END"
)
_RENEW = "SELECT * FROM bridgecore_renew_4($1, $2, $3::bigint)"
_LEAVE = "SELECT bridgecore_leave_1($1, $2)"
_RESUME = "SELECT * FROM bridgecore_resume_1($1, $2, $3::bytea[], $4::bigint, $5::boolean)"
# No function, because a new one needs a migration, and with it all replicas at the same time. The
# update locks the response: from then on a sweep deletes
# neither it nor what it continues.
_LOOK_UP = (
    "WITH RECURSIVE found AS (UPDATE bridgecore_response SET used = clock_timestamp() "
    "WHERE key = (SELECT response FROM bridgecore_name WHERE name = $1::bytea) "
    "RETURNING conversation, key, CASE WHEN $2::boolean THEN parent END AS parent, payload), "
    "path AS (SELECT conversation, key, parent, payload, 0 AS depth FROM found UNION ALL "
    "SELECT path.conversation, r.key, r.parent, r.payload, path.depth + 1 "
    "FROM path JOIN bridgecore_response r ON r.key = path.parent) "
    "SELECT conversation, key, parent, payload FROM path ORDER BY depth DESC"
)
_COMMIT = (
    "SELECT * FROM bridgecore_commit_3($1, $2, $3::bytea, $4::bigint, "
    "$5::bytea[], $6::bytea[], $7::bytea[], $8::bytea[], $9::bytea[], $10::bytea[])"
)
_COMMIT_WITH_NOTICES = (
    "SELECT * FROM bridgecore_commit_5($1, $2, $3::bytea, $4::bigint, $5::bytea[], $6::bytea[], "
    "$7::bytea[], $8::bytea[], $9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[], "
    "$13::bigint)"
)
_RELEASE = "SELECT bridgecore_release_1($1, $2, $3::bytea[], $4::bigint[])"
_TAKE_SWEEP = "SELECT bridgecore_take_sweep_1($1, $2)"
_SWEEP = "SELECT * FROM bridgecore_sweep_1($1::timestamptz, $2::timestamptz, $3::bytea, $4::int)"
_FORGET = "SELECT bridgecore_forget_1($1::bytea, $2::int)"
_END_SWEEP = "SELECT bridgecore_end_sweep_1($1, $2)"
_BEFORE = "SELECT clock_timestamp() - $1::bigint * interval '1 microsecond'"

_LEASES = (
    "SELECT replica, advertise, bridgecore_left_1(until) FROM bridgecore_lease "
    "WHERE until > clock_timestamp() ORDER BY replica"
)
_UNUSED_FOR = (
    "SELECT (extract(epoch FROM clock_timestamp() - max(used)) * 1000000)::bigint "
    "FROM bridgecore_response WHERE key <> $1::bytea"
)
_HEAD = f"substring(payload FROM 1 FOR {HEAD_SIZE})"
_RESPONSE_ROW = (
    f"SELECT key, {_HEAD}, octet_length(payload), (extract(epoch FROM used) * 1000000)::bigint "
    "FROM bridgecore_response"
)
_RESPONSES = f"{_RESPONSE_ROW} WHERE key > $1::bytea ORDER BY key LIMIT $2::int"
_LATEST = f"{_RESPONSE_ROW} ORDER BY used DESC, key DESC LIMIT $1::int"
_CONTEXTS = (
    "SELECT name, response, context FROM bridgecore_name "
    "WHERE name > $1::bytea AND context IS NOT NULL ORDER BY name LIMIT $2::int"
)
_PAYLOADS = "SELECT key, payload FROM bridgecore_response WHERE key = ANY ($1::bytea[])"
_REPLACE = (
    "UPDATE bridgecore_response r SET payload = given.payload "
    "FROM unnest($1::bytea[], $2::bytea[], $3::bytea[]) AS given (key, head, payload) "
    f"WHERE r.key = given.key AND substring(r.payload FROM 1 FOR {HEAD_SIZE}) = given.head"
)
_LOCK = "SELECT 1 FROM bridgecore_response WHERE key = ANY ($1::bytea[]) ORDER BY key FOR KEY SHARE"
_RENAME = (
    "WITH gone AS (DELETE FROM bridgecore_name n "
    "USING unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bytea[]) "
    "AS given (old, response, new, context) "
    "WHERE n.name = given.old AND n.response = given.response "
    "RETURNING given.new, given.response, given.context) "
    "INSERT INTO bridgecore_name SELECT * FROM gone ORDER BY 1 ON CONFLICT (name) DO NOTHING"
)

_TRUE = b"\x01"
_BEGINNING = struct.pack(">q", -(2**63))  # '-infinity', as the server sends it

_REASONS: Final = {
    "08P01": "protocol error",
    "25006": "the database is read-only: name the primary in the URL",
    "28P01": "wrong password",
    "28000": "the server refuses this user",
    "3D000": "there is no such database",
    "42501": "the user may not use the tables of the store: make it a member of the role that owns "
    "them (GRANT owner TO user)",
    "53100": "disk full: make room for the database",
    "53200": "the server is out of memory",
    "53300": "the server has too many connections",
    "57014": "PostgreSQL did not answer in time",
    "57P01": "the server is shutting down",
    "57P03": "the server is starting",
}

_OID_BYTEA = 17
_NULL = b"\xff\xff\xff\xff"  # the length -1


def _microseconds(ns: int) -> int:
    """What an interval of the server counts; at least one, because no lease is without an end."""
    return max(0, ns // 1000)


def _conversation_of(question: st.Question) -> bytes:
    return question.conversation if isinstance(question, st.Commit) else b""


def _array(values: Sequence[bytes | None]) -> bytes:
    """An array of bytea in binary format (array_send in the source of the server): the number of
    dimensions, whether there are nulls, the type; its size and first index; then each element after
    its length."""
    if not values:
        return struct.pack(">iiI", 0, 0, _OID_BYTEA)
    parts = [struct.pack(">iiIii", 1, int(None in values), _OID_BYTEA, len(values), 1)]
    for each in values:
        parts.append(_NULL if each is None else len(each).to_bytes(4, "big"))
        parts.append(each or b"")
    return b"".join(parts)


# An argument as the server takes it, by its class: numbers and texts as text, others in the binary
# format of their type.
_ENCODERS: Final[dict[type, Callable[[Any], tuple[pq.Format, bytes | None]]]] = {
    NoneType: lambda value: (pq.Format.BINARY, value),
    bytes: lambda value: (pq.Format.BINARY, value),
    bool: lambda value: (pq.Format.TEXT, b"true" if value else b"false"),
    int: lambda value: (pq.Format.TEXT, b"%d" % value),
    str: lambda value: (pq.Format.TEXT, value.encode()),
    list: lambda values: (pq.Format.BINARY, _array(values)),
}


def _number(value: bytes | None) -> int:
    assert value is not None
    return int.from_bytes(value, "big", signed=True)


def _response_row(row: _Row) -> ResponseRow:
    key, head, size, used = row
    return ResponseRow(key or b"", head or b"", _number(size), _number(used) * 1000)


def _rows(result: pq.abc.PGresult) -> list[_Row]:
    columns = range(result.nfields)
    return [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)]


def _state(connection: pq.abc.PGconn, result: pq.abc.PGresult) -> str:
    """The SQLSTATE of an error.

    Raises:
        ConnectionLostError: the error is the end of the connection.
    """
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    # The server says why it ends a connection, and then it ends.
    if not state or state in ("57P01", "57P02") or connection.status == pq.ConnStatus.BAD:
        raise ConnectionLostError
    return state


@attrs.frozen
class _Cause:
    """Why a connection was refused. ``said``: what the message of the server or of libpq has then.
    ``text``: what is wrong and what to do, with the names in the URL. ``lasting``: it stays so
    until somebody changes something."""

    said: str
    text: str
    lasting: bool = True


# By what is said in English, because libpq has no code for the reason. The first one counts: a
# later one may say the same in passing. Host names are in the message, too, so it is phrases.
_CAUSES: Final = (
    _Cause(
        "no pg_hba.conf entry for .*no encryption|pg_hba.conf rejects .*no encryption",
        "the server refuses {user} at {database} without TLS, or at all: add sslmode=require to "
        "the URL, or an entry for this host to its pg_hba.conf",
    ),
    _Cause(
        "no pg_hba.conf entry for |pg_hba.conf rejects ",
        "the server refuses {user} at {database} from this host: add an entry to its pg_hba.conf, "
        "and reload it",
    ),
    _Cause(
        "server does not support SSL, but SSL was required",
        "the server has no TLS, which the URL requires: set ssl = on at the server, or correct "
        "sslmode in the URL",
    ),
    _Cause(
        "password authentication failed",
        "wrong user or password: check {user} and its password in the URL; the server does not say "
        "which of the two it is",
    ),
    _Cause("no password supplied", "the server asks for a password: add that of {user} to the URL"),
    _Cause(
        "FATAL: +role .* does not exist",
        "there is no {user}: create it with CREATE ROLE ... LOGIN, or correct the URL",
    ),
    _Cause("is not permitted to log in", "{user} may not log in: ALTER ROLE ... LOGIN allows it"),
    _Cause(
        "FATAL: +database .* does not exist",
        "there is no such database as {database}: create it, or correct the URL",
    ),
    _Cause(
        "permission denied for database",
        "{user} may not connect to {database}: GRANT CONNECT ON DATABASE allows it",
    ),
    _Cause(
        "authentication failed|authentication method",
        "the server does not accept how {user} authenticates: check the entry in its pg_hba.conf",
    ),
    _Cause(
        "too many connections|too many clients|remaining connection slots",
        "the server has too many connections: try again",
        lasting=False,
    ),
    _Cause(
        "is starting up|is shutting down|not yet accepting connections",
        "the server is starting or shutting down",
        lasting=False,
    ),
    _Cause(
        "certificate (verify failed|for |file )|private key|SSL error|SSL SYSCALL",
        "TLS failed: look at sslmode and sslrootcert",
    ),
)


def _why_not(message: str, dsn: str) -> StoreError:
    """Why there is no connection, in short. The message itself is not shown: it has addresses."""
    given = conninfo.conninfo_to_dict(dsn)
    user, database = given.get("user"), given.get("dbname")
    names = {
        "user": "this user" if user is None else f"user {str(user)!r}",
        "database": "the database of that name" if database is None else repr(str(database)),
    }
    for cause in _CAUSES:
        if re.search(cause.said, message):
            kind = StoreError if cause.lasting else StoreUnavailableError
            return kind("PostgreSQL: " + cause.text.format(**names))
    return StoreUnavailableError(
        "PostgreSQL cannot be reached: check that it runs, and host and port in the URL"
    )


def _may_not_create(dsn: str) -> StoreError:
    """The user may not create the tables."""
    user = conninfo.conninfo_to_dict(dsn).get("user")
    name = "this user" if user is None else f"user {str(user)!r}"
    return StoreError(
        f"PostgreSQL: {name} may not create the tables of the store: as the owner of the database, "
        "GRANT USAGE, CREATE ON SCHEMA public (or the first one of its search_path) to it"
    )
