"""Continuity: what the bridge remembers of responses, and in which forms a turn can be sent.

Read memory.py first. aliases.py maps response ids to conversations, transcript.py stores what was
said, items.py knows the items of the Responses API, templates.py compares them quickly.

Internal: see "Reference" in the documentation for what is public.
"""
