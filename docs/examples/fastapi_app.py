"""A FastAPI application with the bridge at /llm: ``uvicorn fastapi_app:app``."""

import os

from fastapi import FastAPI, HTTPException

from bridgecore import Config, UpstreamUrl
from bridgecore_asgi import BridgeApp, Scope

TENANTS = {b"key-of-ann": "ann", b"key-of-bob": "bob"}  # in your database


def tenant(scope: Scope) -> str:
    """Say who asks; called for each request, before anything else is done about it."""
    name = TENANTS.get(dict(scope["headers"]).get(b"x-tenant-key", b""))
    if name is None:
        raise HTTPException(401, "unknown tenant")
    return name


bridge = BridgeApp(Config(upstream=UpstreamUrl.parse(os.environ["UPSTREAM"])), scope_of=tenant)
app = FastAPI(lifespan=lambda _: bridge.lifespan())
app.mount("/llm", bridge)
