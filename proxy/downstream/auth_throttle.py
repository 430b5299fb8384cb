"""How long a refused log-in waits for its answer.

Some SDKs reconnect at once, hundreds of times a second, when they are refused at once. So a refusal takes a second,
and longer for an address that goes on, but never as long as makes an SDK give up waiting (Go's: 3 seconds).
"""

from __future__ import annotations

from collections import OrderedDict

FIRST, STEP, MOST = 1.0, 0.5, 2.5  # seconds
FORGET_SECONDS = 60.0
ADDRESSES = 4096


class AuthThrottle:
    """The refusals of late, by address; bounded. `now` is in seconds of any steady clock."""

    def __init__(self) -> None:
        self._refusals: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<AuthThrottle for {len(self._refusals)} addresses>"

    def refuse(self, address: str, now: float) -> float:
        """One more refusal; how many seconds its answer waits."""
        count, last = self._refusals.pop(address, (0, now))
        if now - last >= FORGET_SECONDS:
            count = 0
        self._refusals[address] = (count + 1, now)
        if len(self._refusals) > ADDRESSES:
            self._refusals.popitem(last=False)
        return min(FIRST + STEP * count, MOST)

    def reset_address(self, address: str) -> None:
        """Someone there has proved who they are."""
        self._refusals.pop(address, None)
