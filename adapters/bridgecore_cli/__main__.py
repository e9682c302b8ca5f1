"""``python -m bridgecore_cli``: the ``bridgecore`` command without its script."""

import sys

from bridgecore_cli.entry import run

if __name__ == "__main__":
    sys.exit(run())
