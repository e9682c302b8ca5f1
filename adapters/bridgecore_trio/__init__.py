"""Run bridgecore on trio. ``bridgecore_asyncio`` has the same names with the same meaning."""

from bridgecore_trio.driver import Server, serve

__all__ = ["Server", "serve"]
