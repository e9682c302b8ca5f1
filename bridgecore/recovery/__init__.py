"""Recovery: decides what happens to a turn when a connection or the upstream fails.

Read rules.py first: its docstring is the theory of operation. policy.py is the table of what to do
about each kind of loss, builder.py the steps that rules are composed of, failure.py the
classification of errors, session.py the object to drive. Only attrs and the standard library.

Public are ``events``, ``effects``, ``failure`` and ``state``; the other modules are internal, and
what is public of them is exported by ``bridgecore``.
"""
