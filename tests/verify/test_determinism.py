"""The same events give byte-identical effects, in any process and under any Python.

What belongs here: a log of events is made once, from ``strategies.histories`` and the machine of a
``Bridge``, and replayed in separate processes with different hash seeds, and for the decision core
also under every other Python that is installed. Each process prints a digest of all effects.

An ``Endpoint`` cannot be replayed from a log of bytes, because the key of its WebSocket handshake
is random. So a whole world runs in each process; what is sent upstream is compared by kind and
length, everything else byte for byte.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attr
import attrs
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bridgecore import messages as msg
from bridgecore.config import Config
from bridgecore.recovery.events import Event, Turn, TurnSubmitted
from bridgecore.recovery.policy import DEFAULT, Policy
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing.strategies import History, histories, policies, replay
from tests.verify.test_machines import REPEATABLE, BridgeMachine, run_machine

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ("0", "1", "4294967295")
TIME_LIMIT = 50  # seconds for one process

# The program of each process. It imports only the core, so that any Python can run it.
OF_SESSIONS = """
import hashlib, pickle, sys
from bridgecore.recovery.session import Session
digest, count = hashlib.sha256(), 0
for policy, events in pickle.load(sys.stdin.buffer):
    session = Session(policy)
    for event, now in events:
        told = (session.handle(event, now), session.rule, session.state, session.next_timeout())
        digest.update(repr(told).encode())
        count += 1
print(digest.hexdigest(), count)
"""
OF_BRIDGES = """
import hashlib, pickle, sys
from bridgecore.bridge import Bridge
digest, count = hashlib.sha256(), 0
for config, events in pickle.load(sys.stdin.buffer):
    bridge = Bridge(config)
    for event, now in events:
        told = (bridge.handle(event, now), bridge.next_timeout(), bridge.memory.size)
        digest.update(repr(told).encode())
        count += 1
print(digest.hexdigest(), count)
"""
OF_ENDPOINTS = """
import hashlib
from bridgecore.testing import CloseWith, Error, Fault, Freeze, Point
from bridgecore.testing.strategies import Cutter
from bridgecore import transport as tp
from tests.endpoint_world import World, request
digest, count = hashlib.sha256(), 0
world = World(policy="pr397", split=Cutter((3, 200, 1)))
plan, endpoint, upstreams = world.emulator.faults, world.endpoint, set()
plan.add(2, Fault(Point.BEFORE_CREATED, CloseWith(1012))).add(4, Fault(Point.MID_OUTPUT, Freeze()))
plan.add(6, Fault(Point.BEFORE_CREATED, Error(429, "rate_limit_exceeded")))
handle = endpoint.handle

def recording(event, now):
    global count
    effects = handle(event, now)
    for effect in effects:
        if isinstance(effect, tp.Connect):
            upstreams.add(effect.conn)
        told = repr(effect)
        if isinstance(effect, tp.Send) and effect.conn in upstreams:
            told = f"Send to upstream {effect.conn}: {len(effect.data)} {effect.notify}"
        digest.update(told.encode())
        count += 1
    digest.update(repr(endpoint.next_timeout()).encode())
    return effects

