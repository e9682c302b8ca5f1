"""Measures the cost of holding a conversation and of recognising a repeated history, as ratios.

What belongs here: the figures that continuity promises, measured side by side in one run:

* recognising a 1 MB history of 500 items takes at most twice as long as parsing that JSON once,
  also before the bridge has seen how its client encodes the answers, or anything of the
  conversation;
* a held conversation takes at most 1.3 times the bytes of its items, if those are 1.6 KB a response
  or more (each response adds some 450 bytes).

Run ``python benchmarks/continuity.py``; it exits with 1 if a figure is missed. Ratios are medians
of several rounds, each relative to the parse of its own round, so that other load slows both down
alike. The parse is that of msgspec, the faster one; json.loads is printed for comparison, and so is
the time if a client escapes its JSON differently from the upstream, for which there is no promise.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from statistics import median
from typing import Any

import msgspec

from benchmarks.text import words
from bridgecore.continuity.items import Prompt
from bridgecore.continuity.nodes import Match, expand, reduce
from bridgecore.continuity.transcript import Transcripts
from bridgecore.wire.requests import CreateRequest, parse_create

RUNS = 31
FULL = 7850  # bytes of text a turn, for 1 MB
TURNS = 125  # of four items each: a user's message, a call, its output, an answer
MAX_TIME, MAX_MEMORY = 2.0, 1.3
BASE = "msgspec.json.decode"
BASE_ESCAPED = "msgspec.json.decode, of all but ASCII escaped"
PROMISED = "recognise "
UNSEEN = PROMISED + "the first time, "
ESCAPED = "escaped, recognise "
ESCAPED_UNSEEN = ESCAPED + "the first time"
HOUR = 3_600_000_000_000

Item = dict[str, Any]


def as_sdk(item: Item) -> Item:
    """An output item as the SDKs send it back: unchanged."""
    return item


def as_agent(item: Item) -> Item:
    """An output item as Codex sends it back: its own members in its own order."""
    if item["type"] == "message":
        texts = [{"type": part["type"], "text": part["text"]} for part in item["content"]]
        return {"type": "message", "role": item["role"], "content": texts}
    names = ("type", "name", "arguments", "call_id")
    return {name: item[name] for name in names}


def rewritten(item: Item) -> Item:
    """An item with its members in an order that no known client uses."""
    return dict(sorted(item.items(), reverse=True))


def as_ascii(body: Any) -> bytes:
    """A body encoded by ``json.dumps``."""
    return json.dumps(body, separators=(",", ":")).encode()


class Conversation:
    """A conversation of ``TURNS`` user turns, in two responses each: a call, and an answer."""

    def __init__(self, output_share: float, seed: int = 1, size: int = FULL) -> None:
        rng = random.Random(seed)
        short = size * 450 // FULL  # the question and the call
        answer = int((size - short) * output_share)
        # Of each response: its input, its output, and the output as a client sends it back.
        self.responses: list[tuple[list[Item], Item]] = []
        for turn in range(TURNS):
            call = {
                "id": f"fc_{rng.randbytes(24).hex()}",
                "type": "function_call",
                "status": "completed",
                "arguments": json.dumps({"cmd": words(rng, short // 3)}),
                "call_id": f"call_{turn:024}",
                "name": "exec_command",
            }
            text = {"type": "output_text", "annotations": [], "logprobs": []}
            said = {
                "id": f"msg_{rng.randbytes(24).hex()}",
                "type": "message",
                "status": "completed",
                "content": [{**text, "text": words(rng, answer)}],
                "role": "assistant",
            }
            asked = {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": words(rng, 2 * short // 3)}],
            }
            result = {
                "type": "function_call_output",
                "call_id": call["call_id"],
                "output": words(rng, size - short - answer),
            }
            self.responses += [([asked], call), ([result], said)]

    def history(
        self,
        echo: Callable[[Item], Item],
        every: Callable[[Item], Item] = as_sdk,
        dump: Callable[[Any], bytes] = msgspec.json.encode,
    ) -> Prompt:
        """A client's POST of the whole history and one more message."""
        items = [item for asked, said in self.responses for item in (*asked, echo(said))]
        return prompt([*map(every, items), {"role": "user", "content": "go on"}], dump=dump)

    def hold(self, dump: Callable[[Any], bytes] = msgspec.json.encode) -> tuple[Transcripts, int]:
        """The conversation, held turn by turn by a memory, and the bytes of its items."""
        held = Transcripts(1 << 30, HOUR, 1 << 30)
        anchor = None
        size = 0
        for number, (asked, said) in enumerate(self.responses):
            name = f"resp_{number:048}"
            asking = prompt(asked, anchor, dump)
            node = held.put("scope", name, asking, [msgspec.json.encode(said)], number)
            assert node is not None
            size += len(node.own_text())
            anchor = name
        return held, size


