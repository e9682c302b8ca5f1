"""Tests of bridgecore_cli.main: the command as a process, its output, exit codes and signals."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridgecore.recovery.policy import DEFAULT
from bridgecore.wire.decisions import write_header
from bridgecore_cli.arguments import parser
from bridgecore_cli.main import main
from bridgecore_cli.serve import listen_error
from tests.cli.process import COMMAND, TIME_LIMIT, environment, pipe, run, running_port, serving

if TYPE_CHECKING:
    from tests.conftest import Backend


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
        (["serve", "--keepalive", "0.0009"], "--keepalive: '0.0009'"),
        (["serve", "--transcript-bytes", "9", "--transcript-scope-bytes", "10"], "_scope_bytes=10"),
        (["verify", "--jobs", "0"], "--jobs"),
        (["serve", "--policy", "nope"], "--policy: 'nope'"),
        (["serve", "--por", "80"], "--por"),
        (["rules", "--policy", "nope"], "--policy"),
    ],
)
def test_usage(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In this process, for speed: ``main`` returns or exits with the status of the process."""
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
        (["--upstream", "ftp://h/"], {}, "--upstream"),
        (["--upstream", "https://"], {}, "--upstream"),
        ([], {"BRIDGECORE_UPSTREAM": "https://h:99999/v1"}, "BRIDGECORE_UPSTREAM"),
        (["--port", "0"], {"BRIDGECORE_PORT": "http"}, "BRIDGECORE_PORT: 'http'"),
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
        f"bridgecore: error: cannot listen on 127.0.0.1:{port}: Address already in use; end the "
        "program that listens there, or choose another port (0: any that is free)"
    ]
    assert "Traceback" not in result.stderr


def test_the_port_for_replicas_in_use_is_named(backend: Backend, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(secrets.token_hex(32), encoding="utf-8")
    replica = ("--store", f"sqlite:{tmp_path}/turns.db", "--cluster-keys", str(keys))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        where = ("--port", "0", "--advertise", f"http://127.0.0.1:{port}")
        result = run("serve", "--backend", backend.name, *where, *replica)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1:] == [
        f"bridgecore: error: cannot listen on 127.0.0.1:{port}, the port of advertise: "
        "Address already in use; end the program that listens there, or give advertise another port"
    ]
    assert "Traceback" not in result.stderr


def test_a_host_without_address_is_a_failure(backend: Backend) -> None:
    result = run("serve", "--backend", backend.name, "--host", "nonexistent.invalid", "--port", "0")
    assert result.returncode == 1
    assert "cannot listen on nonexistent.invalid:0: " in result.stderr
    assert "; host has to be an address of this machine, or a name for one\n" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_address_of_another_machine_is_a_failure(backend: Backend) -> None:
    result = run("serve", "--backend", backend.name, "--host", "192.0.2.1", "--port", "0")
    assert result.returncode == 1
    assert result.stderr.endswith(
        "; host has to be an address of this machine, or 0.0.0.0 for all of its addresses\n"
    )


def test_a_port_that_needs_a_privilege_is_a_failure() -> None:
    """Of the error alone: the tests may have that privilege."""
    error = listen_error("127.0.0.1", 80, PermissionError(errno.EACCES, "Permission denied"))
    assert str(error).endswith(
        "; a port below 1024 needs a privilege; choose another port (0: any that is free)"
    )


def test_trio_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    result = run("serve", "--backend", "trio", environ={"PYTHONPATH": path})
    assert result.returncode == 78
    assert "bridgecore[trio]" in result.stderr
    assert result.stderr.count("\n") == 1


def test_uvloop_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    result = run("serve", "--loop", "uvloop", environ={"PYTHONPATH": path})
    assert result.returncode == 78
    assert "bridgecore[uvloop]" in result.stderr
    assert result.stderr.count("\n") == 1


def test_trio_has_no_other_loop() -> None:
    result = run("serve", "--backend", "trio", environ={"BRIDGECORE_LOOP": "uvloop"})
    assert result.returncode == 78
    assert "loop uvloop" in result.stderr
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
    by_hand = "draining, 0 turns left; CTRL+C again to quit\n"
    assert out == (by_hand if signum == signal.SIGINT else "")
    assert "Traceback" not in err


