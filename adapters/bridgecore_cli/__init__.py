"""The ``bridgecore`` command: settings, logs, signals and exit codes around ``serve``.

What belongs here: the command line, and nothing that another program would import. Embedders use
``bridgecore_asyncio`` or ``bridgecore_trio``.
"""
