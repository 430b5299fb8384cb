"""Take a frame as the supervisor does: up to each control message."""

from __future__ import annotations

from proxy.alpaca.codec import Raw
from proxy.routing.router import Routing


def take(router: Routing, frame: bytes) -> list[Raw | bytes]:
    """Take a whole frame; return its control messages."""
    found = []
    rest: bytes | None = frame
    while rest is not None:
        control, rest = router.take(rest)
        if control is not None:
            found.append(control)
    return found
