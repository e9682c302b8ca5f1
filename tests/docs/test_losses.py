"""Tests of docs/losses.py: the runs say what docs/losses.rst says, and each is drawn on that page.

What belongs here: the runs and the drawings. What a policy does about a loss is tests/recovery.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import DEFAULT, V1_12, Action, Policy, Remedy, Situation
from docs import losses
from docs.losses import LOSSES, SHOWN, Loss, Run, run, runs

PAGE = Path(losses.__file__).with_name("losses.rst").read_text(encoding="utf-8")
NOT_FOUND = "previous_response_not_found"


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_default_never_has_the_history_sent_again(loss: Loss) -> None:
    kept = runs()[loss, DEFAULT]
    assert kept.whole == 0
    assert not any(NOT_FOUND in told for told in kept.told)
    lost = runs()[loss, V1_12]
    assert lost.whole == 1
    assert [NOT_FOUND in told for told in lost.told] == [True]


def test_the_client_is_told_what_the_page_says() -> None:
    told = {loss.name: runs()[loss, DEFAULT].told for loss in LOSSES}
    assert told == {
        "idle": (),
        "sent": ("502 stream_incomplete",),
        "output": ("response.failed stream_incomplete",),
        "silent": ("response.failed upstream_request_timeout",),
        "not-found": (),
        "limit": (),
        "owner-unreachable": (),
        "owner-lost": ("502 bridge_owner_unreachable",),
    }
    for errors in told.values():
        for error in errors:
            assert error.split()[-1] in PAGE


def test_a_run_follows_the_policy() -> None:
    cell = Remedy(Action.RESEND, DEFAULT.remedy(Situation.LOST_SENT, Standing.HELD).answer)
    careless = DEFAULT.with_cell(Situation.LOST_SENT, Standing.HELD, cell)
    sent = next(loss for loss in LOSSES if loss.name == "sent")
    found: Run = run(careless, sent)
    assert found.told == ()
    assert found.cells == ("lost_sent/held=resend", "send_skipped/held=rehydrate")


@pytest.mark.parametrize("policy", SHOWN, ids=lambda policy: policy.name)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_each_run_is_drawn_on_the_page(loss: Loss, policy: Policy) -> None:
    assert f"generated/losses/{loss.name}-{policy.name}.svg" in PAGE
    drawing = ElementTree.fromstring(losses.svg(loss, policy))
    words = "".join("".join(drawing.itertext()).split())
    for error in runs()[loss, policy].told:
        assert error.replace(" ", "") in words
    for cell in runs()[loss, policy].cells:
        assert cell in words
