"""Tests of policies of one's own in commands: where they come from, and what is said of wrong ones.

What belongs here: bridgecore_cli.policies, and ``rules``, ``simulate`` and ``replay`` with such a
policy. How ``serve`` decides by one is in tests/e2e/test_own_policy.py; what a table in a file may
say in tests/recovery/test_policy_table.py.
"""

from __future__ import annotations

import sys
import textwrap
import tomllib
from decimal import Decimal
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings

from bridgecore.errors import ConfigError
from bridgecore.recovery import events as ev
from bridgecore.recovery.events import Standing
from bridgecore.recovery.failure import Closed
from bridgecore.recovery.policy import DEFAULT, POLICIES, Action, Policy, Situation
from bridgecore.recovery.policy_table import policy_from
from bridgecore.testing.strategies import policies
from bridgecore.wire.decisions import Recorder
from bridgecore_cli.arguments import parser
from bridgecore_cli.main import main
from bridgecore_cli.policies import as_toml, load_policy

MODULE = """
import attrs
from bridgecore import DEFAULT, Action, FailureReply, Remedy, Situation, Standing

remedy = Remedy(Action.RESEND, FailureReply.STREAM_INCOMPLETE)
changed = DEFAULT.with_cell(Situation.LOST_SENT, Standing.HELD, remedy)
named = attrs.evolve(changed, name="named")
number = 7
"""
PRINTING = """
import attrs
from bridgecore import DEFAULT

print("what the module prints")
named = attrs.evolve(DEFAULT, name="printed")
"""
IMPOSSIBLE = """
from bridgecore import *
remedy = Remedy(Action.REHYDRATE, FailureReply.UPSTREAM_UNAVAILABLE)
mine = DEFAULT.with_cell(Situation.LOST_SENT, Standing.BOUND, remedy)
"""
DOCS = Path(__file__).resolve().parents[2] / "docs"
OWN = '[policy]\nname = "mine"\n[policy.cells]\nlost_sent.stored = "resend"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module of policies and files."""
    (tmp_path / "modulepolicies.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "raisingpolicies.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "exitingpolicies.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    (tmp_path / "printingpolicies.py").write_text(PRINTING, encoding="utf-8")
    (tmp_path / "own.toml").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------ where they come from


@pytest.mark.parametrize("name", POLICIES)
def test_a_named_policy(name: str) -> None:
    assert load_policy(name) is POLICIES[name]


def test_an_attribute_of_a_module(folder: Path) -> None:
    policy = load_policy("modulepolicies:named")
    assert policy.name == "named"
    assert policy.remedy(Situation.LOST_SENT, Standing.HELD).action is Action.RESEND


def test_what_a_module_prints_is_not_printed_among_the_results(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Others may read those, such as the TOML file here."""
    sys.modules.pop("printingpolicies", None)
    assert main(["rules", "--toml", "--policy", "printingpolicies:named"]) == 0
    out, err = capfd.readouterr()
    assert tomllib.loads(out)["policy"]["name"] == "printed"
    assert err == "what the module prints\n"


@pytest.mark.parametrize(
    ("summary", "read"),
    [
        ("", "The table of default, with another name."),
        ("Two\n    lines.", "Two lines."),
    ],
)
def test_the_texts_of_a_policy_of_a_module_can_be_written_to_a_file(
    summary: str, read: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = f"{MODULE}\nnamed = attrs.evolve(DEFAULT, name='named', summary={summary!r})\n"
    name = f"textpolicies{len(summary)}"
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    assert load_policy(f"{name}:named").summary == read
    assert main(["rules", "--toml", "--policy", f"{name}:named"]) == 0
    (folder / "again.toml").write_text(capfd.readouterr().out, encoding="utf-8")
    assert load_policy("again.toml").summary == read


@pytest.mark.parametrize("name", ["", "two\nlines", "\x1b[31mred"])
def test_a_policy_of_a_module_has_a_name_of_one_line(name: str, folder: Path) -> None:
    module = f"namepolicies{len(name)}"
    text = f"{MODULE}\nnamed = attrs.evolve(DEFAULT, name={name!r})\n"
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_policy(f"{module}:named")
    said = f"{module}:named: policy.name: {name!r} is not a text of one line"
    assert str(caught.value) == said


def test_a_changed_policy_of_a_module_is_not_taken_for_the_named_one(folder: Path) -> None:
    policy = load_policy("modulepolicies:changed")
    assert policy.name == "modulepolicies:changed"
    assert policy.summary == "The table of default with 1 cell changed."
    assert load_policy("modulepolicies:DEFAULT") is DEFAULT


def test_a_file_names_its_policy_if_the_table_does_not(folder: Path) -> None:
    assert load_policy("own.toml").name == "mine"
    (folder / "careful.toml").write_text("[policy.budgets]\nreplays = 0\n", encoding="utf-8")
    policy = load_policy(str(folder / "careful.toml"))
    assert policy.name == "careful"
    assert policy.budgets == attrs.evolve(DEFAULT.budgets, replays=0)


def test_a_configuration_file_can_name_a_policy(folder: Path) -> None:
    path = folder / "bridge.toml"
    path.write_text('port = 1\npolicy = "modulepolicies:named"\n', encoding="utf-8")
    assert load_policy(str(path)).name == "named"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "pr379",
            "'pr379' is no policy; did you mean pr397? There are default, pr397, v1_12; your own "
            "is MODULE:ATTR or FILE.toml",
        ),
        (
            "mine",
            "'mine' is no policy. There are default, pr397, v1_12; your own is MODULE:ATTR or "
            "FILE.toml",
        ),
        ("modulepolicies:", "'modulepolicies:' does not have the form MODULE:ATTR"),
        (":named", "':named' does not have the form MODULE:ATTR"),
        ("nosuchmodule:named", "cannot load 'nosuchmodule:named': No module named 'nosuchmodule'"),
        (
            "modulepolicies:other",
            "cannot load 'modulepolicies:other': module 'modulepolicies' has no attribute 'other'",
        ),
        (
            "raisingpolicies:named",
            "cannot load 'raisingpolicies:named': ZeroDivisionError('division by zero')",
        ),
        (  # the exit code 0 would say that all is well with a policy that was not found
            "exitingpolicies:named",
            "cannot load 'exitingpolicies:named': the module ends the process when it is imported: "
            "SystemExit(0)",
        ),
        (
            "modulepolicies.py:named",
            "cannot load 'modulepolicies.py:named': a module, not a file: did you mean "
            "modulepolicies:named?",
        ),
        ("modulepolicies:number", "'modulepolicies:number' is no Policy, but a value of type int"),
        ("missing.toml", "cannot read missing.toml: No such file or directory"),
    ],
)
def test_no_such_policy(text: str, said: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(text)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "command",
    [
        ["rules", "--policy"],
        ["rules", "--diff"],
        ["verify", "--policy"],
        ["simulate", "--policy"],
        ["replay", "log", "--policy"],
        ["check-config", "--policy"],
        ["serve", "--port", "0", "--policy"],
    ],
    ids=lambda words: " ".join(words[::2]),
)
@pytest.mark.parametrize("form", ["impossiblepolicies:mine", "impossible.toml"])
def test_a_cell_that_no_bridge_can_carry_out_is_refused_by_every_command(
    command: list[str], form: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one message, whether it is written in a file or made in a module."""
    (folder / "impossiblepolicies.py").write_text(IMPOSSIBLE, encoding="utf-8")
    table = '[policy.cells]\nlost_sent.bound = "rehydrate"\n'
    (folder / "impossible.toml").write_text(table, encoding="utf-8")
    try:
        code: object = main([*command, form])
    except SystemExit as exc:
        code = exc.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert (
        f"{form}: policy.cells.lost_sent.bound: 'rehydrate' needs a context that the bridge holds, "
        "so it is possible in the columns held and held_stored only: give the cell another action"
    ) in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x.toml has no table [policy]"),
        ("port = 80\n", "x.toml has no table [policy]"),
        ('policy = "other.toml"\n', "x.toml has no table [policy]"),
        ("[cells]\n", "x.toml: 'cells' is not in a table [policy], where it belongs"),
        ("base = 'pr397'\n[policy]\n", "x.toml: 'base' is not in a table [policy], where"),
        ("[policy]\n[polcy.cells]\n", "x.toml: 'polcy' is not in a table [policy], where"),
        ("[policy\n", "x.toml is not TOML: "),
        ('policy.cells.silent = "fail"\npolicy.cells.silent.held = "fail"\n', "x.toml is not TOML"),
        ("policy.cells.silent.held = 1\n", "x.toml: policy.cells.silent.held: 1 is no remedy; "),
        ("policy.cells.silent.hled = ''\n", "x.toml: policy.cells.silent.hled: 'hled' is no col"),
        ("policy.budgets.refusals = 0.5\n", "x.toml: policy.budgets.refusals: 0.5 is not a whole"),
    ],
)
def test_a_wrong_file(text: str, said: str, folder: Path) -> None:
    (folder / "x.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_policy("x.toml")
    assert str(caught.value).startswith(said)


def test_a_wrong_policy_is_a_wrong_flag(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["rules"], ["simulate"], ["verify"], ["replay", "x"], ["rules", "--diff"]):
        flags = command if command[-1] == "--diff" else [*command, "--policy"]
        with pytest.raises(SystemExit) as caught:
            main([*flags, "defualt"])
        assert caught.value.code == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert "did you mean default?" in err.splitlines()[-1]


# ------------------------------------------------------------------ what is written


@settings(max_examples=40)
@given(policies())
def test_a_policy_written_as_toml_is_read_as_it_was(policy: Policy) -> None:
    table = tomllib.loads(as_toml(policy), parse_float=Decimal)
    assert list(table) == ["policy"]
    again = policy_from(table["policy"])
    assert attrs.astuple(again, recurse=False) == attrs.astuple(policy, recurse=False)


def test_the_texts_of_a_policy_are_quoted() -> None:
    policy = policy_from({"name": 'a "b" \\ ü 🙂', "summary": "#"})
    assert policy_from(tomllib.loads(as_toml(policy))["policy"]).name == policy.name


# ------------------------------------------------------------------ commands


def test_the_example_of_the_documentation(capfd: pytest.CaptureFixture[str]) -> None:
    example = DOCS / "examples" / "policy.toml"
    assert main(["rules", "--policy", str(example), "--diff"]) == 0
    printed = textwrap.indent(capfd.readouterr().out, "   ")
    assert f"\n{printed}\n" in (DOCS / "operating.rst").read_text(encoding="utf-8")


def test_rules_prints_one_and_what_differs(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--policy", "own.toml"]) == 0
    first = capfd.readouterr().out.splitlines()[0]
    assert first == "Policy mine: The table of default with 1 cell changed."
    assert main(["rules", "--policy", "own.toml", "--diff"]) == 0
    both = ["    - refuse (stream_incomplete)", "    + resend (stream_incomplete)"]
    text = "\n".join(["- default", "+ mine", "", "lost_sent", "  stored", *both]) + "\n"
    assert capfd.readouterr().out == text
    assert main(["rules", "--policy", "own.toml", "--diff", "modulepolicies:named"]) == 0
    assert "\n  held\n    - resend (stream_incomplete)\n" in capfd.readouterr().out
    assert main(["rules", "--policy", "own.toml", "--all"]) == 0
    assert "Rules of the state machine" in capfd.readouterr().out


def test_rules_prints_a_file_to_begin_with(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--policy", "modulepolicies:changed", "--toml"]) == 0
    text = capfd.readouterr().out
    (folder / "again.toml").write_text(text, encoding="utf-8")
    assert main(["rules", "--policy", "again.toml", "--diff", "modulepolicies:changed"]) == 0
    assert "nothing differs" in " ".join(capfd.readouterr().out.split())


def test_verify_takes_one(folder: Path) -> None:
    assert parser().parse_args(["verify", "--policy", "own.toml"]).policy.name == "mine"


def test_simulate_runs_one(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--policy", "own.toml", "--turns", "2"]) == 0
    assert "policy mine: One conversation" in capfd.readouterr().out


def test_a_log_of_one_replays_by_itself_and_against_another(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(load_policy("own.toml"))
    session = recorder.session(7)
    session.handle(ev.TurnSubmitted(ev.Turn(1, ev.Standing.STORED, "resp_1")), 10)
    session.handle(ev.ConnectionOpened(1), 20)
    session.handle(ev.FrameSent(1), 30)
    session.handle(ev.ConnectionLost(1, Closed(1006)), 40)
    lines = [str(record.fields["line"]) + "\n" for record in recorder.take()]
    (folder / "log").write_text("".join(lines), encoding="ascii")
    (folder / "own.toml").write_text("[policy]\n", encoding="utf-8")  # the log has its own
    assert main(["replay", "log"]) == 0
    assert "recorded under mine: no divergence" in capfd.readouterr().out
    assert main(["replay", "log", "--policy", "modulepolicies:named"]) == 1
    out = capfd.readouterr().out
    assert "recorded: lost-in-flight: " in out
    assert ", because lost_sent/stored=resend\n" in out
    assert "  named:" in out
    assert out.endswith("named would have decided differently in 1 decision of 1 session\n")
