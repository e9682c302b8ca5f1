"""A client with the least Python that sends streamed turns and reads their answers.

What belongs here: one turn over one connection, with the times at which its first event and its end
came. The load generator of the throughput benchmark talks to one server; here each turn chooses.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field

_ID = re.compile(rb'"type":"response\.completed".*?"id":"(resp_[^"]+)"', re.DOTALL)
_BODY = (
    b'{"model":"gpt-5","input":[{"type":"message","role":"user","content":[{"type":"input_text",'
    b'"text":"[[turn deltas=%d batch=1 pace_us=0]]"}]}],"stream":true,"store":false%b}'
)
_HEAD = (
    b"POST /v1/responses HTTP/1.1\r\nhost: bridge\r\nauthorization: Bearer sk-%d\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


class TurnFailedError(Exception):
    """An answer that is no completed response."""


@dataclass
class Client:
    """One client: its connections by port, and the response that it continues."""

    number: int
    last: bytes = b""
    first: list[float] = field(default_factory=list)  # seconds to the first event, of each turn
    end: list[float] = field(default_factory=list)  # seconds to the end of the answer
    _open: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(
        default_factory=dict
    )

    async def turn(self, port: int, deltas: int) -> None:
        """One turn at the bridge on ``port``.

        Raises:
            TurnFailedError: it was not completed.
        """
        if port not in self._open:
            self._open[port] = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        reader, writer = self._open[port]
        previous = b',"previous_response_id":"%b"' % self.last if self.last else b""
        body = _BODY % (deltas, previous)
        began = time.perf_counter()
        writer.write(_HEAD % (self.number, len(body)) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise TurnFailedError((head + await reader.read(1000)).decode("latin-1"))
        text = await reader.readuntil(b"\n\n")
        self.first.append(time.perf_counter() - began)
        text += await reader.readuntil(b"\r\n0\r\n\r\n")
        self.end.append(time.perf_counter() - began)
        found = _ID.search(text)
        if found is None:
            raise TurnFailedError(text[-1000:].decode("latin-1"))
        self.last = found[1]

    async def close(self) -> None:
        """Close its connections."""
        for _, writer in self._open.values():
            writer.close()
            await writer.wait_closed()
