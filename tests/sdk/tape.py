"""The messages of these tests: feed, path and messages of each stream.

Messages are numbered: prices contain the number, so that a received message can be identified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

STAMP = "2023-04-06T11:54:26.838232225Z"
STOCK, PAIR, CONTRACT = "AAPL", "BTC/USD", "AAPL291221C00250000"


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that SDKs have a class for.

    `feed` is the source of its data, `symbol` the one that tests use, `channels` builds a numbered message for each
    channel, and `counts_for` is the feed that its sessions count for if that is another.
    """

    feed: str
    path: str
    symbol: str
    channels: Mapping[str, Callable[[int], Message]]
    counts_for: str = ""


def _bar(kind: str, symbol: str, volume: float) -> Callable[[int], Message]:
    def bar(number: int) -> Message:
        low = float(number)
        prices = {"o": low + 0.5, "h": low + 0.75, "l": low, "c": low + 0.25}
        stamp = "2023-04-06T11:54:00Z"
        return {"T": kind, "S": symbol, **prices, "v": volume, "t": stamp, "n": 461, "vw": low + 0.062639}

    return bar


def _trade(number: int) -> Message:
    price = number + 0.25
    return {"T": "t", "S": STOCK, "i": number, "x": "V", "p": price, "s": 100, "c": ["@", "I"], "z": "C", "t": STAMP}


def _quote(number: int) -> Message:
    prices = {"bx": "U", "bp": number + 0.66, "bs": 1, "ax": "Q", "ap": number + 0.68, "as": 4}
    return {"T": "q", "S": STOCK, **prices, "c": ["R"], "z": "C", "t": STAMP}


def _status(number: int) -> Message:
    text = f"Trading Halted; For information requested by NASDAQ {number}"
    return {"T": "s", "S": STOCK, "sc": "H", "sm": "Trading Halt", "rc": "T12", "rm": text, "t": STAMP, "z": "C"}


def _luld(number: int) -> Message:
    return {"T": "l", "S": STOCK, "u": number + 3.24, "d": number + 2.65, "i": "B", "t": STAMP, "z": "C"}


def _imbalance(number: int) -> Message:
    return {"T": "i", "S": STOCK, "p": number + 0.12, "z": "C", "t": STAMP}


def _correction(number: int) -> Message:
    old = {"oi": 52983525033527 + number, "op": number + 0.1582, "os": 440000, "oc": [" ", "7"]}
    new = {"ci": 52983525034326 + number, "cp": number + 0.1809, "cs": 440001, "cc": [" ", "7"]}
    return {"T": "c", "S": STOCK, "x": "M", **old, **new, "z": "B", "t": STAMP}


def _cancel(number: int) -> Message:
    return {"T": "x", "S": STOCK, "i": number, "x": "D", "p": number + 0.31, "s": 300, "a": "C", "z": "C", "t": STAMP}


def _crypto_trade(number: int) -> Message:
    large = 3447222699101865076 + number  # beyond what a double holds exactly
    return {"T": "t", "S": PAIR, "p": number + 0.299, "s": 29.205707815, "t": STAMP, "i": large, "tks": "S"}


def _crypto_quote(number: int) -> Message:
    return {"T": "q", "S": PAIR, "bp": number + 0.35718, "bs": 13445.46, "ap": number + 0.3581, "as": 1.5, "t": STAMP}


def _orderbook(number: int) -> Message:
    bids, asks = [{"p": number + 0.5, "s": 12.5308}], [{"p": number + 0.75, "s": 0.25}, {"p": number + 1.0, "s": 3}]
    return {"T": "o", "S": PAIR, "t": STAMP, "b": bids, "a": asks, "r": True}


def _option_trade(number: int) -> Message:
    return {"T": "t", "S": CONTRACT, "t": STAMP, "p": number + 0.84, "s": 1, "x": "N", "c": "S"}


def _option_quote(number: int) -> Message:
    prices = {"bx": "C", "bp": number + 0.46, "bs": 53, "ax": "C", "ap": number + 0.66, "as": 38}
    return {"T": "q", "S": CONTRACT, "t": STAMP, **prices, "c": "A"}


