"""Real parts to test with: the command as a process, an upstream in a thread, a client of bytes.

What belongs here: what more than one file of this folder needs. Nothing here knows what a test
expects, and nothing waits for time to pass: a wait is for a condition, and has a deadline.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import attrs
import openai
import pytest

import bridgecore_asyncio
from bridgecore.testing import Emulator
from bridgecore.transport import Machine

if TYPE_CHECKING:
    from tests.conftest import Backend

TIME_LIMIT = 15.0  # seconds that one wait may take
_COMMAND = (sys.executable, "-W", "error", "-m", "bridgecore_cli", "serve")
_RUNNING = re.compile(
    r"bridgecore running on http://127\.0\.0\.1:(\d+) \(Press CTRL\+C to quit\)\n"
)
_POLL = 0.003  # seconds between two looks at a condition

Json: TypeAlias = dict[str, Any]
KEY = "sk-a-credential-of-a-client"


# ------------------------------------------------------------------ waiting


def eventually(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds; fail if it does not for too long."""
    deadline = time.monotonic() + TIME_LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come to hold")
        time.sleep(_POLL)


async def eventually_in(backend: Backend, condition: Callable[[], object]) -> None:
    """The same on an event loop, to whose objects ``condition`` looks."""
    deadline = time.monotonic() + TIME_LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come to hold")
        await backend.in_thread(time.sleep, _POLL)


# ------------------------------------------------------------------ the command


class Process:
    """``bridgecore serve`` as a process. Its standard error goes to a file: nobody must read it."""

    def __init__(
        self, popen: subprocess.Popen[str], said: str, port: int, errors: IO[bytes]
    ) -> None:
        self.popen = popen
        self.port = port
        self._said = said
        self._errors = errors

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def exit_code(self, timeout: float = TIME_LIMIT) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it did not come within ``timeout`` seconds.
        """
        return self.popen.wait(timeout)

    def logged(self) -> str:
        """Everything on standard error so far."""
        self._errors.seek(0)
        return self._errors.read().decode()

    def output(self) -> str:
        """Everything that it printed on either stream; it must have ended."""
        return self._said + cast(IO[str], self.popen.stdout).read() + self.logged()

    def memory(self) -> int:
        """Bytes of memory that it had at most so far."""
        with open(f"/proc/{self.popen.pid}/status") as status:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
        assert found
        return int(found[1]) * 1024


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would configure a bridge, and with ``extra``."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGECORE_")}
    return {**ours, **(extra or {})}


@contextmanager
def running(*arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[Process]:
    """``bridgecore serve --port 0`` with ``arguments``, up; killed at the end if need be."""
    with tempfile.TemporaryFile() as errors:
        popen = subprocess.Popen(
            [*_COMMAND, "--port", "0", *arguments],
            env=environment(environ),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            line = cast(IO[str], popen.stdout).readline()
            match = _RUNNING.fullmatch(line)
            if match is None:
                popen.wait(TIME_LIMIT)
                errors.seek(0)
                raise AssertionError(f"first line {line!r}; {errors.read().decode()}")
            process = Process(popen, line, int(match[1]), errors)
            try:
                yield process
            except BaseException as exc:
                exc.add_note(f"exit code {popen.poll()}; it logged:\n{process.logged()[-4000:]}")
                raise
        finally:
            popen.kill()
            popen.communicate()


class Shared(Protocol):
    """Processes that the tests of a module share: the first call with ``arguments`` starts one."""

    def __call__(self, *arguments: str) -> Process: ...


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with ExitStack() as stack:
        started: dict[tuple[str, ...], Process] = {}

        def start(*arguments: str) -> Process:
            if arguments not in started:
                started[arguments] = stack.enter_context(running(*arguments))
            return started[arguments]

        yield start


# ------------------------------------------------------------------ the upstream


@attrs.frozen
class Upstream:
    """An emulator that listens on a thread of its own. It may be changed while it runs."""

    emulator: Emulator
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/responses"

    def await_turns(self, count: int) -> None:
        """Wait until it has begun ``count`` turns, all together."""
        eventually(lambda: len(self.emulator.turns) >= count)


@contextmanager
def driven(machine: Machine, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve ``machine`` on a thread of its own; the port that it listens on."""
    up: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def serve() -> None:
        over = asyncio.Event()
        async with bridgecore_asyncio.serve(machine, listener_ssl=context) as server:
            up.set_result((asyncio.get_running_loop(), over, server.port))
            await over.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:
            if up.done():
                raise
            up.set_exception(exc)

    thread = threading.Thread(target=run, name="upstream")
    thread.start()
    try:
        loop, over, port = up.result(TIME_LIMIT)
        try:
            yield port
        finally:
            loop.call_soon_threadsafe(over.set)
    finally:
        thread.join(TIME_LIMIT)