def test_serving_on_uvloop() -> None:
    pytest.importorskip("uvloop")
    with serving("--loop", "uvloop", "--port", "0") as process:
        port = running_port(process)
        with socket.create_connection(("127.0.0.1", port), timeout=TIME_LIMIT) as client:
            body = b'{"model":"m","input":"hello"}'
            head = b"POST /v1/responses HTTP/1.0\r\nContent-Length: %d\r\n\r\n"
            client.sendall(head % len(body) + body)
            answer = b""
            while data := client.recv(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 200 ")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == 0, err
    assert re.search(r" serving .*backend=asyncio loop=uvloop$", err, re.M)
    assert re.search(r"info drain\.started by=SIGTERM turns=0 ", err)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_drain_that_cannot_end(
    backend: Backend, first: signal.Signals
) -> None:
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
                    process.send_signal(first)
                    with pytest.raises(subprocess.TimeoutExpired):
                        process.wait(0.3)
                    process.send_signal(signal.SIGINT)
                    assert process.wait(1.0) == 128 + signal.SIGINT
            out, err = process.communicate(timeout=TIME_LIMIT)
            assert ("draining, 1 turn left; CTRL+C again to quit" in out) is (
                first == signal.SIGINT
            )
            assert re.search(rf"info drain\.started by={first.name} turns=1 seconds=30$", err, re.M)
            assert re.search(r"warning drain\.cut_short by=SIGINT exit_code=130$", err, re.M)


def test_ipv6_hosts_are_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving("--host", "::1", "--port", "0") as process:
        line = pipe(process.stdout).readline()
        assert re.match(r"bridgecore running on http://\[::1\]:\d+ ", line)


def test_a_closed_standard_output_does_not_end_the_bridge() -> None:
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


def stderr_of_a_run(*arguments: str) -> str:
    """The log of a server that is ended by SIGTERM."""
    with serving("--port", "0", *arguments) as process:
        assert "running on" in pipe(process.stdout).readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == 0, err
    return err


def test_the_signal_is_logged_with_what_follows(backend: Backend) -> None:
    err = stderr_of_a_run("--backend", backend.name, "--drain-timeout", "7")
    assert re.search(r"info drain\.started by=SIGTERM turns=0 seconds=7$", err, re.M)
    assert " warning " not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "warning listening.open host=0.0.0.0 "),
        (["--policy", "v1_12"], "warning policy.broken policy=v1_12 "),
    ],
)
def test_unusual_settings_are_warned_of(arguments: list[str], said: str) -> None:
    err = stderr_of_a_run(*arguments)
    (line,) = [line for line in err.splitlines() if " warning " in line]
    assert said in line


@pytest.mark.parametrize("arguments", [["--host", "localhost"], ["--policy", "pr397"]])
def test_usual_settings_are_not_warned_of(arguments: list[str]) -> None:
    assert " warning " not in stderr_of_a_run(*arguments)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_of_a_container_ends_while_it_starts(signum: int, tmp_path: Path) -> None:
    """Linux leaves out the default action of a signal there. It is held up while it reads its
    configuration, from a pipe that nothing is written to."""
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("no process can be the first one of a namespace here")
    pipe_of = tmp_path / "bridgecore.toml"
    os.mkfifo(pipe_of)
    process = subprocess.Popen(
        [*apart, sys.executable, "-m", "bridgecore_cli", "serve", "--config", str(pipe_of)],
        env=environment(),
    )
    try:
        with open(pipe_of, "w"):  # waits until it is opened for reading
            (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(first), signum)
            assert process.wait(TIME_LIMIT) == 128 + signum
    finally:
        process.kill()
        process.wait()


# ------------------------------------------------------------------ what is loaded

# The command, which says at its end on standard error what it has loaded.
LOADED = """
import atexit, sys
atexit.register(lambda: print("loaded:", *sorted(sys.modules), file=sys.stderr))
from bridgecore_cli.entry import run
sys.exit(run())
"""


def loaded(stderr: str) -> set[str]:
    (line,) = [line for line in stderr.splitlines() if line.startswith("loaded: ")]
    return set(line.split()[1:])


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_the_help_does_not_wait_for_what_it_does_not_need(argument: str) -> None:
    command = [sys.executable, "-W", "error", "-c", LOADED, argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=True)
    ours = {name for name in loaded(done.stderr) if name.startswith("bridgecore")}
    assert ours == {
        "bridgecore",
        "bridgecore.errors",
        "bridgecore_cli",
        "bridgecore_cli.arguments",
        "bridgecore_cli.entry",
        "bridgecore_cli.errors",
        "bridgecore_cli.main",
        "bridgecore_cli.output",
    }
    others = {"asyncio", "attrs", "decimal", "h11", "json", "msgspec", "socket", "ssl", "trio"}
    assert others & loaded(done.stderr) == set()


