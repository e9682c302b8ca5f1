"""What a store in PostgreSQL says if it cannot be used: what is wrong, and what to do.

What belongs here: refusals at the start, by a real server, and by something that answers as one
does which has other settings. Failures of a server that was in use are in test_losses.py.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from bridgecore_stores import StoreError, StoreUnavailableError, open_store
from tests.stores import servers
from tests.stores.asking import KEYS, NS, PATIENCE

# One server for all, and some change its settings.
pytestmark = pytest.mark.xdist_group("server-postgresql")

MADE = (
    f"CREATE ROLE visitor LOGIN PASSWORD '{servers.PASSWORD}'",
    f"CREATE ROLE unable NOLOGIN PASSWORD '{servers.PASSWORD}'",
    "CREATE DATABASE empty",
    "CREATE DATABASE closed",
    "REVOKE CONNECT ON DATABASE closed FROM public",
)
REMOVED = ("DROP DATABASE empty", "DROP DATABASE closed", "DROP ROLE visitor, unable")


@pytest.fixture(scope="module")
def server(postgresql_server: servers.Server) -> Iterator[servers.Server]:
    """The server with other users, none of whom may create tables, and with other databases."""
    open_store(postgresql_server.url, KEYS, timeout=5 * NS).close(NS)  # creates the tables
    with psycopg.connect(postgresql_server.url, autocommit=True) as connection:
        for statement in MADE:
            connection.execute(statement.encode())
        try:
            yield postgresql_server
        finally:
            for statement in REMOVED:
                connection.execute(statement.encode())


def url_of(server: servers.Server, user: str, database: str = "postgres") -> str:
    """The URL of a store of ``user``, who has the password of the tests."""
    return server.url.replace("//postgres:", f"//{user}:").replace("/postgres?", f"/{database}?")


def refusal(url: str) -> StoreError:
    with pytest.raises(StoreError) as raised:
        open_store(url, KEYS, timeout=2 * NS)
    return raised.value


CASES = {
    "an unknown role": (
        *("stranger", "postgres"),
        "wrong user or password: check user 'stranger' and its password in the URL; the server "
        "does not say which of the two it is",
    ),
    "an unknown database": (
        *("visitor", "missing"),
        "there is no such database as 'missing': create it, or correct the URL",
    ),
    "a role that is a group": (
        *("unable", "postgres"),
        "user 'unable' may not log in: ALTER ROLE ... LOGIN allows it",
    ),
    "a closed database": (
        *("visitor", "closed"),
        "user 'visitor' may not connect to 'closed': GRANT CONNECT ON DATABASE allows it",
    ),
    "no right to create tables": (
        *("visitor", "empty"),
        "user 'visitor' may not create the tables of the store: as the owner of the database, "
        "GRANT USAGE, CREATE ON SCHEMA public (or the first one of its search_path) to it",
    ),
    "tables of another owner": (
        *("visitor", "postgres"),
        "the user may not use the tables of the store: make it a member of the role that owns "
        "them (GRANT owner TO user)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_a_user_or_a_database_is_said(case: str, server: servers.Server) -> None:
    user, database, said = CASES[case]
    error = refusal(url_of(server, user, database))
    assert str(error) == f"PostgreSQL: {said}"
    assert not isinstance(error, StoreUnavailableError)  # it stays so


def test_a_user_without_any_schema_is_told_the_same(server: servers.Server) -> None:
    url = url_of(server, "visitor", "empty") + "&options=-c%20search_path%3Dnone"
    assert "may not create the tables of the store" in str(refusal(url))


def test_a_missing_password_is_said(server: servers.Server) -> None:
    url = re.sub(r"//postgres:[^@]*@", "//visitor@", server.url)
    assert "asks for a password: add that of user 'visitor' to the URL" in str(refusal(url))


@contextlib.contextmanager
def access(server: servers.Server, text: str) -> Iterator[None]:
    """Other lines in ``pg_hba.conf``, as long as the context lasts."""
    file = server.folder / "pg_hba.conf"
    before = file.read_text()
    with psycopg.connect(server.url) as connection:
        try:
            file.write_text(text)
            connection.execute("SELECT pg_reload_conf()")
            yield
        finally:
            file.write_text(before)
            connection.execute("SELECT pg_reload_conf()")


ACCESS = {
    "an unknown role": (
        "local all all trust",
        "stranger",
        "there is no user 'stranger': create it with CREATE ROLE ... LOGIN, or correct the URL",
    ),
    "no entry": (
        "local all postgres scram-sha-256",
        "visitor",
        "the server refuses user 'visitor' at 'postgres' without TLS, or at all: add "
        "sslmode=require to the URL, or an entry for this host to its pg_hba.conf",
    ),
    "another way": (
        "local all postgres scram-sha-256\nlocal all all peer",
        "visitor",
        "the server does not accept how user 'visitor' authenticates: check the entry in its "
        "pg_hba.conf",
    ),
}


@pytest.mark.parametrize("case", ACCESS)
def test_what_pg_hba_refuses_is_said(case: str, server: servers.Server) -> None:
    lines, user, said = ACCESS[case]
    end = time.monotonic() + PATIENCE
    with access(server, lines + "\n"):
        # The server reads its file when it comes to it.
        while str(refusal(url_of(server, user))) != f"PostgreSQL: {said}":
            assert time.monotonic() < end, refusal(url_of(server, user))


# ------------------------------------------------------------ TLS


def answer(state: str, text: str) -> bytes:
    """A message ErrorResponse of the protocol (PostgreSQL, "Message Formats")."""
    fields = b"".join(
        kind + value.encode() + b"\0"
        for kind, value in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", state), (b"M", text))
    )
    return b"E" + struct.pack(">i", len(fields) + 5) + fields + b"\0"


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A port at which each message of a connection gets the next one of ``answers``."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    for each in answers:
                        if not connection.recv(4096):
                            break
                        connection.sendall(each)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


HBA = 'no pg_hba.conf entry for host "127.0.0.1", user "u", database "d", {}'
TLS = {
    "the URL requires it": (
        (b"N",),
        "require",
        "the server has no TLS, which the URL requires: set ssl = on at the server, or correct "
        "sslmode in the URL",
    ),
    "the server requires it": (
        (answer("28000", HBA.format("no encryption")),),
        "disable",
        "the server refuses user 'u' at 'd' without TLS, or at all: add sslmode=require to the "
        "URL, or an entry for this host to its pg_hba.conf",
    ),
    "no entry with TLS either": (
        (answer("28000", HBA.format("SSL encryption")),),
        "disable",
        "the server refuses user 'u' at 'd' from this host: add an entry to its pg_hba.conf, and "
        "reload it",
    ),
    "no handshake": (
        (b"S", b"no handshake at all"),
        "require",
        "TLS failed: look at sslmode and sslrootcert",
    ),
    "it starts": (
        (answer("57P03", "the database system is starting up"),),
        "disable",
        "the server is starting or shutting down",
    ),
    "it is full": (
        (answer("53300", "sorry, too many clients already"),),
        "disable",
        "the server has too many connections: try again",
    ),
}


@pytest.mark.parametrize("case", TLS)
def test_what_is_wrong_with_a_connection_is_said(case: str) -> None:
    answers, mode, said = TLS[case]
    with answering(*answers) as port:
        error = refusal(f"postgresql://u:hunter2@127.0.0.1:{port}/d?sslmode={mode}")
    assert str(error) == f"PostgreSQL: {said}"
    assert isinstance(error, StoreUnavailableError) is (case in ("it starts", "it is full"))


def test_a_host_is_not_taken_for_what_is_wrong() -> None:
    """Its name is in the message of the library, too."""
    url = "postgresql://u:hunter2@password.certificate.database.invalid/d"
    assert "cannot be reached" in str(refusal(url))
