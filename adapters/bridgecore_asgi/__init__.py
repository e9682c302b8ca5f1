"""The bridge as an ASGI application, for uvicorn, hypercorn, Starlette and FastAPI."""

from bridgecore_asgi.app import BridgeApp
from bridgecore_asgi.exchange import AnswerCutError, Receive, Scope, Send

__all__ = ["AnswerCutError", "BridgeApp", "Receive", "Scope", "Send"]
