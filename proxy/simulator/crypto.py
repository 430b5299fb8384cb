"""Message generators for crypto pairs and perpetuals.

They make trades, quotes, bars, order books and pricing. An order book is sent whole once (`r` is true) and then as
differences: a level replaces the one at its price, and a size of 0 removes it.
"""

from __future__ import annotations

from proxy.alpaca import timestamps
from proxy.alpaca.endpoints import WILDCARD
from proxy.simulator.market import SECOND, Instrument, JsonObject, PriceTape, Walk

PAIRS = {
    "BTC/USD": 91750.0,
    "ETH/USD": 3125.0,
    "SOL/USD": 238.0,
    "LTC/USD": 87.4,
    "AVAX/USD": 35.1,
    "DOGE/USD": 0.3912,
}
PERPETUALS = {"BTC-PERP": 91790.0, "ETH-PERP": 3127.0, "SOL-PERP": 238.2}

_FIRST_ID = 3_447_222_699_101_865_076  # needs 63 bits, as Alpaca's trade numbers do
_DEPTH = 15
_FUNDING_PERIOD = 8 * 3600 * SECOND


class Book:
    """Bids and asks of one pair, price → size."""

    def __init__(self) -> None:
        self.bids: dict[float, float] = {}
        self.asks: dict[float, float] = {}

    def apply(self, bids: dict[float, float], asks: dict[float, float]) -> None:
        for side, changes in ((self.bids, bids), (self.asks, asks)):
            for price, size in changes.items():
                if size:
                    side[price] = size
                else:
                    side.pop(price, None)


class Pair(Instrument):
    """A pair with its order book."""

    def __init__(self, symbol: str, walk: Walk) -> None:
        super().__init__(symbol, walk, _FIRST_ID)
        self.book = Book()


class CryptoTape(PriceTape):
    """Feed of one crypto location."""

    volatility = 0.0006

    def instrument(self, symbol: str, walk: Walk) -> Pair:
        pair = Pair(symbol, walk)
        self._shift(pair, walk.price)
        return pair

    def decimals(self, price: float) -> int:
        return 5 if price < 1 else 3 if price < 1000 else 2

    def late_size(self) -> float:
        return self._size(100)

    def snapshots(self, symbol: str, now: int) -> list[JsonObject]:
        pairs = (
            self._instrument_list
            if symbol == WILDCARD
            else [each for each in self._instrument_list if each.symbol == symbol]
        )
        return [
            _orderbook(each, each.book.bids, each.book.asks, now) | {"r": True}
            for each in pairs
            if isinstance(each, Pair)
        ]

    def tick(self, instrument: Instrument, now: int) -> list[JsonObject]:
        assert isinstance(instrument, Pair)
        price = instrument.walk.move()
        bids, asks = self._shift(instrument, price)
        messages = [_orderbook(instrument, bids, asks, now)]
        if self._rng.random() < 0.8:
            messages.append(self._quote(instrument, now))
        if self._rng.random() < 0.4:
            messages.append(self._trade(instrument, price, now))
        return messages

    def _size(self, price: float) -> float:
        return round(self._rng.uniform(10, 5000) / price, 9)

    def _shift(self, pair: Pair, price: float) -> tuple[dict[float, float], dict[float, float]]:
        """Move the book to a price and return the changed levels.

        Levels on the wrong side of the price and far from it are removed; near ones change.
        """
        step = 10.0**-pair.walk.decimals
        gap = max(step, price * 0.0001)
        book = pair.book
        bids = {level: 0.0 for level in book.bids if level >= price}
        asks = {level: 0.0 for level in book.asks if level <= price}
        for number in range(1, 4 if book.bids else _DEPTH + 1):
            bid = pair.walk.rounded(price - number * gap)
            if bid < price:
                bids[bid] = self._size(price)
            asks[pair.walk.rounded(price + number * gap + step)] = self._size(price)
        book.apply(bids, asks)
        far_bids = dict.fromkeys(sorted(book.bids, reverse=True)[_DEPTH:], 0.0)
        far_asks = dict.fromkeys(sorted(book.asks)[_DEPTH:], 0.0)
        book.apply(far_bids, far_asks)
        return bids | far_bids, asks | far_asks

    def _quote(self, pair: Pair, now: int) -> JsonObject:
        bid, ask = max(pair.book.bids, default=pair.walk.price), min(pair.book.asks)
        return {
            "T": "q",
            "S": pair.symbol,
            "bp": bid,
            "bs": pair.book.bids.get(bid, 0.0),
            "ap": ask,
            "as": pair.book.asks[ask],
            "t": timestamps.rfc3339(now),
        }

    def _trade(self, pair: Pair, price: float, now: int) -> JsonObject:
        size = self._size(price)
        self._add_trade(pair, price, size, now)
        return {
            "T": "t",
            "S": pair.symbol,
            "p": price,
            "s": size,
            "t": timestamps.rfc3339(now),
            "i": pair.take_id(),
            "tks": self._rng.choice("BS"),
        }


class PerpetualTape(CryptoTape):
    """Feed of perpetuals: as crypto pairs, with pricing."""

    def tick(self, instrument: Instrument, now: int) -> list[JsonObject]:
        messages = super().tick(instrument, now)
        if self._rng.random() < 0.3:
            messages.append(self._pricing(instrument, now))
        return messages

    def _pricing(self, instrument: Instrument, now: int) -> JsonObject:
        walk = instrument.walk
        return {
            "T": "p",
            "S": instrument.symbol,
            "x": "BS",
            "ip": walk.rounded(walk.price * 0.9998),
            "mp": walk.rounded(walk.price),
            "fr": round(self._rng.gauss(0.0001, 0.00003), 8),
            "oi": round(self._rng.uniform(900, 1100), 4),
            "t": timestamps.rfc3339(now),
            "ft": timestamps.rfc3339(now - now % _FUNDING_PERIOD + _FUNDING_PERIOD),
        }


def _orderbook(pair: Pair, bids: dict[float, float], asks: dict[float, float], now: int) -> JsonObject:
    return {
        "T": "o",
        "S": pair.symbol,
        "t": timestamps.rfc3339(now),
        "b": [{"p": price, "s": size} for price, size in bids.items()],
        "a": [{"p": price, "s": size} for price, size in asks.items()],
    }
