"""The decision log and its replay: the decisions of an endpoint are made again from its log, which
contains no content of clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridgecore.config import Continuity
from bridgecore.recovery import effects as fx
from bridgecore.recovery import events as ev
from bridgecore.recovery.failure import (
    NOT_FOUND_CODE,
    Closed,
    ErrorFrame,
    Evidence,
    FailureKind,
    Malformed,
    TimedOut,
    Unreachable,
    UpgradeRefused,
    classify,
)
from bridgecore.recovery.policy import DEFAULT, POLICIES, PR397, V1_12, Budgets, Policy
from bridgecore.recovery.timers import Timer
from bridgecore.testing import (
    EVERY,
    Abort,
    CloseWith,
    Emulator,
    Error,
    ErrorShape,
    Fault,
    Freeze,
    Garbage,
    Point,
    Reject,
    Silence,
)
from bridgecore.testing.faults import Action
from bridgecore.verify.replay import MalformedLog, replay
from bridgecore.wire.decisions import (
    DECISION,
    Decision,
    Recorder,
    anonymous,
    hashed,
    read_line,
    write_decision,
    write_header,
)
from tests.endpoint_world import World
from tests.replica_world import Cluster

Json = dict[str, Any]
SECRET = "sk-nobody-may-see-this"
WORDS = "the body of a turn"
TERSE = "Invalid `previous_response_id`."

# One fault of each kind, in successive turns.
FAULTS: tuple[tuple[Point, Action], ...] = (
    (Point.AFTER_TERMINAL, CloseWith(1001)),
    (Point.BEFORE_CREATED, Abort()),
    (Point.BEFORE_CREATED, Error(400, NOT_FOUND_CODE)),
    (Point.BEFORE_CREATED, Error(400, None, message=TERSE, shape=ErrorShape.TERSE)),
    (Point.BEFORE_CREATED, Error(400, "websocket_connection_limit_reached")),
    (Point.BEFORE_CREATED, Error(429, "rate_limit_exceeded", message=f"Not for {SECRET}.")),
    (Point.BEFORE_CREATED, Silence()),
    (Point.AFTER_CREATED, CloseWith(1011)),
    (Point.AFTER_CREATED, Garbage()),
    (Point.AFTER_TERMINAL, Freeze()),
)


def lines_of(world: World) -> list[bytes]:
    records = [record for record in world.net.logs if record.event == DECISION]
    return [str(record.fields["line"]).encode() for record in records]


def eventful(policy: str = "default", **configured: Any) -> World:
    """A world in which conversations with and without ``store`` had every fault."""
    world = World(policy=policy, decisions=True, created_timeout=5 * 10**9, **configured)
    for nth, (point, action) in enumerate(FAULTS):
        world.emulator.faults.add(3 * nth + 2, Fault(point, action))
    for store in (True, False):
        previous: Json = {}
        for _ in range(20):
            client = world.start(WORDS, key=SECRET, store=store, **previous)
            world.advance(10)
            answer = world.read(client)
            assert answer.complete
            if answer.status == 200 and answer.names[-1] == "response.completed":
                previous = {"previous_response_id": answer.response["id"]}
            elif answer.status == 400:
                previous = {}
    world.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, Silence()))
    left = world.start(WORDS, key=SECRET)
    left.abort()
    world.settle()
    return world


@pytest.fixture(scope="module")
def log() -> list[bytes]:
    return lines_of(eventful())


# ------------------------------------------------------------------ clean


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("continuity", Continuity)
def test_the_decisions_of_an_endpoint_replay_to_themselves(
    policy: str, continuity: Continuity
) -> None:
    lines = lines_of(eventful(policy, continuity=continuity))
    report = replay(lines)
    assert report.same
    assert report.runs == 1
    assert report.policies == (policy,)
    assert report.transitions == len(lines) - 1
    assert report.sessions == len({json.loads(line)["session"] for line in lines[1:]})


def test_the_log_of_the_tests_is_worth_replaying(log: list[bytes]) -> None:
    rules = {json.loads(line)["rule"] for line in log[1:]}
    wanted = {"submit", "connection-opened", "frame-sent", "created", "output", "ended", "refused"}
    wanted |= {"lost-idle", "lost-in-flight", "created-deadline", "abandon", "expiry"}
    assert wanted <= rules
    assert len(log) > 150


@settings(max_examples=30)
@given(data=st.data())
def test_decisions_under_any_fault_replay_to_themselves(data: st.DataObject) -> None:
    """Several clients at once, any faults, any times; compared with every policy."""
    policy = data.draw(st.sampled_from(sorted(POLICIES)))
    continuity = data.draw(st.sampled_from(Continuity))
    world = World(policy=policy, continuity=continuity, decisions=True, max_waiting=1)
    for nth in range(1, 13):
        if (fault := data.draw(st.none() | st.sampled_from(FAULTS))) is not None:
            world.emulator.faults.add(nth, Fault(*fault))
    ids: list[str] = []
    for _ in range(data.draw(st.integers(1, 8))):
        fields: Json = {"store": data.draw(st.booleans())}
        if data.draw(st.booleans()) and ids:
            fields["previous_response_id"] = data.draw(st.sampled_from(ids))
        client = world.start(WORDS, **fields)
        world.advance(data.draw(st.sampled_from([0, 0, 1, 61, 301, 901, 3601])))
        if not client.received:
            if data.draw(st.booleans()):
                client.abort()
            continue
        answer = world.read(client)
        if answer.complete and answer.status == 200 and answer.names[-1] == "response.completed":
            ids.append(answer.response["id"])
    world.settle()
    lines = lines_of(world)
    report = replay(lines)
    assert report.same, report.divergence
    assert report.transitions == len(lines) - 1
    for other in POLICIES.values():
        asked = replay(lines, other)
        assert asked.divergence is None
        assert asked.same or other.name != policy


def test_a_log_goes_on_with_another_run(log: list[bytes]) -> None:
    """A file may have several processes, one after the other: each counts from 1 again."""
    once, twice = replay(log), replay([*log, *log])
    assert twice.same
    assert twice.runs == 2
    assert twice.transitions == 2 * once.transitions
    assert twice.sessions == 2 * once.sessions


def test_each_line_names_the_cells_that_decided() -> None:
    cells: dict[str, set[str]] = {}
    for line in lines_of(eventful(continuity=Continuity.TRANSCRIPT))[1:]:
        found = json.loads(line)
        cells.setdefault(found["rule"], set()).update(found["cells"])
    assert "lost_sent/held_stored=refuse" in cells["lost-in-flight"]
    assert "not_found/held_stored=rehydrate" in cells["refused"]
    assert "send_skipped/held=rehydrate" in cells["connection-opened"]
    # Whether output may be held back is not a decision about a loss.
    assert cells["created"] == cells["output"] == cells["ended"] == set()


def test_output_that_was_folded_together_is_replayed_at_its_time() -> None:
    """The folded output extends the idle deadline: only the recorded touches explain that."""
    recorder = Recorder(DEFAULT)
    session = recorder.session(1)
    idle = DEFAULT.timeouts.idle
    session.handle(ev.TurnSubmitted(ev.Turn(1)), 0)
    session.handle(ev.ConnectionOpened(1), 1)
    session.handle(ev.FrameSent(1), 2)
    session.handle(ev.ResponseCreated(1), 3)
    session.handle(ev.OutputReceived(1), 4)
    session.touch(idle)
    assert session.handle_timeout(idle + 4) == ()  # folded: it was too early
    failed = session.handle_timeout(2 * idle)
    assert any(isinstance(effect, fx.FailTurn) for effect in failed)
    lines = [str(record.fields["line"]).encode() for record in recorder.take()]
    assert recorder.take() == []
    found = [read_line(line) for line in lines[1:]]
    decisions = [decision for decision in found if isinstance(decision, Decision)]
    told = [(decision.at, decision.event) for decision in decisions[5:]]
    assert told == [
        (idle, ev.OutputReceived(1)),
        (2 * idle, ev.DeadlineReached(Timer.IDLE)),
    ]
    assert replay(lines).same
    sooner = lines[7].replace(str(2 * idle).encode(), str(idle + 5).encode())
    assert replay([*lines[:6], sooner]).same  # without folding it would have been due
    divergence = replay([*lines[:7], sooner]).divergence
    assert divergence is not None
    assert divergence.actual.rule == "spurious-deadline"


def test_nothing_is_recorded_unless_it_is_asked_for() -> None:
    world = World()
    world.ask()
    world.settle()
    assert lines_of(world) == []


# ------------------------------------------------------------------ divergence


def tampered(log: list[bytes], rule: str, change: Callable[[Json], None]) -> tuple[int, bytes]:
    """The number of the first line that ``rule`` decided, and the line after ``change``."""
    for number, line in enumerate(log, start=1):
        found = json.loads(line)
        if found.get("rule") == rule:
            change(found)
            return number, json.dumps(found).encode()
    raise AssertionError(f"{rule} ruled nothing")


def _other_rule(found: Json) -> None:
    found["rule"] = "submit"


def _no_effects(found: Json) -> None:
    found["effects"] = []


def _other_cell(found: Json) -> None:
    found["cells"] = ["lost_sent/held=resend"]


def _other_cause(found: Json) -> None:
    found["event"]["ConnectionLost"]["cause"] = {"Closed": {"code": 4999}}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("created", _other_rule),
        ("lost-in-flight", _no_effects),
        ("lost-in-flight", _other_cause),
        ("lost-in-flight", _other_cell),
    ],
)
def test_the_first_divergence_is_named(
    log: list[bytes], rule: str, change: Callable[[Json], None]
) -> None:
    number, line = tampered(log, rule, change)
    _, later = tampered(log[number:], "ended", _no_effects)
    report = replay([*log[: number - 1], line, *log[number:], later])
    found, recorded = report.divergence, json.loads(line)
    assert found is not None
    assert (found.line, found.run, found.session) == (number, 1, recorded["session"])
    assert found.at == recorded["at"]
    assert found.expected != found.actual
    assert found.expected.rule == recorded["rule"]
    assert report.transitions == number - 1
    assert not report.same


def test_an_event_that_cannot_happen_is_a_divergence(log: list[bytes]) -> None:
    def too_new(found: Json) -> None:
        found["event"]["ResponseCreated"]["generation"] = 99

    number, line = tampered(log, "created", too_new)
    found = replay([*log[: number - 1], line]).divergence
    assert found is not None
    assert "the latest generation is" in str(found.actual)


def test_a_lost_line_is_noticed(log: list[bytes]) -> None:
    at = next(i for i, line in enumerate(log) if b'"connection-opened"' in line)
    assert replay(log[:at] + log[at + 1 :]).divergence is not None


# ------------------------------------------------------------------ another policy


def test_the_same_policy_would_have_decided_the_same(log: list[bytes]) -> None:
    assert replay(log, DEFAULT).same


@pytest.mark.parametrize("other", [PR397, V1_12], ids=lambda policy: policy.name)
def test_decisions_that_differ_under_another_policy_are_found(
    log: list[bytes], other: Policy
) -> None:
    report = replay(log, other)
    assert report.divergence is None
    assert report.transitions == len(log) - 1
    assert report.differences
    for found in report.differences:
        assert found.expected != found.actual
        assert not found.actual.error
    given_up = [
        found
        for found in report.differences
        if any(
            isinstance(effect, fx.FailTurn) and effect.answer is fx.FailureReply.NOT_FOUND
            for effect in found.actual.effects
        )
    ]
    assert bool(given_up) is (other is V1_12)


def test_a_policy_is_compared_by_its_cells_and_budgets_only(log: list[bytes]) -> None:
    """Timeouts and the length of the queue are settings of the run and are taken from it."""
    budgets = attrs.evolve(DEFAULT.budgets, waiting=0)
    timeouts = attrs.evolve(DEFAULT.timeouts, created=1, expiry=1, turn=1)
    other = attrs.evolve(DEFAULT, budgets=budgets, timeouts=timeouts)
    assert replay(log, other).same


def test_another_policy_has_a_state_of_its_own_as_long_as_it_agrees() -> None:
    """A replay that the recorded policy has left and the other policy has used up: only the history
    before the difference tells the two states apart."""
    patient = attrs.evolve(PR397, budgets=Budgets(replays=1, transcripts=False))
    recorder = Recorder(patient)
    session = recorder.session(1)
    session.handle(ev.TurnSubmitted(ev.Turn(1)), 0)
    session.handle(ev.ConnectionOpened(1), 1)
    session.handle(ev.FrameSent(1), 2)
    session.handle(ev.ResponseEnded(1, ev.Outcome.COMPLETED, "resp_1"), 3)
    session.handle(ev.ConnectionLost(1, Closed(1006)), 4)
    # reconnects; under PR397 this uses up the replay
    session.handle(ev.TurnSubmitted(ev.Turn(2)), 5)
    session.handle(ev.ConnectionOpened(2), 6)
    session.handle(ev.FrameSent(2), 7)
    session.handle(ev.ConnectionLost(2, Closed(1006)), 8)
    lines = [str(record.fields["line"]).encode() for record in recorder.take()]
    differences = replay(lines, PR397).differences
    assert [found.line for found in differences] == [10]
    assert replay(lines, patient).same


# ------------------------------------------------------------------ secrets


def test_the_log_has_no_content_and_no_id() -> None:
    for continuity in Continuity:
        world = eventful(continuity=continuity)
        text = b"\n".join(lines_of(world)).decode()
        assert '"anchor":"' in text
        for secret in (SECRET, WORDS, "resp_", "not found", "turn 1"):
            assert secret not in text, secret


def test_an_id_has_the_same_hash_everywhere(log: list[bytes]) -> None:
    made, used = set(), set()
    for line in log[1:]:
        event = json.loads(line)["event"]
        if "ResponseEnded" in event:
            made.add(event["ResponseEnded"]["response"])
        if "TurnSubmitted" in event:
            used.add(event["TurnSubmitted"]["turn"]["Turn"]["anchor"])
    used.discard(None)
    assert used
    assert used <= made
    assert all(len(word) == 12 for word in used)
    assert hashed("a") == hashed("a") != hashed("b")
    assert hashed("\ud800") != hashed("\udc00")  # JSON can contain such halves


def test_decisions_about_forwards_are_replayed() -> None:
    """Also the loss of an owner, which is judged by other cells than that of the upstream."""
    cluster = Cluster(forwards=True)
    owner, sender = cluster.start("a"), cluster.start("b", decisions=True)
    one = owner.ask("one").response["id"]
    assert sender.ask("two", previous_response_id=one).status == 200
    cluster.emulator.faults.add(EVERY, Fault(Point.BEFORE_CREATED, Silence()))
    sender.start("three", previous_response_id=one)
    owner.kill()
    lines = lines_of(sender)
    assert replay(lines).same
    assert b"owner_lost" in b"".join(lines[1:])


def test_a_rejection_of_the_upgrade_is_replayed() -> None:
    emulator = Emulator()
    emulator.faults.add(1, Fault(Point.ON_UPGRADE, Reject(429, ((b"retry-after", b"7"),))))
    world = World(emulator=emulator, decisions=True)
    assert world.ask().status == 429
    world.settle()
    lines = lines_of(world)
    assert replay(lines).same
    assert b'{"UpgradeRefused":{"status":429,"retry_after":7}}' in b"".join(lines)


_WORD = st.one_of(
    st.none(),
    st.sampled_from(
        [
            NOT_FOUND_CODE,
            "websocket_connection_limit_reached",
            "rate_limit_exceeded",
            "insufficient_quota",
            "invalid_request_error",
            "previous_response_id",
            "other",
            "",
        ]
    ),
    st.text(max_size=8),
)
_MESSAGE = st.one_of(
    st.none(),
    st.sampled_from(
        [
            TERSE,
            "invalid previous_response_id",
            f"Previous response with id '{SECRET}' not found.",
        ]
    ),
    st.text(max_size=8),
)
_STATUS = st.none() | st.sampled_from([200, 400, 401, 429, 500]) | st.integers()
FRAMES = st.builds(
    ErrorFrame,
    status=_STATUS,
    code=_WORD,
    type=_WORD,
    message=_MESSAGE,
    param=_WORD,
    retry_after=st.none() | st.integers(0, 86_400),
)


@given(frame=FRAMES)
def test_an_error_frame_is_classified_as_it_was(frame: ErrorFrame) -> None:
    told = anonymous(ev.UpstreamRefused(1, frame))
    assert isinstance(told, ev.UpstreamRefused)
    assert isinstance(told.cause, ErrorFrame)
    assert classify(told.cause) == classify(frame)
    assert anonymous(told) == told
    for word in (told.cause.code, told.cause.type):
        known = classify(ErrorFrame(code=word)).kind is not FailureKind.SERVER_ERROR
        assert word in (None, "other") or known
    assert told.cause.param in (None, "other", "previous_response_id")
    assert told.cause.message in (None, TERSE)


# ------------------------------------------------------------------ lines

_CAUSES = st.one_of(
    st.builds(Closed, st.integers(1000, 4999)),
    st.builds(Malformed, st.sampled_from(["unreadable message", "protocol error 1002"])),
    st.builds(Unreachable, st.sampled_from(["refused", "tls"])),
    st.builds(UpgradeRefused, st.integers(100, 599), st.none() | st.integers(0, 99)),
    st.builds(TimedOut, st.sampled_from(Timer)),
    FRAMES,
)


def _events(cause: st.SearchStrategy[Evidence]) -> Iterator[st.SearchStrategy[ev.Event]]:
    one, number = st.booleans(), st.integers(0, 2**53)
    name = st.none() | st.text(max_size=9)
    anchored = [standing for standing in ev.Standing if standing is not ev.Standing.UNANCHORED]
    turns = st.builds(ev.Turn, number) | st.builds(
        ev.Turn, number, st.sampled_from(anchored), st.text()
    )
    yield st.builds(ev.TurnSubmitted, turns, st.none() | number)
    yield st.builds(ev.TurnAbandoned, number)
    yield st.builds(ev.ConnectionOpened, number, number)
    yield st.builds(ev.ConnectionLost, number, cause, one)
    yield st.builds(ev.FrameSent, number, one)
    yield st.builds(ev.ResponseCreated, number, name)
    yield st.builds(ev.OutputReceived, number, one, one, name)
    yield st.builds(ev.ResponseEnded, number, st.sampled_from(ev.Outcome), name, st.none() | cause)
    yield st.builds(ev.UpstreamRefused, number, cause, one)
    yield st.builds(ev.RelayPaused, number, one)
    yield st.just(ev.EvictionRequested())
    yield st.builds(ev.DeadlineReached, st.sampled_from(Timer))


_NUMBER = st.integers(0, 2**53)
EFFECTS = st.one_of(
    st.builds(fx.OpenConnection, _NUMBER, st.booleans()),
    st.builds(fx.CloseConnection, _NUMBER),
    st.builds(fx.SendTurn, _NUMBER, _NUMBER, st.sampled_from(fx.RequestForm)),
    st.builds(fx.DeliverEvent, _NUMBER, st.booleans()),
    st.builds(fx.CompleteTurn, _NUMBER, st.lists(st.text(max_size=9), max_size=3).map(tuple)),
    st.builds(fx.StopInjecting, _NUMBER),
    st.builds(fx.StopRebuilding, _NUMBER),
    st.builds(fx.WarmSession, st.text(max_size=9)),
    st.builds(
        fx.FailTurn,
        _NUMBER,
        st.sampled_from(fx.FailureReply),
        st.none() | st.builds(classify, _CAUSES),
    ),
    st.builds(fx.RebindSession, st.none() | st.builds(classify, _CAUSES)),
    st.just(fx.RetireSession()),
    st.builds(fx.Ignored, st.text(max_size=9)),
)


@given(
    event=st.one_of(list(_events(_CAUSES))),
    at=_NUMBER,
    session=_NUMBER,
    rule=st.text(max_size=9),
    cells=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    effects=st.lists(EFFECTS, max_size=4).map(tuple),
)
def test_a_decision_is_read_as_it_was_written(
    event: ev.Event,
    at: int,
    session: int,
    rule: str,
    cells: tuple[str, ...],
    effects: tuple[fx.Effect, ...],
) -> None:
    decision = Decision(at, session, anonymous(event), rule, cells, effects)
    line = write_decision(decision)
    assert line.isascii()
    assert line.isprintable()
    assert read_line(line.encode()) == decision
    assert read_line(line.encode() + b"\n") == decision


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_a_header_holds_the_whole_policy(policy: Policy) -> None:
    timeouts = attrs.evolve(policy.timeouts, connect=1, created=2, idle=3, turn=4)
    policy = attrs.evolve(policy, timeouts=timeouts, budgets=Budgets(5, 6, 7, True, False))
    found = read_line(write_header(policy).encode())
    assert isinstance(found, Policy)
    assert found.name == policy.name
    assert found.cells == policy.cells
    assert (found.budgets, found.timeouts) == (policy.budgets, policy.timeouts)


def _header(**changes: Any) -> bytes:
    return json.dumps({**json.loads(write_header(DEFAULT)), **changes}).encode()


def _line(**changes: Any) -> bytes:
    decision = Decision(5, 1, ev.FrameSent(1), "frame-sent", (), ())
    return json.dumps({**json.loads(write_decision(decision)), **changes}).encode()


MALFORMED = [
    (b"\xff", "not UTF-8"),
    (b"{", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"9" * 10_000, "not JSON"),
    (b"[]", "not an object"),
    (b"{}", "lacks at, session, event, rule, cells, effects"),
    (_line(more=1), "unknown 'more'"),
    (_line(at=-1), "at is not"),
    (_line(at=1.5), "at is not"),
    (_line(at=True), "at is not"),
    (_line(session="1"), "session is not"),
    (_line(rule=None), "is not text"),
    (_line(cells="x"), '"x" is not a list'),
    (_line(cells=[1]), "1 is not text"),
    (_line(effects={}), "effects is not a list"),
    (_line(effects=[{"Launch": {}}]), '["Launch"] is not OpenConnection or'),
    (_line(effects=[[]]), "a list is not"),
    (_line(effects=[{"CompleteTurn": {"turn": 1, "responses": "x"}}]), '"x" is not a list'),
    (_line(effects=[{"CompleteTurn": {"turn": 1, "responses": [1]}}]), "1 is not text"),
    (_line(event={"FrameSent": {}}), "FrameSent lacks generation"),
    (_line(event={"RelayPaused": {"turn": 1, "paused": True, "x": 1}}), "unknown 'x'"),
    (_line(event={"FrameSent": 1}), "FrameSent is not an object"),
    (_line(event={"TurnAbandoned": {"turn": True}}), "true is not a number"),
    (_line(event={"FrameSent": {"generation": 1}, "x": 1}), "is not TurnSubmitted or"),
    (_line(event={"DeadlineReached": {"timer": "tea"}}), '"tea" is not Timer'),
    (
        _line(
            event={
                "TurnSubmitted": {
                    "turn": {"Turn": {"id": 1, "standing": "held", "anchor": None}},
                    "deadline": None,
                }
            }
        ),
        "turn 1 is held, with anchor None",
    ),
    (_header(log="of another program"), "another kind"),
    (_header(format=1), "its format is 1, not 3"),
    (_header(cells={}), "cells lacks SEND_SKIPPED"),
    (_header(cells=1), "cells is not an object"),
    (_header(Budgets={}), "Budgets lacks replays"),
    (_header(Timeouts={**attrs.asdict(DEFAULT.timeouts), "idle": 0}), "idle"),
]


@pytest.mark.parametrize(("line", "reason"), MALFORMED)
def test_a_malformed_line_is_named(line: bytes, reason: str) -> None:
    with pytest.raises(MalformedLog) as caught:
        replay([write_header(DEFAULT).encode(), line + b"\n"])
    assert caught.value.line == 2
    assert str(caught.value).startswith("line 2: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_line_that_was_cut_off_is_left_out(log: list[bytes]) -> None:
    """As kill -9 leaves it: the rest is replayed, also if another run continued the file."""
    cut, lines = b'{"at":1,"session', [b"\n", log[0] + b"\n", b" \n", *log[1:]]
    found = replay([*lines, cut])
    assert (found.same, found.transitions) == (True, len(log) - 1)
    assert found.incomplete == (len(lines) + 1,)
    found = replay([*lines, cut + b"\n", *log])
    assert (found.same, found.runs, found.incomplete) == (True, 2, (len(lines) + 1,))


def test_a_line_in_the_middle_is_malformed(log: list[bytes]) -> None:
    with pytest.raises(MalformedLog, match="line 2: it is not JSON"):
        replay([log[0], b"{\n", *log[1:]])
    with pytest.raises(MalformedLog, match="line 1: it is not JSON"):
        replay([b"{"])  # nothing is complete
    with pytest.raises(MalformedLog, match="line 1: the log is empty"):
        replay([b"\n", b""])


def test_a_session_that_had_begun_before_is_no_fault_of_its_decisions(log: list[bytes]) -> None:
    number = next(nth for nth, line in enumerate(log) if b"ResponseCreated" in line)
    found = replay([log[0], *log[number:]]).divergence
    assert found is not None
    assert (found.line, found.begun) == (2, True)
    line = json.loads(log[number])
    line["effects"] = []
    found = replay([*log[:number], json.dumps(line).encode()]).divergence
    assert found is not None
    assert not found.begun


def test_a_log_begins_with_a_header() -> None:
    with pytest.raises(MalformedLog, match="line 1: a decision, but no header"):
        replay([_line()])
    with pytest.raises(MalformedLog, match="line 1: the log is empty"):
        replay([])


def test_the_time_of_a_session_does_not_go_back(log: list[bytes]) -> None:
    number, line = tampered(log, "created", lambda found: found.update(at=0))
    with pytest.raises(MalformedLog, match=f"line {number}: at 0, but session"):
        replay([*log[: number - 1], line])
