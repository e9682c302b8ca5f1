"""Use the bridge as a transport of httpx or httpx2, inside the process and without a server.

``BridgeTransport`` is for ``AsyncClient``, on asyncio or trio; ``SyncBridgeTransport`` for
``Client``. Both answer turns, ``POST .../responses``, and pass every other request to an ordinary
transport. Host and scheme of a turn's URL are not used: the bridge connects to ``Config.upstream``.
"""

from bridgecore_httpx.transports import BridgeTransport, SyncBridgeTransport

__all__ = ["BridgeTransport", "SyncBridgeTransport"]
