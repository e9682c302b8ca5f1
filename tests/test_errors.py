"""Tests of errors.py: what is said to have been meant."""

from __future__ import annotations

import pytest

from bridgecore.errors import did_you_mean

NAMES = ["replays", "refusals", "--port", "-v", "not_found"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("replay", "replays"),
        ("refusal", "refusals"),
        ("--prot", "--port"),
        ("port", "--port"),
        ("not-found", "not_found"),
        ("not_found", "not_found"),
    ],
)
def test_the_name_most_like_it_is_suggested(word: str, meant: str) -> None:
    assert did_you_mean(word, NAMES) == f"; did you mean {meant}?"
    assert did_you_mean(word, iter(NAMES)) == f"; did you mean {meant}?"


@pytest.mark.parametrize("word", ["", "-x", "bogus", 7, None, ["port"], "replays" * 10**6])
def test_nothing_is_suggested_for_what_is_like_no_name(word: object) -> None:
    assert did_you_mean(word, NAMES) == ""
    assert did_you_mean(word, []) == ""
