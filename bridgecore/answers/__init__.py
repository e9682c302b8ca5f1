"""Answers to turns, independent of the protocol that carries them to the client.

``exchange``: the answer to one turn. Nothing here depends on HTTP, WebSocket or upstream
connections.

Internal: see "Reference" in the documentation for what is public.
"""
