"""Measures how much memory something takes.

What belongs here: the measurement, for tests that compare accounts with it.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def taken(make: Callable[[], T]) -> tuple[T, int]:
    """The result of ``make``, and the bytes that are allocated as long as it exists. ``make`` is
    called twice, and what the first call leaves in caches is not counted."""
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
    """The peak of bytes allocated while ``act`` runs."""
    tracemalloc.start()
    act()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size
