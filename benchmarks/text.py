"""Text as in conversations about code, for the histories of the benchmarks.

What belongs here: text alone. Which items it is in, and how many, is the subject of a benchmark.
"""

from __future__ import annotations

import random

# Some words have what JSON escapes, or characters of more than one byte: parsers take longer for
# those, and an encoder may write them in more than one way.
WORDS = (
    *("def", "return", "self.path", '"quoted"', "value", "=", "assertEqual(", "café", "the", "of"),
    *("context:", "0x1f", "/usr/lib/python", "import\\n", "naïve", "{", "}", "[", "]", "error:"),
    "line",
)


def words(rng: random.Random, size: int) -> str:
    """About ``size`` bytes of text as in conversations about code."""
    out: list[str] = []
    while size > 0:
        out.append(rng.choice(WORDS))
        size -= len(out[-1]) + 1
    return " ".join(out)
