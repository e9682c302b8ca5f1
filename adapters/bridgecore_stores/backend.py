"""What a back end is: one connection to a database that carries out questions.

What belongs here: the interface between ``worker.py`` and the back ends, and the exception of all
of them. A back end is synchronous and is used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import attrs

from bridgecore.errors import BridgecoreError
from bridgecore.ownership.store import Answer, Question
from bridgecore.recovery.timers import NS_PER_SECOND

NOTICES_KEPT: Final = 24 * 3600 * NS_PER_SECOND
"""How long a notice is kept at least, in ns. Renewals return those that are younger than twice the
lease, which is far less."""


class StoreError(BridgecoreError):
    """A store cannot be used. The message says why and what to do, without data of requests."""


class StoreUnavailableError(StoreError):
    """A store cannot be used now, although nothing shows that its URL or its keys are wrong."""


class ConnectionLostError(Exception):
    """The connection has ended. Unlike after a timeout, a new one may work at once."""


class Backend(Protocol):
    """One connection to a store. After any exception it must be closed before it is opened
    again, because what it has in progress is unknown."""

    def open(self, *, first: bool = False) -> None:
        """Connect, and check the version of the tables. ``first``: also create or update them, and
        try whether they can be written.

        Raises:
            StoreError: the store cannot be used.
        """

    def carry_out(self, questions: Sequence[Question]) -> list[Answer]:
        """Carry out the questions in this order, and return their answers in the same order.

        Several questions are only ever ``Commit``; they are carried out together. An exception
        says that it is unknown what became of them.
        """

    def close(self) -> None:
        """Close the connection, if it is open. Raises nothing."""

    def reason(self, error: Exception) -> str:
        """A short text about an exception of this back end, without data of requests."""


BackendT_co = TypeVar("BackendT_co", bound=Backend, covariant=True)


@attrs.frozen
class Connector(Generic[BackendT_co]):
    """Makes the connections of one store.

    ``connect``: a back end that is not open yet. ``workers``: how many connections can read at the
    same time. ``closed``: called when the store is closed.
    """

    connect: Callable[[], BackendT_co]
    workers: int
    closed: Callable[[], None] = lambda: None
