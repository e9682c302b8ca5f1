"""What all programs in Python share: the conversation, the task, and the transport.

A program is called with one argument, a JSON object:

* ``base_url``, ``key``: of the bridge;
* ``variant``: which way of using the library, one of the program's own names;
* ``stream``: whether answers are streamed;
* ``upstream``: a URL if the bridge is to run in the program itself, as its transport, or null.

It prints one line of JSON, the answers to the three questions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("conversation.json")
CONVERSATION: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
MODEL: str = CONVERSATION["model"]
QUESTIONS: list[str] = CONVERSATION["questions"]
TOOL: dict[str, Any] = CONVERSATION["tool"]
TASK: dict[str, Any] = json.loads(sys.argv[1])
STREAM: bool = TASK["stream"]
VARIANT: str = TASK["variant"]


def get_weather(city: str) -> str:
    """Says what the weather is in a city."""
    return f"rain in {city}"


def run_call(arguments: str) -> str:
    """The output of a call of the tool with ``arguments``."""
    return get_weather(**json.loads(arguments))


def config() -> Any:
    """The settings of a bridge in this program."""
    from bridgecore import Config, UpstreamUrl

    return Config(upstream=UpstreamUrl.parse(TASK["upstream"]))


def sync_http(client: Callable[..., Any]) -> Any:
    """A ``client`` of HTTP with the bridge as its transport; None if the bridge is elsewhere."""
    if TASK["upstream"] is None:
        return None
    from bridgecore_httpx import SyncBridgeTransport

    return client(transport=SyncBridgeTransport(config()))


def async_http(client: Callable[..., Any]) -> Any:
    """The same on an event loop."""
    if TASK["upstream"] is None:
        return None
    from bridgecore_httpx import BridgeTransport

    return client(transport=BridgeTransport(config()))


def report(answers: list[str]) -> None:
    """Print the answers."""
    print(json.dumps({"answers": answers}), flush=True)
