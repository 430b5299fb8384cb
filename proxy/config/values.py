"""What one setting may be: each function here takes a value of the file's tree and gives it its type.

They raise `Unsuitable` with sentences of their own, several at once where a value has parts (an allowlist, say). What
came through `${…}` is never quoted, nor is anything that may be a secret. Where a value may be left out, it may be
left blank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD, Dialect, endpoint, feed_names
from proxy.config.yamlfile import Items, Step, Table, quoted
from proxy.routing.allowlists import DEFAULT

KIB, MIB, GIB = 1024, 1024**2, 1024**3

LISTEN_PORT = 8765
ADMIN_PORT = 8766
OUTBOX = 8 * MIB
OUTBOXES = 256 * MIB

LONGEST_SYMBOL = 64
LONGEST_ORDER_ID = 128

_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": KIB, "mib": MIB, "gib": GIB}
_SIZE = re.compile(r"([0-9]{1,12}) ?([A-Za-z]{0,3})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a value, or with the part of it at `path`; `name` says that the path's last name is meant."""

    reason: str
    hint: str | None = None
    path: tuple[Step, ...] = ()
    name: bool = False


class Unsuitable(ValueError):
    """A value that a setting cannot take, and all that is wrong with it."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*(fault.reason for fault in faults))
        self.faults = faults


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that somebody who wrote `name` most likely meant, if any."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name.lower()[:64], by_lower, n=1)
    return by_lower[found[0]] if found else None


def text(value: object) -> str:
    """Any text but an empty one."""
    if not isinstance(value, str):
        raise Unsuitable(Fault("should be a single value"))
    if not value:
        written = getattr(value, "written", "")
        raise Unsuitable(Fault(f"must not be empty, as {quoted(value)} is" if written else "must not be empty"))
    return value


def whole(low: int, high: int) -> Callable[[object], int]:
    """A whole number within bounds."""

    def number(value: object) -> int:
        digits = text(value)
        if not re.fullmatch("[0-9]{1,9}", digits) or not low <= int(digits) <= high:
            raise Unsuitable(Fault(f"should be a number from {low} to {high}, not {quoted(digits)}"))
        return int(digits)

    return number


def size(low: int, high: int) -> Callable[[object], int]:
    """A size in bytes within bounds: plain, or in KB, MB, GB (thousands) or KiB, MiB, GiB."""

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


def flag(value: object) -> bool:
    """true or false, as YAML has always let people write them."""
    written = text(value).lower()
    if written not in ("true", "yes", "on", "false", "no", "off"):
        raise Unsuitable(Fault("should be true or false"))
    return written in ("true", "yes", "on")


port = whole(0, 65535)
message_size = size(64 * KIB, 16 * MIB)
outbox_size = size(KIB, 16 * GIB)
outboxes_size = size(64 * KIB, 1024 * GIB)


def in_units(count: int) -> str:
    """A size as people write it."""
    for unit, of in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count and count % of == 0:
            return f"{count // of}{unit}"
    return f"{count} bytes"


def key(value: object) -> str:
    """What an algorithm passes as its key: a name rather than a secret."""
    written = text(value)
    if len(written) > 128 or not written.isprintable() or written != written.strip():
        raise Unsuitable(Fault("should be at most 128 printable characters without a space at an end"))
    return str(written)


def market_feed(value: object) -> str:
    """The name of a feed of market data."""
    written = text(value)
    known = endpoint(written)
    if known is None:
        raise Unsuitable(Fault(f"unknown feed {quoted(written)}", nearest(written, feed_names())))
    if known.dialect is not Dialect.MARKET:
        raise Unsuitable(Fault("should be a feed of market data"))
    return str(written)


def name(value: object) -> str:
    """The name of an account or a client, which appears in paths, logs and metrics."""
    written = text(value)
    if not _NAME.fullmatch(written):
        raise Unsuitable(Fault("cannot be a name; use letters, digits, dots, dashes and underscores, 64 at most"))
    return written


def some(value: object) -> object:
    """Accounts or clients: at least one of them."""
    if value in ("", {}):
        raise Unsuitable(Fault("is empty; at least one is needed"))
    return value


def codecs(value: object) -> object:
    """Codecs by feed, each one that its feed speaks."""
    if isinstance(value, Table):
        _refuse(_codec_faults(value))
    return {} if value == "" else value


def _codec_faults(value: Table) -> Iterator[Fault]:
    for feed, codec in value.items():
        known = endpoint(feed)
        if known is None:
            yield Fault("unknown feed", nearest(feed, feed_names()), (feed,), True)
        elif codec not in known.codecs:
            choice = " or ".join(f'"{name}"' for name in known.codecs)
            hint = nearest(codec, known.codecs) if isinstance(codec, str) else None
            yield Fault(f"should be {choice}, which is what this feed speaks", hint, (feed,))


def accounts_by_feed(value: object) -> object:
    """One account's name, or names by feed with a default; whether the accounts exist is not known here."""
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
    """An allowlist as `{feed: {channel: (entry, …)}}`; a feed or a channel given as "*" is everything in it."""
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


