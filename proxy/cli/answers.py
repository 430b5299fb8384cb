"""Answers to `init`: their values, and their decoding from typed lines and from `--client`.

A decoder raises Unsuitable; the hint of its fault is a proposal for the whole answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from proxy.alpaca.endpoints import WILDCARD, endpoint
from proxy.config import symbols, values
from proxy.config.values import Fault, Unsuitable
from proxy.config.yamlfile import Items, Table, Text, quoted
from proxy.routing.allowlists import TRADING

CHANNELS = ("trades", "quotes", "bars", "news")  # those that an algorithm may see without `--client`

Allowed = dict[str, dict[str, tuple[str, ...]]]
"""Symbols by feed and channel."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The kind of the account, and what each algorithm may see."""

    trading: str = "paper"
    clients: Mapping[str, Allowed] = field(default_factory=lambda: {"momentum": market("iex", examples("iex"))})


@dataclass(frozen=True, slots=True)
class ClientTopics:
    """The value of `--client`: an algorithm and some symbols of a channel that it may see."""

    name: str
    feed: str
    channel: str
    symbols: tuple[str, ...]


def market(feed: str, listed: tuple[str, ...]) -> Allowed:
    """Return the usual channels of a feed, with the same symbols each."""
    found = endpoint(feed)
    return {feed: {channel: listed for channel in CHANNELS if found is not None and channel in found.channels}}


def examples(feed: str) -> tuple[str, ...]:
    """Return example symbols of a feed."""
    found = endpoint(feed)
    if found is not None and found.options:
        return ("AAPL*",)
    return ("BTC/USD", "ETH/USD") if feed.startswith("crypto") else ("AAPL", "MSFT")


def by_client(given: Iterable[ClientTopics]) -> dict[str, Allowed]:
    """Return what each algorithm may see, from the values of `--client`."""
    clients: dict[str, Allowed] = {}
    for topics in given:
        channels = clients.setdefault(topics.name, {}).setdefault(topics.feed, {})
        channels[topics.channel] = tuple(dict.fromkeys((*channels.get(topics.channel, ()), *topics.symbols)))
    return clients


def trading(text: str) -> str:
    """Return `paper` or `live`."""
    if text.lower() not in ("paper", "live"):
        raise Unsuitable(Fault('should be "paper" or "live"'))
    return text.lower()


def yes(text: str) -> bool:
    """Return whether the answer is yes."""
    if text.lower() not in ("yes", "y", "no", "n"):
        raise Unsuitable(Fault('should be "yes" or "no"'))
    return text.lower() in ("yes", "y")


def names(text: str) -> tuple[str, ...]:
    """Return the names of algorithms, which commas separate."""
    given = dict.fromkeys(filter(None, map(str.strip, text.split(","))))
    if not given:
        raise Unsuitable(Fault("should be one name at least"))
    return _all(given, _name_fault, ", ")


def entries(feed: str, channel: str, text: str) -> tuple[str, ...]:
    """Return entries of an allowlist, by the rules of the configuration; spaces or commas separate them."""
    given = dict.fromkeys(text.replace(",", " ").split())
    if not given:
        raise Unsuitable(Fault("should be one symbol at least"))
    values.allow(Table({feed: Table({channel: Items(map(_as_written, given))})}))
    return _all(given, lambda entry: symbols.unlikely(feed, entry), " ")


def market_entries(feed: str, text: str) -> tuple[str, ...]:
    """Return entries for the usual channels of a feed."""
    return entries(feed, next(iter(market(feed, ())[feed]), WILDCARD), text)


def market_feed(text: str) -> str:
    """Return the name of a feed of market data, which may be typed in capitals."""
    return values.market_feed(text.lower())


def client(text: object) -> ClientTopics:
    """Return the value of `--client`."""
    parts = values.text(text).split(":", 3)
    if len(parts) < 4:
        raise Unsuitable(Fault("should be NAME:FEED:CHANNEL:SYMBOLS, as in momentum:iex:trades:AAPL,MSFT"))
    name, feed, channel, listed = parts
    if (fault := _name_fault(name)) is not None:
        raise Unsuitable(fault)
    found = endpoint(feed)
    if found is not None and feed != TRADING and channel not in (*found.channels, WILDCARD):
        raise Unsuitable(Fault(f"{quoted(channel)} is no channel of {feed}", values.nearest(channel, found.channels)))
    return ClientTopics(values.name(name), feed, channel, entries(feed, channel, listed))


def _all(given: Iterable[str], fault_of: Callable[[str], Fault | None], separator: str) -> tuple[str, ...]:
    """Return the parts of an answer if none has a fault.

    Otherwise raise the first one; its hint is the answer with all hints in place, if every fault has one.
    """
    faults = {part: fault_of(part) for part in given}
    found = [fault for fault in faults.values() if fault is not None]
    if not found:
        return tuple(faults)
    proposed = separator.join(fault.hint or "" if fault else part for part, fault in faults.items())
    raise Unsuitable(Fault(found[0].reason, proposed if all(fault.hint for fault in found) else None))


def _name_fault(text: str) -> Fault | None:
    try:
        values.name(text)
    except Unsuitable as error:
        return Fault(f"{quoted(text)} {error.faults[0].reason}", error.faults[0].hint)
    return None


def _as_written(entry: str) -> Text:
    """Return an entry as if it were read from the file."""
    text = Text(entry)
    text.written = entry
    return text
