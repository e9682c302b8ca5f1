"""Runs the Autobahn cases against both sides of ``wire/websocket.py``, and against a bridge.

The Autobahn test suite is the usual judge of WebSocket implementations. The package ``kosoku`` runs
its cases: as a client that opens a connection for each case, or as a server to which the client
under test connects once for each case. For nearly all cases the peer under test has to send back
what it receives, so what belongs here is such a peer around ``WebSocketServer`` and
``WebSocketClient``, on plain sockets and threads; and what to expect of each case.

Everything that is not excused in ``EXCUSES`` must pass, and what is excused must end exactly as
written there: a binary message must be refused, not be ignored.

The subjects:

* ``server`` and ``client``: all cases. The client reads plain frames without wsproto, and sends
  large messages in fragments, as the bridge does upstream.
* ``server-bytewise`` and ``client-bytewise``: each received byte is passed on alone, and answered
  before the next one. This has to find the same faults. Without the cases of category 9, which
  measure speed, and those of compression.
* ``bridge``: a whole bridge whose clients may speak WebSocket mode, with the cases in which the
  suite waits for no echo, because a bridge does not echo.

``python tests/autobahn/run.py`` runs them all. It is a process of its own because kosoku changes
``sys.path`` and ``binascii`` for the cases, which were written for Python 2.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import attrs
import kosoku

import bridgecore_asyncio
from bridgecore import Config, UpstreamUrl
from bridgecore.wire.websocket import (
    MAX_FRAGMENTS,
    CloseReceived,
    Failed,
    MessageReceived,
    UpgradeRequested,
    WebSocketClient,
    WebSocketServer,
)

if TYPE_CHECKING:
    from kosoku._kosoku import CaseResult

MAX_MESSAGE: Final = 16 << 20  # the largest message of the suite, in bytes
AT_ONCE: Final = 8  # cases: most of a case's time is spent waiting
PATIENCE: Final = 30.0  # seconds that a socket may be silent
READ: Final = 65_536  # bytes

PASSED: Final = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
MEASURING: Final = ("9.*",)
COMPRESSION: Final = ("12.*", "13.*")


@attrs.frozen
class Excuse:
    """Cases that cannot pass, how they must end instead, and why."""

    cases: tuple[str, ...]
    verdict: str
    close_code: int
    why: str


EXCUSES: Final = (
    Excuse(
        ("1.2.*", "9.2.*", "9.4.*", "9.6.*", "9.8.*"),
        *("FAILED", 1003),
        "binary messages are refused: the API has text messages only",
    ),
    Excuse(
        ("9.3.1",),
        *("FAILED", 1009),
        f"a message of 65,536 fragments: more than {MAX_FRAGMENTS:,} are refused",
    ),
    Excuse(
        COMPRESSION,
        *("UNIMPLEMENTED", 1000),
        "compression is never negotiated: compressed frames would have no size limit",
    ),
)


class Result(Protocol):
    """What is read of a result of kosoku's (``CaseResult``)."""

    @property
    def case_id(self) -> str: ...
    @property
    def behavior(self) -> Verdict: ...
    @property
    def behavior_close(self) -> Verdict: ...
    @property
    def remote_close_code(self) -> int | None: ...
    @property
    def result(self) -> str: ...
    @property
    def result_close(self) -> str: ...


class Verdict(Protocol):
    """What kosoku says of the messages of a case, or of how it was closed."""

    @property
    def value(self) -> str: ...


# ------------------------------------------------------------------ judging


def excuse_of(case: str) -> Excuse | None:
    """The excuse that ``case`` has."""
    for excuse in EXCUSES:
        if any(fnmatchcase(case, pattern) for pattern in excuse.cases):
            return excuse
    return None


def complaint(result: Result) -> str | None:
    """What is wrong with ``result``; None if it is as it must be."""
    verdict, code = result.behavior.value, result.remote_close_code
    excuse = excuse_of(result.case_id)
    if excuse is not None:
        if (verdict, code) == (excuse.verdict, excuse.close_code):
            return None
        wanted = f"{excuse.verdict} with close code {excuse.close_code} ({excuse.why})"
        return f"{result.case_id} is {verdict} with {code}, wanted {wanted}"
    if verdict in PASSED and result.behavior_close.value in PASSED:
        return None
    closed = f"closed {result.behavior_close.value} with {code} ({result.result_close})"
    return f"{result.case_id} is {verdict} ({result.result}), {closed}"