def allow_schema() -> dict[str, object]:
    """The JSON schema of an allowlist: the feeds, and the channels of each."""
    everything = {"const": WILDCARD}
    entries = {"anyOf": [everything, {"type": "array", "items": {"type": ["string", "number", "boolean"]}}]}
    feeds = {}
    for known in filter(None, map(endpoint, feed_names())):
        channels = dict.fromkeys((*known.channels, WILDCARD), entries)
        listed = {"type": "object", "properties": channels, "additionalProperties": False}
        feeds[known.feed] = {"anyOf": [everything, listed]}
    locations = {"^crypto-[a-z]{2}-[0-9]{1,2}$": feeds["crypto"]}
    return {"type": "object", "properties": feeds, "patternProperties": locations, "additionalProperties": False}


def _entries(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, Items) else (WILDCARD,)


def _allow_faults(value: Table) -> Iterator[Fault]:
    for feed, channels in value.items():
        known = endpoint(feed)
        if known is None:
            yield Fault("unknown feed", nearest(feed, feed_names()), (feed,), True)
        if not isinstance(channels, Table):
            if channels != WILDCARD:
                yield Fault('should be channels, as in {trades: [AAPL]}, or "*"', None, (feed,))
            continue
        for channel, entries in channels.items():
            if channel in FOLLOWERS:
                yield Fault("follows trades and cannot be listed; list trades", None, (feed, channel), True)
            elif known is not None and channel not in (WILDCARD, *known.channels):
                hint = nearest(channel, known.channels)
                yield Fault(f"unknown channel of {feed}", hint, (feed, channel), True)
            if isinstance(entries, Items):
                yield from _entry_faults((feed, channel), entries)
            elif entries != WILDCARD:
                yield Fault('should be a list, as in [AAPL, MSFT], or "*"', None, (feed, channel))


def _entry_faults(path: tuple[Step, ...], entries: Items) -> Iterator[Fault]:
    """What is wrong with the entries of a channel: symbols, `PREFIX*` or `*`, or the same of order ids."""
    orders = path[0] == "trading"
    longest = LONGEST_ORDER_ID if orders else LONGEST_SYMBOL
    for index, entry in enumerate(entries):
        reason = None
        if not isinstance(entry, str):
            reason = "should be one symbol"
        elif not entry:
            reason = "must not be empty"
        elif len(entry.removesuffix(WILDCARD)) > longest:
            reason = f"is longer than {longest} characters"
        elif WILDCARD in entry[:-1]:
            reason = f'{quoted(entry)} has a "*" elsewhere than at its end'
        elif not entry.isprintable() or (not orders and not re.fullmatch("[!-+.-~-]+", entry)):
            reason = f'{quoted(entry)} is not one symbol; a "," goes between two'
        if reason is not None:
            yield Fault(reason, None, (*path, index))


def _refuse(faults: Iterable[Fault]) -> None:
    if found := tuple(faults):
        raise Unsuitable(*found)
