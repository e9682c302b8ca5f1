"""bridgecore on trio: names to import. ``bridgecore_asyncio`` offers the same ones."""

from bridgecore_trio.driver import Server, serve

__all__ = ["Server", "serve"]
