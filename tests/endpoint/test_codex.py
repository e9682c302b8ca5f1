"""Requests of the Codex CLI, restated: they are recognised; the program is not needed.

What belongs here: what ``codex exec`` and ``codex exec resume`` were observed to send over HTTP, as
data, and that a whole endpoint reduces it. Members, their order and the kinds of ids are those of
Codex 0.171.0; texts are invented and short. tests/e2e/test_codex.py runs the program itself: if it
fails with a newer Codex and these do not, restate what that one sends.

Codex sends no response ids. Each request has all items so far: an opening, what it added since, and
what the upstream answered, encoded again by Codex. Ids and times of its own are in each item and in
``client_metadata``, which differs between any two requests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import pytest

from bridgecore.config import Continuity
from bridgecore.testing import CloseWith, CreateFrame, Emulator, Fault, Point
from tests.encoders import zstd
from tests.endpoint_world import Answer, Json, World, request

THREAD_ID = "01a223e0-0000-7000-8000-000000000001"
NOTE = "internal_chat_message_metadata_passthrough"

# ------------------------------------------------------------------ observed requests


@attrs.frozen
class Step:
    """A request and its answer."""

    adds: list[Json]  # the items that Codex adds to those so far
    output: list[Json]  # as the upstream sent them
    echo: list[Json]  # as Codex sends them back


def noted(item: Json, turn: int, *kinds: str) -> Json:
    """``item`` with the members that the built-in provider adds."""
    note: Json = {"turn_id": f"01a223e0-0000-7000-8000-0000000001{turn:02}"}
    if not kinds or kinds != ("unknown",):
        note["create_time"] = 1_795_898_228.0 + turn / 8
    if kinds:
        note["content_item_kinds"] = list(kinds)
    return {**item, NOTE: note}


def message(number: int, role: str, *texts: str) -> Json:
    return {
        "type": "message",
        "id": f"msg_01a223e0-0000-7000-8000-{number:012}",
        "role": role,
        "content": [{"type": "input_text", "text": text} for text in texts],
    }


def asks(number: int, text: str) -> Json:
    return noted(message(number, "user", text), number, "user.text")


def thinks(number: int) -> tuple[Json, Json]:
    """Reasoning, as it was received and as it is sent back."""
    sealed = f"gAAAAA{number:04}"
    summary = [{"type": "summary_text", "text": "thinking"}]
    said = {"id": f"rs_{number}", "type": "reasoning", "summary": summary}
    echo = {"type": "reasoning", "id": f"rs_{number}", "summary": summary, "content": None}
    return (
        {**said, "encrypted_content": sealed},
        noted({**echo, "encrypted_content": sealed}, number),
    )


def says(number: int, text: str) -> tuple[Json, Json]:
    """A message, as it was received and as it is sent back."""
    said = {
        "id": f"msg_{number}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": text}],
    }
    echo = {
        "type": "message",
        "status": "completed",
        "id": f"msg_{number}",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }
    return said, noted(echo, number, "unknown")


def step(adds: list[Json], *answers: tuple[Json, Json]) -> Step:
    return Step(adds, [said for said, _ in answers], [echo for _, echo in answers])


def calls(number: int, command: str) -> tuple[Json, Json]:
    """A function call, as it was received and as it is sent back."""
    arguments = json.dumps({"cmd": command}, separators=(",", ":"))
    said = {
        "id": f"fc_{number}",
        "type": "function_call",
        "status": "completed",
        "arguments": arguments,
        "call_id": f"call_{number}",
        "name": "exec_command",
    }
    echo = {
        "type": "function_call",
        "status": "completed",
        "id": f"fc_{number}",
        "name": "exec_command",
        "arguments": arguments,
        "call_id": f"call_{number}",
    }
    return said, noted(echo, number)


def returns(number: int, text: str) -> Json:
    item = {
        "type": "function_call_output",
        "id": f"fco_01a223e0-0000-7000-8000-{number:012}",
        "call_id": f"call_{number}",
        "output": f"Chunk ID: 75f7de\nWall time: 0.0000 seconds\nOutput:\n{text}\n",
    }
    return noted(item, number)


def looks_up(number: int) -> tuple[Json, Json]:
    """A page that was opened, without its URL from the upstream. Codex omits nulls."""
    said = {"id": f"ws_{number}", "type": "web_search_call", "status": "completed"}
    echo = {"type": "web_search_call", "id": f"ws_{number}", "status": "completed"}
    return (
        {**said, "action": {"type": "open_page", "url": None}},
        noted({**echo, "action": {"type": "open_page"}}, number),
    )


def runs_code(number: int, code: str) -> tuple[Json, Json]:
    """A call of the tool that runs code, as it was received and as it is sent back."""
    said = {
        "type": "custom_tool_call",
        "id": f"ctc_{number}",
        "call_id": f"call_{number}",
        "name": "exec",
        "input": code,
        "status": "completed",
    }
    echo = {
        "type": "custom_tool_call",
        "id": f"ctc_{number}",
        "status": "completed",
        "call_id": f"call_{number}",
        "name": "exec",
        "input": code,
    }
    return said, noted(echo, number)


def code_returns(number: int, text: str) -> Json:
    item = {
        "type": "custom_tool_call_output",
        "id": f"ctco_01a223e0-0000-7000-8000-{number:012}",
        "call_id": f"call_{number}",
        "output": [
            {"type": "input_text", "text": "Script completed\nWall time 0.1 seconds\nOutput:\n"},
            {"type": "input_text", "text": text},
        ],
    }
    return noted(item, number)


BASE_PROMPT = {
    **message(0, "developer", "You are a coding agent. " * 40),
    NOTE: {"content_item_kinds": ["model.base_instructions"]},
}
SKILLS = noted(
    message(1, "developer", "Skills: none.", "Permissions: all."),
    0,
    *("host_skills.instructions", "permissions.instructions"),
)
ENVIRONMENT = noted(message(2, "user", "The shell is bash."), 0, "environments.environment_context")
FIELDS: Json = {
    "model": "gpt-5.4",
    "stream": True,
    "tools": [
        {
            "type": "function",
            "name": "exec_command",
            "description": "Runs a command.",
            "strict": False,
            "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}},
        },
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": THREAD_ID,
}
PLAIN = [
    step([BASE_PROMPT, SKILLS, ENVIRONMENT, asks(3, "run something")], thinks(4), calls(5, "ls")),
    step([returns(5, "a  b")], thinks(6), says(7, "The command has run.")),
    step([asks(8, "look it up")], thinks(9), looks_up(10), says(11, "Two now."), calls(12, "a")),
    # A call that was not run, and two calls at once.
    step([returns(12, "a: not found")], calls(13, "b"), calls(14, "c")),
    step([returns(13, "b: not found"), returns(14, "")], thinks(15), says(16, "It did not run.")),
    step([asks(17, "run something else")], thinks(18), says(19, "No.")),
]
# After a compaction: what Codex keeps of its thread and sends before the compaction, and the
# requests that follow.
KEPT = [BASE_PROMPT, asks(3, "run something"), SKILLS, ENVIRONMENT]
COMPACTED = [
    step([asks(20, "go on")], thinks(21), says(22, "Yes.")),
    step([asks(23, "and on")], thinks(24), says(25, "Yes.")),
]
# Models whose tools are called by code: all tools are in an item, and there is no `tools`.
CODE_FIELDS: Json = {
    **{name: value for name, value in FIELDS.items() if name != "tools"},
    "model": "gpt-6.2-sol",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low", "context": "all_turns"},
    "text": {"verbosity": "low"},
}
TOOLS = {
    "type": "additional_tools",
    "id": "at_01a223e0-0000-7000-8000-000000000000",
    "role": "developer",
    "tools": [
        {
            "type": "namespace",
            "name": "functions",
            "description": "",
            "tools": [
                {
                    "type": "custom",
                    "name": "exec",
                    "description": "Runs code.",
                    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.*/"},
                }
            ],
        }
    ],
}
CODE = [
    step(
        [TOOLS, BASE_PROMPT, SKILLS, ENVIRONMENT, asks(3, "run something")],
        *(thinks(4), runs_code(5, "text(await tools.exec_command({cmd: 'ls'}))")),
    ),
    step([code_returns(5, '{"output":"a  b"}')], thinks(6), says(7, "The command has run.")),
    step([asks(8, "again")], thinks(9), says(10, "Said again.")),
]


def without_notes(steps: Sequence[Step]) -> list[Step]:
    """As requests to a provider of the user's own."""

    def bare(items: list[Json]) -> list[Json]:
        return [{name: item[name] for name in item if name != NOTE} for item in items]

    return [Step(bare(one.adds), one.output, bare(one.echo)) for one in steps]


