"""``python -m bridgecore_asgi``: the bridge under uvicorn, with the settings of ``bridgecore``."""

import importlib.util
import sys

from bridgecore_cli.errors import CONFIGURATION
from bridgecore_cli.main import fail


def _run() -> int:
    if importlib.util.find_spec("uvicorn") is None:
        message = "uvicorn is not installed: pip install 'bridgecore[asgi]'"
        return fail(message, CONFIGURATION)
    from bridgecore_asgi.command import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(_run())
