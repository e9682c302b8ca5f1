"""The programs in ``docs/examples``, run as a reader would run them.

What belongs here: one test for each door, for the application, for a bridge in a client, and for a
store. They use sockets of 127.0.0.1 on ports that the system chooses, and are type-checked with
the rest (``mypy.ini``).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from bridgecore.testing import EVERY, CloseWith, Fault, Point
from tests.asgi.conftest import serving
from tests.e2e.conftest import ask, emulating, request

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "examples"


def run(name: str, *arguments: str) -> Any:
    """What ``main`` of an example returns."""
    return load(name).main(*arguments)


def load(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_door_1_sends_a_lost_turn_again_as_its_policy_says() -> None:
    assert run("door1_decisions") == ["decided by lost_sent/unanchored=resend", "Hello!"]


def test_a_store_passes_the_checks() -> None:
    lines = run("own_store").splitlines()
    assert len(lines) == 30
    assert {line.split()[0] for line in lines} == {"passed"}


@pytest.mark.parametrize("name", ["door2_messages", "door3_bytes"])
def test_the_other_doors_answer_a_request(name: str) -> None:
    answer = run(name)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"event: response.created\n" in answer
    assert b"event: response.completed\n" in answer


def test_a_client_with_a_bridge_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    with emulating() as upstream:
        upstream.emulator.faults.add(EVERY, Fault(Point.AFTER_TERMINAL, CloseWith(1001)))
        assert asyncio.run(run("openai_in_process", upstream.url)) == "turn 2: And?"


def test_the_application_separates_its_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(key: str, **more: object) -> bytes:
        body = json.dumps({"model": "m", "input": "hi", "store": False, **more}).encode()
        return request("POST", "/llm/v1/responses", body, x_tenant_key=key)

    with emulating() as upstream:
        monkeypatch.setenv("UPSTREAM", upstream.url)
        with serving("uvicorn", load("fastapi_app").app) as server:
            assert ask(server.port, turn("unknown-key")).status == 401
            first = ask(server.port, turn("key-of-ann")).json["id"]
            anns = turn("key-of-ann", previous_response_id=first)
            bobs = turn("key-of-bob", previous_response_id=first)
            assert ask(server.port, bobs).status != 200
            assert ask(server.port, anns).status == 200
