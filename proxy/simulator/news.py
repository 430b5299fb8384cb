"""Message generator for news: articles about no stock, one or two."""

from __future__ import annotations

from random import Random

from proxy.alpaca import timestamps
from proxy.simulator.market import MAX_SYMBOLS, SECOND, JsonObject, Market
from proxy.simulator.stocks import STOCKS

_FIRST_ID = 41_000_000
_MARKET_WIDE = "Stocks Drift As Traders Await Data"
_HEADLINES = (
    "{} Shares Are Moving: Here's What To Know",
    "Analyst Raises Price Target On {}",
    "{} Reports Quarterly Results Above Expectations",
    "What's Going On With {} Stock?",
)


class NewsTape:
    """News feed."""

    def __init__(self, market: Market, rng: Random, now: int) -> None:
        self._mean = market.news_seconds * SECOND
        self._rng = rng
        self._symbols = list(STOCKS)
        self._due = now + int(rng.uniform(0, self._mean))
        self._id = _FIRST_ID

    def follow(self, symbol: str) -> None:
        """Add a symbol that articles can be about."""
        if symbol not in self._symbols and len(self._symbols) < MAX_SYMBOLS:
            self._symbols.append(symbol)

    def snapshots(self, symbol: str, now: int) -> list[JsonObject]:
        return []

    def advance(self, now: int) -> list[JsonObject]:
        """Return the article that is due, if any."""
        if now < self._due:
            return []
        self._due = now + int(self._rng.expovariate(1) * self._mean)
        return [self._article(now)]

    def _article(self, now: int) -> JsonObject:
        symbols = self._rng.sample(self._symbols, self._rng.choice((0, 1, 1, 1, 1, 2, 2)))
        self._id += 1
        headline = self._rng.choice(_HEADLINES).format(" And ".join(symbols)) if symbols else _MARKET_WIDE
        created = now - self._rng.randrange(SECOND, 3 * SECOND)
        return {
            "T": "n",
            "id": self._id,
            "headline": headline,
            "summary": f"{headline}. This article was made up by a simulator.",
            "author": "Simulated Newsdesk",
            "created_at": timestamps.rfc3339(created - created % SECOND),
            "updated_at": timestamps.rfc3339(now - now % SECOND),
            "url": f"https://news.example/{self._id}",
            "content": f"<p>{headline} &amp; more.</p>",
            "symbols": symbols,
            "source": "simulator",
        }
