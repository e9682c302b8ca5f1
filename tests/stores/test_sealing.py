"""Keys: what is stored is unreadable without them, and stays readable when they are replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridgecore_stores import Keys, StoreError, read_keys
from bridgecore_stores.sealing import alias_name
from tests.stores import servers

OLD, NEW = b"the old secret, which is long enough", b"the new secret, which is long enough"


def _file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_what_was_sealed_is_unsealed() -> None:
    for payload in (b"", b"short", b"long " * 10_000):
        sealed = Keys([OLD]).seal(payload, b"key")
        assert Keys([OLD]).unseal(sealed, b"key") == payload


def test_a_payload_is_compressed_and_never_sealed_twice_alike() -> None:
    keys = Keys([OLD])
    assert len(keys.seal(b"again and " * 1000, b"key")) < 200
    assert keys.seal(b"payload", b"key") != keys.seal(b"payload", b"key")


def test_a_rotated_key_still_reads_and_the_newest_one_seals() -> None:
    old, both, new = Keys([OLD]), Keys([NEW, OLD]), Keys([NEW])
    assert both.unseal(old.seal(b"payload", b"key"), b"key") == b"payload"
    assert new.unseal(both.seal(b"payload", b"key"), b"key") == b"payload"


def test_another_key_is_a_miss() -> None:
    assert Keys([NEW]).unseal(Keys([OLD]).seal(b"payload", b"key"), b"key") is None


def test_a_payload_at_another_key_is_a_miss() -> None:
    keys = Keys([OLD])
    assert keys.unseal(keys.seal(b"payload", b"key"), b"other") is None


def test_every_changed_or_missing_byte_is_a_miss() -> None:
    keys = Keys([OLD])
    sealed = keys.seal(b"payload", b"key")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert keys.unseal(bytes(changed), b"key") is None
        assert keys.unseal(sealed[:place], b"key") is None


def test_each_secret_has_a_key_of_its_own() -> None:
    old, both = Keys([OLD]), Keys([NEW, OLD])
    names = both.context_names("scope", b"context")
    assert names[1:] == old.context_names("scope", b"context")
    assert names[0] != names[1]


def test_names_do_not_run_into_each_other() -> None:
    assert alias_name("ab", "c") != alias_name("a", "bc")
    assert alias_name("a", "\ud800") != alias_name("a", "?")  # an id may be any JSON string
    keys = Keys([OLD])
    assert keys.context_names("ab", b"c") != keys.context_names("a", b"bc")


def test_secrets_are_not_shown() -> None:
    assert "secret," not in repr(Keys([OLD]))


def test_a_file_of_secrets_is_read_newest_first(tmp_path: Path) -> None:
    text = f"# rotated in May\n\n{NEW.decode()}\n  {OLD.decode()}  \n"
    keys = read_keys(_file(tmp_path / "keys", text))
    assert keys.context_names("s", b"c") == Keys([NEW, OLD]).context_names("s", b"c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no secret"),
        ("# nothing\n\n", "has no secret"),
        ("x" * 31, "keys:1: a secret must have at least 32 characters, not 31"),
        (f"{'x' * 32}\n\n{'x' * 32}\n", "keys:3: the same secret occurs twice"),
    ],
)
def test_wrong_secrets_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = _file(tmp_path / "keys", text)
    with pytest.raises(StoreError, match=message) as raised:
        read_keys(file)
    assert "xxx" not in str(raised.value)


def test_files_that_are_no_files_of_secrets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such file"):
        read_keys(tmp_path / "none")
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        read_keys(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    with pytest.raises(StoreError, match="is not UTF-8"):
        read_keys(tmp_path / "binary")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    file = _file(tmp_path / "keys", OLD.decode(), mode)
    with pytest.raises(StoreError, match=f"chmod 600 {file}"):
        read_keys(file)


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """This process without the rights of root, until the end of the context."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to a group")
def test_a_file_of_root_may_be_readable_for_the_group_of_the_process() -> None:
    with servers.temporary_folder() as folder:
        folder.chmod(0o755)
        file = _file(folder / "keys", OLD.decode(), 0o440)
        os.chown(file, 0, 65534)
        with without_root():
            keys = read_keys(file)
        assert keys.context_names("s", b"c") == Keys([OLD]).context_names("s", b"c")
        for mode in (0o444, 0o460):
            file.chmod(mode)
            with without_root(), pytest.raises(StoreError, match="other users can read it"):
                read_keys(file)
