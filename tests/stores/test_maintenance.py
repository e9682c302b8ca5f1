"""What an operator does with a store, on each back end with a real server."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import valkey

from bridgecore.continuity.stored import purge_record
from bridgecore.ownership import store as st
from bridgecore.testing.conformance.asking import A, B, commit, key_of, response, resume
from bridgecore_stores import Keys, StoreError, StoreUnavailableError, open_maintenance
from bridgecore_stores.maintenance import (
    GROUP_ROWS,
    LiveLease,
    Maintenance,
    Rotation,
    count,
    purge_responses,
    read_responses,
    rotate,
)
from bridgecore_stores.sqlite import Sqlite
from tests.stores import servers
from tests.stores.asking import NS, TIMEOUT, Asking, Place

OLD, NEW = b"an older secret that is long enough", b"a newer secret that is long enough!"
ONLY_OLD, BOTH, ONLY_NEW = Keys([OLD]), Keys([NEW, OLD]), Keys([NEW])
MANY = GROUP_ROWS + 5


@contextlib.contextmanager
def maintenance(place: Place, keys: Keys = BOTH) -> Iterator[Maintenance]:
    """The store at ``place``, for maintenance; created if it is not there."""
    if place.kind == "valkey":
        place.open()  # what empties it deletes its version, too
    with open_maintenance(place.url, keys, timeout=TIMEOUT) as store:
        yield store


def silent(done: int) -> None:
    """Progress that is not shown."""


def _many(ask: Asking, owner: st.Owner, conversation: str, count: int) -> None:
    """A conversation of ``count`` responses, each with a context."""
    chain = [
        response(f"{conversation}{n}", f"{conversation}{n - 1}" if n else None, context=b"%d" % n)
        for n in range(count)
    ]
    ask.begin(owner, conversation, *chain)


def _change_payload(place: Place, name: str) -> None:
    """Change the last byte of what is stored."""
    match place.kind:
        case "sqlite":
            with contextlib.closing(sqlite3.connect(place.file)) as database, database:
                (payload,) = database.execute(
                    "SELECT payload FROM response WHERE key = ?", (key_of(name),)
                ).fetchone()
                database.execute(
                    "UPDATE response SET payload = ? WHERE key = ?",
                    (payload[:-1] + bytes([payload[-1] ^ 1]), key_of(name)),
                )
        case "postgresql":
            with psycopg.connect(place.url) as connection:
                connection.execute(
                    "UPDATE bridgecore_response SET payload = set_byte(payload, "
                    "octet_length(payload) - 1, 255 - get_byte(payload, octet_length(payload) - 1))"
                    " WHERE key = %s",
                    (key_of(name),),
                )
        case _:
            with valkey.Valkey.from_url(place.url) as client:
                place_of = b"{bridgecore}:response:" + key_of(name)
                payload = client.hget(place_of, "d")
                client.hset(place_of, "d", payload[:-1] + bytes([payload[-1] ^ 1]))


# ------------------------------------------------------------ looking


def test_an_empty_store_is_counted_as_such(real: Place) -> None:
    with maintenance(real) as store:
        found = count(store, BOTH, silent)
        assert store.unused_for() is None
        assert read_responses(store, BOTH, True, silent).total == 0
        assert rotate(store, BOTH, silent) == Rotation()
    assert (found.conversations, found.responses, found.size) == (0, 0, 0)
    assert (found.oldest, found.newest, found.leases) == (None, None, [])
    assert [*found.keys] == [*BOTH.ids]


def test_a_store_is_counted_by_key(real: Place) -> None:
    older, newer = real.open(ONLY_OLD), real.open(BOTH)
    older.join(A, 100 * NS, "http://a.test:1")
    newer.join(B)
    older.begin(A, "c", response("1", context=b"x", payload=os.urandom(5000)), response("2", "1"))
    newer.begin(B, "d", response("3", context=b"y"))
    with maintenance(real) as store:
        found = count(store, BOTH, silent)
        unused_for = store.unused_for()
    assert (found.conversations, found.responses) == (2, 3)
    uses = [(use.responses, use.contexts) for use in found.keys.values()]
    assert uses == [(1, 1), (2, 1)]
    assert 5000 < found.size < 6000
    assert found.older == 3
    assert found.oldest is not None
    assert found.newest is not None
    assert 0 <= found.newest - found.oldest < 60 * NS
    assert unused_for is not None
    assert unused_for < 60 * NS
    first, second = found.leases
    assert first == LiveLease("a", "http://a.test:1", first.remaining)
    assert 0 < first.remaining <= 100 * NS
    assert (second.replica, second.advertise) == ("b", None)


def test_a_lease_that_has_ended_is_not_live(real: Place) -> None:
    ask = real.open()
    ask.join(A)
    ask(st.Leave(A))
    ask.join(B, NS // 5)
    ask.until(st.Renew(B, 1), st.LeaseEnded)
    with maintenance(real) as store:
        assert store.live_leases() == []


@pytest.mark.parametrize("every", [False, True])
def test_responses_are_read_as_a_test(real: Place, every: bool) -> None:
    older, newer = real.open(ONLY_OLD), real.open(BOTH)
    older.join(A)
    newer.join(B)
    older.begin(A, "c", response("1"), response("2", "1"))
    newer.begin(B, "d", response("3"))
    with maintenance(real) as store:
        found = read_responses(store, BOTH, every, silent)
        assert (found.newest, found.older, found.foreign, found.damaged) == (1, 2, 0, 0)
        found = read_responses(store, ONLY_NEW, every, silent)
        assert (found.newest, found.older, found.foreign, found.damaged) == (1, 0, 2, 0)
        _change_payload(real, "2")
        found = read_responses(store, BOTH, every, silent)
        assert (found.newest, found.older, found.foreign, found.damaged) == (1, 1, 0, 1)


# ------------------------------------------------------------ changing keys


def test_after_a_change_of_keys_the_older_secret_can_be_removed(real: Place) -> None:
    older = real.open(ONLY_OLD)
    older.join(A)
    _many(older, A, "c", MANY)
    last = f"c{MANY - 1}"
    older(st.Leave(A))
    seen: list[int] = []
    with maintenance(real) as store:
        assert rotate(store, BOTH, seen.append) == Rotation(MANY, MANY, 0)
        found = count(store, BOTH, silent)
        assert rotate(store, BOTH, silent) == Rotation()
    assert len(seen) > 2
    assert found.older == 0
    assert [(use.responses, use.contexts) for use in found.keys.values()] == [(MANY, MANY), (0, 0)]
    ask = real.open(ONLY_NEW)
    ask.join(B)
    by_id = ask(resume(B, last))
    assert isinstance(by_id, st.Claimed)
    assert len(by_id.path) == MANY
    assert ask(resume(B, None, contexts=(b"%d" % (MANY - 1),))) == by_id
    # Everything can be deleted, names included.
    assert ask(st.Sweep(B, 0)) == st.Swept(MANY)
    with maintenance(real) as store:
        assert [*store.contexts()] == []
    assert ask(resume(B, None, contexts=(b"1",))) == st.NotStored()


def test_keys_are_changed_beside_a_process_that_uses_them(real: Place) -> None:
    """It commits after each batch, and finds what is stored before and after."""
    older, live = real.open(ONLY_OLD), real.open(BOTH)
    older.join(A)
    _many(older, A, "c", MANY)
    older(st.Leave(A))
    live.join(B)
    assert isinstance(live(resume(B, "c0")), st.Claimed)
    live.begin(B, "d", response("d"))
    added = 0

    def commit_another(done: int) -> None:
        nonlocal added
        added += 1
        new = response(f"new{added}", "d", context=b"new%d" % added)
        assert live(commit(B, "d", 1, new)) == st.Committed(1)
        assert isinstance(live(resume(B, None, contexts=(b"3",))), st.Claimed)

    with maintenance(real) as store:
        done = rotate(store, BOTH, commit_another)
        assert done == Rotation(MANY, MANY, 0)
        assert count(store, BOTH, silent).older == 0
    found = live(resume(B, f"new{added}"))
    assert found == st.Claimed(key_of("d"), 1, (b"payload of d", f"payload of new{added}".encode()))


def test_a_change_of_keys_goes_on_where_it_was_ended(real: Place) -> None:
    older = real.open(ONLY_OLD)
    older.join(A)
    _many(older, A, "c", MANY)

    def end(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), maintenance(real) as store:
        rotate(store, BOTH, end)
    with maintenance(real) as store:
        done = rotate(store, BOTH, silent)
        assert 0 < done.responses < MANY
        assert count(store, BOTH, silent).older == 0


def test_what_no_key_reads_stays_as_it_is(real: Place) -> None:
    older = real.open(ONLY_OLD)
    older.join(A)
    older.begin(A, "c", response("1", context=b"x"), response("2", "1"))
    with maintenance(real) as store:
        assert rotate(store, ONLY_NEW, silent) == Rotation(0, 0, 3)
    assert isinstance(older(resume(A, "2")), st.Claimed)
    _change_payload(real, "2")
    with maintenance(real) as store:
        assert rotate(store, BOTH, silent) == Rotation(1, 1, 1)
    assert older(resume(A, "1")) == st.NotStored()


def test_a_context_that_the_newest_key_has_named_keeps_its_response(real: Place) -> None:
    older, newer = real.open(ONLY_OLD), real.open(BOTH)
    older.join(A)
    newer.join(B)
    older.begin(A, "c", response("1", context=b"x"))
    newer.begin(B, "d", response("2", context=b"x"))
    with maintenance(real) as store:
        rotate(store, BOTH, silent)
        assert count(store, BOTH, silent).older == 0
    ask = real.open(ONLY_NEW)
    found = ask(resume(B, None, contexts=(b"x",)))
    assert found == st.Claimed(key_of("d"), 1, (b"payload of 2",))
    ask(st.Leave(A))
    assert isinstance(ask(resume(B, "1")), st.Claimed)


def test_a_context_with_another_response_meanwhile_is_named_again(real: Place) -> None:
    older = real.open(ONLY_OLD)
    older.join(A)
    older.begin(A, "c", response("1", context=b"x"), response("2", context=b"x"))
    with maintenance(real) as store:
        rotate(store, BOTH, silent)
        assert count(store, BOTH, silent).older == 0
    ask = real.open(ONLY_NEW)
    found = ask(resume(A, None, contexts=(b"x",)))
    assert found == st.Claimed(key_of("c"), 1, (b"payload of 2",))


# ------------------------------------------------------------ deleting


def test_only_one_deletes_at_a_time(real: Place) -> None:
    ask = real.open()
    ask.join(A)
    ask.begin(A, "c", response("1"), response("2", "1"))
    with maintenance(real) as first, maintenance(real) as second:

        def refused(done: int) -> None:
            assert second.sweep(B, 0, silent) is None

        assert first.sweep(A, 0, refused) == 2
        assert second.sweep(B, 0, silent) == 0
    assert ask(resume(A, "2")) == st.NotStored()
    assert ask(commit(A, "c", 1, response("3"))) == st.Committed(1)


@pytest.mark.parametrize("before", [0, 1], ids=["the first purge", "the second purge"])
def test_a_purge_leaves_word_for_those_who_have_in_memory_what_it_deletes(
    real: Place, before: int
) -> None:
    """Its record is there before anything is missing, and the purge does not delete it."""
    ask = real.open(BOTH)
    ask.join(A, 100 * NS)
    ask.join(B, 100 * NS)
    ask.begin(A, "c", response("1"), response("2", "1"))
    record = purge_record()
    (name,) = record.ids
    look_up = st.LookUp(B, record.scope, name)

    def use(done: int) -> None:
        assert isinstance(ask(resume(A, "3")), st.Claimed)
        assert isinstance(ask(look_up), st.Found)

    with maintenance(real) as store:
        for n in range(before):
            assert purge_responses(store, B, record, b"%d" % n, 0, silent) == 2
            ask.begin(A, "d", response("1"), response("2", "1"))
        assert purge_responses(store, B, record, b"purge", 0, silent) == 2
        assert store.unused_for(record.key) is None
        assert store.unused_for() is not None
        assert [row.key for batch in store.responses() for row in batch] == [record.key]
        ask.begin(A, "e", response("3"))
        # Whatever is used once a purge has begun is not deleted by it.
        assert purge_responses(store, B, record, b"again", 0, use) == 0
    assert isinstance(ask(resume(A, "3")), st.Claimed)
    assert isinstance(ask(look_up), st.Found)
    assert ask(st.Renew(A, 100 * NS)) == st.Renewed((record.notice or b"",))
    assert ask(commit(A, "e", 1, response("4", "2"))) == st.Committed(1, missing=True)


def test_what_was_deleted_is_not_in_the_files_of_sqlite(tmp_path: Path) -> None:
    place = Place("sqlite", f"sqlite:{tmp_path}/store.db")
    ask = place.open()
    ask.join(A)
    ask.begin(A, "c", response("1"))
    with open_maintenance(place.url, BOTH, timeout=TIMEOUT) as store:
        (row,) = [row for batch in store.responses() for row in batch]
        assert store.sweep(B, 0, silent) == 1
        store.finish()
    files = [file for file in tmp_path.glob("store.db*") if file.is_file()]
    assert len(files) == 3
    assert all(row.head not in file.read_bytes() for file in files)
    place.close()


# ------------------------------------------------------------ writing, versions


def test_trying_to_write_leaves_nothing(real: Place) -> None:
    with maintenance(real) as store:
        store.try_writing()
        store.try_writing()
        assert [*store.responses()] == []
        assert [*store.contexts()] == []


@pytest.mark.parametrize(
    ("pragma", "message"),
    [("max_page_count = 1", "disk full: make room"), ("query_only = ON", "is read-only: make")],
)
def test_a_full_or_read_only_file_is_found(pragma: str, message: str, tmp_path: Path) -> None:
    place = Place("sqlite", f"sqlite:{tmp_path}/store.db")
    place.open()
    with maintenance(place) as store:
        assert isinstance(store, Sqlite)
        store._opened.execute(f"PRAGMA {pragma}")
        with pytest.raises(sqlite3.Error) as raised:
            store.try_writing()
        assert message in store.reason(raised.value)
    place.close()


@pytest.mark.xdist_group("server-valkey")
def test_a_replica_of_valkey_is_read_only(valkey_server: servers.Server) -> None:
    place = Place("valkey", valkey_server.url)
    place.open()
    place.close()
    with valkey.Valkey.from_url(place.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            with (
                pytest.raises(StoreUnavailableError, match="name the primary"),
                maintenance(place) as store,
            ):
                store.try_writing()
        finally:
            client.execute_command("REPLICAOF", "NO", "ONE")


def test_a_store_of_version_1_is_brought_up_to_date(real: Place) -> None:
    """Contexts that it has named keep their names."""
    if real.kind == "valkey":
        pytest.skip("its keys are the same as in version 1")
    ask = real.open(ONLY_OLD)
    ask.join(A)
    ask.begin(A, "c", response("1", context=b"x"))
    real.close()
    if real.kind == "sqlite":
        with contextlib.closing(sqlite3.connect(real.file)) as database, database:
            database.execute("DROP TABLE notice")
            database.execute("ALTER TABLE name DROP COLUMN context")
            database.execute("UPDATE meta SET version = 1")
    else:
        with psycopg.connect(real.url) as connection:
            connection.execute("ALTER TABLE bridgecore_name DROP COLUMN context")
            connection.execute("DROP TABLE bridgecore_notice")
            for function in ("commit_2", "commit_3", "commit_4", "commit_5", "renew_4"):
                connection.execute(f"DROP FUNCTION bridgecore_{function}")
            connection.execute("UPDATE bridgecore_meta SET version = 1")
    with (
        pytest.raises(StoreError, match=r"version 1, this program uses version [35]"),
        maintenance(real),
    ):
        pass
    ask = real.open(BOTH)
    ask(st.Leave(A))
    ask.join(B)
    assert isinstance(ask(resume(B, None, contexts=(b"x",))), st.Claimed)
    with maintenance(real) as store:
        assert rotate(store, BOTH, silent) == Rotation(1, 0, 0)