@attrs.frozen
class Recording:
    fields: Json
    steps: list[Step]


RECORDINGS = {
    "custom provider": Recording(FIELDS, without_notes(PLAIN)),
    "built-in provider": Recording(FIELDS, PLAIN),
    "code mode": Recording(CODE_FIELDS, CODE),
}
recordings = pytest.mark.parametrize("recording", RECORDINGS.values(), ids=list(RECORDINGS))
compressed = pytest.mark.parametrize("compressed", [False, True], ids=["plain", "zstd"])

# ------------------------------------------------------------------ the run


@attrs.define
class Codex:
    """Codex with one thread."""

    world: World
    fields: Json
    compressed: bool = False  # with a ChatGPT login
    history: list[Json] = attrs.Factory(list)
    requests: int = 0

    def ask(self, one: Step) -> Answer:
        """Send the request of ``one``; record it and its answer as Codex does."""
        self.requests += 1
        turn = f"01a223e0-0000-7000-8000-0000000002{self.requests:02}"
        metadata = {"thread_id": THREAD_ID, "turn_id": turn, "x-codex-window-id": f"{THREAD_ID}:0"}
        if self.requests % 2:  # its members come in any order
            metadata = dict(reversed(metadata.items()))
        self.history += one.adds
        body: object = {
            "model": self.fields["model"],
            "stream": True,
            "input": self.history,
            **self.fields,
            "client_metadata": metadata,
        }
        headers = {
            "x-codex-beta-features": "remote_compaction_v2",
            "x-codex-window-id": f"{THREAD_ID}:0",
            "x-codex-turn-metadata": json.dumps({"turn_id": turn}),
            "x-client-request-id": THREAD_ID,
            "session-id": THREAD_ID,
            "thread-id": THREAD_ID,
            "accept": "text/event-stream",
            "content-type": "application/json",
            "originator": "codex_exec",
            "accept-encoding": "zstd,gzip",
        }
        if self.compressed:
            body = zstd.compress(json.dumps(body).encode())
            headers["content-encoding"] = "zstd"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        client = self.world.client()
        client.send(request(body, headers=lines))
        answer = self.world.read(client)
        assert answer.status == 200
        assert answer.response["status"] == "completed"
        self.history += one.echo
        return answer