@contextmanager
def emulating(emulator: Emulator | None = None) -> Iterator[Upstream]:
    emulator = emulator if emulator is not None else Emulator()
    with driven(emulator) as port:
        yield Upstream(emulator, port)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """An emulator on a thread of its own."""
    with emulating() as upstream:
        yield upstream


# ------------------------------------------------------------------ clients


def sdk(
    port: int, *, max_retries: int = 0, key: str = KEY, statuses: list[int] | None = None
) -> openai.OpenAI:
    """A client of the bridge at ``port``; to be used in a ``with``. The status of each answer, also
    of those that it retries, is put into ``statuses``."""
    seen = [] if statuses is None else statuses
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key=key,
        max_retries=max_retries,
        timeout=TIME_LIMIT,
        # Plain HTTP: not to read the trust store spares 0.2 s a client.
        http_client=openai.DefaultHttpxClient(
            verify=False,
            event_hooks={"response": [lambda response: seen.append(response.status_code)]},
        ),
    )


@attrs.frozen
class Answer:
    """An HTTP answer. Names in ``headers`` are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Json:
        return cast(Json, json.loads(self.body))

    @property
    def error(self) -> Json:
        """The error object, which must have exactly the members that clients know."""
        body = self.json
        assert body.keys() == {"error"}
        error = cast(Json, body["error"])
        assert error.keys() == {"message", "type", "code", "param"}
        assert error["message"]
        assert error["type"]
        assert self.headers["content-type"] == "application/json"
        if self.status in (429, 502, 503, 504):
            assert re.fullmatch("[1-9][0-9]*", self.headers["retry-after"])
        return error

    @property
    def code(self) -> str:
        return cast(str, self.error["code"])


@attrs.frozen
class Event:
    """A server-sent event: the ``event:`` line and its ``data:`` lines, joined."""

    name: str
    data: bytes

    @property
    def json(self) -> Json:
        return cast(Json, json.loads(self.data))


class Raw:
    """A client made of bytes on a blocking socket."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=TIME_LIMIT)
        self._buffer = bytearray()
        self._ended = False

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close so that the other side is sent RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def ended(self) -> bool:
        """Whether the stream ends here: nothing more came, and nothing will."""
        while not self._ended and not self._buffer:
            self._fill()
        return self._ended and not self._buffer

    def _fill(self) -> None:
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        self._buffer += data
        self._ended = not data

    def line(self) -> bytes:
        """The next line, without its CRLF."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            if self._ended:
                raise EOFError(f"in a line: {bytes(self._buffer)!r}")
            self._fill()
        data = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return data

    def exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if self._ended:
                raise EOFError(f"{len(self._buffer)} of {count} bytes came")
            self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def head(self) -> Answer:
        """Status and headers of the next answer; its body stays to be read."""
        version, status, _ = self.line().split(b" ", 2)
        assert version == b"HTTP/1.1"
        headers = {}
        while line := self.line():
            name, _, value = line.partition(b":")
            headers[name.decode().lower()] = value.strip().decode()
        return Answer(int(status), headers)

    def answer(self) -> Answer:
        """The next answer, complete."""
        head = self.head()
        if head.headers.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunks())
        else:
            body = self.exactly(int(head.headers["content-length"]))
        return attrs.evolve(head, body=body)

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a chunked body, up to its end."""
        while size := int(self.line(), 16):
            yield self.exactly(size)
            assert self.line() == b""
        assert self.line() == b""

    def blocks(self) -> Iterator[bytes]:
        """What empty lines separate in a stream of events: events and comments."""
        rest = b""
        for chunk in self.chunks():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            yield from blocks
        assert rest == b""

    def events(self) -> Iterator[Event]:
        """The events of a stream, up to its end; comments are left out."""
        for block in self.blocks():
            if not block.startswith(b":"):
                yield read_event(block)


def read_event(block: bytes) -> Event:
    """An event as the bridge writes it: one ``event:`` line, then ``data:`` lines."""
    first, *lines = block.split(b"\n")
    assert first.startswith(b"event: ")
    assert all(line.startswith(b"data: ") for line in lines)
    return Event(first[7:].decode(), b"\n".join(line[6:] for line in lines))


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole request; underscores in the names of ``headers`` stand for hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bridge"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(body: object, *, key: str = KEY, **headers: str) -> bytes:
    """A turn; ``body`` is made JSON of unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", "/v1/responses", data, authorization=f"Bearer {key}", **headers)


def ask(port: int, data: bytes) -> Answer:
    """The answer to ``data`` on a connection of its own."""
    with Raw(port) as raw:
        raw.send(data)
        return raw.answer()