def report(subject: str, results: Sequence[Result], seconds: float) -> bool:
    """Print what came out of the cases of ``subject``; whether all ended as they must."""
    excused = [result for result in results if excuse_of(result.case_id) is not None]
    counted = [result for result in results if excuse_of(result.case_id) is None]
    counts = Counter(result.behavior.value for result in counted)
    shown = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"{subject}: {len(counted)} cases in {seconds:.1f} s: {shown}")
    for name in sorted(counts.keys() - {"OK"}):
        ids = [result.case_id for result in counted if result.behavior.value == name]
        print(f"  {name}: {' '.join(ids)}")
    if excused:
        print(f"  excused, and ended as they must: {len(excused)}")
    complaints = [line for result in results if (line := complaint(result)) is not None]
    for line in complaints:
        print(f"  WRONG: {line}")
    if not results:
        print("  WRONG: no case was run")
    return bool(results) and not complaints


# ------------------------------------------------------------------ the peers under test


def _pieces(data: bytes, bytewise: bool) -> Iterator[bytes]:
    if not bytewise:
        yield data
        return
    for at in range(len(data)):
        yield data[at : at + 1]


def serve(sock: socket.socket, bytewise: bool) -> None:
    """Send back each message of a client, until either side closes the connection."""
    peer = WebSocketServer(max_message=MAX_MESSAGE)
    over = False
    while not over:
        data = sock.recv(READ)
        if not data:
            peer.receive_eof()
            return
        for piece in _pieces(data, bytewise):
            events = peer.receive(piece)
            out = [peer.accept() for event in events if isinstance(event, UpgradeRequested)]
            # Pongs come before the message around whose fragments the pings were. A message that
            # came together with the end of the connection is not sent back: that is not strict.
            out.append(peer.data_to_send())
            for event in events:
                if isinstance(event, MessageReceived):
                    out.append(peer.send_text(event.data))
                elif isinstance(event, CloseReceived | Failed):
                    over = True
            if any(out):
                sock.sendall(b"".join(out))
    # What is still being received must not meet a closed socket: a reset would overtake the close.
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(READ):
        pass


@contextmanager
def serving(bytewise: bool) -> Iterator[int]:
    """Serve connections, each in a thread of its own; the port that is listened on."""

    def one(sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with sock:
                serve(sock, bytewise)
        except OSError:
            pass  # some cases drop the connection; kosoku judges what had come until then

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            if over.is_set():
                sock.close()
                return
            threading.Thread(target=one, args=(sock,), daemon=True).start()

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        port: int = listener.getsockname()[1]
        try:
            yield port
        finally:
            over.set()
            socket.create_connection(("127.0.0.1", port)).close()  # ends the wait of accept()
            thread.join()


def visit(port: int, target: str, *, echo: bool, bytewise: bool = False) -> list[bytes]:
    """Connect to ``target``, and send back each message if ``echo``; the messages.

    The connection ends with a close frame of the server's, or with a failure of the peer's.
    """
    messages: list[bytes] = []
    peer = WebSocketClient(
        authority=f"127.0.0.1:{port}", target=target, headers=[], max_message=MAX_MESSAGE
    )
    closed = False
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(peer.connect())
        try:
            while data := sock.recv(READ):
                for piece in _pieces(data, bytewise):
                    events = peer.receive(piece)
                    for event in events:
                        if isinstance(event, MessageReceived):
                            messages.append(event.data)
                            if echo:
                                peer.queue_text(event.data)
                        closed |= isinstance(event, CloseReceived)
                    if replies := peer.data_to_send():
                        sock.sendall(replies)
                    while frame := peer.next_frame():
                        sock.sendall(frame)
                    if any(isinstance(event, Failed) for event in events):
                        return messages
        except ConnectionError:
            # kosoku drops the socket without waiting for the reply to its close frame, so that
            # reply may be answered with a reset. Any other reset is a fault.
            if not closed:
                raise
    peer.receive_eof()
    return messages


# ------------------------------------------------------------------ the subjects

Runner: TypeAlias = Callable[[Sequence[str] | None], Awaitable["Sequence[CaseResult]"]]


async def _fuzz(
    url: str, cases: Sequence[str] | None, excluded: Sequence[str]
) -> Sequence[CaseResult]:
    """Run cases against a server."""
    try:
        return await kosoku.run_fuzzingclient(url, cases, excluded, concurrency=AT_ONCE)
    except kosoku.FailureError as exc:
        return exc.results  # those that passed, too


async def _server(cases: Sequence[str] | None, bytewise: bool = False) -> Sequence[CaseResult]:
    excluded = (*MEASURING, *COMPRESSION) if bytewise else ()
    with serving(bytewise) as port:
        return await _fuzz(f"ws://127.0.0.1:{port}", cases, excluded)


async def _client(cases: Sequence[str] | None, bytewise: bool = False) -> Sequence[CaseResult]:
    excluded = (*MEASURING, *COMPRESSION) if bytewise else ()

    def run_case(number: int) -> None:
        try:
            target = f"/runCase?case={number}&agent=bridgecore"
            visit(server.port, target, echo=True, bytewise=bytewise)
        except OSError:
            pass  # some cases drop the connection; kosoku judges what had come until then

    def run_all() -> None:
        (count,) = visit(server.port, "/getCaseCount", echo=False)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(run_case, range(1, int(count) + 1)))
        visit(server.port, "/updateReports?agent=bridgecore", echo=False)

    async with kosoku.run_fuzzingserver(cases, excluded, port=0) as server:
        await asyncio.to_thread(run_all)
        try:
            results = await server.get_result()
        except kosoku.FailureError as exc:
            results = exc.results
    return results


