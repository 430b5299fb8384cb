"""`check`: all errors of a configuration, or else the access of each client."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterator

from proxy.cli.config_file import config_path, report_config_error
from proxy.cli.terminal import Exit, print_err, table, warn
from proxy.config import model as configuration
from proxy.config.errors import ConfigError
from proxy.config.model import Cluster, Config
from proxy.observe.style import Color, Style
from proxy.routing.allowlists import TRADING, Client

SYMBOLS = 12  # in a line of the table
LEGEND = '* permits everything, and to subscribe to "*" itself; PREFIX* permits every symbol with that prefix'
ORDERS_LEGEND = "trade_updates: symbol:TEXT permits all orders of a symbol, other entries are client_order_ids"


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    try:
        config, document = configuration.load_with_document(path, os.environ)
    except ConfigError as error:
        return report_config_error(error, path)
    style = Style.of(sys.stdout, os.environ)
    legend = [LEGEND]
    if any(client.allow.names(TRADING) for client in config.directory):
        legend.append(ORDERS_LEGEND)
    cluster = [] if config.cluster is None else [cluster_line(config.cluster), ""]
    print(accounts_table(config, style), "", access_table(config, style), *legend, "", *cluster, sep="\n", flush=True)
    for warning in configuration.warnings(config, path, document):
        warn(warning)
    if options.online:
        good, led = (True, set[tuple[str, str]]()) if config.cluster is None else _leaders(config, config.cluster)
        if not _online(config, led) or not good:
            return Exit.FAILED
    print(f"{path}: {style.paint('good', Color.GOOD)}")
    return Exit.GOOD


def accounts_table(config: Config, style: Style) -> str:
    """Return the table of accounts with the upstream connections that each may have.

    Of a key it has the last four characters.
    """
    rows = []
    for name, account in config.accounts.items():
        feeds = " ".join(feeds_of(config, name))
        rows.append((name, account.key.tail(), account.trading, feeds or ("none: no client uses it", Color.WARNING)))
    return table(("ACCOUNT", "KEY", "TRADING", "ONE CONNECTION EACH FOR"), rows, style)


def access_table(config: Config, style: Style) -> str:
    """Return the table of access by client, feed and channel; it has no secrets."""
    rows = [row for client in _holders(config) for row in _access_rows(client)]
    return table(("CLIENT", "FEED", "ACCOUNT", "CHANNEL", "SYMBOLS"), rows, style)


def cluster_line(cluster: Cluster) -> str:
    """Return the cluster in a sentence; it has no secrets."""
    return (
        f"Cluster {cluster.name}: this node listens on {cluster.listen}, is {cluster.url} to the others, "
        f"and uses Redis at {cluster.redis.shown}"
    )


def feeds_of(config: Config, account: str) -> tuple[str, ...]:
    """Return an account's feeds that clients may use or that are recorded, in configuration order."""
    return tuple(
        dict.fromkeys(
            feed for client in _holders(config) for feed in client.allow.feeds() if client.account(feed) == account
        )
    )


def _holders(config: Config) -> Iterator[Client]:
    """Yield the clients, and the recorder if there is one."""
    yield from config.directory
    if config.recorder is not None:
        yield config.recorder


def _access_rows(client: Client) -> Iterator[tuple[str, ...]]:
    if not client.allow.feeds():
        yield client.name, "-", "-", "-", "nothing"
    for feed in client.allow.feeds():
        channels = client.allow.entries(feed) or {"-": ()}
        for channel, entries in channels.items():
            yield client.name, feed, client.account(feed), channel, " ".join(entries[:SYMBOLS]) or "nothing"
            for at in range(SYMBOLS, len(entries), SYMBOLS):
                yield "", "", "", "", " ".join(entries[at : at + SYMBOLS])


def _online(config: Config, led: Collection[tuple[str, str]]) -> bool:
    """Log in to each account that clients use; return whether all logins succeeded.

    Of the feeds that are `led`, a node of the cluster has the only connection that Alpaca admits.
    """
    from proxy.cli.online import log_in  # loads the network libraries, which `check` alone does not need

    accepted = True
    for name, account in config.accounts.items():
        feeds = feeds_of(config, name)
        if not feeds:
            continue
        feed = next((feed for feed in feeds if feed != TRADING), feeds[0])  # plans limit market data only
        if (name, feed) in led:
            print(f"{name}: Alpaca has accepted the key and secret of the node that leads {feed}", flush=True)
            continue
        print_err(
            f"{name}: logging in to {feed} at {account.url(feed)}; this takes the account's connection slot there "
            "for a moment (for half a minute if Alpaca does not answer)"
        )
        refusal = log_in(name, account, feed)
        print(f"{name}: {refusal or f'Alpaca accepts the key and secret for {feed}'}", flush=True)
        accepted = accepted and refusal is None
    return accepted


def _leaders(config: Config, cluster: Cluster) -> tuple[bool, set[tuple[str, str]]]:
    """Print which node leads each feed.

    Return whether Redis answers and all leases are valid, and the feeds whose leader is connected to Alpaca.
    """
    from proxy.cli.leaders import find_leaders  # loads the network libraries

    feeds = [(name, feed) for name in config.accounts for feed in feeds_of(config, name)]
    good, led = True, set()
    for line in find_leaders(cluster, config.accounts, feeds):
        print(line.text, flush=True)
        good = good and line.good
        if line.led is not None:
            led.add(line.led)
    return good, led
