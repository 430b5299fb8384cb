"""The body of an HTTP/1.1 response in chunks (RFC 9112 §7.1), as bytes.

A body without LAST is incomplete, so a client can tell a response that was cut off from one that has ended.
"""

from __future__ import annotations

LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return one chunk. `data` must not be empty: an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
