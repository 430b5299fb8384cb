"""The configuration that `init` writes: small, commented, and good as soon as Alpaca's key is in the environment.

Every setting that is not in it has a default; the reference (`schema --markdown`) has them all.
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
#   {command} schema > {schema_path}     for editors: the file that the first line names
#
# What is not written here has a default: algorithms connect to ws://127.0.0.1:8765, the status page is at
# http://127.0.0.1:8766/. In any value ${{NAME}} is an environment variable and ${{file:PATH}} the text of a file.

accounts:
  {trading}:
    key: ${{APCA_API_KEY_ID}}
    secret: ${{APCA_API_SECRET_KEY}}
    trading: {trading}{remark}

# `allow` says what a client may see: feed, channel, symbols. A symbol is exact (AAPL), a prefix (SPY*), or "*" for all.
# What is not listed is refused. Under trading, entries are patterns of the client_order_id of its orders.
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
    """What `init` asks for. No symbols: those that suit the feed."""

    trading: str = "paper"
    feed: str = "iex"
    algorithms: tuple[str, ...] = ("momentum",)
    symbols: tuple[str, ...] = ()


def symbols_of(feed: str) -> tuple[str, ...]:
    """Symbols that a feed is likely to know, for an example."""
    known = endpoint(feed)
    if known is not None and known.options:
        return ("AAPL*",)
    return ("BTC/USD", "ETH/USD") if feed.startswith("crypto") else ("AAPL", "MSFT")


def starter(answers: Answers, clients: Sequence[NewClient], path: Path) -> str:
    """The text of the file that is to be at `path`."""
    known = endpoint(answers.feed)
    entries = ", ".join(_entry(symbol) for symbol in answers.symbols or symbols_of(answers.feed))
    channels = [name for name in CHANNELS if known is not None and name in known.channels]
    remark = "" if answers.trading == "live" else "       # where its orders go: paper or live"
    start = START.format(
        schema=SCHEMA_FILE,
        schema_path=path.with_name(SCHEMA_FILE),
        command=command(),
        calls=_calls(path),
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


def _calls(path: Path) -> str:
    """What to call with the file, a comment a line."""
    calls = {
        f"check -c {path}": "what is wrong with this file, and who may see what",
        f"-c {path}": "run it; SIGHUP reads this file again",
        "keygen NAME": "one more client: key, secret, and the lines to paste here",
    }
    width = max(map(len, calls))
    return "\n".join(f"#   {command()} {call:{width}}     {what}" for call, what in calls.items())


def _entry(symbol: str) -> str:
    """A symbol as YAML has it, in quotes unless it is plainly a word; a `${` in it is no reference."""
    return symbol if _PLAIN.fullmatch(symbol) else json.dumps(symbol.replace("${", "$${"))
