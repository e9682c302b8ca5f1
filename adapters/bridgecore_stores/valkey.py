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
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, assert_never

import valkey
from valkey import exceptions

from bridgecore.ownership import store as st
from bridgecore_stores.backend import ConnectionLostError, Connector, StoreError
from bridgecore_stores.sealing import Keys, named_by, names_of, unseal_path

PREFIX: Final = "{bridgecore}"
"""What all keys begin with. The braces keep them in one slot of a cluster."""

VERSION: Final = 1
"""The version of the keys, which is in the key ``{bridgecore}:version``."""

SWEEP_BATCH: Final = 100
"""Responses that one script of a sweep looks at. The server does nothing else meanwhile."""

SWEEP_TTL: Final = 60_000
"""ms after which another replica may sweep although the last one has not said that it is done."""

_WORKERS = 4  # they wait for the network together
_MS = 1_000_000  # ns

_Arguments: TypeAlias = "list[str | bytes | int]"


def connector(url: str, keys: Keys, timeout: int) -> Connector:
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
            raise StoreError("Valkey did not answer in time") from None
        except exceptions.ConnectionError:
            raise StoreError("Valkey cannot be reached") from None
        except exceptions.ResponseError as error:
            raise StoreError(f"Valkey: {_word(error)}") from None
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
                return "Valkey: the server is read-only (a replica)"
            case exceptions.OutOfMemoryError():
                return "Valkey: the memory of the server is full"
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
                return "join", [*owner, _milliseconds(question.ttl), *url]
            case st.Renew():
                return "renew", [*owner, _milliseconds(question.ttl)]
            case st.Leave():
                return "leave", owner
            case st.Resume():
                names = names_of(self._keys, question)
                return "resume", [*owner, question.floor, int(question.load), *names]
            case st.Commit():
                arguments: _Arguments = [*owner, question.conversation, question.epoch]
                for each in question.responses:
                    names = list(named_by(self._keys, [each]))
                    sealed = self._keys.seal(each.payload, each.key)
                    arguments += [each.key, each.parent or b"", sealed, b"".join(names)]
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
                return st.Renewed() if result else st.LeaseEnded()
            case st.Leave() | st.Release():
                return st.Done()
            case st.Resume():
                return self._resumed(question, result)
            case st.Commit():
                return st.Committed(result) if result > 0 else st.Fenced(-1 - result)
            case st.Sweep():
                return st.Swept(self._sweep(question) if result else 0)
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
                rows = [
                    (key, None, sealed) for key, sealed in zip(path[::2], path[1::2], strict=True)
                ]
                payloads = unseal_path(self._keys, rows[::-1])
                if payloads is not None:
                    return st.Claimed(conversation, epoch, payloads)
                if taken:  # who cannot read it must not keep others from it
                    self._run([self._call(st.Release(resume.owner, ((conversation, epoch),)))])
                return st.NotStored()
            case _:
                return st.NotStored()

    def _sweep(self, sweep: st.Sweep) -> int:
        sweeper = _sweeper(sweep.owner)
        time: str | bytes = str(sweep.age // 1000)
        count, offset, more = 0, 0, True
        leaves: _Arguments = []
        while more:
            time, deleted, offset, more, *leaves = self._run(
                [("sweep", [time, offset, SWEEP_BATCH, *leaves])]
            )[0]
            count += int(deleted)
            if not self._run([("take_sweep", [sweeper, SWEEP_TTL])])[0]:
                return count  # this one took so long that another has begun
        begun: _Arguments = []
        more = True
        while more:
            time, more = self._run([("forget", [SWEEP_BATCH, *begun])])[0]
            begun = [time]
        self._run([("end_sweep", [sweeper])])
        return count

    # ------------------------------------------------------------ the wire

    def _run(self, calls: Sequence[tuple[str, _Arguments]]) -> list[Any]:
        """Run scripts in this order; what each returned."""
        commands = [("EVALSHA", _DIGESTS[name], 1, PREFIX, *rest) for name, rest in calls]
        results = self._send(commands, missing_scripts=True)
        for n, result in enumerate(results):
            if isinstance(result, exceptions.NoScriptError):
                # The server was restarted or emptied. From here on all are sent again, also those
                # that were carried out, so that their order stays.
                again = [("EVAL", _SCRIPTS[name], 1, PREFIX, *rest) for name, rest in calls[n:]]
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
        "commit",
        "release",
        "take_sweep",
        "sweep",
        "forget",
        "end_sweep",
    )
}
# The server names a script by its SHA-1.
_DIGESTS: Final = {
    name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    for name, text in _SCRIPTS.items()
}


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
