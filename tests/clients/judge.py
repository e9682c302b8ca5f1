"""What the upstream answers in the conversation, and whether what it received is whole.

What belongs here: the side of the emulator. A client that prints the right answers is not enough:
the upstream must have read each question, each answer, the call and its output, in their order and
once. So each request is judged by its effective context, which is what a model would read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridgecore.testing import CreateFrame, Output, Text, ToolCall
from bridgecore.testing.answers import Json, instance, is_call, is_output

PROGRAMS = Path(__file__).resolve().parent / "programs"
CONVERSATION: dict[str, Any] = json.loads((PROGRAMS / "conversation.json").read_text("utf-8"))
QUESTIONS: list[str] = CONVERSATION["questions"]
ANSWERS: list[str] = CONVERSATION["answers"]

# The items of the conversation. Each request shows the model a beginning of it.
WHOLE = ("question 1", "answer 1", "question 2", "call", "output", "answer 2", "question 3")
ENDS = (1, 3, 5, 7)  # how many of them each of the requests shows


def text_of(content: object) -> str:
    """The text of a message's content or of an output: a string or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def label(item: Json) -> str | None:
    """What an item is in the conversation; None if it does not belong to it, such as a prompt."""
    text = text_of(item.get("content"))
    match item.get("role"):
        case "user" if text in QUESTIONS:
            return f"question {QUESTIONS.index(text) + 1}"
        case "assistant":
            said = [answer for answer in ANSWERS if answer in text]
            return f"answer {ANSWERS.index(said[0]) + 1}" if said else f"unknown answer {text!r}"
        case None if is_output(item):
            said_it = CONVERSATION["output"] in text_of(item.get("output"))
            return "output" if said_it else f"unknown output {item.get('output')!r}"
        case None if is_call(item):
            return "call"
        case _:
            return None


def labels(context: Sequence[Json]) -> list[str]:
    """The items of the conversation that are in ``context``."""
    return [found for item in context if (found := label(item)) is not None]


def answer(request: CreateFrame) -> Sequence[Output]:
    """The answer of the upstream, which depends on the whole context."""
    seen = labels(request.context)
    last = seen[-1] if seen else ""
    if last == "question 1":
        return [say(request, ANSWERS[0])]
    if last == "question 2":
        return [call(request)]
    if last == "output":
        return [say(request, ANSWERS[1])]
    if last == "question 3" and "question 1" in seen:
        return [say(request, ANSWERS[2])]
    return [say(request, f"I do not know after {seen}.")]


def call(request: CreateFrame) -> ToolCall:
    """A call of the tool that the client has: its own for the weather, or Codex's for commands."""
    tools = request.body.get("tools") or []
    names = {tool.get("name") for tool in tools if isinstance(tool, dict)}
    if "exec_command" in names:
        command = f"echo {CONVERSATION['output']}"
        return ToolCall("exec_command", json.dumps({"cmd": command}))
    return ToolCall(CONVERSATION["tool"]["name"], json.dumps({"city": CONVERSATION["city"]}))


def say(request: CreateFrame, text: str) -> Text:
    """``text``, in the format that the request asks for."""
    wanted = request.body.get("text")
    form = wanted.get("format") if isinstance(wanted, dict) else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return Text(json.dumps(instance(form.get("schema"), text)))
    return Text(text)


def complaint(requests: Sequence[CreateFrame], said: Sequence[str]) -> str | None:
    """What is wrong with a conversation; None if nothing is.

    Args:
        requests: what the upstream received, requests without an answer (``generate: false``) left
            out.
        said: the answers that the client had.
    """
    for number, request in enumerate(requests[: len(ENDS)]):
        seen, wanted = labels(request.context), list(WHOLE[: ENDS[number]])
        if seen != wanted:
            return f"request {number + 1} had {', '.join(seen)} instead of {', '.join(wanted)}"
        calls = {item["call_id"] for item in request.context if is_call(item)}
        outputs = {item.get("call_id") for item in request.context if is_output(item)}
        if outputs != calls:
            return f"request {number + 1} had an output of another call"
    if len(requests) != len(ENDS):
        return f"{len(requests)} requests instead of {len(ENDS)}"
    if list(said) != ANSWERS:
        return f"the client had the answers {', '.join(map(repr, said))}"
    return None
