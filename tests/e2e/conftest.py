"""Real parts to test with: the command as a process, an upstream in a thread, a client of bytes.

What belongs here: what more than one file of this folder needs. Nothing here knows what a test
expects, and nothing waits for a fixed time: a wait is for a condition, with a deadline.
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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import attrs
import openai
import pytest

import bridgecore_asyncio
from bridgecore.testing import Emulator
from bridgecore.testing.client import (
    HttpAnswer,
    HttpEnd,
    HttpHead,
    HttpPart,
    HttpReader,
    SseEvent,
    SseReader,
)
from bridgecore.transport import Machine

if TYPE_CHECKING:
    from tests.conftest import Backend

TIME_LIMIT = 15.0  # seconds that one wait may take
_COMMAND = (sys.executable, "-W", "error", "-m", "bridgecore_cli", "serve")
_LIMIT = 'ulimit -S -n {} && ulimit -H -n {} && exec "$@"'
_RUNNING = re.compile(
    r"bridgecore running on http://127\.0\.0\.[12]:(\d+) \(Press CTRL\+C to quit\)\n"
)
_POLL = 0.003  # seconds between two checks of a condition

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
    """The same on an event loop, to whose objects ``condition`` belongs."""
    deadline = time.monotonic() + TIME_LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come to hold")
        await backend.in_thread(time.sleep, _POLL)


# ------------------------------------------------------------------ the command


class Process:
    """``bridgecore serve`` as a process. Its standard error is a file, so that it never blocks."""

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
            subprocess.TimeoutExpired: it did not end within ``timeout`` seconds.
        """
        return self.popen.wait(timeout)

    def logged(self) -> str:
        """All of standard error so far.

        Read without moving the position in the file, which the process that writes it shares: it
        would write over what it has written.
        """
        number = self._errors.fileno()
        return os.pread(number, os.fstat(number).st_size, 0).decode()

    def await_logged(self, text: str) -> None:
        """Wait until it has logged ``text``."""
        eventually(lambda: text in self.logged())

    def output(self) -> str:
        """All of its output on either stream; the process must have ended."""
        return self._said + cast(IO[str], self.popen.stdout).read() + self.logged()

    def memory(self) -> int:
        """The peak of its memory so far, in bytes."""
        with open(f"/proc/{self.popen.pid}/status") as status:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
        assert found
        return int(found[1]) * 1024


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of a bridge, and with ``extra``."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGECORE_")}
    return {**ours, **(extra or {})}


@contextmanager
def running(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    files: tuple[int, int] | None = None,
    command: Sequence[str] = _COMMAND,
) -> Iterator[Process]:
    """``bridgecore serve --port 0`` with ``arguments``, ready; killed at the end if necessary.

    ``files``: the soft and the hard limit on open files that it starts with; None: as here.
    ``command``: another one with the same settings and output.
    """
    limited = [] if files is None else ["sh", "-c", _LIMIT.format(*files), "sh"]
    with tempfile.TemporaryFile() as errors:
        popen = subprocess.Popen(
            [*limited, *command, "--port", "0", *arguments],
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
    """An SDK client of the bridge at ``port``; to be used in a ``with``. The status of each answer,
    also of those that it retries, is appended to ``statuses``."""
    seen = [] if statuses is None else statuses
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key=key,
        max_retries=max_retries,
        timeout=TIME_LIMIT,
        # Plain HTTP: not reading the trust store saves 0.2 s per client.
        http_client=openai.DefaultHttpxClient(
            verify=False,
            event_hooks={"response": [lambda response: seen.append(response.status_code)]},
        ),
    )


@attrs.define
class Answer(HttpAnswer):
    """An HTTP answer; checks what this bridge promises of errors."""

    @property
    def error(self) -> Json:
        """The error object, which must have exactly the standard members."""
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


class Raw:
    """A client of bytes on a blocking socket."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=TIME_LIMIT)
        self._reader = HttpReader()
        self._parts: deque[HttpPart] = deque()
        self._ended = False

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close so that the other side receives RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def ended(self) -> bool:
        """Whether the stream ends here: nothing more was received, and nothing will be."""
        while not self._ended and not self._parts and self._reader.untouched:
            self._fill()
        return self._ended and not self._parts and self._reader.untouched

    def _fill(self) -> None:
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        self._parts += self._reader.feed(data)
        self._ended = not data

    def _part(self) -> HttpPart:
        while not self._parts:
            if self._ended:
                raise EOFError("the connection ended before the answer did")
            self._fill()
        return self._parts.popleft()

    def _body(self) -> Iterator[bytes]:
        while not isinstance(part := self._part(), HttpEnd):
            assert isinstance(part, bytes)
            yield part

    def head(self) -> Answer:
        """Status and headers of the next answer; its body remains unread."""
        part = self._part()
        assert isinstance(part, HttpHead)
        return Answer(part.status, part.headers)

    def answer(self, *, of_head: bool = False) -> Answer:
        """The next answer, complete. ``of_head``: it is one to HEAD."""
        if of_head:
            self._reader.expect_no_body()
        answer = self.head()
        answer.body = b"".join(self._body())
        answer.complete = True
        return answer

    def everything(self) -> Iterator[SseEvent]:
        """The events and comments of a stream, up to its end."""
        reader = SseReader()
        for data in self._body():
            yield from reader.feed(data)
        assert not reader.unfinished

    def events(self) -> Iterator[SseEvent]:
        """The same without comments."""
        return (event for event in self.everything() if event.name)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole request; underscores in the names of ``headers`` become hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bridge"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(body: object, *, key: str = KEY, **headers: str) -> bytes:
    """A turn; ``body`` is encoded as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", "/v1/responses", data, authorization=f"Bearer {key}", **headers)


def ask(port: int, data: bytes) -> Answer:
    """The answer to ``data`` on a new connection."""
    with Raw(port) as raw:
        raw.send(data)
        return raw.answer()
