"""Message generator for stocks: quotes, trades and bars.

Sometimes it sends a trading status, a LULD band, an imbalance, a correction or a cancel.
"""

from __future__ import annotations

from proxy.alpaca import timestamps
from proxy.simulator.market import SECOND, Instrument, JsonObject, PriceTape, Walk

STOCKS = {
    "AAPL": 228.4,
    "MSFT": 431.2,
    "NVDA": 138.1,
    "TSLA": 338.9,
    "AMD": 141.6,
    "SPY": 597.3,
    "QQQ": 507.8,
    "GOOGL": 167.4,
    "AMZN": 202.6,
    "META": 559.1,
    "ON": 66.2,
    "F": 11.14,
}
TEST_STOCKS = {"FAKEPACA": 134.56}

_ARCA = ("SPY",)
_NYSE = ("F",)
_EXCHANGES = "QPZKBDVJ"
_CORRECTED_ID_OFFSET = 1_000_000_000  # number of a corrected trade minus that of the original

_HALT = ("H", "Trading Halt", "T12", "Trading Halted; For information requested by NASDAQ")
_RESUME = ("T", "Trading Resumption", "T3", "News and Resumption Times")


class Stock(Instrument):
    """A stock with its last trade and its halt state."""

    def __init__(self, symbol: str, walk: Walk) -> None:
        super().__init__(symbol, walk, 1)
        self.tape = "A" if symbol in _NYSE else "B" if symbol in _ARCA else "C"
        self.halted = False
        self.last: JsonObject | None = None


class StockTape(PriceTape):
    """One stock feed."""

    day_offset = 5 * 3600 * SECOND

    def instrument(self, symbol: str, walk: Walk) -> Stock:
        return Stock(symbol, walk)

    def tick(self, instrument: Instrument, now: int) -> list[JsonObject]:
        assert isinstance(instrument, Stock)
        chance = self._rng.random()
        stamp = timestamps.rfc3339(now)
        price = instrument.walk.move()
        if instrument.halted or chance < 0.002:
            instrument.halted = not instrument.halted
            return [_status(instrument, stamp)]
        if chance < 0.006 and instrument.last is not None:
            return [self._correction(instrument, instrument.last, stamp)]
        if chance < 0.010 and instrument.last is not None:
            return [_cancel(instrument, instrument.last, stamp)]
        if chance < 0.016:
            return [_luld(instrument, stamp)]
        if chance < 0.022:
            return [{"T": "i", "S": instrument.symbol, "p": price, "z": instrument.tape, "t": stamp}]
        quote = self._quote(instrument, price, stamp)
        return [quote] if chance < 0.6 else [quote, self._trade(instrument, price, now)]

    def late_size(self) -> float:
        return self._rng.randint(1, 300)

    def _quote(self, stock: Stock, price: float, stamp: str) -> JsonObject:
        half = max(0.01, price * 0.00005)
        bid = stock.walk.rounded(price - half)
        return {
            "T": "q",
            "S": stock.symbol,
            "bx": self._rng.choice(_EXCHANGES),
            "bp": bid,
            "bs": self._rng.randint(1, 20),
            "ax": self._rng.choice(_EXCHANGES),
            "ap": round(max(price + half, bid + 0.01), 2),
            "as": self._rng.randint(1, 20),
            "c": ["R"],
            "z": stock.tape,
            "t": stamp,
        }

    def _trade(self, stock: Stock, price: float, now: int) -> JsonObject:
        size = self._rng.choice((1, 5, 10, 50, 100, 100, 200, 500))
        self._add_trade(stock, price, size, now)
        stock.last = {
            "T": "t",
            "S": stock.symbol,
            "i": stock.take_id(),
            "x": self._rng.choice(_EXCHANGES),
            "p": price,
            "s": size,
            "c": ["@"] if size >= 100 else ["@", "I"],
            "z": stock.tape,
            "t": timestamps.rfc3339(now),
        }
        return stock.last

    def _correction(self, stock: Stock, trade: JsonObject, stamp: str) -> JsonObject:
        stock.last = None
        return {
            "T": "c",
            "S": stock.symbol,
            "x": trade["x"],
            "oi": trade["i"],
            "op": trade["p"],
            "os": trade["s"],
            "oc": trade["c"],
            "ci": trade["i"] + _CORRECTED_ID_OFFSET,
            "cp": stock.walk.rounded(trade["p"] + self._rng.choice((-0.01, 0.01))),
            "cs": trade["s"],
            "cc": trade["c"],
            "t": stamp,
            "z": stock.tape,
        }


def _cancel(stock: Stock, trade: JsonObject, stamp: str) -> JsonObject:
    stock.last = None
    return {
        "T": "x",
        "S": stock.symbol,
        "i": trade["i"],
        "x": trade["x"],
        "p": trade["p"],
        "s": trade["s"],
        "a": "C",
        "z": stock.tape,
        "t": stamp,
    }


def _status(stock: Stock, stamp: str) -> JsonObject:
    code, meaning, reason, text = _HALT if stock.halted else _RESUME
    return {
        "T": "s",
        "S": stock.symbol,
        "sc": code,
        "sm": meaning,
        "rc": reason,
        "rm": text,
        "t": stamp,
        "z": stock.tape,
    }


def _luld(stock: Stock, stamp: str) -> JsonObject:
    price = stock.walk.price
    return {
        "T": "l",
        "S": stock.symbol,
        "u": stock.walk.rounded(price * 1.05),
        "d": stock.walk.rounded(price * 0.95),
        "i": "B",
        "t": stamp,
        "z": stock.tape,
    }
