"""`explain`: whether a client may see a topic, and which line decides."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping

from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD, Dialect, Endpoint, endpoint, feed_names
from proxy.cli.config_file import config_path, report_config_error
from proxy.cli.terminal import Exit, fail
from proxy.config import model as configuration
from proxy.config import symbols, values, yamlfile
from proxy.config.errors import ConfigError
from proxy.config.yamlfile import YamlDocument
from proxy.observe.style import Color, Style
from proxy.routing.allowlists import SYMBOL, Allowlist


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    client, *topic = question = (options.client, options.feed, options.channel, options.symbol)
    try:
        allowlists, document = configuration.load_allowlists(path, os.environ)
    except ConfigError as error:
        return report_config_error(error, path)
    if problem := _argument_error(allowlists, *question):
        return fail(problem, Exit.USAGE)
    style = Style.of(sys.stdout, os.environ)
    line = configuration.explain(document, allowlists[client], *question)
    if line is not None:
        print(f"{style.paint('allowed', Color.GOOD)} by {line}")
        return Exit.GOOD
    hint = _near_miss(allowlists[client], *topic)
    print(f"{style.paint('not allowed', Color.BAD)}: {_nearest_line(document, *question, hint)}")
    return Exit.FAILED


def _argument_error(
    allowlists: Mapping[str, Allowlist], client: str, feed: str, channel: str, symbol: str
) -> str | None:
    """Return what is wrong with the arguments, as a sentence, or None."""
    if client not in allowlists:
        return _unknown("client", client, allowlists)
    target = endpoint(feed)
    if target is None:
        return _unknown("feed", feed, feed_names())
    everything = WILDCARD in allowlists[client].entries(feed)
    if channel not in (*target.channels, *_followers(target)) and not everything:
        return _unknown(f"channel of {feed}", channel, target.channels)
    orders = target.dialect is Dialect.TRADING
    of_symbol = orders and symbol.startswith(SYMBOL)
    text = symbol.removeprefix(SYMBOL) if of_symbol else symbol
    longest = values.LONGEST_ORDER_ID if orders and not of_symbol else values.LONGEST_SYMBOL
    if not text or len(text) > longest or (WILDCARD in text and text != WILDCARD):
        what = "a client_order_id" if orders and not of_symbol else "a symbol"
        return f'{what} has 1 to {longest} characters and contains no "*"; "*" alone means all of them'
    return None


def _followers(target: Endpoint) -> tuple[str, ...]:
    return FOLLOWERS if "trades" in target.channels else ()


def _unknown(what: str, name: str, valid: Iterable[str]) -> str:
    names = list(valid)
    hint = values.nearest(name, names)
    tail = f'did you mean "{hint}"?' if hint else f"there is {', '.join(names)}"
    return f"unknown {what} {yamlfile.quoted(name)}; {tail}"


def _near_miss(allowlist: Allowlist, feed: str, channel: str, symbol: str) -> str | None:
    """Return an allowed symbol that is the same but for case or the slash of a pair, or None."""
    faults = (symbols.unlikely(feed, text) for text in (symbol, symbol.upper()))
    spellings = (symbol.upper(), symbol.lower(), symbol.replace("/", ""), *(fault.hint for fault in faults if fault))
    return next((other for other in spellings if other and allowlist.permits(feed, channel, other)), None)


def _nearest_line(document: YamlDocument, client: str, feed: str, channel: str, symbol: str, hint: str | None) -> str:
    """Return where in the file the missing entry belongs, and what to add there, or the symbol that may be meant."""
    allow_channel = "trades" if channel in FOLLOWERS else channel
    entry = json.dumps(symbol) if WILDCARD in symbol else symbol
    advice = {  # by the length of the part of the path that exists
        5: f"has no entry for {yamlfile.quoted(symbol)}; add one",
        4: f"does not list {allow_channel}; add {allow_channel}: [{entry}]",
        3: f"does not name {feed}; add {feed}: {{{allow_channel}: [{entry}]}}",
        2: f"allows nothing; add allow: {{{feed}: {{{allow_channel}: [{entry}]}}}}",
    }
    path_in_file: tuple[yamlfile.Step, ...] = ("clients", client, "allow", feed, allow_channel)
    while document.find(path_in_file) in (None, "") and len(path_in_file) > 2:
        path_in_file = path_in_file[:-1]
    reason = f"has no entry for {yamlfile.quoted(symbol)}" if hint else advice[len(path_in_file)]
    return str(document.problem(path_in_file, reason, hint))
