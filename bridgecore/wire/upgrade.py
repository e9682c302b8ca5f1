"""The upgrade of a connection to WebSocket, as its server sees it (RFC 6455, section 4.2).

What belongs here: whether a request asks for an upgrade and may have it, and the headers of the
answer. Frames are in ``bridgecore.wire.websocket``.
"""

from __future__ import annotations

import binascii
from collections.abc import Collection

from wsproto.utilities import generate_accept_token

from bridgecore.errors import BridgecoreError
from bridgecore.wire.headers import Headers

VERSION = b"13"


class UpgradeError(BridgecoreError):
    """The request asks for an upgrade and cannot have it. ``status``, ``code``: of the answer;
    ``headers``: more of its headers."""

    def __init__(self, status: int, code: str, message: str, headers: Headers) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


def asks_for_websocket(headers: Headers) -> bool:
    """Whether a request (names in lower case) asks for an upgrade to WebSocket."""
    return b"websocket" in _tokens(headers, b"upgrade")


def accept_upgrade(headers: Headers, origins: Collection[str]) -> Headers:
    """The headers of the answer that accepts an upgrade, besides ``upgrade`` and ``connection``.

    ``origins``: those whose pages may connect. A browser lets any page open a WebSocket to any
    server, and says in ``Origin`` which page it is (RFC 6455, section 10.2). Programs send none.

    Raises:
        UpgradeError: the upgrade cannot be accepted.
    """
    if b"upgrade" not in _tokens(headers, b"connection"):
        raise _malformed("an upgrade needs the header 'Connection: Upgrade'")
    versions = [value for name, value in headers if name == b"sec-websocket-version"]
    if versions != [VERSION]:
        message = "This server speaks version 13 of the WebSocket protocol."
        version = [(b"sec-websocket-version", VERSION), (b"upgrade", b"websocket")]
        raise UpgradeError(426, "upgrade_required", message, version)
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    if len(keys) != 1 or not _is_key(keys[0]):
        raise _malformed("Sec-WebSocket-Key must be given once, as 16 bytes in Base64")
    found = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    if any(origin.lower() not in origins for origin in found):
        message = (
            "Pages of this origin may not connect. List it in the setting websocket_origins to "
            "allow it."
        )
        raise UpgradeError(403, "origin_not_allowed", message, [])
    return [(b"sec-websocket-accept", generate_accept_token(keys[0]))]


def _tokens(headers: Headers, name: bytes) -> list[bytes]:
    members = b",".join([value for key, value in headers if key == name]).split(b",")
    return [member.strip(b" \t").lower() for member in members]


def _is_key(value: bytes) -> bool:
    try:
        return len(binascii.a2b_base64(value, strict_mode=True)) == 16
    except binascii.Error:
        return False


def _malformed(message: str) -> UpgradeError:
    return UpgradeError(400, "malformed_request", f"Malformed request: {message}.", [])
