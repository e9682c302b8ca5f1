"""Tests of config.py: valid values of a ``Config`` and an upstream URL, and errors for invalid
ones."""

from __future__ import annotations

import enum
from typing import Any

import attrs
import pytest

import bridgecore
from bridgecore.bridge import Bridge
from bridgecore.config import Config, Rotation, Store, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.errors import BridgecoreError, ConfigError
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    Action,
    Budgets,
    Policy,
    Remedy,
    Situation,
    Timeouts,
)
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.wire.requests import InvalidBodyError

URL = UpstreamUrl.parse("ws://up/")
FIELDS = attrs.fields_dict(Config)
DURATIONS = [name for name, field in FIELDS.items() if field.metadata.get("unit") == "ns"]
NUMBERS = [
    name for name, field in FIELDS.items() if type(field.default) is int and name not in DURATIONS
]
ENUMS = ["ambiguous", "rotation", "continuity", "fallback"]
NO_NUMBERS: list[Any] = [1.0, 2.5e9, True, "15", None, [15]]


def accepted(name: str, value: Any) -> Any:
    """The value of the setting ``name`` in a config that was given ``value``."""
    settings: dict[str, Any] = {name: value}
    return getattr(Config(upstream=URL, **settings), name)


def refused(**settings: Any) -> str:
    """The text of the error, which names the setting and its value."""
    with pytest.raises(ConfigError) as caught:
        Config(**{"upstream": URL, **settings})
    assert "\n" not in str(caught.value)
    for name in settings:
        assert str(caught.value).startswith(name)
    return str(caught.value)


def test_every_setting_that_is_a_time_is_known_as_one() -> None:
    named = {name for name in FIELDS if name.endswith(("_timeout", "_interval", "_age", "_idle"))}
    assert named <= set(DURATIONS)
    assert {"keepalive", "upstream_lifetime"} <= set(DURATIONS)


