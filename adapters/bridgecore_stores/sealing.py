"""What is stored is unreadable without the keys: sealing, and the names of what is looked up.

What belongs here: everything that depends on the secrets of a cluster. A database, its log and its
backups show neither items nor instructions nor credentials nor ids. They do show how many
conversations there are, how long their responses are, and when each was used.

From each secret, HKDF (RFC 5869) derives a key for each purpose, so that none can be used for
another. A sealed payload is::

    version (1 byte) | key id (4 bytes) | nonce (12 bytes) | AES-256-GCM of the compressed payload

The key of the response is authenticated with it, so that a row moved to another key is a miss. A
nonce is random: up to 2**32 payloads can be sealed with one secret before two equal nonces become
likely enough to matter (NIST SP 800-38D, 8.3), which is 136 a second for a year.

The name of a context is a digest with a key of a secret, so it has to change before that secret can
be removed. For that, what it is a digest of is stored beside it, sealed in the same form but not
compressed, and with a key of its own purpose.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from bridgecore.ownership.store import Resume, StoredResponse
from bridgecore_stores.backend import StoreError

if sys.version_info >= (3, 14):
    import compression.zstd as zstd
else:
    import backports.zstd as zstd

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SHORTEST_SECRET: Final = 32
"""Characters of the shortest secret accepted: 128 bits, if each is a hexadecimal digit."""

NAME_SIZE: Final = 20
"""Bytes of the name under which a response is found. 160 bits: among 2**40 names, two are equal
with a probability of 2**-81."""

_VERSION = b"\x01"
_ID_SIZE, _NONCE_SIZE = 4, 12
HEAD_SIZE: Final = len(_VERSION) + _ID_SIZE + _NONCE_SIZE
"""Bytes of what precedes the ciphertext. They differ between any two sealed payloads, because the
nonce does."""

# Measured on turns in JSON of 1, 7 and 73 KB: level 3, the default, takes 10 to 30 % longer and
# saves less than 1 % of the bytes of the first two and 7 % of those of the last.
_LEVEL = 1
_NOTICE = b"notice"  # a notice cannot be put in the place of its response's payload


class Keys:
    """The keys derived from the secrets of a cluster, newest first: the newest one seals, all of
    them unseal."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets:
            raise StoreError("a store needs at least one secret")
        self.ids = tuple(_derive(secret, b"id")[:_ID_SIZE] for secret in secrets)
        self._names = [_derive(secret, b"context") for secret in secrets]
        self._payloads = self._ciphers(secrets, b"seal")
        # Kept, because making one takes five times as long as compressing a turn. It has a lock of
        # its own, and each call compresses a whole payload.
        self._compressor = zstd.ZstdCompressor(_LEVEL)
        self._contexts = self._ciphers(secrets, b"seal context")

    def _ciphers(self, secrets: Sequence[bytes], purpose: bytes) -> list[tuple[bytes, AESGCM]]:
        derived = [_cipher(_derive(secret, purpose)) for secret in secrets]
        return [*zip(self.ids, derived, strict=True)]

    def __repr__(self) -> str:
        return f"<Keys of {len(self.ids)} secrets>"

    def is_newest(self, sealed: bytes) -> bool:
        """Whether the newest key has sealed this; its first bytes are enough."""
        return sealed.startswith(_VERSION + self.ids[0])

    def seal(self, payload: bytes, aad: bytes) -> bytes:
        """Compress and encrypt ``payload``, bound to ``aad``, with the newest key."""
        frame = self._compressor.compress(payload, zstd.ZstdCompressor.FLUSH_FRAME)
        return _seal(self._payloads, frame, aad)

    def unseal(self, sealed: bytes, aad: bytes) -> bytes | None:
        """The payload of ``sealed``. None if no key fits, or if it was changed or bound to another
        ``aad``: to its reader it is then not stored."""
        compressed = _unseal(self._payloads, sealed, aad)
        if compressed is None:
            return None
        try:
            return zstd.decompress(compressed)
        except zstd.ZstdError:
            return None

    def seal_notice(self, notice: bytes, key: bytes) -> bytes:
        """Seal the notice of the response with this key."""
        return self.seal(notice, _NOTICE + key)

    def unseal_notices(self, rows: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, ...]:
        """The notices in ``rows``, of the key of a response and its sealed notice. Without those
        that cannot be read: they are of a replica whose newest secret this one does not have."""
        found = (self.unseal(sealed, _NOTICE + key) for key, sealed in rows)
        return tuple(notice for notice in found if notice is not None)

    def context_names(self, scope: str, context: bytes) -> list[bytes]:
        """The names of a context, by each key, newest first; it is stored under the first one.

        A digest of a context is keyed, because whoever can guess a whole context could otherwise
        see whether it is stored.
        """
        data = _framed(scope.encode(), context)
        return [_context_name(key, data) for key in self._names]

    def name_context(self, scope: str, context: bytes) -> tuple[bytes, bytes]:
        """The name under which a context is stored, and what ``rename_context`` needs."""
        return self._named(_framed(scope.encode(), context))

    def rename_context(self, name: bytes, sealed: bytes) -> tuple[bytes, bytes] | None:
        """The same as ``name_context`` for a context that was stored under ``name`` with any of the
        keys. None if no key fits, or if it was changed."""
        data = _unseal(self._contexts, sealed, name)
        return None if data is None else self._named(data)

    def _named(self, data: bytes) -> tuple[bytes, bytes]:
        name = _context_name(self._names[0], data)
        return name, _seal(self._contexts, data, name)


