"""The command as a process: output, exit codes and signals; and how log lines look."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from bridgecore.wire.transport import Log, LogLevel
from bridgecore_cli.logs import LineLog, format_line
from bridgecore_cli.main import main

if TYPE_CHECKING:
    from tests.conftest import Backend

TIME_LIMIT = 20  # seconds
COMMAND = [sys.executable, "-W", "error", "-m", "bridgecore_cli"]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGECORE_")}
    return {**ours, **(extra or {})}


def run(
    *arguments: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )


@contextmanager
def serving(
    *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "serve", *arguments],
        env=environment(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def running_port(process: subprocess.Popen[str]) -> int:
    """From the first line on standard output, which must be exactly as promised."""
    line = pipe(process.stdout).readline()
    match = re.fullmatch(
        r"bridgecore running on http://127\.0\.0\.1:(\d+) \(Press CTRL\+C to quit\)\n", line
    )
    assert match, line or pipe(process.stderr).read()
    return int(match[1])


# ------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["serve", "--bogus"], "--bogus"),
        (["serve", "--port"], "--port"),
        (["serve", "--port", "70000"], "--port: '70000'"),
        (["serve", "--created-timeout", "-1"], "--created-timeout: '-1'"),
        (["serve", "--keepalive", "nan"], "--keepalive: 'nan'"),
        (["serve", "--max-body", "0"], "--max-body: '0'"),
        (["serve", "--policy", "nope"], "--policy: 'nope'"),
        (["serve", "--por", "80"], "--por"),
        (["rules", "--policy", "nope"], "--policy"),
    ],
)
def test_usage(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In this process, for speed: ``main`` returns or exits with what the process would."""
    try:
        code: object = main(arguments)
    except SystemExit as exc:
        code = exc.code
    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert said in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--config", "/nonexistent/bridge.toml"], {}, "/nonexistent/bridge.toml"),
        ([], {"BRIDGECORE_CONFIG": "/nonexistent/bridge.toml"}, "BRIDGECORE_CONFIG"),
        ([], {"BRIDGECORE_PORT": "70000"}, "BRIDGECORE_PORT: '70000'"),
        ([], {"BRIDGECORE_IDLE_TIMEOUT": "soon"}, "BRIDGECORE_IDLE_TIMEOUT: 'soon'"),
        (["--upstream", "http://h/"], {}, "--upstream"),
        ([], {"BRIDGECORE_UPSTREAM": "https://h/"}, "BRIDGECORE_UPSTREAM"),
    ],
)
def test_bad_configuration(arguments: list[str], environ: dict[str, str], said: str) -> None:
    result = run("serve", *arguments, environ=environ)
    assert result.returncode == 78
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


def test_a_bad_file_is_named_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text("prot = 80\n", encoding="utf-8")
    result = run("serve", "--config", str(path))
    assert result.returncode == 78
    assert str(path) in result.stderr
    assert "'prot'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_port_in_use_is_a_failure_that_names_it(backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        result = run("serve", "--backend", backend.name, "--port", str(port))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1:] == [
        f"bridgecore: error: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]
    assert "Traceback" not in result.stderr


def test_a_host_without_address_is_a_failure(backend: Backend) -> None:
    result = run("serve", "--backend", backend.name, "--host", "nonexistent.invalid", "--port", "0")
    assert result.returncode == 1
    assert "cannot listen on nonexistent.invalid:0: " in result.stderr
    assert "Traceback" not in result.stderr


def test_trio_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    result = run("serve", "--backend", "trio", environ={"PYTHONPATH": path})
    assert result.returncode == 78
    assert "bridgecore[trio]" in result.stderr
    assert result.stderr.count("\n") == 1


# ------------------------------------------------------------------ serving


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_the_exit_is_clean(backend: Backend, signum: int) -> None:
    with serving("--backend", backend.name, "--port", "0") as process:
        port = running_port(process)
        with socket.create_connection(("127.0.0.1", port), timeout=TIME_LIMIT) as client:
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.1 200 ")
        process.send_signal(signum)
        out, err = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err


