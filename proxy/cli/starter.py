"""The configuration that `init` writes.

It is small, commented, and valid as soon as the environment has Alpaca's key and secret. Settings that are not in the
file have defaults; docs/configuration.md lists them all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.alpaca.endpoints import endpoint
from proxy.cli.keygen import NewClient
from proxy.cli.terminal import command

SCHEMA_FILE = "alpaca-proxy.schema.json"
CHANNELS = ("trades", "quotes", "bars", "news")

START = """\
# yaml-language-server: $schema={schema}
#
# alpaca-proxy: one Alpaca connection per feed, shared by every algorithm that you run.
#
{calls}
#   {command} schema > {schema_path}     for editors: the file named in the first line
#
# Other settings have defaults: algorithms connect to ws://127.0.0.1:8765, the status page is at
# http://127.0.0.1:8766/. In any value ${{NAME}} is an environment variable and ${{file:PATH}} the text of a file.

accounts:
  {trading}:
    key: ${{APCA_API_KEY_ID}}
    secret: ${{APCA_API_SECRET_KEY}}
    trading: {trading}{remark}

# `allow` lists what a client may see: feed, channel, symbols. A symbol is exact (AAPL), a prefix (SPY*) or "*" for all.
# Everything else is refused. Under trading, entries are patterns of the client_order_id of its orders; symbol:TSLA (or
# symbol:TSL*) adds all orders of a symbol, however they were placed.
clients:
"""

CLIENT = """\
  {name}:
    key: {key}{padding}  # what the algorithm passes as its Alpaca key; a name, not a secret
    secret: {digest}
    allow:
      {feed}: {{{channels}}}
      trading: {{trade_updates: ["{name}-*"]}}
"""

_PLAIN = re.compile("[A-Za-z0-9][A-Za-z0-9./_-]*")


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to `init`; without symbols the feed's examples are used."""

    trading: str = "paper"
    feed: str = "iex"
    algorithms: tuple[str, ...] = ("momentum",)
    symbols: tuple[str, ...] = ()


def symbols_of(feed: str) -> tuple[str, ...]:
    """Return example symbols of a feed."""
    target = endpoint(feed)
    if target is not None and target.options:
        return ("AAPL*",)
    return ("BTC/USD", "ETH/USD") if feed.startswith("crypto") else ("AAPL", "MSFT")


def starter(answers: Answers, clients: Sequence[NewClient], path: Path) -> str:
    """Return the text of the file at `path`."""
    target = endpoint(answers.feed)
    entries = ", ".join(_entry(symbol) for symbol in answers.symbols or symbols_of(answers.feed))
    channels = [name for name in CHANNELS if target is not None and name in target.channels]
    remark = "" if answers.trading == "live" else "       # where its orders go: paper or live"
    start = START.format(
        schema=SCHEMA_FILE,
        schema_path=path.with_name(SCHEMA_FILE),
        command=command(),
        calls=_commands(path),
        trading=answers.trading,
        remark=remark,
    )
    return start + "\n".join(
        CLIENT.format(
            name=client.name,
            key=client.key,
            padding=" " * max(0, 15 - len(client.key)),
            digest=client.digest,
            feed=answers.feed,
            channels=", ".join(f"{channel}: [{entries}]" for channel in channels),
        )
        for client in clients
    )


def _commands(path: Path) -> str:
    """Return the commands for the file, one comment line each."""
    commands = {
        f"check -c {path}": "validate this file and show what each client may see",
        f"-c {path}": "run the proxy",
        f"reload -c {path}": "have it read this file again, and show what that changes",
        "keygen NAME": "one more client: key, secret, and the lines to paste here",
    }
    width = max(map(len, commands))
    return "\n".join(f"#   {command()} {arguments:{width}}     {what}" for arguments, what in commands.items())


def _entry(symbol: str) -> str:
    """Return a symbol as YAML, quoted unless it is a plain word; `${` is escaped."""
    return symbol if _PLAIN.fullmatch(symbol) else json.dumps(symbol.replace("${", "$${"))