def alias_name(scope: str, response_id: str) -> bytes:
    """The name of a response id of ``scope`` in the store.

    Not keyed: ids are random, and an id that a client was shown must be found after every secret
    has been replaced.
    """
    data = _framed(scope.encode(), response_id.encode("utf-8", "surrogatepass"))
    return hashlib.sha256(data).digest()[:NAME_SIZE]


def names_of(keys: Keys, resume: Resume) -> list[bytes]:
    """The names by which a store looks for the response of a question; the first one found counts.

    An id is looked up alone. A context may have been stored under any of the keys.
    """
    if resume.response is not None:
        return [alias_name(resume.scope, resume.response)]
    return [
        name for context in resume.contexts for name in keys.context_names(resume.scope, context)
    ]


@attrs.frozen
class Named:
    """What a name names: the key of a ``response``. ``context``: for the name of a context, what it
    is a digest of, sealed; None for an id."""

    response: bytes
    context: bytes | None


def named_by(keys: Keys, responses: Iterable[StoredResponse]) -> dict[bytes, Named]:
    """What each name of ``responses`` names from now on."""
    names = {}
    for response in responses:
        for each in response.ids:
            names[alias_name(response.scope, each)] = Named(response.key, None)
        if response.context is not None:
            name, sealed = keys.name_context(response.scope, response.context)
            names[name] = Named(response.key, sealed)
    return names


def notices_of(keys: Keys, responses: Iterable[StoredResponse]) -> list[tuple[bytes, bytes]]:
    """The key of each response that has a notice, and the notice, sealed."""
    return [
        (each.key, keys.seal_notice(each.notice, each.key))
        for each in responses
        if each.notice is not None
    ]


def id_of(sealed: bytes) -> bytes:
    """The id of the key that has sealed this, if it is sealed; its first bytes are enough."""
    return sealed[len(_VERSION) : len(_VERSION) + _ID_SIZE]


def unseal_path(
    keys: Keys, rows: Sequence[tuple[bytes, bytes | None, bytes]]
) -> tuple[bytes, ...] | None:
    """The payloads of a path. ``rows``: key, parent and sealed payload of each response, the first
    one first. None if the path is empty or does not begin with a response without a parent, or a
    payload cannot be read: half a transcript would be continued wrongly."""
    if not rows or rows[0][1] is not None:
        return None
    path = []
    for key, _, sealed in rows:
        payload = keys.unseal(sealed, key)
        if payload is None:
            return None
        path.append(payload)
    return tuple(path)


def read_secrets(path: str | os.PathLike[str]) -> tuple[bytes, ...]:
    """The secrets in a file: one a line, the newest first; empty lines and lines that begin with
    ``#`` are skipped.

    Raises:
        StoreError: the file is missing, has no secret, is readable by other users, or has a secret
            that is too short or occurs twice.

    A file of root may be readable for its group. That is how Kubernetes (``fsGroup``) and systemd
    (``LoadCredential``, by an access list) give a secret to a process that is not root's.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read().decode()
    except FileNotFoundError:
        raise StoreError(f"{path}: there is no such file of secrets") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StoreError(f"{path}: is not UTF-8 text") from None
    of_root = status.st_uid == 0 != os.geteuid()
    if stat.S_IMODE(status.st_mode) & (0o037 if of_root else 0o077):
        raise StoreError(f"{path}: other users can read it: chmod 600 {path}")
    secrets: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        secret = line.strip()
        if not secret or secret.startswith("#"):
            continue
        if len(secret) < SHORTEST_SECRET:
            raise StoreError(
                f"{path}:{number}: a secret must have at least {SHORTEST_SECRET} characters, "
                f"not {len(secret)}"
            )
        if secret in secrets:
            raise StoreError(f"{path}:{number}: the same secret occurs twice")
        secrets.append(secret)
    if not secrets:
        raise StoreError(f"{path}: has no secret: write one a line, the newest first")
    return tuple([secret.encode() for secret in secrets])


def read_keys(path: str | os.PathLike[str]) -> Keys:
    """The keys from a file of secrets, see ``read_secrets``.

    Raises:
        StoreError: the file cannot be used, or the package ``cryptography`` is not installed.
    """
    return Keys(read_secrets(path))


def _seal(ciphers: Sequence[tuple[bytes, AESGCM]], data: bytes, aad: bytes) -> bytes:
    key_id, cipher = ciphers[0]
    nonce = os.urandom(_NONCE_SIZE)
    return b"".join((_VERSION, key_id, nonce, cipher.encrypt(nonce, data, aad)))


def _unseal(ciphers: Sequence[tuple[bytes, AESGCM]], sealed: bytes, aad: bytes) -> bytes | None:
    if sealed[:1] != _VERSION:
        return None
    key_id, nonce = id_of(sealed), sealed[len(_VERSION) + _ID_SIZE : HEAD_SIZE]
    for each_id, cipher in ciphers:
        if each_id == key_id:
            # Whatever is wrong with stored bytes, the answer is the same: a miss.
            try:
                return cipher.decrypt(nonce, sealed[HEAD_SIZE:], aad)
            except Exception:
                continue
    return None


def _context_name(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")[:NAME_SIZE]


def _framed(one: bytes, two: bytes) -> bytes:
    """Both, each after its length, so that different ones never give the same bytes."""
    return b"".join((len(one).to_bytes(4, "big"), one, len(two).to_bytes(4, "big"), two))


def _derive(secret: bytes, purpose: bytes) -> bytes:
    """32 bytes of HKDF-SHA256 without a salt. The secret is random and long enough by itself."""
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise StoreError(
            "a store encrypts with the package cryptography, which is not installed: "
            "pip install 'bridgecore[store]'"
        ) from error
    return HKDF(SHA256(), 32, salt=None, info=b"bridgecore/" + purpose).derive(secret)


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
