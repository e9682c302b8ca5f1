"""``bridgecore rules``: prints a policy, or what differs between two.

What belongs here: the choice of the form. The texts are made by ``bridgecore.tables``.

Exit codes: 0; 2: wrong flags.
"""

from __future__ import annotations

import argparse

from bridgecore.recovery.policy import Policy
from bridgecore.tables import WIDTH, render_diff, render_rules, render_table
from bridgecore_cli.output import columns, print_text


def run(options: argparse.Namespace) -> int:
    """Print what the options ask for; return the exit code."""
    policy: Policy = options.policy
    if options.toml:
        from bridgecore_cli.configfile import folded
        from bridgecore_cli.policies import as_toml

        print(folded(as_toml(policy), columns()), end="")
        return 0
    width = min(WIDTH, columns() or WIDTH)
    if options.diff is not None:
        text = render_diff(policy, options.diff, width)
    elif options.all:
        text = render_rules(policy, width)
    else:
        text = render_table(policy, width)
        text += "\n`bridgecore rules --all` says what the names mean.\n"
    print_text(text.removesuffix("\n"))
    return 0
