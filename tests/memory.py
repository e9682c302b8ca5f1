"""How much memory something takes.

What belongs here: the measurement, for tests that hold accounts to it.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def taken(make: Callable[[], T]) -> tuple[T, int]:
    """What ``make`` makes, and the bytes that are taken as long as it is there. It is made twice:
    what the first time leaves behind is nobody's."""
    make()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = make()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return made, size


def peak(act: Callable[[], object]) -> int:
    """The bytes that ``act`` takes while it runs, at their highest."""
    tracemalloc.start()
    act()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size
