"""bridgecore on asyncio: names to import. ``bridgecore_trio`` offers the same ones."""

from bridgecore_asyncio.driver import Server, serve

__all__ = ["Server", "serve"]
