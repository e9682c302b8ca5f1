"""``python -m bridgecore_cli`` is the ``bridgecore`` command."""

import sys

from bridgecore_cli.entry import run

if __name__ == "__main__":
    sys.exit(run())
