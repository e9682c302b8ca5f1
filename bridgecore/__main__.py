"""``python -m bridgecore`` is the ``bridgecore`` command.

What belongs here: finding the command by its name. It is not imported, because the core imports no
adapter: a program can ship ``bridgecore`` without ``bridgecore_cli``.
"""

import importlib.util
import runpy
import sys

if __name__ == "__main__":
    if importlib.util.find_spec("bridgecore_cli") is None:
        sys.exit(
            "bridgecore: error: the command is the package bridgecore_cli, which is not installed "
            "beside bridgecore; install the whole distribution: pip install 'bridgecore[cli]'"
        )
    runpy.run_module("bridgecore_cli", run_name="__main__", alter_sys=True)