def test_the_second_signal_ends_a_drain_that_cannot_end(backend: Backend) -> None:
    """The upstream accepts and is silent, so the turn hangs and the drain waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(TIME_LIMIT)
        url = f"ws://127.0.0.1:{upstream.getsockname()[1]}/v1/responses"
        with serving("--backend", backend.name, "--port", "0", "--upstream", url) as process:
            port = running_port(process)
            body = b'{"model":"m","input":"hello"}'
            head = b"POST /v1/responses HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
            with socket.create_connection(("127.0.0.1", port), timeout=TIME_LIMIT) as client:
                client.sendall(head % len(body) + body)
                hung, _ = upstream.accept()
                with hung:
                    assert hung.recv(4).startswith(b"GET ")
                    process.send_signal(signal.SIGTERM)
                    with pytest.raises(subprocess.TimeoutExpired):
                        process.wait(0.3)
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(1.0) == 128 + signal.SIGTERM


def test_ipv6_hosts_are_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving("--host", "::1", "--port", "0") as process:
        line = pipe(process.stdout).readline()
        assert re.match(r"bridgecore running on http://\[::1\]:\d+ ", line)


def test_a_standard_output_that_nobody_reads_does_not_end_the_bridge() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"],
        env=environment(),
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    try:
        assert " serving " in pipe(process.stderr).readline()
        process.terminate()
        _, err = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == 0
        assert "BrokenPipe" not in err
    finally:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------ the rest of the command


def test_rules_prints_the_policy() -> None:
    result = run("rules", "--policy", "pr397")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "pr397" in result.stdout.splitlines()[0]


def test_rules_into_a_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [*COMMAND, "rules"],
        env=environment(),
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=TIME_LIMIT,
        check=False,
    )
    os.close(write_end)
    assert result.returncode == 1
    assert result.stderr == b""


def test_version_and_help_mention_what_they_should() -> None:
    assert re.fullmatch(r"bridgecore \S.*\n", run("--version").stdout)
    text = run("serve", "--help").stdout
    for flag in ("--port", "--created-timeout", "--max-body", "--config", "--log-level"):
        assert flag in text


# ------------------------------------------------------------------ logs

AT = datetime(2026, 1, 1, 0, 0, 0, 1999, tzinfo=UTC)


def test_a_log_line() -> None:
    record = Log(LogLevel.INFO, "turn.refused", {"turn": 3, "session": "s-1", "rule": "resend"})
    assert format_line(record, AT) == (
        "2026-01-01T00:00:00.001Z info turn.refused turn=3 session=s-1 rule=resend"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('a"b', '"a\\"b"'),
        ("a\nb", '"a\\nb"'),
        ("a\r\x1b[31m", '"a\\r\\u001b[31m"'),
        ("a\u2028b", '"a\\u2028b"'),
        ("\x7f\x85", '"\\u007f\\u0085"'),
        (-1, "-1"),
        ("127.0.0.1:80", "127.0.0.1:80"),
    ],
)
def test_a_value_cannot_make_a_line_of_its_own(value: str | int, shown: str) -> None:
    line = format_line(Log(LogLevel.WARNING, "e", {"k": value}), AT)
    assert line == f"2026-01-01T00:00:00.001Z warning e k={shown}"
    assert line.isascii()
    assert line.isprintable()


def test_names_cannot_make_a_line_either() -> None:
    line = format_line(Log(LogLevel.ERROR, "e\nf", {"k\n v=": 1, "": 2}), AT)
    assert line == "2026-01-01T00:00:00.001Z error e_f k__v_=1 _=2"


def test_only_records_of_the_level_are_written() -> None:
    stream = io.StringIO()
    log = LineLog(stream, "warning", lambda: AT)
    for level in LogLevel:
        log(Log(level, level.name, {}))
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["warning", "error"]


def test_a_stream_that_is_gone_is_no_error() -> None:
    stream = io.StringIO()
    log = LineLog(stream, "info")
    stream.close()
    log(Log(LogLevel.INFO, "e", {}))
    LineLog(None, "info")(Log(LogLevel.INFO, "e", {}))