@pytest.mark.parametrize("name", DURATIONS)
def test_durations(name: str) -> None:
    for value in (NS_PER_SECOND // 1000, NS_PER_SECOND, 10**9 * NS_PER_SECOND):
        assert accepted(name, value) == value
    for value in (0, -1, NS_PER_SECOND // 1000 - 1, 10**9 * NS_PER_SECOND + 1):
        assert f"{name}={value} " in refused(**{name: value})
    for wrong in NO_NUMBERS:
        assert "nanoseconds" in refused(**{name: wrong})


def test_seconds_given_as_nanoseconds_are_refused_with_advice() -> None:
    text = refused(keepalive=30)
    assert text.endswith("30 seconds are int(30 * bridgecore.NS_PER_SECOND)")
    assert bridgecore.NS_PER_SECOND == NS_PER_SECOND
    assert "int(0.25 * bridgecore.NS_PER_SECOND)" in refused(keepalive=0.25)
    for wrong in (0, -30, 10**30, True, "30"):
        assert "seconds are" not in refused(keepalive=wrong)


@pytest.mark.parametrize("name", NUMBERS)
def test_sizes_and_counts(name: str) -> None:
    least = FIELDS[name].metadata.get("least", 1)
    if name != "transcript_scope_bytes":
        assert accepted(name, 10**15 - 1) == 10**15 - 1
    assert accepted(name, least) == least
    for value in (least - 1, -100, 10**15):
        assert f"{name}={value} " in refused(**{name: value})
    for wrong in NO_NUMBERS:
        assert "whole number" in refused(**{name: wrong})


@pytest.mark.parametrize("name", ENUMS)
def test_choices_are_members(name: str) -> None:
    default = FIELDS[name].default
    assert isinstance(default, enum.Enum)
    for wrong in (default.value, default.name, None, 1, Standing.HELD):
        text = refused(**{name: wrong})
        assert all(str(member) in text for member in type(default))


def test_no_turn_need_be_allowed_to_wait() -> None:
    assert accepted("max_waiting", 0) == 0


def test_flags_are_bools() -> None:
    assert Config(upstream=URL, decisions=True).decisions
    for wrong in (1, 0, "yes", None):
        assert "True or False" in refused(decisions=wrong)


# None: it has no URL, or that of the upstream.
@pytest.mark.parametrize(
    "name", [name for name in FIELDS if name not in ("advertise", "upstream_http")]
)
def test_every_setting_refuses_none(name: str) -> None:
    """A new setting with a default of another kind needs a check of its own."""
    refused(**{name: None})


def test_the_policy_is_a_policy() -> None:
    assert "bridgecore.DEFAULT" in refused(policy="default")
    refused(policy=Policy)


def test_a_policy_has_only_cells_that_a_bridge_can_carry_out() -> None:
    """It would find out in mid-turn, with nothing left to answer the client."""
    remedy = Remedy(Action.REHYDRATE, FailureReply.UPSTREAM_UNAVAILABLE)
    impossible = DEFAULT.with_cell(Situation.LOST_SENT, Standing.BOUND, remedy)
    message = refused(policy=impossible)
    assert message.startswith("policy.cells.lost_sent.bound: 'rehydrate' needs a context")


def test_the_upstream_is_taken_apart_and_not_repeated() -> None:
    text = refused(upstream="wss://h/?key=hunter2")
    assert "UpstreamUrl.parse" in text
    assert "hunter2" not in text
    refused(upstream=b"wss://h/")


def test_a_replica_has_a_name() -> None:
    refused(replica="")


def test_a_lease_outlives_two_renewals_that_are_not_answered() -> None:
    short: dict[str, Any] = {"lease_ttl": 8 * NS_PER_SECOND, "lease_margin": 3 * NS_PER_SECOND}
    with pytest.raises(ConfigError, match="store_timeout"):
        Config(upstream=URL, store=Store.DRIVER, **short)
    Config(upstream=URL, **short)  # without a store there is no lease


def test_the_limit_of_one_credential_is_at_most_the_whole() -> None:
    with pytest.raises(ConfigError, match=r"transcript_scope_bytes=1001 .* transcript_bytes=1000"):
        Config(upstream=URL, transcript_scope_bytes=1001, transcript_bytes=1000)
    Config(upstream=URL, transcript_scope_bytes=1000, transcript_bytes=1000)
    # The error does not name the setting that was not given.
    Config(upstream=URL, transcript_bytes=1000)


def test_a_changed_copy_is_checked_too() -> None:
    config = Config(upstream=URL)
    assert attrs.evolve(config, rotation=Rotation.WARM).rotation is Rotation.WARM
    with pytest.raises(ConfigError, match="keepalive"):
        attrs.evolve(config, keepalive=15)


@pytest.mark.parametrize("wrong", [None, "ws://up/", URL, {}])
@pytest.mark.parametrize("door", [Bridge, Endpoint])
def test_bridge_and_endpoint_require_a_config(door: Any, wrong: object) -> None:
    with pytest.raises(ConfigError, match="Config"):
        door(wrong)


@pytest.mark.parametrize(
    ("url", "port", "target"),
    [
        ("http://h", 80, "/responses"),
        ("https://h/v1", 443, "/v1/responses"),
        ("https://h:8443/v1/", 8443, "/v1/responses"),
        ("https://h/v1/responses", 443, "/v1/responses"),
        ("https://h/openai/v1/responses?api-version=p", 443, "/openai/v1/responses?api-version=p"),
        ("https://h/openai/v1?api-version=p", 443, "/openai/v1/responses?api-version=p"),
    ],
)
def test_the_base_url_of_an_api_is_reached_over_http(url: str, port: int, target: str) -> None:
    found = UpstreamUrl.parse(url)
    assert (found.http, found.port, found.target) == (True, port, target)
    assert found.tls is url.startswith("https")
    assert not UpstreamUrl.parse("wss://h/v1").http
    assert UpstreamUrl.parse("wss://h/v1").target == "/v1"  # a WebSocket's URL is used as it is


@pytest.mark.parametrize("wrong", [None, b"ws://h/", 80, URL])
def test_a_url_is_text(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="must be a str"):
        UpstreamUrl.parse(wrong)


def test_all_errors_share_one_base_class() -> None:
    """Errors about values are also ``ValueError``, as Python's own are."""
    for kind in (bridgecore.LocalProtocolError, bridgecore.InternalError, InvalidBodyError):
        assert issubclass(kind, BridgecoreError)
    refusals: list[Any] = [
        lambda: Config(upstream=URL, keepalive=1),
        lambda: UpstreamUrl.parse("ftp://h/"),
        lambda: UpstreamUrl.parse("ws://[h/"),
        lambda: Timeouts(idle=0),
        lambda: Budgets(replays=-1),
        lambda: Policy("mine", "", {}),
        lambda: attrs.evolve(DEFAULT, cells={}),
    ]
    for refusal in refusals:
        with pytest.raises(BridgecoreError):
            refusal()
        with pytest.raises(ValueError, match=r"\w"):
            refusal()
