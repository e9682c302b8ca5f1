"""The bridge on real ASGI servers: what a client of each gets.

What belongs here: whole requests through uvicorn and hypercorn on real sockets, with the emulator
as upstream.
"""

from __future__ import annotations

from bridgecore_asgi import BridgeApp
from tests.asgi.conftest import config, serving
from tests.e2e.conftest import Raw, Upstream, ask, post, request, sdk

TURN = {"model": "m", "input": "hi"}


def test_a_stream_and_a_json_answer(kind: str, upstream: Upstream) -> None:
    with serving(kind, BridgeApp(config(upstream))) as server, Raw(server.port) as raw:
        raw.send(post({**TURN, "stream": True}))
        head = raw.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        events = list(raw.events())
        assert events[0].name == "response.created"
        assert events[-1].name == "response.completed"
        raw.send(post(TURN))
        answer = raw.answer()
        assert (answer.status, answer.json["status"]) == (200, "completed")
