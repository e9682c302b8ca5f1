"""Admission: limits and placement, as pure functions over values. No locks, no queues.

Internal: see "Reference" in the documentation for what is public.
"""
