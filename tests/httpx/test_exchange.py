"""Tests of one request of a client: which events it reports, and in which order.

What belongs here: ``bridgecore.transport.request`` as the transports of this adapter use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import pytest

from bridgecore import transport as tp
from bridgecore.transport.sockets import HIGH_WATER
from bridgecore_httpx import BridgeTransport
from tests.httpx.conftest import TURN, URL, client_of
from tests.httpx.test_transports import Machine, exchanges

if TYPE_CHECKING:
    from tests.conftest import Backend

BIG = b"x" * (HIGH_WATER + 1)


def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
    if isinstance(event, tp.RequestEnded):
        return [tp.Respond(event.conn, 200, []), tp.Send(event.conn, BIG, notify=True)]
    return [tp.Close(event.conn)] if isinstance(event, tp.DataSent) else []


BEGUN = ["RequestBegun", "DataReceived", "RequestEnded"]


def test_data_counts_as_sent_when_it_is_taken(backend: Backend) -> None:
    async def body() -> None:
        machine = Machine(answer)
        transport = BridgeTransport(machine.config)
        async with (
            client_of(httpx2, transport) as client,
            client.stream("POST", URL, json=TURN) as response,
        ):
            (exchange,) = exchanges(transport)
            exchange.unblock()  # too early: another reader might have taken it, and more has come
            assert machine.kinds() == [*BEGUN, "WriteBlocked"]
            assert await response.aread() == BIG
            ended = ["WriteBlocked", "WriteUnblocked", "DataSent", "Disconnected"]
            assert machine.kinds() == [*BEGUN, *ended]

    backend.run(body)


@pytest.mark.parametrize("last", [tp.Close, tp.EndSending])
def test_the_end_of_an_answer_needs_no_reader(
    backend: Backend, last: type[tp.Close] | type[tp.EndSending]
) -> None:
    """What waits is in memory; a drain does not have to wait for it."""

    def answer(event: tp.TransportEvent) -> list[tp.TransportEffect]:
        if not isinstance(event, tp.RequestEnded):
            return []
        conn = event.conn
        return [tp.Respond(conn, 200, []), tp.Send(conn, BIG, notify=True), last(conn)]

    async def body() -> None:
        machine = Machine(answer)
        transport = BridgeTransport(machine.config)
        async with (
            client_of(httpx2, transport) as client,
            client.stream("POST", URL, json=TURN) as response,
        ):
            assert machine.kinds() == [*BEGUN, "WriteBlocked", "DataSent", "Disconnected"]
            await transport.aclose()
            assert await response.aread() == BIG

    backend.run(body)


def test_a_client_that_gives_up_is_reported(backend: Backend) -> None:
    async def body() -> None:
        machine = Machine(lambda _: [])
        transport = BridgeTransport(machine.config)
        async with client_of(httpx2, transport, timeout=0.01) as client:
            with pytest.raises(httpx2.ReadTimeout):
                await client.post(URL, json=TURN)
            assert machine.kinds() == [*BEGUN, "Disconnected"]

    backend.run(body)
