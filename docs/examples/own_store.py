"""A store of one's own, with the checks that every store must pass.

This one is the memory of one process: the reference model with a lock and a clock. Yours asks a
database instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bridgecore.ownership.store import Answer, Question
from bridgecore.testing.conformance import StoreConformance, run_checks
from bridgecore.testing.store import StoreModel
from bridgecore.transport.driver import StoreClient


class MemoryStore:
    """What is passed to ``serve(config, store=...)``."""

    def __init__(self) -> None:
        self._model = StoreModel()
        self._lock = threading.Lock()

    def ask(self, question: Question, answered: Callable[[Answer], None]) -> None:
        """Carry out ``question`` and call ``answered`` once."""
        with self._lock:
            answer = self._model.handle(question, time.monotonic_ns())
        answered(answer)


class TestMemoryStore(StoreConformance):
    """The checks. pytest finds the class by its name."""

    @contextmanager
    def store(self) -> Iterator[StoreClient]:
        """An empty store."""
        yield MemoryStore()


def main() -> str:
    """The same without pytest: a report with a line for each check."""
    return str(run_checks(TestMemoryStore()))


if __name__ == "__main__":
    print(main())
