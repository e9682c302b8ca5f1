"""Admission: limits and placement, as pure functions over values, without locks or queues.

placement.py decides which session a turn is sent to, limits.py whether there is room for one more.

Internal: see "Reference" in the documentation for what is public.
"""
