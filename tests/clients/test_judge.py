"""That the judge of clients finds what is wrong with a conversation, and answers as a model does.

What belongs here: requests as an upstream receives them, whole and with a mistake each; and that
the results that were written down are those of the clients that there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridgecore.testing import CreateFrame, Text, ToolCall
from tests.clients.judge import ANSWERS, CONVERSATION, ENDS, QUESTIONS, answer, complaint
from tests.clients.libraries import CLIENTS, Work
from tests.clients.run import DATA, merged

Json = dict[str, Any]


def message(role: str, text: str) -> Json:
    return {"type": "message", "role": role, "content": text}


CALL = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": CONVERSATION["output"]}
ITEMS: list[Json] = [
    message("user", QUESTIONS[0]),
    message("assistant", ANSWERS[0]),
    message("user", QUESTIONS[1]),
    CALL,
    OUTPUT,
    message("assistant", ANSWERS[1]),
    message("user", QUESTIONS[2]),
]
PROMPT = message("developer", "Be helpful.")


def request(*context: Json, **body: Any) -> CreateFrame:
    frame = CreateFrame(1, 1, [], b"", {"input": list(context[-1:]), **body}, 0)
    frame.context = context
    return frame


def conversation() -> list[CreateFrame]:
    """The four requests of a conversation without a mistake."""
    return [request(PROMPT, *ITEMS[:end]) for end in ENDS]


def test_a_whole_conversation_is_accepted() -> None:
    assert complaint(conversation(), ANSWERS) is None


def lose_a_turn(items: list[Json]) -> None:
    del items[1:3]


def repeat_an_output(items: list[Json]) -> None:
    items.insert(5, OUTPUT)


def repeat_a_question(items: list[Json]) -> None:
    items.append(items[-1])


def swap(items: list[Json]) -> None:
    items[0], items[1] = items[1], items[0]


def take_the_output_of_another_call(items: list[Json]) -> None:
    items[4] = {**OUTPUT, "call_id": "another"}


def change_an_output(items: list[Json]) -> None:
    items[4] = {**OUTPUT, "output": "sun"}


def change_an_answer(items: list[Json]) -> None:
    items[5] = message("assistant", "something else")


@pytest.mark.parametrize(
    "mistake",
    [
        lose_a_turn,
        repeat_an_output,
        repeat_a_question,
        swap,
        take_the_output_of_another_call,
        change_an_output,
        change_an_answer,
    ],
)
def test_a_mistake_in_the_last_request_is_found(mistake: Callable[[list[Json]], None]) -> None:
    items = list(ITEMS)
    mistake(items)
    said = complaint([*conversation()[:-1], request(*items)], ANSWERS)
    assert said is not None
    assert said.startswith("request 4 had ")


def test_a_turn_that_was_sent_twice_is_found() -> None:
    requests = conversation()
    assert complaint([*requests, requests[-1]], ANSWERS) == "5 requests instead of 4"
    assert complaint(requests[:3], ANSWERS) == "3 requests instead of 4"


def test_wrong_answers_of_the_client_are_found() -> None:
    said = complaint(conversation(), [*ANSWERS[:2], ""])
    assert said is not None
    assert said.startswith("the client had the answers ")


def test_the_answers_need_the_whole_context() -> None:
    assert [*answer(request(*ITEMS[:1]))] == [Text(ANSWERS[0])]
    assert [*answer(request(*ITEMS[:3]))] == [ToolCall("get_weather", '{"city": "Bergen"}')]
    assert [*answer(request(*ITEMS[:5]))] == [Text(ANSWERS[1])]
    assert [*answer(request(*ITEMS))] == [Text(ANSWERS[2])]
    (said,) = answer(request(*ITEMS[2:]))
    assert isinstance(said, Text)
    assert said.text not in ANSWERS


def test_codex_is_asked_to_run_a_command() -> None:
    (call,) = answer(request(*ITEMS[:3], tools=[{"type": "function", "name": "exec_command"}]))
    assert call == ToolCall("exec_command", '{"cmd": "echo rain in Bergen"}')


def test_results_of_ways_that_were_not_run_again_are_kept() -> None:
    """Unless they are those of other versions."""

    def result(version: str, ways: Json) -> Json:
        return {"packages": {"openai": version}, "ways": ways, "kept": "passed"}

    earlier = result("1", {"serve": {"whole": "passed"}, "transport": "why"})
    later = result("1", {"hypercorn, trio": {"whole": "passed"}, "serve": {"whole": "no"}})
    assert merged(earlier, later) == result(
        "1",
        {"serve": {"whole": "no"}, "hypercorn, trio": {"whole": "passed"}, "transport": "why"},
    )
    assert list(merged(earlier, later)["ways"])[-1] == "transport"
    assert merged(result("2", {"transport": "why"}), later) == later
    assert merged(None, later) == later


def test_the_results_are_those_of_the_clients_and_of_the_pinned_versions(tmp_path: Path) -> None:
    """If not: ``make clients && make generate``."""
    results = json.loads(DATA.read_text("utf-8"))["clients"]
    work = Work(tmp_path)
    assert {name: result["packages"] for name, result in results.items()} == {
        client.name: work.versions(client) for client in CLIENTS
    }
