"""Conversations of openai-python through a bridge whose upstream is reached over HTTP.

What belongs here: real sockets, with TLS and without. What the bridge decides is tested in virtual
time, in tests/endpoint/test_over_http.py.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
import trustme

from bridgecore.testing import EVERY, CloseWith, Emulator, Fault, Point, Reject, Text
from tests.e2e.conftest import KEY, driven, running, sdk

if TYPE_CHECKING:
    from tests.conftest import Backend

TURNS = 4
# Many times what is written at a time.
BULK = "x" * 2**21


def converse(
    client: openai.OpenAI, *, large: bool = False, after_second: Callable[[], None] = lambda: None
) -> list[str]:
    """The texts of a conversation that continues each response by its id. ``after_second``: called
    after the second turn."""
    texts: list[str] = []
    last: str | None = None
    for number in range(TURNS):
        words = f"q{number} {BULK if large and number == 1 else ''}"
        with client.responses.stream(
            model="m",
            input=words,
            store=False,
            previous_response_id=last if last is not None else openai.omit,
        ) as stream:
            response = stream.get_final_response()
        last = response.id
        texts.append(response.output_text)
        if number == 1:
            after_second()
    return texts


def assert_whole(emulator: Emulator) -> None:
    """Each turn had the whole conversation as its context, and none named what only a connection
    could know."""
    assert [len(turn.request.context) for turn in emulator.turns] == [1, 3, 5, 7]
    assert [request.anchor for request in emulator.requests] == [None] * TURNS
    assert emulator.posts == TURNS


@pytest.mark.parametrize("tls", [False, True])
def test_a_conversation_over_http(backend: Backend, tls: bool, tmp_path: Path) -> None:
    emulator = Emulator(answer=lambda _: [Text("fine")])
    emulator.faults.add(2, Fault(Point.AFTER_TERMINAL, CloseWith(1006)))  # between two turns
    environ, context = {}, None
    if tls:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        file = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(file))
        environ = {"SSL_CERT_FILE": str(file), "SSL_CERT_DIR": str(tmp_path / "none")}
    with ExitStack() as stack:
        port = stack.enter_context(driven(emulator, context))
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"
        arguments = ("--upstream", url, "--backend", backend.name)
        process = stack.enter_context(running(*arguments, environ=environ))
        client = stack.enter_context(sdk(process.port))

        def until_lost() -> None:
            # What is sent on a connection that is just being lost may have been read: a 502.
            process.await_logged("session.connection_lost")

        assert len(converse(client, large=True, after_second=until_lost)) == TURNS
    assert_whole(emulator)
    assert emulator.accepted == 2
    assert {dict(request.headers)[b"authorization"] for request in emulator.requests} == {
        f"Bearer {KEY}".encode()
    }


def test_an_upstream_that_refuses_websockets(backend: Backend) -> None:
    emulator = Emulator()
    emulator.faults.add(EVERY, Fault(Point.ON_UPGRADE, Reject(426)))
    with driven(emulator) as port:
        url = f"ws://127.0.0.1:{port}/v1/responses"
        arguments = ("--upstream", url, "--backend", backend.name, "--fallback", "http")
        with running(*arguments) as process, sdk(process.port) as client:
            converse(client)
    assert_whole(emulator)
    assert (emulator.rejections, emulator.upgrades) == (1, 0)


def test_the_emulator_serves_the_sdk_itself() -> None:
    """So what the bridge is tested against is what clients of such a service read."""
    emulator = Emulator()
    with driven(emulator) as port, sdk(port) as client:
        assert client.base_url.port == port
        with client.responses.stream(model="m", input="hi") as stream:
            kinds = [event.type for event in stream]
            first = stream.get_final_response()
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        second = client.responses.create(model="m", input="on", previous_response_id=first.id)
        assert second.status == "completed"
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model="m", input="on", previous_response_id="resp_no")
        assert refused.value.code == "previous_response_not_found"
