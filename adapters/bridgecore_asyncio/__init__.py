"""bridgecore on asyncio: ``serve`` drives a machine over real sockets.

What belongs here: names to import. ``bridgecore_trio`` offers the same ones.
"""

from bridgecore_asyncio.driver import Server, serve

__all__ = ["Server", "serve"]
