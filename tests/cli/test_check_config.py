"""Tests of ``bridgecore check-config``, ``bridgecore completion``, and of what every help has."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from bridgecore.recovery.policy import POLICIES
from bridgecore_cli.arguments import whole_parser
from bridgecore_cli.check_config import render, unknown
from bridgecore_cli.main import main
from bridgecore_cli.settings import GROUPS, SETTINGS, checked, read_sources, unknown_variables
from bridgecore_cli.verify_sections import names

PASSWORD = "hunter2"


def test_every_setting_has_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(setting.name for setting in SETTINGS)


def test_what_is_printed_is_a_file_with_the_same_settings(tmp_path: Path) -> None:
    flags = {"port": "9000", "forward_headers": "authorization, x-mine", "pass_through": "none"}
    environ = {"BRIDGECORE_WEBSOCKET": "true", "BRIDGECORE_KEEPALIVE": "0.5"}
    chosen = read_sources(flags, environ)
    file = tmp_path / "bridge.toml"
    file.write_text(render(chosen), encoding="utf-8")
    again = read_sources({"config": str(file)}, {})
    assert checked(again) == checked(chosen)
    assert all(each.source == str(file) for each in again.values())
    assert checked(read_sources({"config": str(file), "port": "1"}, {})).port == 1


def test_a_policy_of_ones_own_is_printed_as_its_table(tmp_path: Path) -> None:
    file = tmp_path / "bridge.toml"
    text = 'port = 1\n[policy]\nname = "mine"\n[policy.cells.silent]\nheld = "fail"\n'
    file.write_text(text + "[policy.budgets]\nrefusals = 5\nwarm = true\n", encoding="utf-8")
    chosen = read_sources({"config": str(file)}, {})
    file.write_text(render(chosen), encoding="utf-8")
    first, again = checked(chosen), checked(read_sources({"config": str(file)}, {}))
    assert again.policy.name == "mine"
    assert again.policy.cells == first.policy.cells
    assert again.policy.budgets == first.policy.budgets


def test_each_value_has_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bridge.toml"
    file.write_text('log_level = "debug"\nport = 1\nkeepalive = 0.5\n', encoding="utf-8")
    monkeypatch.setenv("BRIDGECORE_PORT", "2")
    monkeypatch.setenv("BRIDGECORE_DRAIN_TIMEOUT", "3")
    monkeypatch.setenv("BRIDGECORE_PROT", PASSWORD)
    assert main(["check-config", "--config", str(file), "--drain-timeout", "4"]) == 0
    out, err = capsys.readouterr()
    said = dict(re.findall(r"^(\w+ = \S+) +# (.*)$", out, re.MULTILINE))
    assert said["port = 2"] == "BRIDGECORE_PORT"
    assert said["drain_timeout = 4"] == "--drain-timeout"
    assert said['log_level = "debug"'] == str(file)
    assert said["keepalive = 0.5"] == str(file)
    assert said["max_body = 67108864"] == "default"
    assert "BRIDGECORE_PROT is not the variable of a setting" in err
    assert "did you mean BRIDGECORE_PORT?" in err
    assert PASSWORD not in out + err


def test_what_serve_would_refuse_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIDGECORE_STORE", "sqlite:/tmp/store")
    assert main(["check-config"]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert "cluster_keys" in err


@pytest.mark.parametrize(
    ("setting", "url", "shown"),
    [
        (
            "store",
            f"postgresql://me:{PASSWORD}@host/base?sslmode=require",
            "postgresql://...@host/base?...",
        ),
        ("upstream", f"wss://host/v1?api-key={PASSWORD}", "wss://host/v1?..."),
        ("upstream_http", f"https://host/v1?api-version={PASSWORD}", "https://host/v1?..."),
    ],
)
def test_a_url_shows_no_password(setting: str, url: str, shown: str) -> None:
    text = render(read_sources({setting: url}, {}))
    assert f'{setting} = "{shown}"' in text
    assert PASSWORD not in text


def test_only_misspelled_variables_are_unknown() -> None:
    known = {setting.variable: "" for setting in SETTINGS}
    assert unknown_variables({**known, "BRIDGECORE_CONFIG": "", "PATH": ""}) == []
    assert unknown_variables({"BRIDGECORE_IDEL_TIMEOUT": "1"}) == ["BRIDGECORE_IDEL_TIMEOUT"]
    assert "did you mean BRIDGECORE_IDLE_TIMEOUT?" in unknown("BRIDGECORE_IDEL_TIMEOUT")
    assert "did you mean" not in unknown("BRIDGECORE_QQQQQQQQQQQQ")


# ------------------------------------------------------------------ every command


def commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += commands(command)
    return found


def test_every_flag_has_a_help() -> None:
    for parser in commands(whole_parser()):
        for action in parser._actions:
            if action.option_strings:
                assert action.help, (parser.prog, action.dest)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["srve"], "serve"),
        (["--verison"], "--version"),
        (["verify", "--property", "no-ambigous-resend"], "NO_AMBIGUOUS_RESEND"),
        (["verify", "--trace", "log", "--allow", "ONE_EDN"], "ONE_END"),
        (["serve", "--prot", "1"], "--port"),
        (["serve", "--prot=1"], "--port"),
        (["serve", "--policy", "defualt"], "default"),
        (["verify", "--bounds", "quik"], "quick"),
        (["store", "chek"], "check"),
        (["store", "purge", "--older-then", "1d", "--all"], "--older-than"),
    ],
)
def test_what_was_probably_meant_is_named(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(arguments)
    except SystemExit as exc:
        code = exc.code
    said = capsys.readouterr().err
    assert code == 2
    assert f"did you mean {meant}?" in said
    assert said.count("\n") == 1
    assert "--help)" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND, which is one of serve, check-config, demo, rules, replay, "),
        (["store"], "required: ACTION, which is one of check, stats, purge, rotate-keys (see "),
    ],
    ids=["no command", "no action"],
)
def test_a_missing_command_is_answered_with_those_that_there_are(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--bogus", "1"], "unrecognized arguments: --bogus 1 (see"),
        (["verify", "--bounds", "tiny"], "quick"),
        (["verify", "--property", "NO_SUCH"], "bridgecore verify --property help lists them all"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_nothing_is_suggested_that_is_not_alike(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert said in error
    assert "did you mean" not in error


def test_the_properties_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["verify", "--property", "help"])
    assert exit_.value.code == 0
    listed = capsys.readouterr().out
    for name in names():
        assert f"\n  {name}: " in listed


@pytest.mark.parametrize("command", ["serve", "verify", "simulate", "rules", "replay", "demo"])
def test_the_help_of_a_command_has_examples(command: str) -> None:
    (helped,) = [one for one in commands(whole_parser()) if one.prog == f"bridgecore {command}"]
    text = helped.format_help()
    assert f"\n  bridgecore {command} " in text.partition("Example")[2]


def test_an_unknown_key_of_a_file_is_named_with_the_key_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bridge.toml"
    file.write_text("idel_timeout = 3\n", encoding="utf-8")
    assert main(["check-config", "--config", str(file)]) == 78
    assert "'idel_timeout'; did you mean idle_timeout?" in capsys.readouterr().err
    assert tomllib.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as written:
        assert main(["completion", "bash"]) == 0
    return written.getvalue()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["serve", "--max-s"], {"--max-sessions"}),
        (["serve", "--ambiguous", ""], {"refuse", "replay"}),
        (["serve", "--backend", ""], {"asyncio", "trio"}),
        (["verify", "--policy", ""], set(POLICIES)),
        (["rules", "--diff", ""], set(POLICIES)),
        (["simulate", "--policy", ""], {"both", *POLICIES}),
        (["verify", "--property", "NO_AMB"], {"NO_AMBIGUOUS_RESEND"}),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_shell_completes_flags_and_values_by_the_script(
    words: list[str], completed: set[str], script: str
) -> None:
    line = ["bridgecore", *words]
    asked = f"COMP_WORDS=({shlex.join(line)}); COMP_CWORD={len(words)}"
    asked += f"; COMP_LINE={shlex.quote(' '.join(line))}"
    call = "$(complete -p bridgecore | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    done = subprocess.run(
        ["bash", "-c", f'{script}\n{asked}\n{call}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert set(done.stdout.split()) == completed, done.stderr