def replaying(steps: Sequence[Step]) -> World:
    """A world whose upstream answers as it was observed to."""
    outputs = [one.output for one in steps]

    def answer(_: CreateFrame) -> list[Json]:
        return outputs.pop(0)

    return World(continuity=Continuity.TRANSCRIPT, emulator=Emulator(answer=answer))


# ------------------------------------------------------------------ tests


@compressed
@recordings
def test_every_request_but_the_first_is_reduced(recording: Recording, compressed: bool) -> None:
    world = replaying(recording.steps)
    codex = Codex(world, recording.fields, compressed)
    previous: str | None = None
    for number, one in enumerate(recording.steps):
        answer = codex.ask(one)
        frame = world.frames[number]
        assert frame.get("previous_response_id") == previous
        # New items are sent unchanged, with their notes and ids.
        assert frame["input"] == one.adds
        assert frame["client_metadata"]["thread_id"] == THREAD_ID
        said = {name: value for name, value in recording.fields.items() if name != "stream"}
        assert said.items() <= frame.items()
        previous = answer.response["id"]
    assert world.net.connects == 1


@compressed
@recordings
def test_a_socket_that_is_lost_between_requests_costs_one_whole_context(
    recording: Recording, compressed: bool
) -> None:
    """Codex sends its whole history: it is sent unchanged, and the next request is
    reduced again."""
    world = replaying(recording.steps)
    world.emulator.faults.add(2, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
    codex = Codex(world, recording.fields, compressed)
    anchors = []
    for number, one in enumerate(recording.steps):
        codex.ask(one)
        frame = world.frames[number]
        anchors.append("previous_response_id" in frame)
        if number == 2:
            assert frame["input"] == codex.history[: -len(one.echo)]
    assert anchors == [number not in (0, 2) for number in range(len(anchors))]
    assert world.net.connects == 2


@pytest.mark.parametrize("notes", [True, False], ids=["built-in", "custom"])
def test_a_thread_that_was_compacted_is_a_new_one(notes: bool) -> None:
    """Codex asks for a compaction and then sends another history: its prompts, the user's messages,
    the compaction. The upstream has no such context, so the first request after it is sent whole;
    later ones are reduced."""
    before, kept, after = PLAIN[:2], Step(KEPT, [], []), COMPACTED
    if not notes:
        before, after = without_notes(before), without_notes(after)
        (kept,) = without_notes([kept])
    world = replaying([*before, *after])
    codex = Codex(world, FIELDS)
    for one in before:
        codex.ask(one)
    trigger: Json = {"type": "compaction_trigger"}
    # The emulator compacts by itself.
    (compaction,) = codex.ask(Step([trigger], [], [])).response["output"]
    codex.history = [*kept.adds, compaction]
    for one in after:
        codex.ask(one)
    anchored = ["previous_response_id" in frame for frame in world.frames]
    assert anchored == [False, True, True, False, True]
    assert world.frames[2]["input"] == [trigger]
    assert world.frames[3]["input"] == [*kept.adds, compaction, *after[0].adds]
    assert world.frames[4]["input"] == after[1].adds
