"""Which bytes: HTTP, WebSocket, server-sent events and Responses JSON, parsed and written.

What belongs here: no life cycles. Public is ``sse``; the other modules are internal.
"""
