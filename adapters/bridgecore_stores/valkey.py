"""A store in Valkey, or in Redis 6 or newer.

What belongs here: a connection, and each question as a script (``lua/``), which the server carries
out as a whole and alone.

*Durability* is that of the server: with ``appendonly yes`` a restart loses at most a second, and
without it what was written since the last dump. A failover can lose what was not replicated yet,
epochs included: that is what ``Resume.floor`` is for. A server that evicts keys when its memory is
full would lose leases, so that two replicas could own a conversation: it is refused.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, assert_never

import valkey
from valkey import exceptions

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

PREFIX: Final = "{bridgecore}"
"""What all keys begin with. The braces keep them in one slot of a cluster."""

VERSION: Final = 1
"""The version of the keys, which is in the key ``{bridgecore}:version``."""

SWEEP_BATCH: Final = 100
"""Responses that one script of a sweep looks at. The server does nothing else meanwhile."""

RESPONSES_BATCH: Final = 500
"""Rows of which one script of a maintenance command reads all but the payload; about that many."""

SWEEP_TTL: Final = 60_000
"""ms after which another replica may sweep although the last one has not said that it is done."""

_WORKERS = 4  # they wait for the network together
_MS = 1_000_000  # ns

_Arguments: TypeAlias = "list[str | bytes | int]"


def connector(url: str, keys: Keys, timeout: int) -> Connector[Valkey]:
    """Makes the connections of one store to the server of ``valkey://...``.

    Raises:
        StoreError: the URL is wrong.
    """
    try:
        pool = valkey.ConnectionPool.from_url(  # type: ignore[no-untyped-call]  # it has no types
            url,
            socket_timeout=timeout / 1e9,
            socket_connect_timeout=timeout / 1e9,
            socket_keepalive=True,
            lib_name=None,  # it would cost two round trips
            lib_version=None,
        )
        pool.make_connection()
    except Exception:
        # The message could have the URL in it, and with it the password.
        raise StoreError("the URL of the Valkey store is not valid") from None
    return Connector(lambda: Valkey(pool, keys), _WORKERS)


class Valkey:
    """One connection to the server."""

    errors = (exceptions.ValkeyError, ConnectionLostError)

    def __init__(self, pool: valkey.ConnectionPool, keys: Keys) -> None:
        self._pool = pool
        self._keys = keys
        self._connection: Any = None  # a Connection of the library, whose methods have no types

    def open(self, *, first: bool = False) -> None:
        """See ``Backend.open``."""
        self._connection = self._pool.make_connection()
        try:
            self._connection.connect()
        except exceptions.AuthenticationError:
            raise StoreError("Valkey: wrong user or password") from None
        except exceptions.TimeoutError:
            raise StoreUnavailableError("Valkey did not answer in time") from None
        except exceptions.ConnectionError:
            raise StoreUnavailableError(
                "Valkey cannot be reached: check that it runs, and host and port in the URL"
            ) from None
        except exceptions.ResponseError as error:
            if "DB index" in str(error):
                raise StoreError(
                    "Valkey: the server has no database with the number that the URL names"
                ) from None
            raise StoreUnavailableError(f"Valkey: {_word(error)}") from None
        version = f"{PREFIX}:version"
        memory, found, *_ = self._send(
            [
                ("INFO", "memory"),
                ("GET", version),
                *(("SCRIPT", "LOAD", s) for s in _SCRIPTS.values()),
            ]
        )
        if _evicts(memory):
            raise StoreError(
                "Valkey would evict leases when its memory is full: set maxmemory-policy noeviction"
            )
        if found is None and not first:
            return  # it was emptied; the next question is answered as by a new one
        if found is not None and found != b"%d" % VERSION:
            raise StoreError(
                f"the keys in Valkey have version {found.decode()}, this program uses version "
                f"{VERSION}: all replicas need the same version of bridgecore"
            )
        if first:  # also if it is there: the write shows whether the server can be written
            self._send([("SET", version, VERSION)])

    def close(self) -> None:
        """See ``Backend.close``."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.disconnect()

    def reason(self, error: Exception) -> str:
        """See ``Backend.reason``."""
        match error:
            case StoreError():
                return str(error)
            case exceptions.TimeoutError():
                return "Valkey did not answer in time"
            case exceptions.ReadOnlyError():
                return "Valkey: the server is read-only (a replica): name the primary in the URL"
            case exceptions.OutOfMemoryError():
                return "Valkey: the memory of the server is full: raise maxmemory"
            case exceptions.ResponseError():
                return f"Valkey: {_word(error)}"
            case ConnectionLostError() | exceptions.ConnectionError():
                return "the connection to Valkey was lost"
            case _:
                return type(error).__name__

    # ------------------------------------------------------------ questions

    def carry_out(self, questions: Sequence[st.Question]) -> list[st.Answer]:
        """See ``Backend.carry_out``."""
        results = self._run([self._call(question) for question in questions])
        return [
            self._answer(question, result)
            for question, result in zip(questions, results, strict=True)
        ]

    def _call(self, question: st.Question) -> tuple[str, _Arguments]:
        """The script of a question, and its arguments."""
        owner: _Arguments = [question.owner.replica, question.owner.incarnation]
        match question:
            case st.Join():
                url = [] if question.advertise is None else [question.advertise]
                instead = question.instead or ""
                return "join", [*owner, _milliseconds(question.ttl), instead, *url]
            case st.Renew():
                return "renew", [*owner, _milliseconds(question.ttl)]
            case st.Leave():
                return "leave", owner
            case st.Resume():
                names = names_of(self._keys, question)
                return "resume", [*owner, question.floor, int(question.load), *names]
            case st.LookUp():
                name = alias_name(question.scope, question.response)
                return "look_up", [int(question.load), name]
            case st.Commit():
                arguments: _Arguments = [*owner, question.conversation, question.epoch]
                notices = notices_of(self._keys, question.responses)
                arguments += [NOTICES_KEPT // 1000, len(notices)]
                for key, notice in notices:
                    arguments += [key, notice]
                for each in question.responses:
                    named = named_by(self._keys, [each])
                    sealed = self._keys.seal(each.payload, each.key)
                    # Of the names at most the last one is that of a context.
                    contexts = [one.context or b"" for one in named.values()]
                    context = contexts[-1] if contexts else b""
                    arguments += [each.key, each.parent or b"", sealed, b"".join(named), context]
                return "commit", arguments
            case st.Release():
                arguments = [*owner]
                for conversation, epoch in question.conversations:
                    arguments += [conversation, epoch]
                return "release", arguments
            case st.Sweep():
                return "take_sweep", [_sweeper(question.owner), SWEEP_TTL]
            case _:
                assert_never(question)

    def _answer(self, question: st.Question, result: Any) -> st.Answer:
        match question:
            case st.Join():
                return st.NameTaken(result * _MS) if result else st.Joined()
            case st.Renew():
                if not result:
                    return st.LeaseEnded()
                notices = zip(result[1::2], result[2::2], strict=True)
                return st.Renewed(self._keys.unseal_notices(notices))
            case st.Leave() | st.Release():
                return st.Done()
            case st.Resume():
                return self._resumed(question, result)
            case st.LookUp():
                payloads = self._unsealed(result[1:])
                return st.NotStored() if payloads is None else st.Found(result[0], payloads)
            case st.Commit():
                if isinstance(result, list):
                    return st.Committed(result[0], missing=True)
                return st.Committed(result) if result > 0 else st.Fenced(-1 - result)
            case st.Sweep():
                if not result:
                    return st.Swept(0)
                return st.Swept(self._sweep(question.owner, question.age, lambda _: None))
            case _:
                assert_never(question)

    def _resumed(self, resume: st.Resume, result: list[Any]) -> st.Answer:
        match result:
            case [b"ended"]:
                return st.LeaseEnded()
            case [b"elsewhere", conversation, epoch, replica, incarnation, advertise, remaining]:
                return st.OwnedElsewhere(
                    conversation,
                    epoch,
                    st.Owner(replica.decode(), incarnation.decode()),
                    None if advertise is None else advertise.decode(),
                    max(1, remaining) * _MS,
                )
            case [b"claimed", conversation, epoch, taken, *path]:
                payloads = self._unsealed(path)
                if payloads is not None:
                    return st.Claimed(conversation, epoch, payloads)
                if taken:  # who cannot read it must not keep others from it
                    self._run([self._call(st.Release(resume.owner, ((conversation, epoch),)))])
                return st.NotStored()
            case _:
                return st.NotStored()

    def _unsealed(self, path: list[Any]) -> tuple[bytes, ...] | None:
        """The payloads of a path, of which a script has returned key and payload of each response,
        the last one first; None if it is empty or cannot be read."""
        rows = [(key, None, sealed) for key, sealed in zip(path[::2], path[1::2], strict=True)]
        return unseal_path(self._keys, rows[::-1])

    def _sweep(self, owner: st.Owner, age: int, progress: Callable[[int], None]) -> int:
        sweeper = _sweeper(owner)
        # A batch of none: it only settles before which time a response must have been used.
        time: str | bytes = self._run([("sweep", [str(age // 1000), 0, 0])])[0][0]
        count, offset, more = 0, 0, True
        leaves: _Arguments = []
        progress(count)
        while more:
            time, deleted, offset, more, *leaves = self._run(
                [("sweep", [time, offset, SWEEP_BATCH, *leaves])]
            )[0]
            count += int(deleted)
            progress(count)
            if not self._run([("take_sweep", [sweeper, SWEEP_TTL])])[0]:
                return count  # this one took so long that another has begun
        begun: _Arguments = []
        more = True
        while more:
            time, more = self._run([("forget", [SWEEP_BATCH, *begun])])[0]
            begun = [time]
        self._run([("end_sweep", [sweeper])])
        return count

    # ------------------------------------------------------------ maintenance

    def open_existing(self) -> None:
        """See ``Maintenance.open_existing``."""
        self.open()
        if self._send([("GET", f"{PREFIX}:version")])[0] is None:
            raise StoreError(
                "Valkey: there is no store in this database: correct the URL, or let "
                "'bridgecore serve' create it"
            )

    def try_writing(self) -> None:
        """See ``Maintenance.try_writing``."""
        self._send([("SET", f"{PREFIX}:trial", "", "PX", 1)])

    def live_leases(self) -> list[LiveLease]:
        """See ``Maintenance.live_leases``."""
        keys = sorted({key for batch in self._scan("lease") for key in batch})
        found = []
        for key in keys:
            held, remaining = self._send([("HMGET", key, "i", "a"), ("PTTL", key)])
            if held[0] is not None and remaining > 0:
                replica = key[len(_key("lease", b"")) :].decode(errors="replace")
                advertise = None if held[1] is None else held[1].decode(errors="replace")
                found.append(LiveLease(replica, advertise, remaining * _MS))
        return found

    def count_conversations(self) -> int:
        """See ``Maintenance.count_conversations``. A scan may come upon a key twice."""
        return len({key for batch in self._scan("conversation") for key in batch})

    def unused_for(self, besides: bytes = b"") -> int | None:
        """See ``Maintenance.unused_for``."""
        (seconds, micros), latest = self._send(
            [("TIME",), ("ZREVRANGE", _key("used"), 0, 1, "WITHSCORES")]
        )
        pairs = zip(latest[::2], latest[1::2], strict=True)
        times = [int(float(used)) for key, used in pairs if key != besides]
        if not times:
            return None
        return max(0, int(seconds) * 1_000_000 + int(micros) - times[0]) * 1000

    def responses(self) -> Iterator[list[ResponseRow]]:
        """See ``Maintenance.responses``."""
        seen: set[bytes] = set()  # a scan may come upon one twice
        for batch in self._scan_used():
            if rows := self._response_rows({k: v for k, v in batch.items() if k not in seen}):
                yield rows
            seen.update(batch)

    def latest_responses(self, limit: int) -> list[ResponseRow]:
        """See ``Maintenance.latest_responses``."""
        found = self._send([("ZREVRANGE", _key("used"), 0, limit - 1, "WITHSCORES")])[0]
        return self._response_rows(dict(zip(found[::2], found[1::2], strict=True)))

    def contexts(self) -> Iterator[list[ContextRow]]:
        """See ``Maintenance.contexts``."""
        seen: set[bytes] = set()
        for batch in self._scan_used():
            found = self._run([("contexts", [key for key in batch if key not in seen])])[0]
            seen.update(batch)
            rows = zip(found[::3], found[1::3], found[2::3], strict=True)
            if contexts := [ContextRow(name, key, sealed) for key, name, sealed in rows]:
                yield contexts

    def payloads(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See ``Maintenance.payloads``."""
        found = self._send([("HGET", _key("response", key), "d") for key in keys])
        return {k: sealed for k, sealed in zip(keys, found, strict=True) if sealed is not None}

    def replace_payloads(self, replaced: Sequence[Replaced]) -> None:
        """See ``Maintenance.replace_payloads``."""
        arguments: _Arguments = []
        for each in replaced:
            arguments += [each.row.key, each.row.head, each.payload]
        self._run([("replace", arguments)])

    def rename_contexts(self, renamed: Sequence[Renamed]) -> None:
        """See ``Maintenance.rename_contexts``."""
        arguments: _Arguments = []
        for each in renamed:
            arguments += [each.row.response, each.row.name, each.name, each.sealed]
        self._run([("rename", arguments)])

    def sweep(self, owner: st.Owner, age: int, progress: Callable[[int], None]) -> int | None:
        """See ``Maintenance.sweep``."""
        if not self._run([("take_sweep", [_sweeper(owner), SWEEP_TTL])])[0]:
            return None
        return self._sweep(owner, age, progress)

    def finish(self) -> None:
        """See ``Maintenance.finish``. The server rewrites its files by itself."""

    def _scan(self, kind: str) -> Iterator[list[bytes]]:
        """All keys of a kind, in batches; those of other programs are passed over."""
        cursor: bytes | int = 0
        while cursor != b"0":
            cursor, batch = self._send(
                [("SCAN", cursor, "MATCH", _key(kind, b"*"), "COUNT", 10 * RESPONSES_BATCH)]
            )[0]
            yield batch

    def _scan_used(self) -> Iterator[dict[bytes, bytes]]:
        """The key of each response and when it was used, in batches."""
        cursor: bytes | int = 0
        while cursor != b"0":
            cursor, found = self._send([("ZSCAN", _key("used"), cursor, "COUNT", RESPONSES_BATCH)])[
                0
            ]
            yield dict(zip(found[::2], found[1::2], strict=True))

    def _response_rows(self, used: Mapping[bytes, bytes]) -> list[ResponseRow]:
        found = self._run([("heads", [HEAD_SIZE, *used])])[0]
        return [
            ResponseRow(key, head, size, int(float(used[key])) * 1000)
            for key, head, size in zip(found[::3], found[1::3], found[2::3], strict=True)
        ]

    # ------------------------------------------------------------ the wire

    def _run(self, calls: Sequence[tuple[str, _Arguments]]) -> list[Any]:
        """Run scripts in this order; what each returned."""
        commands = [("EVALSHA", _DIGESTS[name], 1, PREFIX, *rest) for name, rest in calls]
        results = self._send(commands, missing_scripts=True)
        for n, result in enumerate(results):
            if isinstance(result, exceptions.NoScriptError):
                # The server was restarted or emptied. From here on all are sent again, also those
                # that were carried out, so that their order stays.
                again = [("EVAL", _text_of(name), 1, PREFIX, *rest) for name, rest in calls[n:]]
                return results[:n] + self._send(again)
        return results

    def _send(
        self, commands: Sequence[tuple[str | bytes | int, ...]], missing_scripts: bool = False
    ) -> list[Any]:
        connection = self._connection
        results: list[Any] = []
        failed: Exception | None = None
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    results.append(connection.read_response())
                except exceptions.NoScriptError as error:
                    results.append(error)
                    if not missing_scripts:
                        failed = error
                except exceptions.ResponseError as error:
                    failed = failed or error  # the others are read, too
        except exceptions.ConnectionError:
            raise ConnectionLostError from None
        if failed is not None:
            raise failed
        return results


# ------------------------------------------------------------ scripts


def _script(name: str) -> str:
    folder = importlib.resources.files("bridgecore_stores").joinpath("lua")
    return folder.joinpath(f"{name}.lua").read_text(encoding="utf-8")


_SCRIPTS: Final = {
    name: f"{_script('common')}\n{_script(name)}"
    for name in (
        "join",
        "renew",
        "leave",
        "resume",
        "look_up",
        "commit",
        "release",
        "take_sweep",
        "sweep",
        "forget",
        "end_sweep",
    )
}
# Those of maintenance commands: not sent to the server before they are needed.
_RARE_SCRIPTS: Final = {
    name: f"{_script('common')}\n{_script(name)}"
    for name in ("contexts", "heads", "rename", "replace")
}
# The server names a script by its SHA-1.
_DIGESTS: Final = {
    name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    for name, text in (_SCRIPTS | _RARE_SCRIPTS).items()
}


def _text_of(name: str) -> str:
    return _SCRIPTS.get(name) or _RARE_SCRIPTS[name]


def _key(kind: str, name: bytes | None = None) -> bytes:
    """A key in the server, as ``lua/common.lua`` makes it."""
    return b":".join([PREFIX.encode(), kind.encode(), *([] if name is None else [name])])


def _milliseconds(ns: int) -> int:
    """What the server counts; at least one, because an expiry of 0 is an error."""
    return max(1, ns // _MS)


def _sweeper(owner: st.Owner) -> str:
    return f"{len(owner.replica)}:{owner.replica}{owner.incarnation}"


def _word(error: Exception) -> str:
    """The first word of an error of the server, which is its code; what follows could have data."""
    return str(error).partition(" ")[0][:40] or "error"


def _evicts(memory: bytes) -> bool:
    """Whether the server deletes keys when its memory is full (INFO memory)."""
    found = dict(
        line.split(":", 1) for line in memory.decode(errors="replace").splitlines() if ":" in line
    )
    policy = found.get("maxmemory_policy", "noeviction")
    return found.get("maxmemory", "0") != "0" and policy != "noeviction"
