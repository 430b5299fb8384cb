"""`explain`: whether a client may see a topic, and which line decides."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD, Dialect, Endpoint, endpoint, feed_names
from proxy.cli.config_file import config_path, report_config_error
from proxy.cli.terminal import Exit, fail
from proxy.config import model as configuration
from proxy.config import values, yamlfile
from proxy.config.errors import ConfigError
from proxy.config.model import Config
from proxy.observe.style import Color, Style
from proxy.routing.allowlists import SYMBOL


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    question = (options.client, options.feed, options.channel, options.symbol)
    try:
        config = configuration.load(path, os.environ)
        if problem := _argument_error(config, *question):
            return fail(problem, Exit.USAGE)
        line = configuration.explain(path, os.environ, *question)
        style = Style.of(sys.stdout, os.environ)
        if line is not None:
            print(f"{style.paint('allowed', Color.GOOD)} by {line}")
        else:
            print(f"{style.paint('not allowed', Color.BAD)}: {_nearest_line(path, *question)}")
            return Exit.FAILED
    except ConfigError as error:
        return report_config_error(error, path)
    return Exit.GOOD


def _argument_error(config: Config, client: str, feed: str, channel: str, symbol: str) -> str | None:
    """Return what is wrong with the arguments, as a sentence, or None."""
    if client not in config.clients:
        return _unknown("client", client, config.clients)
    target = endpoint(feed)
    if target is None:
        return _unknown("feed", feed, feed_names())
    everything = WILDCARD in config.clients[client].allow.get(feed, {})
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


def _nearest_line(path: Path, client: str, feed: str, channel: str, symbol: str) -> str:
    """Return where in the file the missing entry belongs, and what to add there."""
    document = yamlfile.parse(yamlfile.read(path), name=str(path), environ=os.environ, folder=path.parent)
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
    return str(document.problem(path_in_file, advice[len(path_in_file)]))
