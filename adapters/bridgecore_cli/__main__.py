"""``python -m bridgecore_cli`` is the ``bridgecore`` command."""

import sys

from bridgecore_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
