"""WHAT TO DO: the decision core. Pure values; imports attrs and the standard library only.

Start reading at rules.py, then draft.py; policy.py is the table. ``bridgecore`` exports the names.
"""
