"""What a client is shown of a turn, whatever carries it to the client.

``exchange``: the answer to one turn as it goes out. Nothing here knows HTTP, WebSocket or upstream
connections.

Internal: see "Reference" in the documentation for what is public.
"""
