"""Tests of continuity/accounts.py: sums."""

from __future__ import annotations

import attrs

from bridgecore.continuity.accounts import Accounts


def test_every_field_is_summed() -> None:
    count = len(attrs.fields(Accounts))
    one, other = Accounts(*range(count)), Accounts(*range(100, 100 + count))
    assert one + other == Accounts(*[2 * field + 100 for field in range(count)])
