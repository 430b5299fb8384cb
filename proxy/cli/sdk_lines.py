"""Lines to paste into an algorithm, so that its SDK connects to the proxy."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.alpaca.endpoints import Endpoint, endpoint
from proxy.config.addresses import LOOPBACK
from proxy.config.values import LISTEN_PORT
from proxy.routing.allowlists import TRADING

ADDRESS = f"{LOOPBACK}:{LISTEN_PORT}"

OTHERS = """\
  alpaca-trade-api  Stream(…, data_stream_url="ws://{address}",
                           base_url="http://{address}")
  JavaScript 4      stockStream({{ url: "ws://{address}{path}" }})
  Go 3              stream.WithBaseURL("ws://{address}{folder}")
  C#                ApiEndpoint = new Uri("ws://{address}{path}")
  backtrader        DATA_PROXY_WS=http://{address}"""
ELSEWHERE = """\
  README has the line of each SDK, under "Point your SDK here"."""


def alpaca_py(key: str, secret: str, feeds: Iterable[str]) -> str:
    """Return the lines for alpaca-py: imports, key, secret, address, and a stream for each feed."""
    endpoints = list(filter(None, map(endpoint, feeds)))
    imports = dict.fromkeys(f"from {module} import {name}" for module, name in map(_stream_class, endpoints))
    constants = {"KEY": key, "SECRET": secret, "URL": f"ws://{ADDRESS}"}
    streams = (
        f'{_variable(found)} = {_stream_class(found)[1]}(KEY, SECRET, url_override=URL + "{found.path}")'
        for found in endpoints
    )
    return "\n".join([*imports, *(f'{name} = "{value}"' for name, value in constants.items()), *streams])


def others(feeds: Iterable[str]) -> str:
    """Return the lines for other SDKs, with the first of these feeds that is one of stocks; or where they stand."""
    endpoints = filter(None, map(endpoint, feeds))
    stocks = next((found for found in endpoints if _stream_class(found)[1] == "StockDataStream"), None)
    if stocks is None:
        return ELSEWHERE
    return OTHERS.format(address=ADDRESS, path=stocks.path, folder=stocks.path.rpartition("/")[0])


def _variable(found: Endpoint) -> str:
    return "orders" if found.feed == TRADING else found.feed.replace("-", "_")


def _stream_class(found: Endpoint) -> tuple[str, str]:
    """Return module and name of the class of alpaca-py that reads an endpoint."""
    if found.feed == TRADING:
        return "alpaca.trading.stream", "TradingStream"
    kinds = {"OptionDataStream": found.options, "NewsDataStream": "news" in found.channels}
    kinds["CryptoDataStream"] = "orderbooks" in found.channels
    return "alpaca.data.live", next((name for name, fits in kinds.items() if fits), "StockDataStream")
