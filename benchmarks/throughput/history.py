"""A whole history in one request, and the CPU time until its first byte is sent upstream.

What belongs here: a client and an upstream in one thread, which take turns, so that the clock of
the bridge can be read at the moment when its first byte arrives. In two cases: the bridge sees the
history for the first time, so that all of it goes upstream, on a connection that it has to open;
and the bridge has seen it all but for the last message, so that only that goes upstream.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from statistics import median
from typing import Any

import msgspec
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Ping, Request, TextMessage

from benchmarks.text import words
from benchmarks.throughput import machine
from benchmarks.throughput.participants import Bench, MeasurementError, Participant, Process

ITEM_BYTES = 3000  # encoded, on average
TEXT_BYTES = 2800  # of an item; the rest are its other members, and what JSON escapes in the text
TIMEOUT_SECONDS = 20.0
# After which the bridge has become idle. It must have finished its work on the answer before, which
# does not count here, and its CPU time is exact only while it waits (``machine.cpu_ns``).
SILENCE_SECONDS = 0.05

Item = dict[str, Any]


def message(role: str, text: str) -> Item:
    """A message of the user or the assistant, with the members that the clients' library sends."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def make_history(size: int, seed: int) -> list[Item]:
    """Messages of about ``size`` bytes together."""
    rng = random.Random(seed)
    items = []
    for number in range(max(1, size // ITEM_BYTES)):
        role = "assistant" if number % 2 else "user"
        items.append(message(role, words(rng, TEXT_BYTES)))
    return items


def encode(items: list[Item], key: str) -> bytes:
    """The body of a request."""
    body = {
        "model": "gpt-5",
        "input": items,
        "stream": True,
        "store": False,
        "prompt_cache_key": key,
    }
    return msgspec.json.encode(body)


class Upstream:
    """The bridge's connection to the upstream, from the upstream's end."""

    def __init__(self, listener: socket.socket) -> None:
        self._socket, _ = listener.accept()
        self._socket.settimeout(TIMEOUT_SECONDS)
        self._websocket = WSConnection(ConnectionType.SERVER)
        while not any(isinstance(event, Request) for event in self._websocket.events()):
            self._receive(self._socket.recv(1 << 16))
        self._send(AcceptConnection())

    def first_byte(self) -> bytes:
        """Wait for what the bridge sends next; the beginning of it."""
        return self._socket.recv(1 << 16)

    def rest(self, data: bytes) -> str:
        """The message that begins with ``data``."""
        parts: list[str] = []
        while True:
            self._receive(data)
            for event in self._websocket.events():
                if isinstance(event, Ping):
                    self._send(event.response())
                elif isinstance(event, TextMessage):
                    parts.append(event.data)
                    if event.message_finished:
                        return "".join(parts)
            data = self._socket.recv(1 << 20)

    def answer(self, text: str, number: int) -> Item:
        """Send the events of a response that says ``text``; its output item."""
        item = {"id": f"msg_{number:032}", "status": "completed", **message("assistant", text)}
        item["content"][0] |= {"annotations": [], "logprobs": []}
        response = {"id": f"resp_{number:032}", "object": "response", "model": "gpt-5"}
        events: list[dict[str, Any]] = [
            {
                "type": "response.created",
                "response": {**response, "status": "in_progress", "output": []},
            },
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {
                "type": "response.completed",
                "response": {**response, "status": "completed", "output": [item]},
            },
        ]
        for sequence, event in enumerate(events):
            self._send(TextMessage(json.dumps({**event, "sequence_number": sequence})))
        return item

    def close(self) -> None:
        self._socket.close()

    def _receive(self, data: bytes) -> None:
        if not data:
            raise MeasurementError("the bridge closed its upstream connection")
        self._websocket.receive_data(data)

    def _send(self, event: AcceptConnection | TextMessage | Any) -> None:
        self._socket.sendall(self._websocket.send(event))


class Client:
    """One connection of a client to the bridge."""

    def __init__(self, process: Process) -> None:
        self._port = process.port
        self._socket = socket.create_connection(("127.0.0.1", process.port), TIMEOUT_SECONDS)

    def post(self, body: bytes) -> None:
        head = (
            f"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body)

    def read_answer(self) -> None:
        """Read the event stream to its end."""
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):
            data = self._socket.recv(1 << 16)
            if not data:
                raise MeasurementError(f"no whole answer: {received[-300:]!r}")
            received += data
        if b"event: response.completed" not in received:
            raise MeasurementError(f"not completed: {received[-300:]!r}")

    def close(self) -> None:
        self._socket.close()


def parse_us(bench: Bench, body: bytes) -> float:
    """CPU time of one parse of the body by msgspec, on the bridge's core."""
    times = []
    with machine.pinned(bench.cores.bridge):
        for _ in range(7):
            begin = time.process_time_ns()
            msgspec.json.decode(body)
            times.append(time.process_time_ns() - begin)
    return median(times) / 1e3


def first_upstream_byte(
    bench: Bench, participant: Participant, size: int, repeats: int
) -> dict[str, float]:
    """CPU times (us) until the first byte upstream, of an unknown and of a known history, and of
    one parse. Medians of ``repeats`` conversations with a history of ``size`` bytes."""
    unknown, known, parses = [], [], []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_SECONDS)
        port = listener.getsockname()[1]
        with bench.serving(participant, upstream=port) as process:
            for number in range(repeats + 1):
                items = make_history(size, number)
                times = _converse(process, listener, items, number)
                if number:  # the first one warms the process up
                    unknown.append(times[0])
                    known.append(times[1])
                    parses.append(parse_us(bench, encode(items, "parse")))
    return {
        "cpu_us_unknown": median(unknown),
        "cpu_us_known": median(known),
        "parse_us": median(parses),
    }


def _stopped_cpu_ns(pid: int) -> int:
    """CPU time of a process that may be running: the system counts it exactly if it is stopped."""
    os.kill(pid, signal.SIGSTOP)
    while machine.state(pid) not in "TZ":  # stopped, or ended; that takes microseconds
        pass
    used = machine.cpu_ns(pid)
    os.kill(pid, signal.SIGCONT)
    return used


def _converse(
    process: Process, listener: socket.socket, items: list[Item], number: int
) -> tuple[float, float]:
    """A conversation of three turns; the CPU times (us) of the first and of the last."""
    client = Client(process)
    upstream = None
    key = f"history-{number}"
    times = []
    for turn in range(3):
        body = encode(items, key)
        time.sleep(SILENCE_SECONDS)
        before = machine.cpu_ns(process.pid)
        client.post(body)
        if upstream is None:
            upstream = Upstream(listener)
        data = upstream.first_byte()
        times.append((_stopped_cpu_ns(process.pid) - before) / 1e3)
        sent = upstream.rest(data)
        if (len(sent) < len(body) // 2) != (turn > 0):
            raise MeasurementError(f"{len(sent)} bytes were sent upstream in turn {turn}")
        items = [*items, upstream.answer("It is done.", 10 * number + turn)]
        items.append(message("user", f"Go on, {turn}."))
        client.read_answer()
    client.close()
    assert upstream is not None
    upstream.close()
    return times[0], times[2]
