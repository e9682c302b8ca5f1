"""LiteLLM's proxy as an upstream, and a relay that loses its connections.

LiteLLM speaks WebSocket mode to its clients and HTTP to the service behind it, here the emulator.
Its connections to clients are its own, so that the emulator cannot lose them: a relay in front of
it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from tests.clients.judge import CONVERSATION

STARTING: Final = 180.0  # seconds until it listens; it imports much
_END: Final = b"response.completed"
_CLOSE: Final = b"\x88\x02\x03\xe9"  # a close frame of a server, with the code 1001


@attrs.define
class Relay:
    """Passes bytes on to ``port``. ``cuts``: it closes a connection after an answer.

    An answer ends with a message that is JSON, whose last byte is a brace.
    """

    port: int
    cuts: bool
    accepted: int = 0

    def _pass_on(self, source: socket.socket, target: socket.socket, cuts: bool) -> None:
        seen = b""
        with contextlib.suppress(OSError):  # the other direction has closed both
            while data := source.recv(65_536):
                seen = (seen + data)[-65_536:]
                if cuts and _END in seen and seen.endswith(b"}"):
                    # In one write: a next turn must not come between the answer and the close.
                    target.sendall(data + _CLOSE)
                    break
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):  # it is closed already
                one.shutdown(socket.SHUT_RDWR)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.port)) as service:
            back = threading.Thread(target=self._pass_on, args=(service, client, self.cuts))
            back.start()
            self._pass_on(client, service, False)
            back.join()

    def accept(self, listener: socket.socket) -> None:
        """Serve connections until ``listener`` is closed."""
        with contextlib.suppress(OSError):  # it is closed
            while True:
                client, _ = listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()


@contextlib.contextmanager
def relaying(port: int, *, cuts: bool) -> Iterator[tuple[Relay, str]]:
    """A relay in front of ``port``, and the URL of WebSocket mode on it."""
    relay = Relay(port, cuts)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=relay.accept, args=(listener,))
        thread.start()
        try:
            yield relay, f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/responses"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # ends the wait of accept()
            thread.join()


@contextlib.contextmanager
def proxying(python: Path, upstream: int) -> Iterator[tuple[int, str]]:
    """LiteLLM's proxy, of the interpreter ``python``, in front of the API at the port ``upstream``:
    its port, and the key that it takes."""
    key = f"sk-{secrets.token_hex(16)}"
    parameters = {
        "model": f"hosted_vllm/{CONVERSATION['model']}",
        "api_base": f"http://127.0.0.1:{upstream}/v1",
        "api_key": "sk-of-the-proxy",
    }
    settings = {
        "model_list": [{"model_name": CONVERSATION["model"], "litellm_params": parameters}],
        "general_settings": {"master_key": key},
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "wb") as log:
        file = Path(folder, "settings.json")  # it reads YAML, of which JSON is a part
        file.write_text(json.dumps(settings), encoding="utf-8")
        popen = subprocess.Popen(
            [
                *(str(python), "-c", "from litellm import run_server; run_server()"),
                *("--config", str(file), "--host", "127.0.0.1", "--port", str(port)),
            ],
            env={
                "PATH": os.environ["PATH"],
                "HOME": folder,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "NO_PROXY": "127.0.0.1",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health/liveliness", popen, Path(log.name))
            yield port, key
        finally:
            popen.terminate()
            try:
                popen.wait(30)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()


def _wait(url: str, popen: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the proxy answers at ``url``. It reports that it listens only in the words of its
    log, which differ by version, so it is asked again and again; that it has ended is noticed at
    once.

    Raises:
        RuntimeError: it has ended, or takes too long.
    """
    deadline = time.monotonic() + STARTING
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError as exc:
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(0.2)
            if popen.returncode is not None or time.monotonic() > deadline:
                said = log.read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"the proxy of LiteLLM does not start: {said}") from exc
