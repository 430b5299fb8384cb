"""Zstandard, from the standard library (Python 3.14) or its backport, which have the same interface."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, ZstdDecompressor, ZstdError, compress
else:
    from backports.zstd import CompressionParameter, ZstdDecompressor, ZstdError, compress

__all__ = ["ZstdDecompressor", "ZstdError", "frame"]

# Level 1: others are smaller by a few percent, and take several times as long. The checksum shows a damaged file.
_OPTIONS: dict[int, int] = {CompressionParameter.compression_level: 1, CompressionParameter.checksum_flag: 1}


def frame(data: bytes) -> bytes:
    """Return the data as one frame, which is readable by itself."""
    return compress(data, options=_OPTIONS)
