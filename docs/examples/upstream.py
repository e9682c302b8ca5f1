"""The emulator of an upstream, by itself: ``python upstream.py 9000``."""

import asyncio
import sys

from bridgecore.testing import Emulator
from bridgecore_asyncio import serve


async def main(port: int) -> None:
    """Serve until Ctrl-C."""
    async with serve(Emulator(), port=port) as server:
        print(f"ws://127.0.0.1:{server.port}/v1/responses", flush=True)
        await server.wait_stopped()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
