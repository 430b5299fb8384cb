"""The delay of a refusal: of the reply to a failed log-in, or of an HTTP error.

Some SDKs that are refused at once come back hundreds of times a second, or a thousand times. So a refusal takes a
second, and longer for an address that is refused again and again, but less than the time after which an SDK stops
waiting (Go's: 3 seconds).
"""

from __future__ import annotations

from collections import OrderedDict

FIRST, STEP, MOST = 1.0, 0.5, 2.5  # seconds
FORGET_SECONDS = 60.0
ADDRESSES = 4096


class AuthThrottle:
    """The recent refusals by address, at most ADDRESSES.

    `now` is in seconds of any monotonic clock.
    """

    def __init__(self) -> None:
        self._refusals: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<AuthThrottle for {len(self._refusals)} addresses>"

    def refuse(self, address: str, now: float) -> float:
        """Count a refusal of the address and return the delay of its reply in seconds."""
        count, last = self._refusals.pop(address, (0, now))
        if now - last >= FORGET_SECONDS:
            count = 0
        self._refusals[address] = (count + 1, now)
        if len(self._refusals) > ADDRESSES:
            self._refusals.popitem(last=False)
        return min(FIRST + STEP * count, MOST)

    def reset_address(self, address: str) -> None:
        """Clear the count of an address from which a client has authenticated."""
        self._refusals.pop(address, None)
