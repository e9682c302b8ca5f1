"""Writes the pages of the documentation that say what the code says.

What belongs here: which page comes from which function. `make generate` runs it, and `make check`
runs it with ``--check``, which writes nothing and fails if a page is not what the code says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bridgecore.tables import render_rst

FOLDER = Path(__file__).resolve().parent / "generated"
PAGES: Mapping[str, Callable[[], str]] = {"rules.rst": render_rst}


def main() -> int:
    """Write or check every page; the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated pages of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if out of date")
    check: bool = parser.parse_args().check
    stale = []
    for name, render in PAGES.items():
        page, text = FOLDER / name, render()
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(page)
        if not check:
            FOLDER.mkdir(exist_ok=True)
            page.write_text(text, encoding="utf-8")
    for page in stale:
        print(f"{page}: {'out of date, run: make generate' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
