"""Conversations through HAProxy and nginx, with two replicas over one store.

What belongs here: the files haproxy.cfg and nginx.conf of docs/deploy with the real programs; only
addresses and the times of checks are replaced. Replicas do not forward turns unless a test says so:
a turn at another replica than that of its conversation is then not answered with 200.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import attrs
import openai
import pytest

from bridgecore.testing import Fault, Point, Silence
from tests.e2e.conftest import Process, Raw, Upstream, ask, eventually, post, running, sdk
from tests.stores.servers import temporary_folder

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
PROGRAMS = {name: shutil.which(name, path=PATH) for name in ("haproxy", "nginx")}
CONVERSATIONS = 8
# What the file of a site needs around it.
NGINX = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


@pytest.fixture(params=["haproxy", "nginx"])
def program(request: pytest.FixtureRequest) -> str:
    """The name of a proxy whose program is here."""
    name: str = request.param
    if PROGRAMS[name] is None:
        pytest.skip(f"{name} is not installed (Debian's package {name})")
    return name


@pytest.fixture
def haproxy() -> str:
    if PROGRAMS["haproxy"] is None:
        pytest.skip("haproxy is not installed (Debian's package haproxy)")
    return "haproxy"


def configured(
    program: str, group: str, folder: Path, listener: socket.socket, ports: list[int]
) -> list[str]:
    """The arguments of the proxy, for a listener that exists already; its files are written."""
    where = f"127.0.0.1:{listener.getsockname()[1]}"
    text = (DEPLOY / {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[program]).read_text()
    for place, port in zip(("127.0.0.1:8080", "127.0.0.1:8082"), ports, strict=True):
        assert text.count(place) == 2
        text = text.replace(place, f"127.0.0.1:{port}")
    chosen = {"haproxy": "default_backend ", "nginx": "proxy_pass http://"}[program]
    assert text.count(f"{chosen}replicas_by_conversation") == 1
    text = text.replace(f"{chosen}replicas_by_conversation", f"{chosen}{group}")
    if program == "nginx":
        assert "listen 127.0.0.1:8000;" in text
        user = "user root;" if os.geteuid() == 0 else ""  # the folder is not for others
        (folder / "site.conf").write_text(text.replace("127.0.0.1:8000", where))
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, user=user))
        return ["-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    for documented, here in {
        "bind 127.0.0.1:8000": f"bind fd@{listener.fileno()}",
        "inter 1s": "inter 100ms",
        "maxconn 20000": "maxconn 200",  # more files than a user may open on some machines
    }.items():
        assert documented in text
        text = text.replace(documented, here)
    (folder / "haproxy.cfg").write_text(text)
    return ["-db", "-f", str(folder / "haproxy.cfg")]


@contextmanager
def proxy(
    program: str, *replicas: Process, group: str = "replicas_by_conversation"
) -> Iterator[int]:
    """The proxy in front of ``replicas``; the port that it listens on. ``group``: of the servers to
    which it sends requests."""
    command = PROGRAMS[program]
    assert command is not None
    with temporary_folder() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        ports = [replica.port for replica in replicas]
        arguments = configured(program, group, folder, listener, ports)
        # nginx takes over the listeners that this variable names, as when it replaces itself.
        environ = {**os.environ, "NGINX": f"{listener.fileno()};"}
        process = subprocess.Popen(
            [command, *arguments], pass_fds=[listener.fileno()], env=environ,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            yield listener.getsockname()[1]
            assert process.poll() is None
        finally:
            process.terminate()
            said, _ = process.communicate(timeout=20)
            print(said)


def ways_to_run(upstream: Upstream, folder: Path) -> tuple[str, ...]:
    """Flags of replicas that share one store."""
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32))
    store = f"sqlite:{folder}/conversations.db"
    return ("--upstream", upstream.url, "--store", store, "--cluster-keys", str(keys))


def turns_of(replica: Process) -> int:
    """How many turns it has answered."""
    return replica.logged().count(" turn.completed ")


@attrs.define
class Conversation:
    """A conversation of the SDK through a proxy. ``header``: its name, as its client sends it."""

    client: openai.OpenAI
    header: dict[str, str]
    last: str | None = None

    def go_on(self) -> None:
        """One turn; the client retries it as the answers say."""
        more = {} if self.last is None else {"previous_response_id": self.last}
        response = self.client.responses.create(
            model="m", input="more", store=False, extra_body=more, extra_headers=self.header
        )
        assert response.status == "completed"
        self.last = response.id


@pytest.mark.parametrize("header", ["x-session-id", "session-id", "session_id"])
def test_conversations_go_on_when_one_of_two_replicas_is_killed(
    program: str, header: str, upstream: Upstream, tmp_path: Path
) -> None:
    options = ways_to_run(upstream, tmp_path)
    statuses: list[int] = []
    with ExitStack() as stack:
        replicas = [stack.enter_context(running(*options)) for _ in range(2)]
        port = stack.enter_context(proxy(program, *replicas))
        client = stack.enter_context(sdk(port, max_retries=3, statuses=statuses))
        talks: list[Conversation] = []
        # The ports of the replicas are part of the hash by which names are placed: as many names as
        # it takes to have some at each. Of so many, one in 2 ** 63 runs would have all at one.
        while len(talks) < CONVERSATIONS or not min(map(turns_of, replicas)):
            assert len(talks) < 64, "all conversations go to one replica"
            talks.append(Conversation(client, {header: f"talk {len(talks)}"}))
            talks[-1].go_on()
        for talk in talks:
            talk.go_on()
        assert statuses == [200] * (2 * len(talks))
        replicas[0].popen.kill()
        replicas[0].popen.wait(20)
        for talk in talks:
            talk.go_on()
        assert set(statuses) <= {200, 502}
    contexts = Counter(len(turn.request.context) for turn in upstream.emulator.turns)
    # Each turn has the whole context: the messages and the answers before it.
    assert contexts == dict.fromkeys((1, 3, 5), len(talks))


def test_conversations_stay_where_they_went_when_a_replica_comes_back(
    haproxy: str, upstream: Upstream, tmp_path: Path
) -> None:
    options = ways_to_run(upstream, tmp_path)
    statuses: list[int] = []
    with ExitStack() as stack:
        replicas = [stack.enter_context(running(*options)) for _ in range(2)]
        port = stack.enter_context(proxy(haproxy, *replicas))
        client = stack.enter_context(sdk(port, max_retries=3, statuses=statuses))
        talks = [Conversation(client, {"x-session-id": f"talk {n}"}) for n in range(CONVERSATIONS)]
        for talk in talks:
            talk.go_on()
        replicas[0].popen.kill()
        replicas[0].popen.wait(20)
        for talk in talks:
            talk.go_on()
        back = stack.enter_context(running(*options, "--port", str(replicas[0].port)))
        fresh = (Conversation(client, {"x-session-id": f"fresh {n}"}) for n in count())
        statuses.clear()

        def is_back() -> bool:
            next(fresh).go_on()
            return turns_of(back) > 0

        eventually(is_back)
        for talk in talks:
            talk.go_on()
        assert set(statuses) == {200}


def test_a_replica_that_drains_gets_no_new_turns_and_finishes_its_streams(
    haproxy: str, upstream: Upstream, tmp_path: Path
) -> None:
    options = (*ways_to_run(upstream, tmp_path), "--keepalive", "0.2")
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    turn = {"model": "m", "input": "hi"}
    with ExitStack() as stack:
        replicas = [stack.enter_context(running(*options)) for _ in range(2)]
        port = stack.enter_context(proxy(haproxy, *replicas))
        streaming = stack.enter_context(Raw(port))
        streaming.send(post({**turn, "stream": True}))
        assert streaming.head().status == 200
        events = streaming.events()
        assert any(event.name == "response.output_text.delta" for event in events)
        (busy,) = [each for each in replicas if " session.connect " in each.logged()]
        busy.terminate()
        # The client of both turns is one, by its credential.
        eventually(lambda: ask(port, post(turn)).status == 200)
        assert turns_of(busy) == 0
        assert any(event.name == "keepalive" for event in events)


def test_each_event_of_a_stream_comes_at_once(
    program: str, upstream: Upstream, tmp_path: Path
) -> None:
    """The stream does not end; a proxy that buffered it would show nothing."""
    upstream.emulator.faults.add(1, Fault(Point.MID_OUTPUT, Silence()))
    with ExitStack() as stack:
        replica = stack.enter_context(running("--upstream", upstream.url, "--keepalive", "0.2"))
        port = stack.enter_context(proxy(program, replica, replica))
        client = stack.enter_context(Raw(port))
        client.send(post({"model": "m", "input": "hi", "stream": True}))
        assert client.head().status == 200
        events = client.events()
        assert next(events).name == "response.created"
        assert any(event.name == "response.output_text.delta" for event in events)
        assert any(event.name == "keepalive" for event in events)


def test_turns_are_placed_by_turns_where_replicas_forward_them(
    program: str, upstream: Upstream, tmp_path: Path
) -> None:
    options = (*ways_to_run(upstream, tmp_path), "--advertise", "http://127.0.0.1:0")
    statuses: list[int] = []
    with ExitStack() as stack:
        replicas = [stack.enter_context(running(*options)) for _ in range(2)]
        port = stack.enter_context(proxy(program, *replicas, group="replicas_by_turns"))
        client = stack.enter_context(sdk(port, statuses=statuses))
        talks = [Conversation(client, {}) for _ in range(3)]  # an odd number: they change places
        for _ in range(3):
            for talk in talks:
                talk.go_on()
        assert statuses == [200] * 9
        eventually(lambda: min(map(turns_of, replicas)) > 0)
    assert Counter(len(turn.request.context) for turn in upstream.emulator.turns) == {
        1: 3,
        3: 3,
        5: 3,
    }
