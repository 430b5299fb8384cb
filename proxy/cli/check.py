"""`check`: everything that is wrong with a configuration, or else who may see what by it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from proxy.cli.config_file import complain, config_path
from proxy.cli.terminal import Exit, say, table, warn
from proxy.config import model as configuration
from proxy.config.errors import ConfigError
from proxy.config.model import Config
from proxy.observe.style import Color, Style
from proxy.routing.allowlists import Client

SYMBOLS = 12  # in a line
TRADING = "trading"
LEGEND = '* is everything, and the right to subscribe to "*" itself; PREFIX* is every symbol that begins so'


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    try:
        config = configuration.load(path, os.environ)
    except ConfigError as error:
        return complain(error, path)
    ink = Style.of(sys.stdout, os.environ)
    print(f"{accounts_table(config, ink)}\n\n{access_table(config, ink)}\n{LEGEND}\n", flush=True)
    for warning in configuration.warnings(config, path):
        warn(warning)
    if options.online and not _online(config):
        return Exit.FAILED
    print(f"{path}: {ink.paint('good', Color.GOOD)}")
    return Exit.GOOD


def accounts_table(config: Config, ink: Style) -> str:
    """The accounts, and the upstream connections that each may be asked to hold. Of a key the last four characters."""
    rows = []
    for name, account in config.accounts.items():
        feeds = " ".join(feeds_of(config, name))
        rows.append((name, account.key.tail(), account.trading, feeds or ("none: no client uses it", Color.WARNING)))
    return table(("ACCOUNT", "KEY", "TRADING", "ONE CONNECTION EACH FOR"), rows, ink)


def access_table(config: Config, ink: Style) -> str:
    """Who may see what, a line for each client, feed and channel. No secret is in it."""
    rows = [row for client in config.directory() for row in _access(client)]
    return table(("CLIENT", "FEED", "ACCOUNT", "CHANNEL", "SYMBOLS"), rows, ink)


def feeds_of(config: Config, account: str) -> tuple[str, ...]:
    """The feeds that clients may ask of an account, in the order of the configuration."""
    return tuple(
        dict.fromkeys(
            feed for client in config.directory() for feed in client.allow.feeds() if client.account(feed) == account
        )
    )


def _access(client: Client) -> Iterator[tuple[str, ...]]:
    if not client.allow.feeds():
        yield client.name, "-", "-", "-", "nothing"
    for feed in client.allow.feeds():
        channels = client.allow.entries(feed) or {"-": ()}
        for channel, entries in channels.items():
            yield client.name, feed, client.account(feed), channel, " ".join(entries[:SYMBOLS]) or "nothing"
            for at in range(SYMBOLS, len(entries), SYMBOLS):
                yield "", "", "", "", " ".join(entries[at : at + SYMBOLS])


def _online(config: Config) -> bool:
    """Logs in to each account that is used; whether Alpaca took them all."""
    from proxy.cli.online import log_in  # the network's libraries are loaded only to be used

    good = True
    for name, account in config.accounts.items():
        feeds = feeds_of(config, name)
        if not feeds:
            continue
        feed = next((feed for feed in feeds if feed != TRADING), feeds[0])  # a plan decides on market data alone
        say(
            f"{name}: logging in to {feed} at {account.url(feed)}; this takes the account's connection slot there "
            "for a moment (for half a minute if Alpaca is silent)"
        )
        refusal = log_in(name, account, feed)
        print(f"{name}: {refusal or f'Alpaca accepts the key and secret for {feed}'}", flush=True)
        good = good and refusal is None
    return good
