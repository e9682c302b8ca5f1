"""The decision core: what to do about a loss. Read rules.py first, then builder.py, then policy.py.

Public are ``events``, ``effects``, ``failure`` and ``state``; the other modules are internal, and
what is public of them is exported by ``bridgecore``.
"""
