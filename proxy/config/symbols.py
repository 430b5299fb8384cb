"""Recognize symbols that cannot be meant: those that Alpaca has in another form, or on another feed."""

from __future__ import annotations

import re

from proxy.alpaca.endpoints import WILDCARD, endpoint
from proxy.config.values import Fault
from proxy.config.yamlfile import quoted
from proxy.routing.allowlists import SYMBOL, TRADING

_FOREIGN = re.compile(r"[^A-Za-z0-9./-]")  # in the symbol of no feed: BRK.B, BTC/USD, BTC-PERP
_LONGEST = 24  # characters; those of options have 21
_CONTRACT = re.compile(r"[A-Z0-9.]+[0-9]{6}[CP][0-9]{8}")  # OCC: root, date, call or put, price
_PAIR_WITHOUT_SLASH = re.compile(r"([A-Z0-9]{2,})(USDT|USDC|USD|BTC)")


def unlikely(feed: str, entry: str) -> Fault | None:
    """Return why no symbol of a feed can match an entry of an allowlist, or None; the hint is what may be meant.

    Of orders, only the entries that begin with `symbol:` are looked at.
    """
    start = SYMBOL if feed == TRADING else ""
    found = endpoint(feed)
    if found is None or not entry.startswith(start) or entry == WILDCARD:
        return None
    symbol = entry.removeprefix(start)
    name = symbol.removesuffix(WILDCARD)
    if (foreign := _FOREIGN.search(name)) is not None:
        rest = [part for part in _FOREIGN.split(name) if part]
        hint = start + rest[0] if len(rest) == 1 else None
        return Fault(f"{quoted(symbol)} has {quoted(foreign[0])}, which no symbol has", hint)
    if len(name) > _LONGEST:
        return Fault(f"{quoted(symbol)} is longer than any symbol")
    if symbol != symbol.upper():
        return Fault(f"{quoted(symbol)} is in lower case, and symbols are in upper case", start + symbol.upper())
    if feed == TRADING or "news" in found.channels:
        return None  # pairs have a slash in some of them, and none in others
    exact = not symbol.endswith(WILDCARD)
    if found.options:
        what = f"{quoted(symbol)} is no contract, such as AAPL241220C00300000"
        return Fault(what, f"{symbol}{WILDCARD}") if exact and not _CONTRACT.fullmatch(symbol) else None
    if "orderbooks" not in found.channels:
        return Fault(f"{quoted(symbol)} is a pair of crypto; list it under crypto") if "/" in symbol else None
    if not exact or "/" in symbol or "pricing" in found.channels:
        return None
    pair = _PAIR_WITHOUT_SLASH.fullmatch(symbol)
    return Fault(f"{quoted(symbol)} is no pair, such as BTC/USD", f"{pair[1]}/{pair[2]}" if pair else None)
