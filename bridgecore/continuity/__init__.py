"""WHAT WE KNOW: which response ids the bridge has seen, and what they can be continued with.

Internal: see "Reference" in the documentation for what is public.
"""
