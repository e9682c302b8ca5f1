"""Whole endpoints at the limits of sockets: slow uploads, and no file descriptor left.

What belongs here: what an upstream sees while a large request is sent to it, and what becomes of
turns when no more files or sockets can be opened.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore import transport as tp
from bridgecore.config import Config, Continuity, UpstreamUrl
from bridgecore.endpoint import Endpoint
from bridgecore.testing.network import ByteClient
from bridgecore.wire.websocket import (
    CloseReceived,
    MessageReceived,
    PongReceived,
    UpgradeRequested,
    WebSocketEvent,
    WebSocketServer,
)
from tests.endpoint_world import SECOND, Answer, World, read_answers, request

# ------------------------------------------------------------------ slow uploads

SIZE = 1_000_000
CLIENT = 1  # the number of the client's connection; the upstream's is the next


class SlowUpstream:
    """An upstream whose socket accepts what is written to it only when a test says so."""

    def __init__(self) -> None:
        url = UpstreamUrl.parse("ws://up/v1/responses")
        self.endpoint = Endpoint(Config(upstream=url))
        self.server = WebSocketServer(max_message=2 * SIZE)
        self.received: list[WebSocketEvent] = []
        self.others: list[tp.TransportEffect] = []  # other than Send and Log
        self.unsent: list[tp.Send] = []  # to the upstream, in order
        self.now = SECOND
        assert self.endpoint.new_connection() == CLIENT
        self.tell(tp.Accepted(CLIENT))
        body = {"model": "m", "input": "x" * SIZE, "stream": True}
        self.tell(tp.DataReceived(CLIENT, request(body)))
        (connect,) = self.others
        assert isinstance(connect, tp.Connect)
        self.conn = connect.conn
        self.tell(tp.Connected(self.conn))
        self.take()
        (upgrade,) = self.received
        assert isinstance(upgrade, UpgradeRequested)
        self.received.clear()
        self.others.clear()
        self.says(self.server.accept())

    def tell(self, event: tp.TransportEvent) -> None:
        for effect in self.endpoint.handle(event, self.now):
            if isinstance(effect, tp.Send) and effect.conn != CLIENT:
                self.unsent.append(effect)
            elif not isinstance(effect, tp.Send | tp.Log):
                self.others.append(effect)

    def says(self, data: bytes) -> None:
        self.tell(tp.DataReceived(self.conn, data))

    def take(self) -> None:
        """Let the socket accept the first write, and report it if that was asked for."""
        send = self.unsent.pop(0)
        self.received += self.server.receive(send.data)
        if send.notify:
            self.tell(tp.DataSent(self.conn))

    @property
    def unsent_bytes(self) -> int:
        return sum(len(send.data) for send in self.unsent)


def test_a_large_request_waits_here_and_not_in_the_transport() -> None:
    slow = SlowUpstream()
    taken = 0
    while slow.unsent:
        assert slow.unsent_bytes < 70_000
        slow.take()
        taken += 1
    assert taken > SIZE // 70_000
    (message,) = slow.received
    assert isinstance(message, MessageReceived)
    assert len(message.data) > SIZE


def test_the_answer_is_due_from_the_end_of_the_upload_on() -> None:
    slow = SlowUpstream()
    while slow.unsent:
        slow.now += 3 * SECOND
        slow.tell(tp.TimeoutReached())
        slow.take()
    assert slow.now > 45 * SECOND
    slow.now += 59 * SECOND
    slow.tell(tp.TimeoutReached())
    slow.take()  # a ping
    assert slow.unsent == []
    slow.now += 2 * SECOND
    slow.tell(tp.TimeoutReached())
    slow.take()
    assert slow.received[-1] == CloseReceived(1000, "")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_pings_are_answered_while_the_upload_goes_on(pings: list[int]) -> None:
    """``pings``: how many come before the socket accepts the next frame."""
    slow = SlowUpstream()
    answered: list[int] = []
    for count in pings:
        for _ in range(count):
            slow.says(slow.server.ping())
        slow.take()  # what was written to the transport already
        while slow.unsent and not slow.unsent[0].notify:
            slow.take()
        if not slow.unsent:
            break
        answered.append(sum(isinstance(event, PongReceived) for event in slow.received))
    assert answered == [sum(pings[: index + 1]) for index in range(len(answered))]


def test_a_close_during_an_upload_is_read_at_once() -> None:
    slow = SlowUpstream()
    slow.take()
    slow.says(slow.server.close(1013))
    while slow.unsent:
        slow.take()
    assert slow.received == [CloseReceived(1013, "")]
    assert tp.Close(slow.conn) in slow.others


def test_a_client_that_leaves_ends_its_upload() -> None:
    slow = SlowUpstream()
    slow.take()
    slow.tell(tp.Disconnected(CLIENT))
    while slow.unsent:
        slow.take()
    assert slow.received == [CloseReceived(1000, "")]


def test_an_upstream_that_stops_reading_is_given_up() -> None:
    slow = SlowUpstream()
    slow.take()
    begun = slow.now
    while tp.Abort(slow.conn) not in slow.others:
        deadline = slow.endpoint.next_timeout()
        assert deadline is not None
        slow.now = deadline.at
        slow.tell(tp.TimeoutReached())
        if tp.Abort(slow.conn) not in slow.others:
            slow.says(slow.server.send_text(b'{"type":"keepalive"}'))
    assert slow.now == begun + 40 * SECOND


# ------------------------------------------------------------------ out of sockets


def limited(sockets: int) -> World:
    world = World(continuity=Continuity.TRANSCRIPT)
    world.net.limit(world.endpoint, sockets)
    return world


def exhausted(world: World) -> list[tp.Log]:
    return [log for log in world.net.logs if log.event == "sockets.exhausted"]


@pytest.mark.parametrize("store", [True, False])
def test_idle_conversations_give_up_their_sockets_and_go_on_later(store: bool) -> None:
    world = limited(4)
    answers = [world.ask(f"word {index}", store=store) for index in range(10)]
    assert [answer.status for answer in answers] == [200] * 10
    name = str(answers[0].response["id"])
    again = world.ask("more", previous_response_id=name, store=store)
    assert again.status == 200
    frame = world.frames[-1]
    # By its id if the service stores it, otherwise rebuilt from the transcript.
    assert frame.get("previous_response_id") == (name if store else None)
    assert ("word 0" in str(frame["input"])) is not store
    world.assert_empty()


def test_the_conversation_that_is_idle_longest_gives_way() -> None:
    world = limited(4)
    one, two, _ = (world.ask(text) for text in ("one", "two", "three"))
    two = world.ask("two more", previous_response_id=str(two.response["id"]))
    world.ask("four")
    connections = world.emulator.accepted
    world.ask("go on", previous_response_id=str(two.response["id"]))
    assert world.emulator.accepted == connections
    world.ask("go on", previous_response_id=str(one.response["id"]))
    assert world.emulator.accepted == connections + 1


def test_turns_without_a_socket_get_503_and_service_resumes() -> None:
    world = limited(5)
    world.emulator.delta_interval = SECOND
    running = [world.start("slowly") for _ in range(2)]  # two sockets each
    refused = world.ask("too much")
    assert (refused.status, refused.error["code"]) == (503, "bridge_overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    world.advance(30)
    assert [world.read(client).text for client in running]
    for client in running:
        client.half_close()
    world.emulator.delta_interval = 0
    assert world.ask("now").status == 200
    world.assert_empty()


def test_a_client_that_cannot_be_accepted_waits_for_an_idle_socket() -> None:
    world = limited(3)
    kept = world.client()
    body = {"model": "m", "input": "hi", "stream": True}
    kept.send(request(body))
    assert world.read(kept).status == 200
    assert world.net.open_connections(world.endpoint) == 2
    other = world.client()
    third = world.client()  # there is no fourth socket: that of the idle conversation is closed
    third.send(request(body))
    assert world.read(third).status == 200
    assert kept.closed  # then the longest idle client
    assert not other.closed  # it has just connected: its request may be on the way
    assert len(exhausted(world)) == 1


def test_a_client_whose_next_request_has_begun_is_not_idle() -> None:
    world = limited(2)
    kept = world.client()
    whole = request({"model": "m", "input": "hi", "stream": True})
    kept.send(whole)
    kept.take()
    kept.send(whole[:50])
    waiting = world.client()
    waiting.send(whole)  # the conversation's socket is the only one to be had
    kept.send(whole[50:])
    assert read_answers(bytes(kept.received))[0].status in (200, 503)
    assert not kept.closed


def test_a_client_that_is_leaving_already_is_not_waited_for() -> None:
    """It reads its answer slowly: its socket cannot be had before it has."""
    world = limited(2)
    slow = world.client()
    slow.pause()
    slow.send(request({"model": "m", "input": "x" * 100_000, "stream": True}))
    slow.half_close()
    assert not slow.closed
    refused = world.ask("more")
    assert refused.status == 503
    slow.resume()
    assert world.ask("more").status == 200


def test_the_log_says_so_once_a_second() -> None:
    world = limited(3)
    world.emulator.delta_interval = 100 * SECOND
    running = world.start("for long")
    for _ in range(50):
        assert world.ask("more").status == 503
    assert len(exhausted(world)) == 1
    world.advance(1)
    assert world.ask("more").status == 503
    first, second = exhausted(world)
    assert (first.level, first.fields["failed"]) == (tp.LogLevel.WARNING, "connect")
    assert (first.fields["count"], second.fields["count"]) == (1, 50)
    assert not [log for log in world.net.logs if log.event == "upstream.connect_failed"]
    running.abort()


def test_other_failures_to_connect_evict_no_session() -> None:
    world = World(continuity=Continuity.TRANSCRIPT)
    first = world.ask("one")
    world.net.remove_listener("up", 80)
    assert world.ask("two").status == 502
    assert exhausted(world) == []
    world.net.add(world.emulator, "up", 80)
    connects = world.net.connects
    world.ask("go on", previous_response_id=str(first.response["id"]))
    assert world.net.connects == connects


@pytest.mark.parametrize("sockets", [0, 1, 2])
def test_with_few_sockets_no_turn_hangs(sockets: int) -> None:
    world = limited(sockets)
    clients = [world.start("hi") for _ in range(3)]
    answers = [read_answers(bytes(client.received)) for client in clients]
    assert all(answer.status in (200, 503) for found in answers for answer in found)
    for client in clients:
        client.abort()
    world.net.limit(world.endpoint, 10)
    assert world.ask("hi").status == 200
    world.assert_empty()


@settings(max_examples=60)
@given(
    st.integers(2, 9),
    st.lists(
        st.tuples(st.sampled_from(["new", "go on", "leave", "wait"]), st.integers(0, 9)),
        max_size=30,
    ),
)
def test_every_turn_is_served_or_refused_and_service_resumes(
    sockets: int, steps: list[tuple[str, int]]
) -> None:
    world = limited(sockets)
    world.emulator.delta_interval = SECOND // 10
    clients: list[ByteClient] = []
    ids: list[str] = []
    for what, index in steps:
        if what == "new":
            clients.append(world.start(f"turn {len(clients)}"))
        elif what == "go on" and ids:
            anchor = ids[index % len(ids)]
            clients.append(world.start("go on", previous_response_id=anchor))
        elif what == "leave" and clients:
            clients.pop(index % len(clients)).abort()
        else:
            world.advance(index / 4)
        assert world.net.open_connections(world.endpoint) <= sockets
        ids += [
            str(answer.response["id"])
            for client in clients
            for answer in complete(client)
            if answer.status == 200 and answer.response.get("status") == "completed"
        ]
    world.advance(60)
    for client in clients:
        assert all(answer.status in (200, 503) for answer in complete(client))
        client.abort()
    world.net.limit(world.endpoint, 10)
    world.emulator.delta_interval = 0
    assert world.ask("at last").status == 200
    world.assert_empty()


def complete(client: ByteClient) -> list[Answer]:
    return [answer for answer in read_answers(bytes(client.received)) if answer.complete]
