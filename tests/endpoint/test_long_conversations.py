"""Long conversations under losses: contexts do not grow, and the accounts are right.

What belongs here: runs of many turns, with and without ``ambiguous=replay``, and a property over
clients of every kind.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.config import OnAmbiguousLoss
from bridgecore.testing import (
    EVERY,
    Abort,
    CloseWith,
    Error,
    ErrorShape,
    Fault,
    Point,
    Silence,
)
from bridgecore.testing.faults import Action
from tests.endpoint_clients import (
    SHAPES,
    Historian,
    Talker,
    anchors,
    assert_empty,
    heal,
    held,
    output_for,
    strike,
    user,
)
from tests.endpoint_world import NOT_FOUND, SECOND, Answer, Json

# ------------------------------------------------------------------ long conversations


BEFORE_OUTPUT: list[tuple[Point, Action]] = [
    (Point.AFTER_TERMINAL, CloseWith(1001)),  # at the end of the turn before
    (Point.BEFORE_CREATED, Abort()),
    (Point.BEFORE_CREATED, CloseWith(1011)),
    (Point.BEFORE_CREATED, Silence()),
    (Point.BEFORE_CREATED, Error(400, NOT_FOUND)),
    (Point.BEFORE_CREATED, Error(400, "websocket_connection_limit_reached")),
    (Point.AFTER_CREATED, Abort()),
    (Point.AFTER_CREATED, CloseWith(1012)),
]


def long_conversation(
    turns: int,
    rng: random.Random | None,
    *,
    tries: int = 2,
    ambiguous: OnAmbiguousLoss = OnAmbiguousLoss.REFUSE,
    stream: bool = False,
) -> tuple[list[str], list[int]]:
    """The errors that a client got, and the tokens of context of each turn. With ``rng``, every
    third turn has a loss before its output. The client retries as its SDK does, with the same
    request."""
    world = held(created_timeout=SECOND // 2, ambiguous=ambiguous)
    talker = Talker(world, stream=stream)
    tokens = []
    for n in range(turns):
        heal(world)
        if rng is not None and n % 3 == 2:
            strike(world, *rng.choice(BEFORE_OUTPUT))
        answer = talker.turn(user(f"text {n:04} " + "x" * 400), tries=tries)
        tokens.append(answer.response["usage"]["input_tokens"])
    return talker.outcomes, tokens


@pytest.mark.parametrize("seed", range(3))
def test_losses_do_not_grow_the_context(seed: int) -> None:
    calm, undisturbed = long_conversation(40, None)
    outcomes, tokens = long_conversation(40, random.Random(seed))
    assert calm == ["200"] * 40
    assert set(outcomes) == {"200", "502"}  # one retry by the SDK at most: see ``tries``
    # They differ by a few bytes for each answer: its form as an output and as an input.
    assert tokens[-1] <= 1.01 * undisturbed[-1]
    growth = [(run[-1] - run[0]) / 39 for run in (tokens, undisturbed)]
    assert growth[0] <= 1.01 * growth[1]


@pytest.mark.parametrize("stream", [True, False])
def test_with_replay_two_hundred_turns_show_no_loss(stream: bool) -> None:
    """Turns that were lost before their output are resent: no client has to retry."""
    rng = random.Random(7)
    outcomes, tokens = long_conversation(
        200, rng, tries=1, ambiguous=OnAmbiguousLoss.REPLAY, stream=stream
    )
    assert outcomes == ["200"] * 200
    calm, undisturbed = long_conversation(200, None)
    assert calm == outcomes
    assert tokens == pytest.approx(undisturbed, rel=0.01)


@pytest.mark.parametrize("action", [Abort(), CloseWith(1011), Silence()])
def test_with_replay_a_client_gets_one_response_created(action: Action) -> None:
    """Nothing of the lost answer was shown."""
    world = held(ambiguous=OnAmbiguousLoss.REPLAY, idle_timeout=SECOND)
    talker = Talker(world)
    talker.turn(user("a"))
    strike(world, Point.AFTER_CREATED, action)
    answer = talker.attempt(user("b"), wait=1)
    assert talker.outcomes == ["200"] * 2
    assert len(world.frames) == 3
    assert answer.names[:2] == ["response.created", "response.in_progress"]
    assert answer.names.count("response.created") == 1
    assert answer.events[0].json["response"]["id"] == answer.response["id"]
    numbers = [event.json["sequence_number"] for event in answer.events]
    assert numbers == list(range(len(numbers)))


def test_with_replay_an_answer_without_output_is_whole() -> None:
    world = held(ambiguous=OnAmbiguousLoss.REPLAY)
    talker = Talker(world, fields={"generate": False})
    answer = talker.turn(user("a"))
    assert answer.names[0] == "response.created"
    assert answer.names[-1] == "response.completed"


def test_with_replay_there_is_one_more_try_and_no_second() -> None:
    world = held(ambiguous=OnAmbiguousLoss.REPLAY)
    talker = Talker(world)
    talker.turn(user("a"))
    world.emulator.faults.add(EVERY, Fault(Point.AFTER_CREATED, Abort()))
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", "failed"]
    assert len(world.frames) == 3


def test_with_replay_nothing_is_sent_again_once_the_answer_has_begun() -> None:
    world = held(ambiguous=OnAmbiguousLoss.REPLAY)
    talker = Talker(world, stream=False)
    talker.turn(user("a"))
    strike(world, Point.MID_OUTPUT, Abort())
    talker.attempt(user("b"))
    assert talker.outcomes == ["200", "502"]
    assert len(world.frames) == 2


# ---------------------------------------------------------------- savings and costs


def total(answer: Answer) -> int:
    usage = answer.response["usage"]
    return int(usage["input_tokens"] + usage["output_tokens"])


def test_tokens_saved_are_the_usage_of_the_answer_continued() -> None:
    world = held()
    historian = Historian(world)
    answers = [historian.turn(user(f"{n} " + "x" * 2000)) for n in range(3)]
    accounts = world.endpoint.bridge.accounts
    assert (accounts.turns, accounts.reduced, accounts.rehydrated) == (3, 2, 0)
    assert accounts.tokens_saved == total(answers[0]) + total(answers[1])
    assert 2 * 3 * 2000 < accounts.bytes_saved < 2 * 3 * 2000 * 1.3
    assert (accounts.tokens_spent, accounts.bytes_spent) == (0, 0)
    logs = [log.fields for log in world.net.logs if log.event == "turn.completed"]
    assert [log["tokens_saved"] for log in logs] == [0, total(answers[0]), total(answers[1])]
    counted = [int(log["input_tokens"]) + int(log["output_tokens"]) for log in logs]
    assert counted == [total(answer) for answer in answers]


def test_tokens_spent_are_the_usage_of_the_answer_rebuilt() -> None:
    world = held()
    talker = Talker(world)
    answers = [talker.turn(user("a" * 4000))]
    strike(world, Point.AFTER_TERMINAL, CloseWith(1001))
    answers.append(talker.turn(user("b")))
    answers.append(talker.turn(user("c")))
    accounts = world.endpoint.bridge.accounts
    assert (accounts.turns, accounts.reduced, accounts.rehydrated) == (3, 0, 1)
    assert accounts.tokens_spent == total(answers[1])
    assert accounts.bytes_spent > 8000
    assert (accounts.tokens_saved, accounts.bytes_saved) == (0, 0)


# ------------------------------------------------------------------ any faults


where = st.one_of(
    st.none(),
    st.tuples(
        st.sampled_from([Point.BEFORE_CREATED, Point.AFTER_CREATED, Point.MID_OUTPUT]),
        st.sampled_from(
            [
                Abort(),
                CloseWith(1001),
                CloseWith(1011),
                Silence(),
                Error(500),
                Error(429, "rate_limit_exceeded"),
                Error(400, NOT_FOUND),
                Error(400, "websocket_connection_limit_reached"),
            ]
        ),
    ),
    st.tuples(
        st.just(Point.AFTER_TERMINAL), st.sampled_from([Abort(), CloseWith(1000), CloseWith(1012)])
    ),
)
steps = st.tuples(
    st.integers(0, 4),  # the client
    st.sampled_from(["say", "say", "tool", "branch", "same"]),
    where,
    st.sampled_from([0, 0, 0, 60, 1000]),  # pause in seconds
)


@settings(max_examples=60)
@given(steps=st.lists(steps, min_size=2, max_size=25), shape=st.sampled_from(SHAPES))
def test_the_context_upstream_equals_the_conversation(
    steps: list[tuple[int, str, tuple[Point, Action] | None, int]], shape: ErrorShape
) -> None:
    """The helpers compare the context at the upstream with the client's history at every answer."""
    world = held(created_timeout=SECOND // 2, idle_timeout=SECOND // 2)
    world.emulator.error_shape = shape
    clients: list[Talker | Historian] = [
        Talker(world),
        Talker(world, store=True, stream=False),
        Historian(world),
        Historian(world, store=True, bare=True),
        Historian(world),
    ]
    for number, (who, what, fault, delay) in enumerate(steps):
        client = clients[who]
        if what == "branch" and isinstance(client, Talker):
            client.last = list(client.past)[number % len(client.past)]
            while open_calls(client.past[client.last]):
                client.last = None
        elif what == "branch" and isinstance(client, Historian):
            other = clients[number % len(clients)]
            if isinstance(other, Historian):
                client.history = list(other.history)
        world.emulator.faults.clear()
        if fault is not None:
            strike(world, *fault)
        text = "same" if what == "same" else f"text {number}"
        if what == "tool":
            (call,) = client.turn(user("call tool look {}")).response["output"]
            client.turn(output_for(call, text))
        else:
            client.turn(user(text))
        world.advance(delay)
    sent = anchors(world)
    for historian in clients[2:]:
        assert isinstance(historian, Historian)
    assert set(sent) <= {world.emulator.response_id(n + 1) for n in range(len(world.frames))}
    world.emulator.faults.clear()
    assert_empty(world)


def open_calls(items: list[Json]) -> bool:
    answered = {item["call_id"] for item in items if item.get("type") == "function_call_output"}
    return any(i.get("type") == "function_call" and i["call_id"] not in answered for i in items)
