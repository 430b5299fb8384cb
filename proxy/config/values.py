"""Decoders for single settings: each function takes a value of the file's tree and returns it with its type.

A decoder raises `Unsuitable` with one or more faults; a value that has parts (an allowlist, say) may have several.
Faults never quote text that came through `${…}`, nor a value that may be a secret. A value that may be left out may
also be left blank.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD, Dialect, endpoint, feed_names
from proxy.config.errors import with_hint
from proxy.config.yamlfile import SHOWN, Items, Step, Table, quoted
from proxy.routing.allowlists import DEFAULT, SYMBOL, TRADING, without_slashes

KIB, MIB, GIB = 1024, 1024**2, 1024**3

LISTEN_PORT = 8765
ADMIN_PORT = 8766
OUTBOX = 8 * MIB
KEEP = 7 * 86_400.0
RECORDINGS = 20 * 1000**3
MIN_FREE = 2 * 1000**3
OUTBOXES = 256 * MIB

LONGEST_SYMBOL = 64
LONGEST_ORDER_ID = 128
ORDER_ENTRIES = (
    "Patterns of the client_order_id (exact or PREFIX*), symbol:TEXT for all orders of a symbol (exact, PREFIX* or *), "
    'or "*" for all orders.'
)

_NO_OPTION_QUOTES = 'Alpaca permits no "*" for the quotes of options; list contracts'

_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": KIB, "mib": MIB, "gib": GIB}
_SIZE = re.compile(r"([0-9]{1,12}) ?([A-Za-z]{0,3})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Fault:
    """An error in a value, or in its part at `path`; `name`: the error is in the path's last name, not its value."""

    reason: str
    hint: str | None = None
    path: tuple[Step, ...] = ()
    name: bool = False

    def __str__(self) -> str:
        return with_hint(self.reason, self.hint)