def prompt(
    items: list[Item],
    anchor: str | None = None,
    dump: Callable[[Any], bytes] = msgspec.json.encode,
) -> Prompt:
    """The parsed request of a client with ``items``."""
    body = {"model": "m", "store": False, "stream": True, "input": items}
    if anchor is not None:
        body["previous_response_id"] = anchor
    return Prompt(parse_create(dump(body)))


def measure_time(output_share: float, title: str) -> bool:
    """Print how long recognising takes; whether that is within the promise."""
    conversation = Conversation(output_share)
    agent = conversation.history(as_agent).request
    sdk = conversation.history(as_sdk).request
    strange = conversation.history(as_agent, rewritten).request
    escaped = conversation.history(as_agent, dump=as_ascii).request
    frame = agent.frame

    def recognise(held: Transcripts, request: CreateRequest) -> Match:
        prompt = Prompt(request)
        (match,) = held.recognise("scope", prompt, 1000)
        assert match.repeated == len(prompt.items) - 1
        return match

    held = conversation.hold()[0]
    held_escaped = conversation.hold(as_ascii)[0]
    node = recognise(held, agent).node
    recognise(held_escaped, escaped)
    history = Prompt(agent)
    match = Match(node, len(history.items) - 1)
    anchored = prompt([{"role": "user", "content": "go on"}], node.response_id)
    runs: dict[str, Callable[[Transcripts], object]] = {
        BASE: lambda _: msgspec.json.decode(frame),
        "json.loads": lambda _: json.loads(frame),
        PROMISED + "as on every turn of such a client": lambda _: recognise(held, agent),
        UNSEEN + "answers in an agent's words": lambda new: recognise(new, agent),
        UNSEEN + "answers in an SDK's words": lambda new: recognise(new, sdk),
        UNSEEN + "every item in other words": lambda new: recognise(new, strange),
        "reduce": lambda _: reduce(history, match),
        "expand, with its proof": lambda _: expand(node, anchored),
        BASE_ESCAPED: lambda _: msgspec.json.decode(escaped.frame),
        ESCAPED + "as on every turn": lambda _: recognise(held_escaped, escaped),
        ESCAPED_UNSEEN: lambda new: recognise(new, escaped),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(RUNS):
        for name, run in runs.items():
            new = held
            if name.startswith(UNSEEN):
                new, _ = conversation.hold()
            elif name == ESCAPED_UNSEEN:
                new, _ = conversation.hold(as_ascii)
            begin = time.perf_counter()
            run(new)
            times[name].append(time.perf_counter() - begin)
    print(f"{title}: {len(frame):,} bytes, {len(history.items)} items")
    kept = True
    for name, values in times.items():
        base = times[BASE_ESCAPED if name.startswith(ESCAPED) else BASE]
        ratio = median(one / parse for one, parse in zip(values, base, strict=True))
        kept &= ratio <= MAX_TIME or not name.startswith(PROMISED)
        print(f"  {name:55} {median(values) * 1e3:7.2f} ms  {ratio:5.2f}")
    return kept


def measure_memory(size: int = FULL) -> bool:
    """Print the memory that holding takes; whether that is within the promise. ``size``: bytes of
    text of one turn."""
    conversation = Conversation(0.3, size=size)
    conversation.hold()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    held, content = conversation.hold()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    history = conversation.history(as_agent)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    match = held.recognise("scope", Prompt(history.request), 1000)
    assert match is not None
    del match
    gc.collect()
    taken += tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    print(f"memory: {len(held)} responses, {content // len(held):,} bytes of items each")
    print(f"  {'held, with what recognising adds':55} {taken:9,} B  {taken / content:5.2f}")
    print(f"  {'accounted':55} {held.size:9,} B  {held.size / content:5.2f}")
    return taken <= MAX_MEMORY * content and taken <= held.size


def main() -> int:
    """Measure everything; 1 if a promise is not kept."""
    kept = [
        measure_time(0.3, "mostly what tools said"),
        measure_time(0.9, "mostly what the model said"),
        measure_memory(),
        measure_memory(2_700),
    ]
    measure_memory(300)  # responses too small for the promise
    print("kept" if all(kept) else "MISSED")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
