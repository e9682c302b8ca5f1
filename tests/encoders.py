"""Encoders for compressed request bodies, by the name of the coding.

What belongs here: what the tests of decoding need of zlib, gzip and zstd.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable

if sys.version_info >= (3, 14):
    import compression.zstd as zstd
else:
    import backports.zstd as zstd

__all__ = ["CODING", "ENCODERS", "zstd"]


def _raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "raw deflate": _raw_deflate,
    "zstd": zstd.compress,
}
# The name of each in a Content-Encoding header.
CODING = {"gzip": "gzip", "zlib": "deflate", "raw deflate": "deflate", "zstd": "zstd"}
