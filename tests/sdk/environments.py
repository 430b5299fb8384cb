"""The SDKs that the suite runs, and the environment that each is installed into.

An `Sdk` is one published version, its requirements as they install today, and what it can stream. Environments are kept
from one run to the next, in `$ALPACA_PROXY_SDK_CACHE` or `.sdk` at the root of the repository; each is made anew when
its requirements or the interpreter have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = Path(__file__).resolve().parent / "drivers"
CACHE_VARIABLE = "ALPACA_PROXY_SDK_CACHE"
INSTALL_SECONDS = 240
AT_ONCE = 2
NODE = 20  # the oldest that JavaScript's 4 runs on

PRICES = ("trades", "quotes", "bars", "updatedBars", "dailyBars")
FOLLOWERS = ("corrections", "cancelErrors")


@dataclass(frozen=True, slots=True)
class Sdk:
    """One version of one SDK.

    `requirements` are what is installed for it, and `alone` what is then installed without the requirements of its own,
    which are too old to be had today. `streams` says which channels it knows of each stream, `symbols` what it calls
    something that others call otherwise, `unread` which fields of messages its classes have no place for. `leaky`:
    whether it leaves a connection behind whenever it connects again; `tls`: whether it insists on that; `note`: what
    its users should know.
    """

    name: str
    version: str
    driver: str
    requirements: tuple[str, ...]
    streams: Mapping[str, tuple[str, ...]] = field(hash=False)
    alone: str = ""
    symbols: Mapping[str, str] = field(default_factory=dict, hash=False)
    unread: frozenset[str] = frozenset()
    leaky: bool = False
    tls: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def environment(self) -> str:
        """The name of its environment, which it may share."""
        return (self.alone or self.requirements[0]).rpartition("/")[2].replace("==", "-").replace("@", "-js-")

    @property
    def stocks(self) -> str:
        """The stream that it has stocks from."""
        return "legacy" if "legacy" in self.streams else "stocks"

    @property
    def javascript(self) -> bool:
        return self.driver.endswith(".js")


ALPACA_PY = {
    "stocks": (*PRICES, "statuses", *FOLLOWERS),
    "crypto": (*PRICES, "orderbooks"),
    "options": ("trades", "quotes"),
    "news": ("news",),
    "trading": ("trade_updates",),
}
ALPACA_PY_2023 = {"stocks": PRICES, "crypto": PRICES, "trading": ("trade_updates",)}

TRADE_API = {
    "stocks": (*PRICES, "statuses", "lulds", *FOLLOWERS),
    "crypto": PRICES,
    "news": ("news",),
    "trading": ("trade_updates",),
}

# alpaca-py names no bounds for what came after it: pandas 3 brings no pytz any more, websockets 14 another client.
# alpaca-trade-api pins releases that no longer build; these are the nearest that run.
TRADE_API_NEEDS = (
    "pandas<3",
    "requests",
    "urllib3<2",
    "websocket-client<2",
    "websockets==10.4",
    "msgpack",
    "aiohttp",
    "PyYAML",
    "deprecation==2.1.0",
)


TRADE_API_NAME = "alpaca-trade-api"


def _alpaca_py(version: str, *requirements: str, streams: Mapping[str, tuple[str, ...]] = ALPACA_PY) -> Sdk:
    unread = frozenset(["tks"])
    return Sdk("alpaca-py", version, "alpaca_py.py", (f"alpaca-py=={version}", *requirements), streams, unread=unread)


OLD_NOTE = "Knows crypto pairs as `BTCUSD`, and hands news to the handler of `*` alone."


def _trade_api(version: str, streams: Mapping[str, tuple[str, ...]], symbols: Mapping[str, str]) -> Sdk:
    alone = f"{TRADE_API_NAME}=={version}"
    note = OLD_NOTE if symbols else ""
    return Sdk(
        TRADE_API_NAME, version, "trade_api.py", TRADE_API_NEEDS, streams, alone=alone, symbols=symbols, note=note
    )


STREAM_CONN_NOTE = "`StreamConn` of alpaca-trade-api; it leaves a connection behind whenever it connects again."


def _stream_conn(version: str) -> Sdk:
    streams = {"legacy": ("trades", "quotes", "bars"), "trading": ("trade_updates",)}
    return Sdk(
        "StreamConn",
        version,
        "stream_conn.py",
        TRADE_API_NEEDS,
        streams,
        alone=f"{TRADE_API_NAME}=={version}",
        unread=frozenset("izn"),
        leaky=True,
        note=STREAM_CONN_NOTE,
    )


JS = {
    "stocks": (*PRICES, "statuses", "lulds", *FOLLOWERS),
    "crypto": (*PRICES, "orderbooks"),
    "news": ("news",),
    "trading": ("trade_updates",),
}
JS_OPTIONS = {"options": ("trades", "quotes")}


JS_NOTE = (
    "Wants TLS (`NODE_EXTRA_CA_CERTS` for a certificate of your own), but for crypto and orders; gives a stream up for "
    "good when a connection is refused, unless its `onDisconnect` calls `connect()` again."
)


def _javascript(version: str, streams: Mapping[str, tuple[str, ...]], symbols: Mapping[str, str]) -> Sdk:
    package = f"@alpacahq/alpaca-trade-api@{version}"
    return Sdk("javascript", version, "javascript.js", (package,), streams, symbols=symbols, tls=True, note=JS_NOTE)


# What the crypto endpoint of these versions calls a pair; and they hand news to the handler of `*` alone.
OLD_SYMBOLS = {"crypto": "BTCUSD", "news": "*"}

SDKS = (
    _alpaca_py("0.44.0"),
    _alpaca_py("0.43.2", "pytz", "pandas<3"),
    _alpaca_py("0.30.1", "pytz", "pandas<3", "websockets<14"),
    _alpaca_py("0.13.3", "pytz", "pandas<3", streams=ALPACA_PY_2023),
    _trade_api("3.2.0", {**TRADE_API, "crypto": (*PRICES, "orderbooks")}, {}),
    _trade_api("2.3.0", TRADE_API, OLD_SYMBOLS),
    _trade_api("1.5.1", TRADE_API, OLD_SYMBOLS),
    _stream_conn("1.5.1"),
    _stream_conn("0.53.0"),
    Sdk(
        "javascript",
        "4.0.2",
        "javascript4.js",
        ("@alpacahq/alpaca-trade-api@4.0.2",),
        {**JS, **JS_OPTIONS, "stocks": (*JS["stocks"], "imbalances")},
    ),
    _javascript("3.1.3", {**JS, **JS_OPTIONS}, {}),
    _javascript("2.16.1", JS, {"crypto": "BTCUSD"}),
)


class InstallError(Exception):
    """An SDK could not be installed; the text says which and why."""


def cache() -> Path:
    """Where environments are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or ROOT / ".sdk")


