"""Tests of how often the JSON of a turn is parsed, over all modules that use wire/jsontext.py.

What belongs here: whole turns, observed with a profiler. Each new reading of a body or an event is
right by itself, and only the sum is too expensive, so it has to be tested as a whole.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest

import bridgecore
from bridgecore.config import Continuity
from bridgecore.wire import jsontext
from tests.endpoint_world import Answer, Json, World

PACKAGE = Path(bridgecore.__file__).parent
TOOLS = tuple(str(PACKAGE / name) for name in ("testing", "verify"))
# the last is the name of what reader() returns
READERS = {"read_value", "read_members", "read_array", "read"}


@attrs.define
class Readings:
    """What was parsed while ``of`` ran: texts, by the function that parsed them, and other callers
    of a decoder."""

    texts: list[tuple[str, bytes]] = attrs.Factory(list)
    strays: set[str] = attrs.Factory(set)

    def of(self, turn: Callable[[], Answer]) -> Answer:
        sys.setprofile(self._note)
        try:
            return turn()
        finally:
            sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        reads = code.co_filename == jsontext.__file__
        if event == "call" and reads and code.co_name in READERS:
            kind = getattr(frame.f_locals.get("kind"), "__name__", "")  # what reader() reads
            self.texts.append((code.co_name + kind, bytes(frame.f_locals["text"])))
        elif event == "c_call" and not reads and _is_core(code.co_filename) and _decodes(arg):
            self.strays.add(f"{code.co_filename}: {code.co_name}")

    def passes(self, part: Json) -> int:
        """How often ``part`` was parsed as a part of a larger text."""
        raw = json.dumps(part).encode()
        return sum(raw in text and text != raw for _, text in self.texts)

    def repeated(self) -> list[bytes]:
        """The texts that a function parsed more than once. Texts of a few bytes, such as names of
        models and types, are left out: many are equal by chance."""
        counts = Counter(each for each in self.texts if len(each[1]) > 100)
        return [text for (_, text), count in counts.items() for _ in range(count - 1)]


def _is_core(file: str) -> bool:
    return file.startswith(str(PACKAGE)) and not file.startswith(TOOLS)


def _decodes(function: Any) -> bool:
    """Whether a function of a C module parses JSON."""
    name = function.__name__
    return name in ("json_decode", "scanstring", "scan_once") or (
        name == "decode" and "msgspec.json" in repr(function)
    )


def message(text: str) -> Json:
    return {"role": "user", "content": f"{text} {'[word] ' * 500}"}


class Client:
    """A client whose turns have tools, instructions and a long message."""

    def __init__(self, continuity: Continuity = Continuity.TRANSCRIPT) -> None:
        self.world = World(continuity=continuity)
        self.past: list[Json] = []
        self.last: str | None = None

    def ask(self, text: str, *, anchored: bool, stream: bool = True) -> Answer:
        new = [message(text)]
        answer = self.world.ask(
            new if anchored else [*self.past, *new],
            previous_response_id=self.last if anchored else None,
            instructions="Be brief. " * 100,
            tools=[{"type": "function", "name": f"f{n}", "parameters": {}} for n in range(9)],
            prompt_cache_key="k",
            store=False,
            stream=stream,
        )
        assert answer.status == 200
        self.past += [*new, *answer.response["output"]]
        self.last = answer.response["id"]
        return answer


def plain(client: Client) -> None:
    """A first turn."""


def anchored(client: Client) -> None:
    client.ask("a", anchored=True)
    client.ask("b", anchored=True)


def rehydrated(client: Client) -> None:
    anchored(client)
    client.world.advance(1000)  # its connection is closed


def repeated(client: Client) -> None:
    client.ask("a", anchored=False)
    client.ask("b", anchored=False)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("before", "sent", "passes"),
    [
        (plain, 1, 2),
        (anchored, 1, 2),
        (rehydrated, 5, 2),
        (repeated, 1, 2),
    ],
)
def test_nothing_is_read_twice(
    before: Callable[[Client], None], sent: int, passes: int, stream: bool
) -> None:
    """A turn after those of ``before``, in which the upstream is ``sent`` so many items. A request
    is parsed once for its members and once for its items. Of the items that repeat a history, only
    those before the first of a model are parsed once more, for their members."""
    client = Client()
    before(client)
    found = Readings()
    names_id = before in (anchored, rehydrated)
    answer = found.of(lambda: client.ask("c", anchored=names_id, stream=stream))
    assert len(client.world.frames[-1]["input"]) == sent
    assert found.strays == set()
    assert found.passes(message("c")) == passes
    assert found.repeated() == []
    # An output item's members are split once: for the transcript, in its input form.
    (item,) = answer.response["output"]
    assert (
        sum(name == "read_members" and json.loads(text) == item for name, text in found.texts) == 1
    )
    assert len(found.texts) <= 60


def test_a_request_without_a_transcript_is_parsed_once() -> None:
    client = Client(Continuity.PASSTHROUGH)
    found = Readings()
    found.of(lambda: client.world.ask([message("c")], instructions="x" * 200))
    assert found.passes(message("c")) == 1
    assert found.repeated() == []
    assert found.strays == set()
