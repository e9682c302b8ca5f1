"""WHAT TO DO: the decision core. Read rules.py first, then builder.py; policy.py is the table."""
