"""The configuration that `init` writes.

It is small, commented, and valid as soon as the environment has Alpaca's key and secret. Settings that are not in the
file have defaults; docs/configuration.md lists them all.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy.cli.answers import Allowed, Answers
from proxy.cli.keygen import NewClient
from proxy.cli.terminal import command
from proxy.routing.allowlists import TRADING

SCHEMA_FILE = "alpaca-proxy.schema.json"

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

# The account of market data and order updates; `trading` is paper or live. Orders do not pass through the proxy:
# algorithms send them to Alpaca, with Alpaca's own key and secret.
accounts:
  {trading}:
    key: ${{APCA_API_KEY_ID}}
    secret: ${{APCA_API_SECRET_KEY}}
    trading: {trading}

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
{allow}
"""

_PLAIN = re.compile("[A-Za-z0-9][A-Za-z0-9./_-]*")


def allowed(name: str, given: Allowed) -> Allowed:
    """Return what an algorithm may see; without a word on order updates, those of orders that begin with its name."""
    return given if TRADING in given else {**given, TRADING: {"trade_updates": (f"{name}-*",)}}


def starter(answers: Answers, clients: Sequence[NewClient], path: Path) -> str:
    """Return the text of the file at `path`."""
    start = START.format(
        schema=SCHEMA_FILE,
        schema_path=shlex.quote(str(path.with_name(SCHEMA_FILE))),
        command=command(),
        calls=_commands(shlex.quote(str(path))),
        trading=answers.trading,
    )
    return start + "\n".join(
        CLIENT.format(
            name=client.name,
            key=client.key,
            padding=" " * max(0, 15 - len(client.key)),
            digest=client.digest,
            allow="\n".join(_feed_line(*item) for item in allowed(client.name, answers.clients[client.name]).items()),
        )
        for client in clients
    )


def _feed_line(feed: str, channels: Mapping[str, Sequence[str]]) -> str:
    listed = (f"{_entry(channel)}: [{', '.join(map(_entry, entries))}]" for channel, entries in channels.items())
    return f"      {feed}: {{{', '.join(listed)}}}"


def _commands(path: str) -> str:
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
