"""Tests of recovery/events.py: which values an event refuses."""

from __future__ import annotations

import pytest

from bridgecore.errors import LocalProtocolError
from bridgecore.recovery.events import Standing, Turn


@pytest.mark.parametrize("standing", [s for s in Standing if s is not Standing.UNANCHORED])
def test_a_turn_has_an_anchor_unless_it_is_unanchored(standing: Standing) -> None:
    Turn(1, standing, "resp_1")
    with pytest.raises(LocalProtocolError, match=standing.value):
        Turn(1, standing)
    with pytest.raises(LocalProtocolError, match="unanchored"):
        Turn(1, Standing.UNANCHORED, "resp_1")