def test_serve_loads_what_its_settings_need(backend: Backend) -> None:
    arguments = ["--port", "0", "--backend", backend.name, "--upstream", "ws://127.0.0.1:9/"]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", LOADED, "serve", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        running_port(process)
        process.terminate()
        _, err = process.communicate(timeout=TIME_LIMIT)
    finally:
        process.kill()
        process.communicate()
    found = loaded(err)
    assert "bridgecore.endpoint" in found
    unused = ("verify", "simulate", "testing", "tables")
    assert [
        name for name in found if name.startswith(tuple(f"bridgecore.{n}" for n in unused))
    ] == []
    assert {"bridgecore_cli.replay", "hypothesis", "multiprocessing", "tomllib"} & found == set()
    other = "trio" if backend.name == "asyncio" else "asyncio"
    assert {other, f"bridgecore_{other}", "uvloop"} & found == set()


# ------------------------------------------------------------------ the rest of the command


def test_rules_prints_the_policy() -> None:
    result = run("rules", "--policy", "pr397")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "pr397" in result.stdout.splitlines()[0]


NEEDS_A_LOG = "LOG"  # replaced by the path of a decision log


@pytest.mark.parametrize(
    "arguments",
    [
        ["rules"],
        ["simulate", "--turns", "2"],
        ["simulate", "--turns", "2", "--json"],
        ["demo", "--turns", "2"],
        ["replay", NEEDS_A_LOG],
        ["verify"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_on_standard_output_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    """As with ``| head -1``; the status says that the output was cut off."""
    log = tmp_path / "decisions.ndjson"
    log.write_text(write_header(DEFAULT) + "\n", encoding="utf-8")
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [*COMMAND, *(str(log) if one == NEEDS_A_LOG else one for one in arguments)],
        env=environment(),
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=TIME_LIMIT,
        check=False,
    )
    os.close(write_end)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [["rules"], ["simulate", "--turns", "2"], ["demo", "--turns", "2"]],
    ids=" ".join,
)
def test_a_full_disk_is_an_error(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*COMMAND, *arguments],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=TIME_LIMIT,
            check=False,
        )
    assert result.returncode == 1
    expected = b"bridgecore: error: cannot write standard output: No space left on device\n"
    assert result.stderr == expected


# A module that is loaded while the command starts, and is interrupted then.
INTERRUPTED = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"
SCRIPT = [sys.executable, "-W", "error", "-c"]
BY_ENTRY_POINT = """
import sys
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name="bridgecore")
sys.exit(script.load()())
"""


@contextmanager
def interrupts(handler: Any) -> Iterator[None]:
    """The handler that a child process inherits: SIGINT is ignored, or has its default effect. In
    the background it is ignored."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["module", "script"])
@pytest.mark.parametrize(
    ("module", "arguments"), [("gettext", ["rules"]), ("multiprocessing", ["verify"])]
)
def test_an_interrupt_while_modules_are_loaded_is_quiet(
    how: str, module: str, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(INTERRUPTED, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = COMMAND if how == "module" else [*SCRIPT, BY_ENTRY_POINT]
    with interrupts(signal.default_int_handler):
        result = subprocess.run(
            [*command, *arguments],
            env=environment({"PYTHONPATH": path}),
            capture_output=True,
            timeout=TIME_LIMIT,
            check=False,
        )
    assert result.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert result.stderr == b""


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under ``nohup``, and in the background of a script."""
    stub = "gettext = ngettext = lambda *texts: texts[0]\n"
    (tmp_path / "gettext.py").write_text(INTERRUPTED + stub, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    with interrupts(signal.SIG_IGN):
        result = run("rules", environ={"PYTHONPATH": path})
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [["simulate", "--svg"], ["verify", "--svg"], ["verify", "--mutants", "--report"]],
    ids=" ".join,
)
def test_an_unwritable_file_is_reported_before_the_run(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run itself would print at once, and there is no output."""
    (tmp_path / "file").write_bytes(b"")
    for path, why in (
        (tmp_path / "missing" / "x.svg", "No such file or directory"),
        (tmp_path / "file" / "x.svg", "Not a directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, str(path)])
        out, err = capfd.readouterr()
        assert (exit_.value.code, out) == (2, "")
        assert f"cannot write {str(path)!r}: {why}" in err


def test_checking_that_a_file_is_writable_does_not_create_it(tmp_path: Path) -> None:
    options = parser().parse_args(["simulate", "--svg", str(tmp_path / "x.svg")])
    assert options.svg == tmp_path / "x.svg"
    assert list(tmp_path.iterdir()) == []


def test_version_and_help_print_the_version_and_the_flags() -> None:
    assert re.fullmatch(r"bridgecore \S.*\n", run("--version").stdout)
    text = run("serve", "--help").stdout
    for flag in ("--port", "--created-timeout", "--max-body", "--config", "--log-level"):
        assert flag in text