class Environments:
    """Installs in the background, a few at once; `command` waits for the one that it needs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        self._folder = folder
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._pending: dict[str, Future[Path]] = {}

    def prepare(self, sdks: Iterable[Sdk]) -> None:
        """Begins with these, in this order."""
        for sdk in sdks:
            if sdk.environment not in self._pending:
                self._pending[sdk.environment] = self._pool.submit(_install, sdk, self._folder / sdk.environment)

    def command(self, sdk: Sdk) -> list[str]:
        """What runs this SDK's driver. Raises InstallError."""
        self.prepare([sdk])
        folder = self._pending[sdk.environment].result(INSTALL_SECONDS)
        driver = str(DRIVERS / sdk.driver)
        return ["node", driver, str(folder)] if sdk.javascript else [str(folder / "bin" / "python"), "-u", driver]

    def close(self) -> None:
        """Waits for what is being installed, so that nothing is left half made."""
        self._pool.shutdown(cancel_futures=True)


def _install(sdk: Sdk, folder: Path) -> Path:
    """The environment of an SDK, from the cache if it is there."""
    recipe = json.dumps([sys.version, sdk.requirements, sdk.alone])
    stamp = folder / "made-of"
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    if sdk.javascript:
        folder.mkdir()
        node = _run(sdk, ["node", "--version"]).strip()
        if int(node.removeprefix("v").partition(".")[0]) < NODE:
            raise InstallError(f"{sdk} cannot be installed: it wants Node {NODE}, and this is {node}")
        npm = ["npm", "install", "--prefix", str(folder), "--loglevel=error", "--no-audit", "--no-fund"]
        _run(sdk, [*npm, *sdk.requirements])
    else:
        _run(sdk, [sys.executable, "-m", "venv", str(folder)])
        # What is imported is compiled when it is; compiling all of it first takes longer than the rest.
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
        _run(sdk, [*pip, *sdk.requirements])
        if sdk.alone:
            _run(sdk, [*pip, "--no-deps", sdk.alone])
    stamp.write_text(digest)
    return folder


def _run(sdk: Sdk, command: list[str]) -> str:
    """What a command prints. Raises InstallError with the reason that it gives for its failure."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{sdk} cannot be installed: {error}") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()] or ["no reason given"]
        why = next((line for line in said if "No matching" in line), said[-1])
        raise InstallError(f"{sdk} cannot be installed: {why}")
    return done.stdout
