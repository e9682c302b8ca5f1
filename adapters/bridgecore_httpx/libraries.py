"""The two libraries that a client may come from: httpx, and httpx2, which goes on from it.

What belongs here: what differs between them. Their classes have the same names and meaning, but a
client takes only the responses, streams and exceptions of its own library. A program may use both.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import httpx
    import httpx2

    Request: TypeAlias = httpx2.Request | httpx.Request
    AsyncTransport: TypeAlias = httpx2.AsyncBaseTransport | httpx.AsyncBaseTransport
    Transport: TypeAlias = httpx2.BaseTransport | httpx.BaseTransport

    class AsyncTransportBase(httpx2.AsyncBaseTransport, httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: Request) -> Any: ...

    class TransportBase(httpx2.BaseTransport, httpx.BaseTransport):
        def handle_request(self, request: Request) -> Any: ...

    class AsyncStreamBase(httpx2.AsyncByteStream, httpx.AsyncByteStream): ...

    class StreamBase(httpx2.SyncByteStream, httpx.SyncByteStream): ...

    LIBRARIES: list[ModuleType]
else:
    LIBRARIES = []
    for _name in ("httpx2", "httpx"):
        if importlib.util.find_spec(_name) is not None:
            _module = importlib.import_module(_name)
            if _module not in LIBRARIES:  # ``httpx2.alias_httpx`` makes them one
                LIBRARIES.append(_module)
    if not LIBRARIES:
        raise ImportError("bridgecore_httpx needs httpx2 or httpx: pip install 'bridgecore[httpx]'")

    def _base(name: str) -> type:
        """A class that either library takes for its own ``name``."""
        return type(name, tuple(getattr(module, name) for module in LIBRARIES), {})

    Request = AsyncTransport = Transport = Any
    AsyncTransportBase, TransportBase = _base("AsyncBaseTransport"), _base("BaseTransport")
    AsyncStreamBase, StreamBase = _base("AsyncByteStream"), _base("SyncByteStream")


def library_of(request: Request) -> Any:
    """The library whose client sends ``request``."""
    for module in LIBRARIES:
        if isinstance(request, module.Request):
            return module
    raise TypeError(f"{type(request)} is no request of httpx2 or httpx")