def _article(number: int) -> Message:
    return {
        "T": "n",
        "id": 24918784 + number,
        "headline": f"Corsair Reports Purchase Of Majority Ownership In iDisplay, No Terms Disclosed {number}",
        "summary": "Corsair Gaming & Co",
        "author": "Benzinga Newsdesk",
        "created_at": "2022-01-05T22:00:37Z",
        "updated_at": "2022-01-05T22:00:38Z",
        "url": "https://www.example.com/m-a/22/01/24918784/corsair",
        "content": "<p>Corsair “reports” &amp; more.</p>",
        "symbols": [STOCK, "CRSR"],
        "source": "benzinga",
    }


def _order_update(number: int) -> Message:
    order = {
        "asset_class": "us_equity",
        "asset_id": "b0b6dd9d-8b9b-48a9-ba46-b9d54906e415",
        "cancel_requested_at": None,
        "canceled_at": None,
        "client_order_id": f"momentum-{number}",
        "created_at": "2022-04-19T13:45:04.981350886-04:00",
        "expired_at": None,
        "extended_hours": False,
        "failed_at": None,
        "filled_at": "2022-04-19T17:45:05.024916716Z",
        "filled_avg_price": "105.8988475",
        "filled_qty": "1790.86",
        "hwm": None,
        "id": f"a5be8f5e-fdfa-41f5-a644-7a74fe94{number:04x}",
        "legs": None,
        "limit_price": None,
        "notional": None,
        "order_class": "",
        "order_type": "market",
        "qty": "1790.86",
        "replaced_at": None,
        "replaced_by": None,
        "replaces": None,
        "side": "sell",
        "status": "filled",
        "stop_price": None,
        "submitted_at": "2022-04-19T13:45:04.980944666-04:00",
        "symbol": STOCK,
        "time_in_force": "gtc",
        "trail_percent": None,
        "trail_price": None,
        "type": "market",
        "updated_at": "2022-04-19T13:45:05.027690731-04:00",
    }
    return {
        "stream": "trade_updates",
        "data": {
            "event": "fill",
            "execution_id": "2f63ea93-423d-4169-b3f6-3fdafc10c418",
            "order": order,
            "position_qty": "0",
            "price": "105.8988475",
            "qty": "1790.86",
            "timestamp": "2022-04-19T17:45:05.024916716Z",
        },
    }


STREAMS: Mapping[str, Stream] = {
    "stocks": Stream(
        "iex",
        "/v2/iex",
        STOCK,
        {
            "trades": _trade,
            "quotes": _quote,
            "bars": _bar("b", STOCK, 49378),
            "updatedBars": _bar("u", STOCK, 49379),
            "dailyBars": _bar("d", STOCK, 49380),
            "statuses": _status,
            "lulds": _luld,
            "imbalances": _imbalance,
            "corrections": _correction,
            "cancelErrors": _cancel,
        },
    ),
    "crypto": Stream(
        "crypto",
        "/v1beta3/crypto/us",
        PAIR,
        {
            "trades": _crypto_trade,
            "quotes": _crypto_quote,
            "bars": _bar("b", PAIR, 1.2345),
            "updatedBars": _bar("u", PAIR, 1.2346),
            "dailyBars": _bar("d", PAIR, 1.2347),
            "orderbooks": _orderbook,
        },
    ),
    "options": Stream(
        "indicative", "/v1beta1/indicative", CONTRACT, {"trades": _option_trade, "quotes": _option_quote}
    ),
    "news": Stream("news", "/v1beta1/news", STOCK, {"news": _article}),
    "legacy": Stream(
        "iex",
        "/stream",
        STOCK,
        {"trades": _trade, "quotes": _quote, "bars": _bar("b", STOCK, 49378)},
        counts_for="trading",
    ),
    "trading": Stream("trading", "/stream", "*", {"trade_updates": _order_update}),
}
