"""WHAT TO DO: the decision core. Read rules.py first, then draft.py; policy.py is the table."""