endpoint.handle = recording
for number in range(20):
    fields = {"stream": number % 3 > 0, "store": number % 2 > 0}
    if number % 4 == 3:
        fields["previous_response_id"] = world.emulator.response_id(number // 2)
    client = world.client()
    body = {"model": "m", "input": f"word {number}", **fields}
    client.send(request(body, key=f"sk-{number % 3}"))
    world.advance((0, 1, 61, 400)[number % 4])
    if number % 5 == 0 and not client.closed:
        client.abort()
world.drain()
world.advance(1000)
print(digest.hexdigest(), count)
"""

GENERATED = settings(max_examples=150, database=None, derandomize=True, phases=[Phase.generate])


def run(python: str, script: str, log: bytes, *path: Path, seed: str) -> tuple[str, int]:
    """The digest that ``script`` prints for ``log``, and its number of steps."""
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run(
        [python, "-P", "-c", script],
        input=log,
        capture_output=True,
        env=env,
        cwd=ROOT,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    digest, count = done.stdout.decode().split()
    return digest, int(count)


# The logs are slow to make, so all tests that share them run in one process.
pytestmark = pytest.mark.xdist_group("determinism")


@pytest.fixture(scope="module")
def of_sessions() -> bytes:
    """A log of a few thousand events of sessions: (policy, [(event, now)]), pickled."""
    log: list[tuple[Policy, list[tuple[Event, int]]]] = []
    drawn = policies(feasible=False).flatmap(
        lambda policy: st.tuples(st.just(policy), histories(policy, min_size=15))
    )

    @GENERATED
    @given(drawn)
    def record(found: tuple[Policy, History]) -> None:
        records = replay(*found)
        log.append((found[0], [(record.event, record.now) for record in records]))

    record()
    return pickle.dumps(log)


@pytest.fixture(scope="module")
def of_bridges() -> bytes:
    """A log of a few thousand events of bridges: (config, [(event, now)]), pickled."""
    log: list[tuple[Config, list[tuple[msg.BridgeEvent, int]]]] = []

    class Recorded(BridgeMachine):
        logs = log

    run_machine(Recorded, 70, **REPEATABLE)
    return pickle.dumps(log)


def test_sessions_do_not_depend_on_hashes(of_sessions: bytes) -> None:
    (found,) = {run(sys.executable, OF_SESSIONS, of_sessions, seed=seed) for seed in SEEDS}
    assert found[1] > 2000


def test_bridges_do_not_depend_on_hashes(of_bridges: bytes) -> None:
    (found,) = {run(sys.executable, OF_BRIDGES, of_bridges, seed=seed) for seed in SEEDS}
    assert found[1] > 2000


def test_endpoints_do_not_depend_on_hashes() -> None:
    (found,) = {run(sys.executable, OF_ENDPOINTS, b"", ROOT, seed=seed) for seed in SEEDS}
    assert found[1] > 200


def test_a_digest_tells_logs_apart() -> None:
    """Otherwise the tests above could not fail."""
    logs = [
        pickle.dumps([(DEFAULT, [(TurnSubmitted(Turn(1)), now)])]) for now in (NS_PER_SECOND, 0)
    ]
    first, second = (run(sys.executable, OF_SESSIONS, log, seed="0") for log in logs)
    assert first[1] == second[1] == 1
    assert first[0] != second[0]


def other_pythons() -> Iterator[str]:
    """The commands of other supported Python versions that are installed and work."""
    for minor in range(11, 20):
        found = shutil.which(f"python3.{minor}")
        if found is None or minor == sys.version_info.minor:
            continue
        # An existing command may be a stub without an interpreter.
        if subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            yield found


def test_other_pythons_decide_alike(of_sessions: bytes, tmp_path: Path) -> None:
    """They get attrs, which is pure Python, and nothing else."""
    for module in (attr, attrs):
        (found,) = module.__path__
        source = Path(found)
        (tmp_path / source.name).symlink_to(source, target_is_directory=True)
    # The package's own __init__ imports everything; recovery/ needs only attrs.
    (tmp_path / "bridgecore").mkdir()
    for name in ("recovery", "errors.py"):
        (tmp_path / "bridgecore" / name).symlink_to(ROOT / "bridgecore" / name)
    mine = run(sys.executable, OF_SESSIONS, of_sessions, seed="0")
    # Also with this Python: so the script itself is tested where no other one is installed.
    pythons = [sys.executable, *other_pythons()]
    for python in pythons:
        assert run(python, OF_SESSIONS, of_sessions, tmp_path, seed="1") == mine
    if len(pythons) == 1:
        pytest.skip("no other Python >= 3.11 on PATH that starts")
