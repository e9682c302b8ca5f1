"""Reading and writing side by side, on asyncio and on trio.

What belongs here: what the two libraries do differently for one exchange. anyio would do the same
for both, but costs a quarter of a millisecond for each request, a tenth of a short turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

_Step = Callable[[], Awaitable[object]]


class Event(Protocol):
    """The common interface of ``asyncio.Event`` and ``trio.Event``."""

    def set(self) -> None: ...
    async def wait(self) -> object: ...


class Tasks(ABC):
    """Runs the two sides of an exchange."""

    @staticmethod
    @abstractmethod
    def event() -> Event:
        """An event that is not set."""

    @abstractmethod
    async def run(self, read: _Step, write: _Step) -> None:
        """Run both until ``write`` has ended, or ``cancel`` was called; then ``read`` is cancelled.

        Raises:
            Exception: what either has raised.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Have ``run`` return at once, whatever it awaits. ``write`` itself has to return after it
        has called this."""

    @staticmethod
    @abstractmethod
    async def within(seconds: float, step: _Step) -> None:
        """Run ``step`` for at most that long."""


class AsyncioTasks(Tasks):
    """On asyncio."""

    def __init__(self) -> None:
        self._writer: asyncio.Task[Any] | None = None  # while it writes
        self._cancelled = False

    @staticmethod
    def event() -> Event:
        return asyncio.Event()

    async def run(self, read: _Step, write: _Step) -> None:
        self._writer = writer = asyncio.current_task()
        assert writer is not None, "an application runs in a task"
        before = writer.cancelling()
        reader = asyncio.ensure_future(read())
        reader.add_done_callback(self._read_ended)
        try:
            await write()
        except asyncio.CancelledError:
            # As ``asyncio.timeout`` does: somebody else may have cancelled this task, too.
            if not self._cancelled or writer.uncancel() > before:
                raise
        finally:
            self._writer = None
            reader.cancel()
            await asyncio.wait((reader,))
        if not reader.cancelled():
            reader.result()

    def _read_ended(self, reader: asyncio.Future[object]) -> None:
        if not reader.cancelled() and reader.exception() is not None:
            self.cancel()

    def cancel(self) -> None:
        # Cancelled by itself, the writer would find out after the end of ``run``, if it awaits
        # nothing before.
        if self._writer not in (None, asyncio.current_task()) and not self._cancelled:
            self._cancelled = True
            self._writer.cancel()

    @staticmethod
    async def within(seconds: float, step: _Step) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await step()


class TrioTasks(Tasks):
    """On trio, which has been imported by whoever runs it."""

    def __init__(self) -> None:
        self._scope = _trio().CancelScope()

    @staticmethod
    def event() -> Event:
        event: Event = _trio().Event()
        return event

    async def run(self, read: _Step, write: _Step) -> None:
        try:
            with self._scope:
                async with _trio().open_nursery() as nursery:
                    nursery.start_soon(read)
                    await write()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise (group if len(group.exceptions) > 1 else group.exceptions[0]) from None

    def cancel(self) -> None:
        self._scope.cancel()

    @staticmethod
    async def within(seconds: float, step: _Step) -> None:
        with _trio().move_on_after(seconds):
            await step()


def _trio() -> Any:
    return sys.modules["trio"]


def in_trio() -> bool:
    """Whether this task is one of trio."""
    return "trio" in sys.modules and bool(_trio().lowlevel.in_trio_task())
