"""What a whole endpoint counts, as Prometheus reads it.

What belongs here: that each turn, loss and failure is counted once and under its right name, who
can read it, and the text format. Its oracle is the parser of Prometheus.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parsed

from bridgecore import transport as tp
from bridgecore.config import Config, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.gateway import Gateway
from bridgecore.messages import (
    LinkFrameSent,
    LinkOpened,
    MessagesReceived,
    OpenLink,
    RequestReceived,
)
from bridgecore.telemetry.metrics import (
    ERRORS,
    METRICS,
    Counts,
    Distribution,
    Kind,
    exposition,
)
from bridgecore.testing import Abort, Fault, Point, Reject, SendEvents, Silence
from bridgecore.testing.faults import Action
from tests.endpoint_clients import Talker, held, strike, user
from tests.endpoint_world import SECOND, Json, World, call, request
from tests.replica_world import PEERS, Cluster

Series = dict[str, dict[tuple[str, ...], float]]
TURNS, ERRORS_TOTAL = "bridgecore_turns_total", "bridgecore_errors_total"
CONNECTIONS, REMEDIES = "bridgecore_upstream_connections_total", "bridgecore_remedies_total"


def scrape(world: World) -> Series:
    """The metrics, by name and by the values of their labels."""
    answer = call(world, "GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return read(answer.body)


def read(text: bytes) -> Series:
    found: Series = {}
    for family in parsed(text.decode()):
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sample.labels.values())
            assert labels not in series
            series[labels] = sample.value
    return found


def test_nothing_is_served_or_counted_unless_it_is_asked_for() -> None:
    world = held()
    Talker(world).attempt(user("a"))
    assert call(world, "GET", "/metrics").status == 404
    assert world.endpoint.metrics() == {}
    assert Gateway(world.config).metrics() == {}


def test_a_new_process_has_no_turns() -> None:
    metrics = scrape(held(metrics=True))
    assert metrics["bridgecore_turns_running"] == {(): 0}
    assert metrics["bridgecore_client_connections"] == {(): 1}  # the one that asks
    assert TURNS not in metrics


def test_a_conversation_that_loses_its_connection() -> None:
    world = held(metrics=True)
    talker = Talker(world)
    strike(world, Point.AFTER_TERMINAL, Abort())
    talker.attempt(user("a"))
    talker.attempt(user("b"))
    talker.attempt(user("c"))
    metrics = scrape(world)
    assert metrics[TURNS] == {("client", "completed"): 3}
    assert metrics[CONNECTIONS] == {("upstream", "opened"): 2, ("upstream", "lost"): 1}
    assert metrics["bridgecore_turns_rehydrated_total"] == {(): 1}
    assert metrics["bridgecore_tokens_spent_total"][()] > 0
    assert ("send_skipped", "held", "rehydrate") in metrics[REMEDIES]
    assert metrics["bridgecore_decisions_total"]["connection-opened",] == 2
    assert metrics["bridgecore_conversations"] == {(): 1}
    assert metrics["bridgecore_transcript_responses"] == {(): 3}
    assert metrics["bridgecore_transcript_bytes"][()] > 0


def test_times_of_answers() -> None:
    gateway = Gateway(Config(upstream=UpstreamUrl.parse("ws://up/v1/responses"), metrics=True))
    body = b'{"model": "m", "input": "Hi", "stream": %b}'
    created = b'{"type":"response.created","response":{"id":"resp_%d"}}'
    completed = (
        b'{"type":"response.completed","response":{"id":"resp_%d","status":"completed",'
        b'"output":[]}}'
    )
    at = 0
    turns = [(b"true", 3, 0), (b"true", 1, 70), (b"false", 0, 2)]
    for turn, (stream, before, after) in enumerate(turns):
        effects = gateway.handle(RequestReceived(turn, body % stream, []), at * SECOND)
        (link,) = [each.link for each in effects if isinstance(each, OpenLink)]
        gateway.handle(LinkOpened(link), at * SECOND)
        gateway.handle(LinkFrameSent(link), at * SECOND)
        at += before
        gateway.handle(MessagesReceived(link, [created % turn]), at * SECOND)
        at += after
        gateway.handle(MessagesReceived(link, [completed % turn]), at * SECOND)
    metrics = read(exposition(gateway.metrics()))
    first, all_of = metrics["bridgecore_first_event_seconds_bucket"], "bridgecore_turn_seconds"
    assert [first["0.5",], first["1.0",], first["2.5",], first["+Inf",]] == [0, 1, 1, 2]
    assert metrics["bridgecore_first_event_seconds_count"] == {(): 2}  # two were streams
    assert metrics["bridgecore_first_event_seconds_sum"] == {(): 4}
    assert metrics[f"{all_of}_sum"] == {(): 76}
    buckets = metrics[f"{all_of}_bucket"]
    assert [buckets["1.0",], buckets["2.5",], buckets["60.0",], buckets["300.0",]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("point", "action", "stream", "result", "code"),
    [
        (Point.BEFORE_CREATED, Abort(), True, "refused", "stream_incomplete"),
        (Point.BEFORE_CREATED, Abort(), False, "refused", "stream_incomplete"),
        (Point.MID_OUTPUT, Abort(), True, "failed", "stream_incomplete"),
        (Point.MID_OUTPUT, Abort(), False, "refused", "stream_incomplete"),
    ],
)
def test_a_turn_that_fails(
    point: Point, action: Action, stream: bool, result: str, code: str
) -> None:
    world = held(metrics=True)
    strike(world, point, action)
    Talker(world, stream=stream).attempt(user("a"))
    metrics = scrape(world)
    assert metrics[TURNS] == {("client", result): 1}
    assert metrics[ERRORS_TOTAL] == {(code,): 1}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("code", ["server_error", None])
def test_a_response_that_failed_upstream(stream: bool, code: str | None) -> None:
    """It is counted as its client sees it: with the status and the code of its answer."""
    world = held(metrics=True)
    error = None if code is None else {"code": code, "message": "It failed."}
    response: Json = {"id": "%RESPONSE_ID%", "status": "failed", "output": [], "error": error}
    failed = json.dumps({"type": "response.failed", "response": response}).encode()
    strike(world, Point.BEFORE_TERMINAL, SendEvents((failed,)))
    answer = world.ask("a", stream=stream)
    shown = answer.response["error"] if stream else answer.error
    metrics = scrape(world)
    assert metrics[TURNS] == {("client", "failed" if stream else "refused"): 1}
    assert metrics[ERRORS_TOTAL] == {(shown["code"],): 1}


def test_an_upstream_that_cannot_be_reached() -> None:
    world = held(metrics=True)
    world.emulator.faults.add(1, Fault(Point.ON_UPGRADE, Reject(503)))
    Talker(world).attempt(user("a"))
    metrics = scrape(world)
    assert metrics[TURNS] == {("client", "refused"): 1}
    assert metrics[CONNECTIONS] == {("upstream", "failed"): 1}


def test_a_client_that_leaves_and_a_body_that_is_none() -> None:
    world = held(metrics=True)
    strike(world, Point.BEFORE_CREATED, Silence())
    leaving = world.start("a")
    assert scrape(world)["bridgecore_turns_running"] == {(): 1}
    leaving.abort()
    assert call(world, "POST", "/v1/responses", []).status == 400
    metrics = scrape(world)
    assert metrics["bridgecore_turns_running"] == {(): 0}
    assert metrics[TURNS] == {("client", "abandoned"): 1, ("client", "refused"): 1}
    assert metrics[ERRORS_TOTAL] == {("invalid_request_body",): 1}


def test_turns_that_are_cut_off_by_a_drain() -> None:
    world = held(metrics=True)
    strike(world, Point.MID_OUTPUT, Silence())
    world.start("a")
    watching = world.client()
    world.drain()
    watching.send(request(None, method="GET", path="/metrics"))
    assert b"bridgecore_turns_running 1\n" in watching.received  # while it is draining
    world.advance(31)
    series = read(exposition(world.endpoint.metrics()))
    assert series[TURNS] == {("client", "failed"): 1}


def test_replicas_say_what_is_forwarded_and_what_is_not_durable() -> None:
    cluster = Cluster(forwards=True)
    owner, other = cluster.start("a", metrics=True), cluster.start("b", metrics=True)
    talker = Talker(owner)
    talker.attempt(user("a"))
    talker.world = other
    talker.attempt(user("b"))
    assert talker.outcomes == ["200"] * 2
    counted = scrape(owner)
    assert counted[TURNS] == {("client", "completed"): 1, ("replica", "completed"): 1}
    assert counted["bridgecore_store_answers"] == {(): 1}
    assert counted["bridgecore_conversations_owned"] == {(): 1}
    sent = scrape(other)
    assert sent[TURNS] == {("client", "completed"): 1}
    assert sent[CONNECTIONS] == {("replica", "opened"): 1}
    owner.store.answers = False
    talker.world = owner
    talker.attempt(user("c"), wait=3)
    owner.advance(30)
    counted = scrape(owner)
    assert counted["bridgecore_turns_not_durable_total"] == {(): 1}
    assert counted["bridgecore_store_answers"] == {(): 0}
    assert counted["bridgecore_leases_lost_total"] == {(): 1}


def test_only_clients_can_read_them() -> None:
    """The port for replicas takes nothing that is not signed."""
    cluster = Cluster(forwards=True)
    replica = cluster.start("a", metrics=True)
    client = cluster.net.connect(replica.host, PEERS)
    client.send(request(None, method="GET", path="/metrics"))
    assert bytes(client.received).startswith(b"HTTP/1.1 404")


def test_only_reading_is_allowed() -> None:
    world = held(metrics=True)
    answer = call(world, "POST", "/metrics", {})
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    client = world.client()
    client.send(request(None, method="HEAD", path="/metrics"))
    assert bytes(client.received).startswith(b"HTTP/1.1 200")
    assert bytes(client.received).endswith(b"\r\n\r\n")


ACTIONS: list[tuple[Point, Action] | None] = [
    None,
    (Point.AFTER_TERMINAL, Abort()),
    (Point.BEFORE_CREATED, Abort()),
    (Point.MID_OUTPUT, Abort()),
    (Point.BEFORE_CREATED, Silence()),
    (Point.MID_OUTPUT, Silence()),
]


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.booleans(), st.booleans()), max_size=8))
def test_each_turn_is_counted_once(turns: list[tuple[Any, bool, bool]]) -> None:
    """Whatever happens to it: by how many turns clients have begun, and what they saw of them."""
    world = held(metrics=True)
    seen = {"completed": 0, "failed": 0, "refused": 0, "abandoned": 0}
    talker = Talker(world)
    for fault, stream, leaves in turns:
        world.emulator.faults.clear()
        if fault is not None:
            strike(world, *fault)
        talker.stream = stream
        client = talker.begin([user("a")], talker.last)
        if leaves:
            over = not world.endpoint.turns
            client.abort()
            if not over:
                seen["abandoned"] += 1
                continue
        world.advance(2000)
        if not leaves:
            talker.end(client, [user("a")], talker.last)
            result = {"200": "completed", "failed": "failed"}.get(talker.outcomes[-1], "refused")
            seen[result] += 1
        else:
            seen["any"] = seen.get("any", 0) + 1
    counted = {result: int(n) for (_, result), n in scrape(world).get(TURNS, {}).items()}
    assert sum(counted.values()) == len(turns)
    if "any" not in seen:
        assert counted == {result: n for result, n in seen.items() if n}


def test_names_are_unique_and_follow_the_rules_of_prometheus() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    values: dict[Kind, int | Distribution] = {
        Kind.COUNTER: 1,
        Kind.GAUGE: 1,
        Kind.HISTOGRAM: Distribution(),
    }
    text = exposition({each: {("x",) * len(each.labels): values[each.kind]} for each in METRICS})
    histograms = sum(metric.kind is Kind.HISTOGRAM for metric in METRICS)
    assert len(read(text)) == len(METRICS) + 2 * histograms  # buckets, sum and count


def test_an_upstream_cannot_add_labels_without_end() -> None:
    counts = Counts()
    for number in range(10_000):
        counts.add(ERRORS, f"code{number}")
    series = read(exposition(counts.read()))[ERRORS_TOTAL]
    assert len(series) <= 201
    assert sum(series.values()) == 10_000
    assert series["other",] > 9_000


@given(st.text())
def test_any_label_can_be_read_back(value: str) -> None:
    counts = Counts()
    counts.add(ERRORS, value)
    assert list(read(exposition(counts.read()))[ERRORS_TOTAL]) == [(value,)]


def test_requests_of_a_server_around_the_bridge() -> None:
    config = Config(upstream=UpstreamUrl.parse("ws://up/v1/responses"), metrics=True)
    endpoint = Endpoint(config)
    begun = tp.RequestBegun(endpoint.new_connection(), b"GET", b"/metrics", [])
    conn = begun.conn
    effects = endpoint.handle(begun, 0) + endpoint.handle(tp.RequestEnded(conn), 0)
    (head,) = [each for each in effects if isinstance(each, tp.Respond)]
    (body,) = [each for each in effects if isinstance(each, tp.Send)]
    assert head.status == 200
    assert read(body.data)["bridgecore_client_connections"] == {(): 1}
