"""Tests of testing/conformance/checks.py: running checks, and what a report says of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from bridgecore.ownership import store as st
from bridgecore.testing.conformance import ConformanceError, StoreConformance, run_checks
from bridgecore.testing.conformance.checks import equal, skip
from bridgecore.testing.store import StoreModel
from bridgecore.transport.driver import StoreClient


class First:
    def test_passes(self) -> None:
        equal(1, 1, "one is one")

    def test_fails(self) -> None:
        equal(1, 2, "one must be two")

    def helper(self) -> None:
        raise AssertionError("it is no check")


class Second(First):
    def test_is_skipped(self) -> None:
        skip("it is not possible here")

    def test_has_a_bug(self) -> None:
        raise ZeroDivisionError("a bug of what is checked")


def test_a_report_says_what_became_of_each_check() -> None:
    report = run_checks(Second())
    assert report.passed == ("test_passes",)
    assert report.skipped == {"test_is_skipped": "it is not possible here"}
    assert [*report.failed] == ["test_fails", "test_has_a_bug"]
    assert isinstance(report.failed["test_fails"], ConformanceError)
    assert str(report).splitlines() == [
        "passed   test_passes",
        "skipped  test_is_skipped: it is not possible here",
        "FAILED   test_fails: ConformanceError",
        "         one must be two",
        "         expected: 2",
        "         seen:     1",
        "FAILED   test_has_a_bug: ZeroDivisionError",
        "         a bug of what is checked",
    ]


def test_some_checks_can_be_run() -> None:
    report = run_checks(Second(), "test_passes")
    assert (report.passed, report.failed, report.skipped) == (("test_passes",), {}, {})


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(ConformanceError) as caught:
        equal(b"x" * 100_000, b"", "nothing may arrive")
    assert len(str(caught.value)) < 3000


class Model(StoreConformance):
    @contextlib.contextmanager
    def store(self) -> Iterator[StoreClient]:
        yield Client()


class Client:
    def __init__(self) -> None:
        self._model = StoreModel()
        self._now = 1

    def ask(self, question: st.Question, answered: Callable[[st.Answer], None]) -> None:
        self._now += 10_000_000
        answered(self._model.handle(question, self._now))


def test_a_suite_runs_without_pytest() -> None:
    report = run_checks(Model())
    assert report.failed == {}
    assert len(report.passed) == 38
