"""Conversations of clients that speak WebSocket mode to the bridge, on real sockets.

What belongs here: openai-python's own connection and that of openai-agents, unmodified. What the
bridge decides is tested in virtual time, in tests/endpoint/test_websocket.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bridgecore.testing import EVERY, CloseWith, Emulator, Fault, Point, ToolCall, echo
from tests.e2e.conftest import emulating, sdk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridgecore.testing import CreateFrame, Output
    from tests.conftest import Backend
    from tests.e2e.conftest import Shared

WEBSOCKET = ("--websocket", "true")


def answer(request: CreateFrame) -> Sequence[Output]:
    """A tool call in the second turn, else the text of the turn."""
    last = request.input[-1] if request.input else {}
    if last.get("role") == "user" and "tool" in str(last["content"]):
        return [ToolCall("lookup")]
    return echo(request)


@pytest.mark.parametrize("store", [False, True])
def test_openai_python_keeps_its_connection_when_the_upstream_is_lost(
    backend: Backend, shared: Shared, store: bool
) -> None:
    emulator = Emulator(answer=answer)
    emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    with emulating(emulator) as upstream:
        server = shared("--backend", backend.name, "--upstream", upstream.url, *WEBSOCKET)
        with sdk(server.port) as client, client.responses.connect() as connection:

            def turn(given: Any, previous: str | None) -> Any:
                known: dict[str, Any] = (
                    {} if previous is None else {"previous_response_id": previous}
                )
                connection.response.create(model="m", input=given, store=store, **known)
                event: Any  # a union of 80 classes, of which mypy checks each pair
                for event in connection:
                    assert event.type != "error", event
                    if event.type == "response.completed":
                        return event.response
                raise AssertionError("the connection has ended")

            first = turn("hello", None)
            second = turn("call the tool", first.id)
            (call,) = second.output
            assert call.type == "function_call"
            output = {"type": "function_call_output", "call_id": call.call_id, "output": "42"}
            third = turn([output], second.id)
            assert third.status == "completed"
    assert [len(turn.request.context) for turn in emulator.turns] == [1, 3, 5]
    assert emulator.upgrades == 3


def test_an_error_reaches_openai_python_with_its_code(shared: Shared) -> None:
    with emulating(Emulator()) as upstream:
        server = shared("--upstream", upstream.url, *WEBSOCKET)
        with sdk(server.port) as client, client.responses.connect() as connection:
            connection.response.create(model="m", input="hi", previous_response_id="x" * 5000)
            event: Any = next(iter(connection))
            assert event.type == "error"
            assert "previous_response_id" in str(event)


def test_openai_python_over_http_is_served_beside_it(shared: Shared) -> None:
    with emulating(Emulator()) as upstream:
        server = shared("--upstream", upstream.url, *WEBSOCKET)
        with sdk(server.port) as client:
            assert client.responses.create(model="m", input="hi").status == "completed"
