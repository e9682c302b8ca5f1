"""What clients and upstreams may send to an endpoint, valid and not, each under a name.

What belongs here: the bytes of requests, upstream messages and WebSocket frames from which
tests/endpoint/test_shortcuts.py composes its programs. They are in tables by name, such as
``BODIES["not UTF-8"]``, one entry for each kind of input. A program contains the names instead of
the bytes, so that one that fails can be read. Nothing here is random: ``Upstream`` counts, and the
input follows from its counts.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

Json = dict[str, Any]

# ------------------------------------------------------------------ requests


def _text(number: int) -> str:
    """An input, of another length for each of eleven numbers: also in the count of its digits."""
    return f"q{number}" + "x" * (number % 11) ** 3


def _fields(number: int, anchor: str | None, **more: object) -> Json:
    body: Json = {"model": "m", "input": _text(number), "store": False, **more}
    return body if anchor is None else {**body, "previous_response_id": anchor}


def _body(**more: object) -> Callable[[int, str | None, Sequence[Json]], bytes]:
    return lambda number, anchor, output: _compact(_fields(number, anchor, **more))


def _history(number: int, anchor: str | None, output: Sequence[Json]) -> bytes:
    """A client that repeats its history instead of naming its last response."""
    user = {"role": "user", "content": _text(number)}
    history = [{"role": "user", "content": "hello"}, *output, user]
    return _compact({"model": "m", "input": history, "stream": True})


# The bodies of a request, by name. Each is made of the request's number, the response that it
# continues, and the items of that response.
BODIES: Final[dict[str, Callable[[int, str | None, Sequence[Json]], bytes]]] = {
    "stream": _body(stream=True),
    "json": _body(),
    "stored": _body(stream=True, store=True),
    "history": _history,
    # More than one frame of the upstream connection.
    "large": _body(stream=True, instructions="i" * 70_000),
    "keyed": _body(stream=True, prompt_cache_key="k"),
    "no model": lambda number, anchor, output: b'{"input":"x","stream":true}',
    "broken": lambda number, anchor, output: _compact(_fields(number, anchor))[:-2],
    "not UTF-8": lambda number, anchor, output: b'{"model":"m","input":"\xff"}',
    "empty": lambda number, anchor, output: b"",
    "not an object": lambda number, anchor, output: b"[1]",
}


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


_LINE: Final = b"POST /v1/responses HTTP/1.1\r\n"
_HOST: Final = b"host: bridge\r\n"
_KEY: Final = b"authorization: Bearer sk-one\r\n"


def _sized(body: bytes, *, head: bytes = _LINE + _HOST + _KEY, length: bytes = b"") -> bytes:
    """A request of ``head`` and a Content-Length of ``length``, by default that of ``body``."""
    return head + b"content-length: " + (length or b"%d" % len(body)) + b"\r\n\r\n" + body


def _headed(more: bytes) -> Callable[[bytes], bytes]:
    """A request with the header lines ``more``."""
    return lambda body: _sized(body, head=_LINE + _HOST + _KEY + more)


def _chunked(body: bytes) -> bytes:
    head = _LINE + _HOST + _KEY + b"transfer-encoding: chunked\r\n\r\n"
    half = len(body) // 2
    parts = [part for part in (body[:half], body[half:]) if part]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def _gzipped(body: bytes) -> bytes:
    packed = gzip.compress(body, 1, mtime=0)
    return _sized(packed, head=_LINE + _HOST + _KEY + b"content-encoding: gzip\r\n")


def _target(line: bytes) -> Callable[[bytes], bytes]:
    """A request without a body."""
    return lambda body: line + b"\r\nHost: bridge\r\n\r\n"


# The forms of a request, by name; each makes one of a body.
REQUESTS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "plain": _sized,
    "other order": lambda body: (
        _LINE + b"content-length: %d\r\n" % len(body) + _KEY + _HOST + b"\r\n" + body
    ),
    "other case": lambda body: _sized(
        body, head=_LINE + b"HOST: bridge\r\nAuthorization: Bearer sk-one\r\n"
    ),
    "other key": lambda body: _sized(body, head=_LINE + _HOST + b"authorization: Bearer sk-2\r\n"),
    "with id": _headed(b"x-request-id: req_client\r\n"),
    "with fields": _headed(b"openai-beta: responses\r\nuser-agent: twin\r\naccept: */*\r\n"),
    "HTTP/1.0": lambda body: _sized(body, head=b"POST /v1/responses HTTP/1.0\r\n" + _HOST + _KEY),
    "close": _headed(b"connection: close\r\n"),
    "keep-alive": _headed(b"connection: keep-alive\r\n"),
    "expect": _headed(b"expect: 100-continue\r\n"),
    "query": lambda body: _sized(body, head=b"POST /v1/responses?a=1 HTTP/1.1\r\n" + _HOST + _KEY),
    "chunked": _chunked,
    "gzip": _gzipped,
    "not gzip": _headed(b"content-encoding: gzip\r\n"),
    "unknown coding": _headed(b"content-encoding: br\r\n"),
    "no length": lambda body: _LINE + _HOST + _KEY + b"\r\n",
    "length twice": lambda body: _sized(
        body, head=_LINE + _HOST + _KEY + b"content-length: %d\r\n" % len(body)
    ),
    "lengths that differ": lambda body: _sized(
        body, head=_LINE + _HOST + _KEY + b"content-length: %d\r\n" % (len(body) + 1)
    ),
    "length list": lambda body: _sized(body, length=b"%d, %d" % (len(body), len(body))),
    "length with sign": lambda body: _sized(body, length=b"+%d" % len(body)),
    "length with zeros": lambda body: _sized(body, length=b"000%d" % len(body)),
    "length with space": lambda body: _sized(body, length=b"  %d  " % len(body)),
    # The rest of the body begins the next request, or the next request ends the body.
    "length too short": lambda body: _sized(body, length=b"%d" % max(0, len(body) - 3)),
    "length too long": lambda body: _sized(body, length=b"%d" % (len(body) + 3)),
    "length in words": lambda body: _sized(body, length=b"1x"),
    "length too large": lambda body: _sized(body, length=b"9" * 12),
    "length and chunked": _headed(b"transfer-encoding: chunked\r\n"),
    "obs-fold": _headed(b"x-folded: a\r\n b\r\n"),
    "space before colon": _headed(b"x-space : a\r\n"),
    "bare LF": lambda body: _sized(body).replace(b"\r\n", b"\n"),
    "no host": lambda body: _sized(body, head=_LINE + _KEY),
    "two hosts": _headed(_HOST),
    "large head": _headed(b"x-large: " + b"l" * 3000 + b"\r\n"),
    "empty lines": lambda body: b"\r\n\r\n" + _sized(body),
    "half": lambda body: _sized(body)[:60],
    "livez": _target(b"GET /livez HTTP/1.1"),
    "HEAD livez": _target(b"HEAD /livez HTTP/1.1"),
    "livez in HTTP/1.0": _target(b"GET /livez HTTP/1.0"),
    "readyz": _target(b"GET /readyz HTTP/1.1"),
    "unknown path": _target(b"GET /v1/nothing HTTP/1.1"),
    "wrong method": _target(b"GET /v1/responses HTTP/1.1"),
    "no HTTP": lambda body: b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
}

# ------------------------------------------------------------------ frames of an upstream

_KEY_FIELD: Final = re.compile(rb"(?im)^sec-websocket-key: *(\S+)\r$")


def websocket_key(request: bytes) -> bytes:
    """The key of an upgrade request (RFC 6455, section 4.1)."""
    found = _KEY_FIELD.search(request)
    assert found is not None, request
    return found[1]


def accepting(key: bytes) -> bytes:
    """The answer to the upgrade request with this key. All of them have the same length."""
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


REJECTION: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}"
)


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True) -> bytes:
    """An unmasked frame with the shortest form of its length (RFC 6455, section 5.2)."""
    first, size = opcode | fin << 7, len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def unmasked(data: bytes) -> list[tuple[int, bytes]]:
    """The masked frames in ``data``, as the first byte and the payload of each. They must be
    complete, because an endpoint sends only whole frames."""
    frames = []
    at = 0
    while at < len(data):
        first, size = data[at], data[at + 1] & 0x7F
        assert data[at + 1] & 0x80, "a client masks its frames"
        at += 2
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        mask, masked = data[at : at + 4], data[at + 4 : at + 4 + size]
        at += 4 + size
        assert len(masked) == size, "an endpoint sends whole frames"
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        frames.append((first, (int.from_bytes(masked, "big") ^ key).to_bytes(size, "big")))
    return frames


def _fragments(text: bytes, *between: bytes) -> bytes:
    """``text`` in three fragments, with other frames after the first one."""
    third = len(text) // 3
    first = frame(text[:third], fin=False) + b"".join(between)
    return first + frame(text[third : 2 * third], 0, fin=False) + frame(text[2 * third :], 0)


# ------------------------------------------------------------------ messages of an upstream


@attrs.define(eq=False)
class Upstream:
    """The upstream's side of one connection: counts what it sends and receives.

    ``asked``: ``response.create`` frames that have no terminal event yet. ``running``: the response
    in progress, if any. ``in_output``: an item of it was sent. ``ended``: the responses that have
    ended, oldest first.
    """

    conn: int
    asked: int = 0
    serial: int = 0  # of responses
    number: int = 0  # the next sequence number
    running: str | None = None
    in_output: bool = False
    ended: list[str] = attrs.Factory(list)
    terminal: bytes = b""  # the latest terminal event

    # ------------------------------------------------------------ parts

    @property
    def item(self) -> Json:
        """The output item of the running response."""
        content = [{"type": "output_text", "text": "a", "annotations": []}]
        return {"type": "message", "id": self.item_id, "role": "assistant", "content": content}

    @property
    def item_id(self) -> str:
        return f"msg_{self.conn}_{self.serial}"

    @property
    def old_item(self) -> str:
        """The item of the response before the latest."""
        return f"msg_{self.conn}_{self.serial - 1}"

    @property
    def own(self) -> str:
        return self.running or "resp_none"

    @property
    def old(self) -> str:
        """A response that has ended."""
        return self.ended[-1] if self.ended else "resp_old"

    def event(self, name: str, /, **fields: object) -> bytes:
        """A numbered event, compact and with its type first, as most are."""
        self.number += 1
        return _compact({"type": name, **fields, "sequence_number": self.number - 1})

    def response(self, status: str, /, **fields: object) -> Json:
        return {"id": self.own, "object": "response", "status": status, "output": [], **fields}

    # ------------------------------------------------------------ what most turns consist of

    def created(self) -> bytes:
        self.serial += 1
        self.number = 0
        self.running, self.in_output = f"resp_{self.conn}_{self.serial}", False
        return self.event("response.created", response=self.response("in_progress"))

    def item_added(self) -> bytes:
        self.in_output = self.running is not None
        item = {**self.item, "status": "in_progress", "content": []}
        return self.event("response.output_item.added", output_index=0, item=item)

    def item_done(self) -> bytes:
        return self.event("response.output_item.done", output_index=0, item=self.item)

    def delta(self, text: str = "a") -> bytes:
        self.in_output = self.running is not None
        self.number += 1
        return (
            b'{"type":"response.output_text.delta","item_id":"%b","output_index":0,'
            b'"content_index":0,"delta":"%b","sequence_number":%d}'
            % (self.item_id.encode(), text.encode(), self.number - 1)
        )

    def end(self, name: str, **response: object) -> bytes:
        """A terminal event. ``response``: members of its response object in place of the usual
        ones; those that are None are left out."""
        status = name.removeprefix("response.")
        usage = {"input_tokens": 7, "output_tokens": 3}
        full = self.response(status, **{"output": [self.item], "usage": usage, **response})
        members = {key: value for key, value in full.items() if value is not None}
        self.terminal = self.event(name, response=members)
        self._over()
        return self.terminal

    def _over(self) -> None:
        if self.running is not None:
            self.ended.append(self.running)
        self.asked = max(0, self.asked - 1)
        self.running, self.in_output = None, False

    def give_up(self) -> None:
        """The connection is being closed: no turn runs on it any more."""
        self.asked = 0
        self.running, self.in_output = None, False

    def error(self, **fields: object) -> bytes:
        """An error message; it ends the turn, too."""
        self._over()
        return _compact(fields)


def _swap(old: bytes, new: bytes) -> Callable[[Upstream], bytes]:
    """A delta with ``old`` replaced by ``new``, which must be in it."""

    def message(up: Upstream) -> bytes:
        text = up.delta()
        assert old in text
        return text.replace(old, new)

    return message


def _with(**fields: object) -> Callable[[Upstream], bytes]:
    """A delta with further members, or with others in place of the usual ones."""
    return lambda up: _compact({**json.loads(up.delta()), **fields})


def _without(*names: str) -> Callable[[Upstream], bytes]:
    """A delta without these members."""
    return lambda up: _compact({k: v for k, v in json.loads(up.delta()).items() if k not in names})


def _padded(size: int) -> Callable[[Upstream], bytes]:
    """A delta of ``size`` bytes. Frames of 126 and of 65,536 bytes have longer headers."""

    def message(up: Upstream) -> bytes:
        text = up.delta()
        return text.replace(b'"delta":"a', b'"delta":"a' + b"p" * (size - len(text)))

    return message


def _noise(text: bytes) -> Callable[[Upstream], bytes]:
    return lambda up: text


# Deltas that need no decision while a turn is in output: what shortcuts are for.
PLAIN: Final[dict[str, Callable[[Upstream], bytes]]] = {
    "delta": Upstream.delta,
    "long delta": lambda up: up.delta('text of a usual length, with \\"quotes\\" and \\n ' * 8),
    "delta in UTF-8": lambda up: up.delta("\N{SNOWMAN}\N{PILE OF POO}"),
    "function arguments": lambda up: up.event(
        "response.function_call_arguments.delta", item_id=up.item_id, output_index=0, delta="{"
    ),
    "reasoning": lambda up: up.event(
        "response.reasoning_summary_text.delta", item_id=up.item_id, summary_index=0, delta="r"
    ),
    "refusal": lambda up: up.event("response.refusal.delta", item_id=up.item_id, delta="no"),
    "text done": lambda up: up.event(
        "response.output_text.done", item_id=up.item_id, output_index=0, text="a"
    ),
    "part added": lambda up: up.event(
        "response.content_part.added", item_id=up.item_id, part={"type": "output_text", "text": ""}
    ),
    "part done": lambda up: up.event(
        "response.content_part.done", item_id=up.item_id, part={"type": "output_text", "text": "a"}
    ),
    "without item": _without("item_id"),
    "without number": _without("sequence_number"),
    "own response": lambda up: _with(response_id=up.own)(up),
}

# All other messages. The names of those that say "odd" are JSON that a quick look may misread.
MESSAGES: Final[dict[str, Callable[[Upstream], bytes]]] = {
    # Of a turn.
    "created": Upstream.created,
    "created again": lambda up: up.event(
        "response.created", response=up.response("in_progress", late=True)
    ),
    "created, other id": lambda up: up.event(
        "response.created", response=up.response("in_progress", id="resp_other")
    ),
    "created, no id": lambda up: up.event(
        "response.created", response=up.response("in_progress", id=None)
    ),
    "created, old id": lambda up: up.event(
        "response.created", response=up.response("in_progress", id=up.old)
    ),
    "queued": lambda up: up.event("response.queued", response=up.response("queued")),
    "in progress": lambda up: up.event("response.in_progress", response=up.response("in_progress")),
    "item added": Upstream.item_added,
    "item done": Upstream.item_done,
    "old item added": lambda up: up.event(
        "response.output_item.added", output_index=1, item={"type": "message", "id": up.old_item}
    ),
    "call done": lambda up: up.event(
        "response.output_item.done",
        output_index=1,
        item={"type": "function_call", "id": f"fc_{up.number}", "call_id": "c", "name": "f"},
    ),
    "rate limits": lambda up: _compact({"type": "codex.rate_limits", "limits": {"used": 3}}),
    "numbered metadata": lambda up: up.event("response.metadata", response_id=up.own),
    "metadata": lambda up: _compact({"type": "response.metadata", "headers": {}}),
    "keepalive": lambda up: up.event("keepalive"),
    "unknown": lambda up: _compact({"type": "thing.of.tomorrow", "item_id": up.item_id}),
    # The ends of a turn.
    "completed": lambda up: up.end("response.completed"),
    "completed, stored": lambda up: up.end("response.completed", store=True),
    "completed, empty output": lambda up: up.end("response.completed", output=[]),
    "completed, no output": lambda up: up.end("response.completed", output=None),
    "completed, other id": lambda up: up.end("response.completed", id="resp_other_end"),
    "completed, no usage": lambda up: up.end("response.completed", usage=None),
    "completed, output null": lambda up: up.end("response.completed").replace(
        b'"output":[', b'"output":null,"rest":['
    ),
    "completed, output of another type": lambda up: up.end("response.completed", output={"a": 1}),
    "completed, items of other types": lambda up: up.end("response.completed", output=[1, None]),
    "completed, other output": lambda up: up.end(
        "response.completed", output=[{**up.item, "id": "msg_unknown"}, {"type": "reasoning"}]
    ),
    "completed, no response": lambda up: up.error(type="response.completed"),
    "completed, response null": lambda up: up.error(type="response.completed", response=None),
    "completed, no number": lambda up: up.end("response.completed").replace(
        b'"sequence_number"', b'"number"'
    ),
    "odd: end with spaces": lambda up: json.dumps(
        json.loads(up.end("response.completed"))
    ).encode(),
    "odd: end in lines": lambda up: json.dumps(
        json.loads(up.end("response.completed")), indent=1
    ).encode(),
    "odd: end, type last": lambda up: _compact(
        dict(sorted(json.loads(up.end("response.completed")).items()))
    ),
    "odd: end, response twice": lambda up: up.end("response.completed").replace(
        b'"response":{', b'"response":{"id":"resp_twice","output":[1]},"response":{', 1
    ),
    "odd: end, output twice": lambda up: up.end("response.completed").replace(
        b'"output":[', b'"output":[],"output":[', 1
    ),
    "odd: end, surrogate": lambda up: up.end("response.completed").replace(
        b'"text":"a"', b'"text":"\\ud800"'
    ),
    "odd: end, broken": lambda up: up.event(
        "response.completed", response=up.response("completed")
    )[:-2],
    "incomplete": lambda up: up.end(
        "response.incomplete", incomplete_details={"reason": "max_output_tokens"}
    ),
    "failed": lambda up: up.end(
        "response.failed", error={"code": "server_error", "message": "It broke."}
    ),
    "failed for its anchor": lambda up: up.end(
        "response.failed", error={"code": "previous_response_not_found", "message": "Not found."}
    ),
    "done": lambda up: up.end("response.done"),
    "done, no output": lambda up: up.end("response.done", output=None, status="completed"),
    "done, no response": lambda up: up.error(type="response.done"),
    "cancelled": lambda up: up.end("response.cancelled"),
    "rate limited": lambda up: up.error(
        type="error", status=429, error={"code": "rate_limit_exceeded", "message": "Slow down."}
    ),
    "anchor not found": lambda up: up.error(
        type="error",
        status=400,
        error={"code": "previous_response_not_found", "param": "previous_response_id"},
    ),
    "too old": lambda up: up.error(
        type="error", error={"code": "websocket_connection_limit_reached", "message": "60 min"}
    ),
    "flat error": lambda up: up.error(type="error", code="server_error", message="It broke."),
    "error without type": lambda up: up.error(error={"message": "It broke.", "type": "server"}),
    "error without anything": lambda up: up.error(type="error"),
    # Late events, and events of other responses.
    "delta, ended response": lambda up: _with(response_id=up.old)(up),
    "delta, unknown response": _with(response_id="resp_unknown"),
    "delta, old item": lambda up: _with(item_id=up.old_item)(up),
    "delta, unknown item": _with(item_id="msg_unknown"),
    "delta, response object": lambda up: _with(response={"id": up.own})(up),
    "delta, ended response object": lambda up: _with(response={"id": up.old})(up),
    "delta, item object": lambda up: _with(item={"id": up.old_item})(up),
    "terminal again": lambda up: up.terminal or b"null",
    "late done": lambda up: _compact({"type": "response.done", "response": {"id": up.old}}),
    # Sequence numbers.
    "number as text": _with(sequence_number="7"),
    "number as fraction": _with(sequence_number=7.5),
    "negative number": _with(sequence_number=-3),
    "number true": _with(sequence_number=True),
    "number null": _with(sequence_number=None),
    "large number": _with(sequence_number=10**30),
    "number in two forms": _swap(b',"delta"', b',"sequence_number":70,"delta"'),
    "number ahead": _with(sequence_number=7000),
    # Odd JSON that is valid.
    "odd: spaces": lambda up: json.dumps(json.loads(up.delta())).encode(),
    "odd: lines": lambda up: json.dumps(json.loads(up.delta()), indent=1).encode(),
    "odd: carriage returns": _swap(b',"', b',\r\n"'),
    "odd: space first": lambda up: b" \n" + up.delta() + b"\t",
    "odd: type last": lambda up: _compact(dict(sorted(json.loads(up.delta()).items()))),
    "odd: type twice, ends": lambda up: up.delta()[:-1] + b',"type":"response.completed"}',
    "odd: type twice, ends first": lambda up: b'{"type":"response.completed",' + up.delta()[1:],
    "odd: type twice, created": lambda up: up.delta()[:-1] + b',"type":"response.created"}',
    "odd: type twice, other": lambda up: up.delta()[:-1] + b',"type":"codex.rate_limits"}',
    "odd: escaped type": _swap(b'"response.', b'"\\u0072esponse.'),
    "odd: escaped type, ends": lambda up: up.end("response.completed").replace(
        b'"response.c', b'"\\u0072esponse.c'
    ),
    "odd: escaped key": _swap(b'"type"', b'"\\u0074ype"'),
    "odd: escaped item key": lambda up: _swap(
        b'"item_id":"' + up.item_id.encode(), b'"item\\u005fid":"' + up.old_item.encode()
    )(up),
    "odd: escaped item": _swap(b'"item_id":"msg', b'"item_id":"\\u006dsg'),
    "odd: item twice": lambda up: up.delta()[:-1] + b',"item_id":"%b"}' % up.old_item.encode(),
    "odd: response twice": lambda up: (
        up.delta()[:-1]
        + b',"response_id":"%b","response_id":"%b"}' % (up.own.encode(), up.old.encode())
    ),
    "odd: response at the end": lambda up: (
        up.delta()[:-1] + b',"response_id":"%b"}' % up.old.encode()
    ),
    "odd: members in text": lambda up: up.delta(f'\\",\\"response_id\\":\\"{up.old}\\"'),
    "odd: nested type": lambda up: (
        b'{"part":{"type":"response.completed","item_id":"%b"},' % up.old_item.encode()
        + up.delta()[1:]
    ),
    "odd: null members": _with(response=None, response_id=None, item=None),
    "odd: ids of other types": _with(item_id=5, response_id=[1]),
    "odd: empty ids": _with(item_id="", response_id=""),
    "odd: type of a type": _with(type=5),
    "odd: type with newline": _with(type="response.output_text.delta\n"),
    "odd: type with tail": _with(type="response.output_text.delta.extra"),
    "odd: type with word": _with(type="response.output_text_delta"),
    "odd: type in capitals": _with(type="Response.Output_text.Delta"),
    "odd: empty type": _with(type=""),
    "odd: surrogate in text": lambda up: up.delta("\\ud800"),
    "odd: surrogate in item": _with(item_id="\ud800"),
    "odd: surrogate in response": _with(response_id="\udfff"),
    "odd: surrogate in type": _swap(b"text.delta", b"text.delta\\ud800"),
    "odd: NUL": lambda up: up.delta("\\u0000"),
    "odd: nested": lambda up: up.delta()[:-1] + b',"x":' + b"[" * 90 + b"]" * 90 + b"}",
    "odd: nested deeply": lambda up: up.delta()[:-1] + b',"x":' + b"[" * 4000 + b"]" * 4000 + b"}",
    "odd: array": lambda up: b"[" + up.delta() + b"]",
    # JSON that is not valid.
    "odd: broken": lambda up: up.delta()[:-1],
    "odd: broken value": _swap(b'"output_index":0', b'"output_index":'),
    "odd: more after it": lambda up: up.delta() + b"x",
    "odd: two in one": lambda up: up.delta() + up.delta(),
    "odd: number with zero": _swap(b'"output_index":0', b'"output_index":00'),
    "odd: NaN": _swap(b'"output_index":0', b'"output_index":NaN'),
    "odd: unknown escape": lambda up: up.delta("\\x"),
    "odd: raw line break": lambda up: up.delta("a\nb"),
    "odd: raw control": lambda up: up.delta("a\x01b"),
    "odd: single quotes": _swap(b'"', b"'"),
    "odd: comma": lambda up: up.delta()[:-1] + b",}",
    "odd: byte order mark": lambda up: b"\xef\xbb\xbf" + up.delta(),
    "odd: prefix only": _noise(b'{"type":"response.output_text.delta"'),
    "odd: prefix and noise": _noise(b'{"type":"response.output_text.delta",}}}}'),
    # Noise.
    "blank": _noise(b""),
    "line": _noise(b"\n"),
    "[DONE]": _noise(b"[DONE]"),
    "null": _noise(b"null"),
    "ping text": _noise(b"ping"),
    # Sizes at which the header of a frame gets longer.
    "125 bytes": _padded(125),
    "126 bytes": _padded(126),
    "127 bytes": _padded(127),
    "65,535 bytes": _padded(65_535),
    "65,536 bytes": _padded(65_536),
}

# Frames that are not one whole text message.
FRAMES: Final[dict[str, Callable[[Upstream], bytes]]] = {
    "ping": lambda up: frame(b"p", 9),
    "pings": lambda up: frame(b"1", 9) + frame(b"2", 9),
    "pong": lambda up: frame(b"", 10),
    "fragments": lambda up: _fragments(up.delta()),
    "fragments around a ping": lambda up: _fragments(up.delta(), frame(b"p", 9)),
    "fragments of a terminal event": lambda up: _fragments(up.end("response.completed")),
    "empty fragments": lambda up: (
        frame(b"", fin=False) + frame(b"", 0, fin=False) + frame(up.delta(), 0)
    ),
    "long form of a length": lambda up: _long_form(up.delta()),
    "close 1000": lambda up: frame(b"\x03\xe8", 8),
    "close 1011 with a reason": lambda up: frame(b"\x03\xf3broken", 8),
    "close without a code": lambda up: frame(b"", 8),
    "close after data": lambda up: frame(up.delta()) + frame(b"\x03\xe9", 8),
    "close, then data": lambda up: frame(b"\x03\xe8", 8) + frame(up.delta()),
    "bad close": lambda up: frame(b"\x03", 8),
    "binary": lambda up: frame(up.delta(), 2),
    "text that is not UTF-8": lambda up: frame(up.delta().replace(b'"delta":"a', b'"delta":"\xff')),
    "half a character": lambda up: frame(up.delta()[:-1] + b"\xe2\x98"),
    "masked": lambda up: b"\x81\x81\0\0\0\0x",
    "reserved bit": lambda up: frame(up.delta(), 0x41),
    "unknown opcode": lambda up: frame(up.delta(), 3),
    "continuation of nothing": lambda up: frame(up.delta(), 0),
    "text in a message": lambda up: frame(b"{", fin=False) + frame(up.delta()),
    "declared huge": lambda up: b"\x81\x7f" + (1 << 62).to_bytes(8, "big") + up.delta(),
    "fragmented ping": lambda up: frame(b"p", 9, fin=False),
}


def _long_form(payload: bytes) -> bytes:
    """A frame whose length takes eight bytes although it is short."""
    return b"\x81\x7f" + len(payload).to_bytes(8, "big") + payload
