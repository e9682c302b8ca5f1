"""Tests of the run of the Autobahn cases: a few of its cases, and what it says of bad results.

What belongs here: what shows that ``run.py`` works and can fail. All cases are run by ``make
verify-nightly``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from tests.autobahn.run import COMPRESSION, EXCUSES, SUBJECTS, complaint, report

RUN = Path(__file__).with_name("run.py")


@attrs.frozen
class FakeVerdict:
    value: str


@attrs.frozen
class FakeResult:
    """A result as kosoku gives it."""

    case_id: str
    behavior: FakeVerdict
    behavior_close: FakeVerdict
    remote_close_code: int | None = 1000
    result: str = "Actual events differ"
    result_close: str = "The close code should have been 1002"


def result(case: str, verdict: str, closed: str = "OK", code: int | None = 1000) -> FakeResult:
    return FakeResult(case, FakeVerdict(verdict), FakeVerdict(closed), code)


def test_each_subject_treats_pings_fragments_and_bad_frames_as_autobahn_expects() -> None:
    # Without the cases in which the suite waits for a second.
    cases = [f"--case={case}" for case in ("2.*", "3.*", "5.1", "5.6", "6.3.*", "7.3.*", "7.9.1")]
    run = subprocess.run([sys.executable, RUN, *cases], capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    counts = re.findall(r"^([a-z-]+): ([0-9]+) cases in ", run.stdout, re.MULTILINE)
    # The bridge has none of 5.6 and 3.2 to 3.4, in which the suite waits for an echo.
    assert dict(counts) == dict.fromkeys(SUBJECTS, "29") | {"bridge": "25"}


def test_an_excused_case_must_end_as_its_excuse_says() -> None:
    assert complaint(result("1.2.1", "FAILED", "FAILED", 1003)) is None
    ignored = complaint(result("1.2.1", "FAILED", "FAILED", 1000))
    assert ignored is not None
    assert "1.2.1 is FAILED with 1000, wanted FAILED with close code 1003" in ignored
    # Compression was negotiated after all.
    assert complaint(result("12.1.1", "OK")) is not None


@pytest.mark.parametrize(
    ("verdict", "closed"),
    [
        ("FAILED", "OK"),
        ("UNIMPLEMENTED", "OK"),
        ("ERROR", "OK"),
        ("OK", "FAILED"),
        ("OK", "WRONG CODE"),
        ("OK", "UNCLEAN"),
        ("NON-STRICT", "FAILED BY CLIENT"),
    ],
)
def test_a_case_without_an_excuse_must_pass_and_close_well(verdict: str, closed: str) -> None:
    said = complaint(result("3.1", verdict, closed, 1000))
    assert said is not None
    assert said.startswith(f"3.1 is {verdict}")


@pytest.mark.parametrize("verdict", ["OK", "NON-STRICT", "INFORMATIONAL"])
def test_what_autobahn_lets_pass_passes(verdict: str) -> None:
    assert complaint(result("3.1", verdict)) is None


def test_the_report_names_what_is_wrong_and_what_is_less_than_ok(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = [result("2.1", "OK"), result("3.2", "NON-STRICT"), result("12.1.1", "UNIMPLEMENTED")]
    assert report("server", good, 1.0)
    said = capsys.readouterr().out
    assert "server: 2 cases in 1.0 s: 1 OK, 1 NON-STRICT" in said
    assert "NON-STRICT: 3.2" in said
    assert "WRONG" not in said
    assert not report("server", [*good, result("2.2", "FAILED")], 1.0)
    assert "WRONG: 2.2 is FAILED" in capsys.readouterr().out


def test_a_run_without_cases_does_not_pass() -> None:
    assert not report("server", [], 1.0)


def test_no_case_has_two_excuses() -> None:
    patterns = [pattern for excuse in EXCUSES for pattern in excuse.cases]
    assert len(patterns) == len(set(patterns))
    assert set(COMPRESSION) < set(patterns)