async def _bridge(cases: Sequence[str] | None) -> Sequence[CaseResult]:
    # No message of the suite is a request, so nothing connects to the upstream.
    config = Config(upstream=UpstreamUrl.parse("ws://127.0.0.1:1/"), websocket=True)
    chosen = [
        result.case_id
        for result in await _server(cases, bytewise=True)
        if excuse_of(result.case_id) is None and _waits_for_no_message(result)
    ]
    async with bridgecore_asyncio.serve(config) as server:
        url = f"ws://127.0.0.1:{server.port}/v1/responses"
        return await _fuzz(url, chosen, ()) if chosen else []


def _waits_for_no_message(result: CaseResult) -> bool:
    sequences = list(result.expected.values())
    return bool(sequences) and all(kind != "message" for events in sequences for kind, *_ in events)


SUBJECTS: Final[dict[str, Runner]] = {
    "server": _server,
    "server-bytewise": lambda cases: _server(cases, bytewise=True),
    "client": _client,
    "client-bytewise": lambda cases: _client(cases, bytewise=True),
    "bridge": _bridge,
}


async def run(subject: str, cases: Sequence[str] | None) -> bool:
    """Run ``cases``, or all, against ``subject``; whether all ended as they must."""
    start = time.monotonic()
    results = await SUBJECTS[subject](cases)
    return report(subject, results, time.monotonic() - start)


def main() -> int:
    """Run the subjects one after the other; 0 if all cases ended as they must."""
    parser = argparse.ArgumentParser(description="Run the Autobahn cases.")
    parser.add_argument("subjects", nargs="*", help=f"all of {', '.join(SUBJECTS)} by default")
    parser.add_argument(
        "--case", action="append", help="an id, or a pattern such as 6.*; repeatable"
    )
    args = parser.parse_args()
    if unknown := set(args.subjects) - SUBJECTS.keys():
        parser.error(f"unknown subjects: {', '.join(sorted(unknown))}")
    passed = [asyncio.run(run(subject, args.case)) for subject in args.subjects or SUBJECTS]
    print("excused:")
    for excuse in EXCUSES:
        print(f"  {' '.join(excuse.cases)}: {excuse.verdict}, {excuse.close_code}: {excuse.why}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    code = main()
    # Not sys.exit: a thread of kosoku's that asks for the interpreter while it is being taken down
    # aborts the process (seen in 2 of 600 runs on Python 3.11).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
