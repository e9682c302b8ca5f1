"""Run bridgecore on asyncio. ``bridgecore_trio`` has the same names with the same meaning."""

from bridgecore_asyncio.driver import Server, serve

__all__ = ["Server", "serve"]
