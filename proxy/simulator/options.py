"""Message generator for options: trades and quotes.

Conditions are one letter and not a list.
"""

from __future__ import annotations

from proxy.alpaca import timestamps
from proxy.simulator.market import Instrument, JsonObject, PriceTape

CONTRACTS = {
    "AAPL291221C00250000": 31.2,
    "AAPL291221P00200000": 14.85,
    "NVDA291221C00150000": 42.6,
    "SPY291221C00600000": 88.1,
    "SPY291221P00550000": 39.4,
    "TSLA291221C00400000": 97.3,
}
_EXCHANGES = "ABCIMNPQUXZ"


class OptionTape(PriceTape):
    """One options feed, which has no bars."""

    volatility = 0.003

    def tick(self, instrument: Instrument, now: int) -> list[JsonObject]:
        price = instrument.walk.move()
        quote = self._quote(instrument, price, now)
        return [quote] if self._rng.random() < 0.8 else [quote, self._trade(instrument, price, now)]

    def _quote(self, contract: Instrument, price: float, now: int) -> JsonObject:
        half = max(0.01, price * 0.01)
        return {
            "T": "q",
            "S": contract.symbol,
            "t": timestamps.rfc3339(now),
            "bx": self._rng.choice(_EXCHANGES),
            "bp": contract.walk.rounded(price - half),
            "bs": self._rng.randint(1, 200),
            "ax": self._rng.choice(_EXCHANGES),
            "ap": contract.walk.rounded(price + half),
            "as": self._rng.randint(1, 200),
            "c": "A",
        }

    def _trade(self, contract: Instrument, price: float, now: int) -> JsonObject:
        return {
            "T": "t",
            "S": contract.symbol,
            "t": timestamps.rfc3339(now),
            "p": price,
            "s": self._rng.randint(1, 50),
            "x": self._rng.choice(_EXCHANGES),
            "c": self._rng.choice("ISa"),
        }
