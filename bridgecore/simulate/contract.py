"""Checks an answer against what clients of ``POST /v1/responses`` rely on.

What belongs here: the contract of a single answer: the order and numbers of the events of a stream,
its one terminal event, and that the response object in it agrees with the events before. Whether
the answer fits the request is checked by the client that sent it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs
import msgspec

from bridgecore.simulate.witness import decode
from bridgecore.testing.client import HttpHead, ReadError, SseReader

Json: TypeAlias = dict[str, Any]

_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete"})
# Events that some upstreams send outside of the response, without sequence numbers.
_NEVER_NUMBERED = frozenset({"response.metadata", "codex.rate_limits"})


class _Event(msgspec.Struct):
    type: str
    sequence_number: int | None = None


_event = msgspec.json.Decoder(_Event)


def _read(data: bytes) -> _Event:
    """The members of each event that readers of streams use.

    Raises:
        ReadError: it is not an event.
    """
    try:
        return _event.decode(data)
    except msgspec.DecodeError:
        try:  # msgspec rejects half a surrogate pair, json does not
            return msgspec.convert(decode(data), _Event)
        except ValueError as exc:
            raise ReadError(f"an event that cannot be read: {exc}") from None


@attrs.define(eq=False)
class CheckedAnswer:
    """An answer that is checked while it arrives."""

    head: HttpHead
    events: int = 0
    response: str | None = None  # its id, once created
    sequence: int = -2  # below -1, the number that the bridge's own response.created may have
    items: list[Json] = attrs.Factory(list)  # finished output items
    terminal: Json | None = None  # the last event of a stream
    renamed: bool = False  # the terminal event names another response than response.created
    unnumbered: bool = False  # an event had no sequence number
    _body: bytearray = attrs.Factory(bytearray)  # of an answer that is not a stream
    _reader: SseReader = attrs.Factory(SseReader)

    @property
    def stream(self) -> bool:
        """Whether it is a stream of events."""
        return self.head.headers.get("content-type") == "text/event-stream"

    def feed(self, data: bytes) -> None:
        """Check the next piece of the body.

        Raises:
            ReadError: the stream breaks the contract.
        """
        if not self.stream:
            self._body += data
            return
        for event in self._reader.feed(data):
            if not event.name:
                if self.events:
                    raise ReadError("a comment after response.created, where idle timers ignore it")
            elif self.terminal is not None:
                raise ReadError(f"{event.name} after the terminal event")
            else:
                self._take(event.name, event.data)

    def _take(self, name: str, data: bytes) -> None:
        event = _read(data)
        if event.type != name:
            raise ReadError(f"event: {name}, but its data is {event.type}")
        number = event.sequence_number
        if number is None:
            self.unnumbered = self.unnumbered or name not in _NEVER_NUMBERED
            number = self.sequence + 1
        if name == "keepalive":
            if number < self.sequence:
                raise ReadError("a keepalive whose sequence number falls")
            return
        if number <= self.sequence:
            raise ReadError(f"{name}: the sequence number does not rise")
        if event.sequence_number is not None:
            self.sequence = number
        first = self.events == 0
        self.events += 1
        if name == "response.created":
            if not first:
                raise ReadError("response.created is not the first event, or not the only one")
            self.response = self._id_of(decode(data))
        elif first and name != "response.failed":
            raise ReadError(f"the first event is {name}, not response.created")
        elif name == "response.output_item.done":
            self.items.append(decode(data)["item"])
        elif name in _TERMINAL:
            self.terminal = decode(data)
            found = self._id_of(self.terminal)
            self.renamed = self.response is not None and found != self.response
        elif name == "error":
            raise ReadError("an error event in a stream, which clients ignore")

    def _id_of(self, event: Json) -> str:
        response = event.get("response")
        found = response.get("id") if isinstance(response, dict) else None
        if not isinstance(found, str):
            raise ReadError("a response without an id")
        return found

    def final(self) -> Json:
        """The response object of the complete answer.

        Raises:
            ReadError: there is none, or it differs from the events of the stream.
        """
        if not self.stream:
            try:
                response = decode(self._body)
            except ValueError:
                raise ReadError("a body that is no JSON") from None
            if not isinstance(response, dict):
                raise ReadError("a body that is no object")
            if self.head.status == 200:
                _check_output(response)
            return response
        if self.terminal is None:
            raise ReadError("a stream that ends without a terminal event")
        if self._reader.unfinished:
            raise ReadError("half an event at the end of a stream")
        response = self.terminal["response"]
        _check_output(response)
        completed = self.terminal["type"] == "response.completed"
        if completed and response["output"] != self.items:
            raise ReadError("the output differs from the items that the stream brought")
        assert isinstance(response, dict), "the id was read from it"
        return response


def _check_output(response: Json) -> None:
    output = response.get("output")
    items = output if isinstance(output, list) else [None]
    if not all(isinstance(item, dict) and isinstance(item.get("type"), str) for item in items):
        raise ReadError("a response whose output is no list of items")
