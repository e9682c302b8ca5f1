"""WHAT WE KNOW: which response ids the bridge has seen, and what they can be continued with."""
