"""`explain`: whether a client may see a topic, and by which line of the configuration."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from proxy.alpaca.endpoints import FOLLOWERS, WILDCARD, Dialect, Endpoint, endpoint, feed_names
from proxy.cli.config_file import complain, config_path
from proxy.cli.terminal import Exit, fail
from proxy.config import model as configuration
from proxy.config import values as settings
from proxy.config import yamlfile
from proxy.config.errors import ConfigError
from proxy.config.model import Config
from proxy.observe.style import Color, Style


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    asked = (options.client, options.feed, options.channel, options.symbol)
    try:
        config = configuration.load(path, os.environ)
        if mistake := _mistake(config, *asked):
            return fail(mistake, Exit.USAGE)
        line = configuration.explain(path, os.environ, *asked)
        ink = Style.of(sys.stdout, os.environ)
        if line is not None:
            print(f"{ink.paint('allowed', Color.GOOD)} by {line}")
        else:
            print(f"{ink.paint('not allowed', Color.BAD)}: {_nearest_line(path, *asked)}")
    except ConfigError as error:
        return complain(error, path)
    return Exit.GOOD


def _mistake(config: Config, client: str, feed: str, channel: str, symbol: str) -> str | None:
    """What keeps the question from having an answer, as a sentence."""
    if client not in config.clients:
        return _unknown("client", client, config.clients)
    known = endpoint(feed)
    if known is None:
        return _unknown("feed", feed, feed_names())
    everything = WILDCARD in config.clients[client].allow.get(feed, {})
    if channel not in (*known.channels, *_followers(known)) and not everything:
        return _unknown(f"channel of {feed}", channel, known.channels)
    orders = known.dialect is Dialect.TRADING
    longest = settings.LONGEST_ORDER_ID if orders else settings.LONGEST_SYMBOL
    if not symbol or len(symbol) > longest or (WILDCARD in symbol and symbol != WILDCARD):
        what = "a client_order_id" if orders else "a symbol"
        return f'{what} has 1 to {longest} characters and no "*" inside of it; "*" by itself is all of them'
    return None


def _followers(known: Endpoint) -> tuple[str, ...]:
    return FOLLOWERS if "trades" in known.channels else ()


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    hint = settings.nearest(name, names)
    tail = f'did you mean "{hint}"?' if hint else f"there is {', '.join(names)}"
    return f"unknown {what} {yamlfile.quoted(name)}; {tail}"


def _nearest_line(path: Path, client: str, feed: str, channel: str, symbol: str) -> str:
    """The place where an entry would have to stand, as far as there is one."""
    document = yamlfile.parse(yamlfile.read(path), name=str(path), environ=os.environ, folder=path.parent)
    listed = "trades" if channel in FOLLOWERS else channel
    entry = json.dumps(symbol) if WILDCARD in symbol else symbol
    missing = {  # by how much of the place is there
        5: f"has no entry for {yamlfile.quoted(symbol)}; add one",
        4: f"does not list {listed}; add {listed}: [{entry}]",
        3: f"does not name {feed}; add {feed}: {{{listed}: [{entry}]}}",
        2: f"allows nothing; add allow: {{{feed}: {{{listed}: [{entry}]}}}}",
    }
    place: tuple[yamlfile.Step, ...] = ("clients", client, "allow", feed, listed)
    while document.find(place) in (None, "") and len(place) > 2:
        place = place[:-1]
    return str(document.problem(place, missing[len(place)]))