class Unsuitable(ValueError):
    """A value that a setting cannot have; `faults` are all its errors."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is closest to a misspelt one, or None if none is close; case is ignored."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = get_close_matches(name.lower()[:64], by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def text(value: object) -> str:
    """Any text except an empty one."""
    if not isinstance(value, str):
        raise Unsuitable(Fault("should be a single value"))
    if not value:
        written = getattr(value, "written", "")
        raise Unsuitable(Fault(f"must not be empty, as {quoted(value)} is" if written else "must not be empty"))
    return value


def whole(low: int, high: int) -> Callable[[object], int]:
    """A decoder for whole numbers within bounds."""

    def number(value: object) -> int:
        digits = text(value)
        if not re.fullmatch("[0-9]{1,9}", digits) or not low <= int(digits) <= high:
            raise Unsuitable(Fault(f"should be a number from {low} to {high}, not {quoted(digits)}"))
        return int(digits)

    return number


def size(low: int, high: int) -> Callable[[object], int]:
    """A decoder for sizes within bounds, in bytes: plain, or in KB, MB, GB (powers of 1000) or KiB, MiB, GiB."""

    def octets(value: object) -> int:
        written = text(value)
        match = _SIZE.fullmatch(written)
        if match is None or match[2].lower() not in _UNITS:
            raise Unsuitable(Fault(f"should be a size such as 64KiB, 8MiB, 1MB or plain bytes, not {quoted(written)}"))
        count = int(match[1]) * _UNITS[match[2].lower()]
        if not low <= count <= high:
            raise Unsuitable(Fault(f"should be from {in_units(low)} to {in_units(high)}, not {quoted(written)}"))
        return count

    return octets


def silence(value: object) -> float | None:
    """A duration in seconds, written as `90s`, `5m` or `1h`; None for `off`."""
    given = text(value)
    if given == "off":
        return None
    seconds = _seconds(given)
    if not 5 <= seconds <= 3600:
        raise Unsuitable(Fault("should be 5s to 1h, or off"))
    return seconds


def keep(value: object) -> float:
    """A duration in seconds, written as `12h` or `7d`."""
    seconds = _seconds(text(value))
    if not 3600 <= seconds <= 3660 * 86_400:
        raise Unsuitable(Fault("should be 1h to 3660d"))
    return seconds


def _seconds(given: str) -> float:
    """The seconds of a duration; 0 if it is none."""
    match = re.fullmatch(r"([0-9]{1,4})(s|m|h|d)", given)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]] if match else 0.0


def flag(value: object) -> bool:
    """true or false, in the spellings of YAML 1.1: yes, no, on and off as well."""
    written = text(value).lower()
    if written not in ("true", "yes", "on", "false", "no", "off"):
        raise Unsuitable(Fault("should be true or false"))
    return written in ("true", "yes", "on")


def reuse_port(value: object) -> bool:
    """true or false; true only where a port can be shared."""
    wanted = flag(value)
    if wanted and not hasattr(socket, "SO_REUSEPORT"):
        raise Unsuitable(Fault("cannot be true: this system has no SO_REUSEPORT; give each process a port of its own"))
    return wanted


port = whole(0, 65535)
message_size = size(64 * KIB, 16 * MIB)
outbox_size = size(KIB, 16 * GIB)
outboxes_size = size(64 * KIB, 1024 * GIB)
recordings_size = size(MIB, 1024**2 * GIB)
free_size = size(0, 1024**2 * GIB)


def in_units(count: int) -> str:
    """Format a size in the largest unit that divides it."""
    for unit, of in (("GiB", GIB), ("MiB", MIB), ("GB", 1000**3), ("MB", 1000**2), ("KiB", KIB)):
        if count and count % of == 0:
            return f"{count // of}{unit}"
    return f"{count} bytes"


def key(value: object) -> str:
    """The key of an algorithm: a name, not a secret."""
    written = text(value)
    if len(written) > 128 or not written.isprintable() or written != written.strip():
        raise Unsuitable(Fault("should be at most 128 printable characters without a space at an end"))
    return str(written)


def market_feed(value: object) -> str:
    """The name of a feed of market data."""
    written = text(value)
    feed = endpoint(written)
    if feed is None:
        raise Unsuitable(Fault(f"unknown feed {quoted(written)}", nearest(written, feed_names())))
    if feed.dialect is not Dialect.MARKET:
        raise Unsuitable(Fault("should be a feed of market data"))
    return str(written)


def name(value: object) -> str:
    """The name of an account or a client, as it appears in setting paths, logs and metrics."""
    written = text(value)
    if not _NAME.fullmatch(written):
        # A longer text may be a secret in the wrong place, which `quoted` does not show either.
        proposal = re.sub("[^A-Za-z0-9_.-]+", "-", written).strip("-.") if len(written) <= SHOWN else ""
        reason = "cannot be a name; use letters, digits, dots, dashes and underscores, 64 at most"
        raise Unsuitable(Fault(reason, proposal or None))
    return written


def some(value: object) -> object:
    """The accounts or the clients: at least one entry."""
    if value in ("", {}):
        raise Unsuitable(Fault("is empty; at least one is needed"))
    return value


def codecs(value: object) -> object:
    """Codecs by feed; the feed must support the codec."""
    if isinstance(value, Table):
        _refuse(_codec_faults(value))
    return {} if value == "" else value


def _codec_faults(value: Table) -> Iterator[Fault]:
    for feed, codec in value.items():
        found = endpoint(feed)
        if found is None:
            yield Fault("unknown feed", nearest(feed, feed_names()), (feed,), True)
        elif codec not in found.codecs:
            choice = " or ".join(f'"{name}"' for name in found.codecs)
            hint = nearest(codec, found.codecs) if isinstance(codec, str) else None
            yield Fault(f"should be {choice}, which this feed supports", hint, (feed,))


def accounts_by_feed(value: object) -> object:
    """One account's name, or names by feed with a default. `consistency` checks that the accounts exist."""
    if not isinstance(value, Table):
        return {} if value == "" else {DEFAULT: text(value)}
    _refuse(_accounts_faults(value))
    return value


def _accounts_faults(value: Table) -> Iterator[Fault]:
    for feed, account in value.items():
        if feed != DEFAULT and endpoint(feed) is None:
            yield Fault("unknown feed", nearest(feed, (*feed_names(), DEFAULT)), (feed,), True)
        if not account or not isinstance(account, str):
            yield Fault("should be the name of an account", None, (feed,))


def allow(value: object) -> dict[str, dict[str, tuple[str, ...]]]:
    """An allowlist as `{feed: {channel: (entry, …)}}`; "*" for a feed or a channel allows everything in it."""
    if value == "":
        return {}
    if not isinstance(value, Table):
        raise Unsuitable(Fault("should name feeds, as in iex: {trades: [AAPL]}"))
    _refuse(_allow_faults(value))
    return {
        feed: {channel: _entries(entries) for channel, entries in channels.items()}
        if isinstance(channels, Table)
        else {WILDCARD: (WILDCARD,)}
        for feed, channels in value.items()
    }


def recorded(value: object) -> dict[str, dict[str, tuple[str, ...]]]:
    """The recorded topics, in the form of an allowlist; entries are topics that Alpaca can be asked for."""
    if value == "":
        raise Unsuitable(Fault("should name feeds, as in iex: {trades: [AAPL]}"))
    if isinstance(value, Table):
        _refuse([*_allow_faults(value), *_recorded_faults(value)])
    return allow(value)


