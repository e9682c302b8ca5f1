"""An aiohttp server with a bridge in it: ``UPSTREAM=wss://... python aiohttp_app.py``."""

import asyncio
import os
from collections.abc import AsyncIterator

from aiohttp import web

from bridgecore import Config, UpstreamUrl
from bridgecore.transport.request import InProcessRequest
from bridgecore_asyncio import Server, serve

BRIDGE = web.AppKey("bridge", Server)


async def answer(request: web.Request) -> web.StreamResponse:
    """Have the bridge answer a request; aiohttp cancels this when the client leaves."""
    changed, wanted = asyncio.Event(), asyncio.Event()

    def wake() -> None:
        changed.set()
        (wanted.clear if exchange.paused else wanted.set)()
        if exchange.cut and request.transport is not None:
            request.transport.abort()  # the client must not take the answer for a whole one

    async def upload() -> None:
        async for part in request.content.iter_any():
            exchange.receive(part)
            await wanted.wait()
        exchange.end()

    server = request.app[BRIDGE]
    exchange = InProcessRequest(server, wake)
    exchange.begin(request.method.encode(), request.raw_path.encode(), list(request.raw_headers))
    wake()
    uploading = asyncio.create_task(upload())
    uploading.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        while exchange.head is None:
            changed.clear()
            await changed.wait()
        status, fields = exchange.head
        headers = [(name.decode(), value.decode("latin-1")) for name, value in fields]
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        while True:
            await changed.wait()
            changed.clear()
            part, over = exchange.take()
            await response.write(part)
            exchange.unblock()
            if over:
                return response
    finally:
        uploading.cancel()
        exchange.leave()


async def run(app: web.Application) -> AsyncIterator[None]:
    """Run a bridge as long as the application runs."""
    config = Config(upstream=UpstreamUrl.parse(os.environ["UPSTREAM"]))
    async with serve(config, port=None) as app[BRIDGE]:
        yield
        await app[BRIDGE].wait_stopped()


async def drain(app: web.Application) -> None:
    """Let running turns end, for ``drain_timeout`` at most, and refuse new ones."""
    app[BRIDGE].request_drain("shutdown")


app = web.Application(handler_args={"handler_cancellation": True, "auto_decompress": False})
app.router.add_route("*", "/{path:.*}", answer)
app.cleanup_ctx.append(run)
app.on_shutdown.append(drain)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
