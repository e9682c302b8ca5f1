"""Tests of recovery/policy_table.py: what a table may say, and what is said about a wrong one."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given, settings

from bridgecore.errors import ConfigError
from bridgecore.recovery.effects import FailureReply
from bridgecore.recovery.events import Standing
from bridgecore.recovery.policy import (
    DEFAULT,
    POLICIES,
    PR397,
    V1_12,
    Action,
    Policy,
    Remedy,
    Situation,
    replaying,
)
from bridgecore.recovery.policy_table import policy_from, policy_table, summary_of
from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore.testing.strategies import policies

ROWS = (
    "send_skipped, connect_failed, upgrade_rejected, no_websocket, lost_sending, lost_sent, "
    "silent, not_found, connection_limit, too_large, refused, lost_created, lost_output, "
    "owner_lost, owner_lost_dispatched, owner_lost_output"
)
REMEDY = "give the cell another action (bridgecore rules --all explains each)"
COLUMNS = "unanchored, held, held_stored, stored, bound, unknown, injected"
ACTIONS = (
    "send, rehydrate, send_or_rehydrate, send_full, resend, refuse, refuse_bounded, "
    "refuse_then_rehydrate, surface, fail, fall_back, rebind"
)
ANSWERS = (
    "upstream_unavailable, bridge_owner_unreachable, stream_incomplete, upstream_request_timeout, "
    "previous_response_not_found, upstream_error, bridge_overloaded"
)


def cells(**rows: Any) -> Policy:
    return policy_from({"name": "mine", "cells": rows})


# ------------------------------------------------------------------ what a table may say


def test_a_cell_replaces_one_and_keeps_the_answer_of_the_base() -> None:
    policy = cells(lost_sent={"unanchored": "resend"})
    answer = FailureReply.STREAM_INCOMPLETE
    expected = DEFAULT.with_cell(
        Situation.LOST_SENT, Standing.UNANCHORED, Remedy(Action.RESEND, answer)
    )
    assert policy.cells == expected.cells
    assert (policy.budgets, policy.timeouts) == (DEFAULT.budgets, DEFAULT.timeouts)


def test_a_cell_can_name_its_answer() -> None:
    policy = cells(silent={"stored": "refuse (bridge_overloaded)"})
    remedy = policy.remedy(Situation.SILENT, Standing.STORED)
    assert remedy == Remedy(Action.REFUSE, FailureReply.OVERLOADED)


def test_usually_stands_for_the_columns_that_are_not_named() -> None:
    policy = cells(silent={"usually": "refuse", "held": "resend", "bound": "fail"})
    actions = {column: policy.remedy(Situation.SILENT, column).action for column in Standing}
    others = dict.fromkeys(Standing, Action.REFUSE)
    assert actions == {**others, Standing.HELD: Action.RESEND, Standing.BOUND: Action.FAIL}
    assert policy.remedy(Situation.LOST_SENT, Standing.HELD) == DEFAULT.remedy(
        Situation.LOST_SENT, Standing.HELD
    )


def test_another_base_budgets_and_times_in_seconds() -> None:
    policy = policy_from(
        {
            "base": "pr397",
            "budgets": {"refusals": 5, "warm": True},
            "timeouts": {"idle": Decimal("0.25"), "turn": 7, "created": 0.1},
        },
        name="given",
    )
    assert policy.name == "given"
    assert policy.cells == PR397.cells
    assert policy.budgets == attrs.evolve(PR397.budgets, refusals=5, warm=True)
    times = {"idle": NS_PER_SECOND // 4, "turn": 7 * NS_PER_SECOND, "created": NS_PER_SECOND // 10}
    assert policy.timeouts == attrs.evolve(PR397.timeouts, **times)


@pytest.mark.parametrize("base", POLICIES.values(), ids=POLICIES)
def test_a_table_without_a_difference_is_the_base_itself(base: Policy) -> None:
    same = str(base.remedy(Situation.LOST_SENT, Standing.HELD))
    assert policy_from({"base": base.name, "cells": {"lost_sent": {"held": same}}}) is base
    assert policy_from(policy_table(base)) is base
    assert policy_from({"base": base.name, "name": "mine"}).name == "mine"


def test_a_summary_counts_what_differs_if_the_table_has_none() -> None:
    table = {"cells": {"silent": {"held": "resend", "stored": "resend"}}, "budgets": {"replays": 2}}
    assert policy_from(table).summary == "The table of default with 2 cells and 1 budget changed."
    assert policy_from({"summary": "Why."}).summary == "Why."
    assert summary_of(V1_12, V1_12) == "The table of v1_12, with another name."


def values(policy: Policy) -> tuple[object, ...]:
    return attrs.astuple(policy, recurse=False)


@settings(max_examples=60)
@given(policies())
def test_a_policy_that_is_written_and_read_is_the_same(policy: Policy) -> None:
    assert values(policy_from(policy_table(policy))) == values(policy)
    for base in POLICIES.values():
        again = policy_from(policy_table(policy, base), name="another")
        if policy.name in POLICIES:  # a name that only one may have
            again = attrs.evolve(again, name=policy.name, summary=policy.summary)
        assert values(again) == values(policy)


def test_the_name_of_a_named_policy_is_not_written_for_another_one() -> None:
    table = policy_table(replaying(DEFAULT))
    assert "name" not in table
    assert table["base"] == "default"
    assert policy_from(table, name="mine").cells == replaying(DEFAULT).cells


# ------------------------------------------------------------------ what is said about a wrong one


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"cels": {}},
            "policy.cels: 'cels' is no key; did you mean cells? The keys are name, summary, "
            "base, budgets, timeouts, cells",
        ),
        (
            {"base": "defualt"},
            "policy.base: 'defualt' is no policy; did you mean default? The policies are "
            "default, pr397, v1_12",
        ),
        ({"base": 3}, "policy.base: 3 is no policy. The policies are default, pr397, v1_12"),
        ({"name": ""}, "policy.name: '' is not a text of one line"),
        ({"name": "a\nb"}, r"policy.name: 'a\nb' is not a text of one line"),
        ({"name": "x" * 1001}, "policy.name: the text has more than 1000 characters"),
        ({"summary": True}, "policy.summary: true is not a text of one line"),
        (
            {"name": "pr397"},
            "policy.name: 'pr397' is the name of another policy: give this one a name of its own",
        ),
        ({"cells": 5}, "policy.cells: 5 is not a table of rows"),
        (
            {"cells": {"lost_snt": {"held": "resend"}}},
            f"policy.cells.lost_snt: 'lost_snt' is no row; did you mean lost_sent? The rows are "
            f"{ROWS}",
        ),
        (
            {"cells": {"silent": "refuse"}},
            "policy.cells.silent: 'refuse' is not a table of columns; for the whole row write "
            'silent.usually = "..."',
        ),
        ({"cells": {"silent": 1}}, "policy.cells.silent: 1 is not a table of columns"),
        (
            {"cells": {"lost_sent": {"hold": "resend"}}},
            f"policy.cells.lost_sent.hold: 'hold' is no column; did you mean held? The columns "
            f"are {COLUMNS}, usually",
        ),
        (
            {"cells": {"lost_sent": {"held": "reesnd"}}},
            f"policy.cells.lost_sent.held: 'reesnd' is no action; did you mean resend? The "
            f"actions are {ACTIONS}",
        ),
        (
            {"cells": {"silent": {"held": "refuse, then not-found"}}},
            f"policy.cells.silent.held: 'refuse, then not-found' is no action; did you mean "
            f"refuse_bounded? The actions are {ACTIONS}",
        ),
        (
            {"cells": {"silent": {"held": "refuse (request_timeout)"}}},
            f"policy.cells.silent.held: 'request_timeout' is no answer; did you mean "
            f"upstream_request_timeout? The answers are {ANSWERS}",
        ),
        *(
            (
                {"cells": {"silent": {"held": wrong}}},
                f'policy.cells.silent.held: {shown} is no remedy; write "ACTION" or '
                '"ACTION (ANSWER)"',
            )
            for wrong, shown in [
                ("", "''"),
                ("refuse (a) b", "'refuse (a) b'"),
                (" (stream_incomplete)", "' (stream_incomplete)'"),
                ({"action": "refuse"}, "{'action': 'refuse'}"),
                (False, "false"),
            ]
        ),
        (
            {"cells": {"refused": {"held": "refuse"}}},
            "policy.cells.refused.held: 'refuse' needs an answer here, because the base has "
            f"surface: write refuse (ANSWER). The answers are {ANSWERS}",
        ),
        (
            {"cells": {"lost_sent": {"unanchored": "rehydrate"}}},
            "policy.cells.lost_sent.unanchored: 'rehydrate' needs a context that the bridge holds, "
            f"so it is possible in the columns held and held_stored only: {REMEDY}",
        ),
        (
            {"cells": {"lost_sent": {"usually": "send_full", "unanchored": "refuse"}}},
            "policy.cells.lost_sent.usually: 'send_full' needs the client's own full input, so it "
            f"is possible in the column injected only, and this is for held: {REMEDY}",
        ),
        ({"budgets": []}, "policy.budgets: [] is not a table of budgets"),
        (
            {"budgets": {"replay": 1}},
            "policy.budgets.replay: 'replay' is no budget; did you mean replays? The budgets are "
            "replays, refusals, waiting, reconnect_uses_replay, warm, transcripts",
        ),
        (
            {"budgets": {"replays": -1}},
            "policy.budgets.replays: -1 is not a whole number of at least 0",
        ),
        (
            {"budgets": {"replays": True}},
            "policy.budgets.replays: true is not a whole number of at least 0",
        ),
        ({"budgets": {"warm": 1}}, "policy.budgets.warm: 1 is not true or false"),
        (
            {"timeouts": {"conect": 1}},
            "policy.timeouts.conect: 'conect' is no timeout; did you mean connect? The timeouts "
            "are connect, created, idle, turn, lifetime, expiry",
        ),
        *(
            (
                {"timeouts": {"idle": wrong}},
                f"policy.timeouts.idle: {shown} is not a time (seconds, above 0 and at most "
                "1000000000)",
            )
            for wrong, shown in [
                (0, "0"),
                (-1, "-1"),
                ("1", "'1'"),
                (True, "true"),
                (float("nan"), "nan"),
                (Decimal("1e10"), "1E+10"),
                (Decimal("1e-10"), "1E-10"),
            ]
        ),
    ],
)
def test_a_wrong_table(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy_from(table)
    assert str(caught.value) == said
