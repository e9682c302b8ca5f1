"""Locks that show which owners of a host are alive.

What belongs here: an advisory lock on a file for each owner with a lease. The kernel gives a lock
up when its process ends, however it ends, so after ``kill -9`` and a restart nothing waits for the
rest of a lease. The files are in a folder beside the database: a database file cannot be locked for
this, because SQLite has locks of its own on it.

A lock belongs to the open file and not to the process (``flock``), so it works between two stores
of one process, too. A child process that is forked without ``exec`` keeps it as long as it lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bridgecore.ownership.store import Owner


class LeaseLocks:
    """The locks of this store, and a look at those of others. May be used by several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[Owner, int] = {}  # the descriptor of each open file
        self._guard = threading.Lock()

    def take(self, owner: Owner) -> None:
        """Hold the lock of ``owner``, until ``drop`` or the end of the process.

        Raises:
            OSError: the file cannot be created, or another store has the lock.
        """
        with self._guard:
            if self._has(owner):
                return
            if (removed := self._held.pop(owner, None)) is not None:
                os.close(removed)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self._file(owner), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                _lock(descriptor)
            except OSError:
                os.close(descriptor)
                raise
            self._held[owner] = descriptor

    def drop(self, owner: Owner) -> None:
        """Give up the lock of ``owner`` if it is held here, and remove a file that is not held."""
        with self._guard:
            descriptor = self._held.pop(owner, None)
            if descriptor is not None:
                os.close(descriptor)
        if not self.held(owner):
            with contextlib.suppress(OSError):
                self._file(owner).unlink()

    def held(self, owner: Owner) -> bool:
        """Whether the process that took the lock of ``owner`` is alive."""
        if self._has(owner):
            return True
        try:
            descriptor = os.open(self._file(owner), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _has(self, owner: Owner) -> bool:
        """Whether the lock is held here. One whose file was removed is not: no other process would
        see it."""
        descriptor = self._held.get(owner)
        if descriptor is None:
            return False
        return file_identity(descriptor) == file_identity(self._file(owner))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is here, and keep others out as long as the context lasts.

        Raises:
            OSError: the file of the lock cannot be created.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._folder / "opening", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give up all locks that are held here."""
        for owner in [*self._held]:
            self.drop(owner)

    def _file(self, owner: Owner) -> Path:
        text = f"{len(owner.replica)}:{owner.replica}{owner.incarnation}"
        return self._folder / hashlib.sha256(text.encode()).hexdigest()[:40]


def file_identity(file: Path | int) -> tuple[int, int] | None:
    """Which file a path leads to, or an open descriptor has: two paths lead to one file if this is
    equal. None if there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lock(descriptor: int) -> None:
    """Lock a file that only ``LeaseLocks.held`` of others can have locked, for microseconds: an
    owner joins through one store. Without a limit, a mistake in this would block every writer."""
    for _ in range(100):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001)
        else:
            return
    raise BlockingIOError(errno.EWOULDBLOCK, "another store has the lock of this owner")