def _recorded_faults(value: Table) -> Iterator[Fault]:
    for feed, channels in value.items():
        found = endpoint(feed)
        if feed == TRADING or found is None:  # the entries of the trading feed choose orders, as in an allowlist
            continue
        if channels == WILDCARD and found.options:
            yield Fault(_NO_OPTION_QUOTES, None, (feed,))
        for channel, entries in channels.items() if isinstance(channels, Table) else ():
            listed = entries if isinstance(entries, Items) else [entries]
            for index, entry in enumerate(listed):
                if isinstance(entry, str) and entry.endswith(WILDCARD) and entry != WILDCARD:
                    reason = f'{quoted(entry)} is no symbol that Alpaca can be asked for; list symbols, or "*"'
                    yield Fault(reason, None, (feed, channel, index))
            if WILDCARD in listed and channel in ("quotes", WILDCARD) and found.options:
                yield Fault(_NO_OPTION_QUOTES, None, (feed, channel))


def allow_schema() -> dict[str, object]:
    """The JSON schema of an allowlist: the feeds, and the channels of each."""
    everything = {"const": WILDCARD}
    entries = {"anyOf": [everything, {"type": "array", "items": {"type": ["string", "number", "boolean"]}}]}
    feeds = {}
    for feed in filter(None, map(endpoint, feed_names())):
        channels: dict[str, object] = dict.fromkeys((*feed.channels, WILDCARD), entries)
        if feed.feed == TRADING:
            channels["trade_updates"] = {"description": ORDER_ENTRIES, **entries}
        by_channel = {"type": "object", "properties": channels, "additionalProperties": False}
        feeds[feed.feed] = {"anyOf": [everything, by_channel]}
    locations = {"^crypto-[a-z]{2}-[0-9]{1,2}$": feeds["crypto"]}
    return {"type": "object", "properties": feeds, "patternProperties": locations, "additionalProperties": False}


def _entries(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, Items) else (WILDCARD,)


def _allow_faults(value: Table) -> Iterator[Fault]:
    for feed, channels in value.items():
        found = endpoint(feed)
        if found is None:
            yield Fault("unknown feed", nearest(feed, feed_names()), (feed,), True)
        if not isinstance(channels, Table):
            if channels != WILDCARD:
                yield Fault('should be channels, as in {trades: [AAPL]}, or "*"', None, (feed,))
            continue
        for channel, entries in channels.items():
            if channel in FOLLOWERS:
                yield Fault("follows trades and cannot be listed; list trades", None, (feed, channel), True)
            elif found is not None and channel not in (WILDCARD, *found.channels):
                hint = nearest(channel, found.channels)
                yield Fault(f"unknown channel of {feed}", hint, (feed, channel), True)
            if isinstance(entries, Items):
                yield from _entry_faults((feed, channel), entries)
            elif entries != WILDCARD:
                yield Fault('should be a list, as in [AAPL, MSFT], or "*"', None, (feed, channel))


def _entry_faults(path: tuple[Step, ...], entries: Items) -> Iterator[Fault]:
    """The faults in a channel's entries: symbols, `PREFIX*` or `*`; on the trading feed, client order ids as well."""
    orders = path[0] == TRADING
    for index, entry in enumerate(entries):
        reason: str | None
        if not isinstance(entry, str):
            reason = "should be one symbol"
            if orders and isinstance(entry, Table):
                reason = f"should be one text; {SYMBOL}TEXT has no space after its colon"
        elif not entry:
            reason = "must not be empty"
        elif orders and entry.startswith(SYMBOL):
            pattern = entry.removeprefix(SYMBOL)
            reason = _symbol_reason(pattern)
            if pattern != WILDCARD and without_slashes(pattern) in ("", WILDCARD):
                reason = f"names no symbol; should be {SYMBOL}AAPL, {SYMBOL}PREFIX* or {SYMBOL}*"
            elif path[1] == "account_updates":
                reason = "updates of the account have no symbol; list it under trade_updates"
        elif orders:
            reason = _pattern_reason(entry, LONGEST_ORDER_ID) or (None if entry.isprintable() else _not_one(entry))
        else:
            reason = _symbol_reason(entry)
        if reason is not None:
            yield Fault(reason, None, (*path, index))


def _symbol_reason(pattern: str) -> str | None:
    """Why a text is no pattern of symbols, or None."""
    reason = _pattern_reason(pattern, LONGEST_SYMBOL)
    return reason or (None if re.fullmatch("[!-+.-~-]+", pattern) else _not_one(pattern))


def _pattern_reason(pattern: str, longest: int) -> str | None:
    if len(pattern.removesuffix(WILDCARD)) > longest:
        return f"is longer than {longest} characters"
    if WILDCARD in pattern[:-1]:
        return f'{quoted(pattern)} has a "*" elsewhere than at its end'
    return None


def _not_one(pattern: str) -> str:
    return f'{quoted(pattern)} is not one symbol; a "," goes between two'


def _refuse(faults: Iterable[Fault]) -> None:
    if all_faults := tuple(faults):
        raise Unsuitable(*all_faults)
