"""``bridgecore rules``: prints a policy, or what differs between two.

What belongs here: the choice of the form. The texts are made by ``bridgecore.tables``.

Exit codes: 0; 2: wrong flags.
"""

from __future__ import annotations

import argparse

from bridgecore.recovery.policy import Policy
from bridgecore.tables import render_diff, render_rules, render_table


def run(options: argparse.Namespace) -> int:
    """Print what the options ask for; return the exit code."""
    policy: Policy = options.policy
    if options.diff is not None:
        text = render_diff(policy, options.diff)
    elif options.all:
        text = render_rules(policy)
    elif options.toml:
        from bridgecore_cli.policies import as_toml

        text = as_toml(policy)
    else:
        text = render_table(policy) + "\n`bridgecore rules --all` says what the names mean.\n"
    print(text, end="")
    return 0
