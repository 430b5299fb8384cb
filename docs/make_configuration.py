"""Print docs/configuration.md: `python3 docs/make_configuration.py > docs/configuration.md`.

It is generated from the JSON schema and the feeds. The descriptions of the settings are in the model; this module only
lays them out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proxy.alpaca.endpoints import FOLLOWERS, Dialect, endpoint, feed_names
from proxy.config import model, values

Schema = Mapping[str, Any]

BEGINNING = """\
# Configuration

<!-- Made by `python3 docs/make_configuration.py`; tests/test_docs.py keeps it current. -->

This page describes every setting. The configuration is one YAML file: `-c FILE`, else `$ALPACA_PROXY_CONFIG`, else
`config/proxy.yaml`. Only `accounts` and `clients` are needed, at least one of each.
[config/proxy.yaml](../config/proxy.yaml) shows every setting with its default; `init` writes a small file, and `check`
lists all problems of a file, each with its line and column.

- **Texts stay texts.** `ON`, `NO`, `TRUE`, `1E5` and `7203` are symbols, not booleans or numbers: each setting has its
  own type.
- **References** are possible in any value: `${NAME}` is an environment variable (unset is an error), `${NAME:-default}`
  the same with a default, `${file:PATH}` the text of a file (relative to the configuration's folder), and `$${` a
  literal `${`. They are resolved after parsing, so their text is never read as YAML. Inside of `[ ]` and `{ }` they
  need quotes.
- **Sizes** are plain bytes, or in `KB`, `MB`, `GB` (thousands), `KiB`, `MiB`, `GiB`.
- **Mistakes are errors**: an unknown key, a duplicate key, a client's key that is used twice, an account that does not
  exist, anchors and tags.
- **A reload** (the verb `reload`, or SIGHUP) reads the file again, all or nothing:
  [operations.md](operations.md#change-the-configuration). A change of an address that the proxy listens on, or of
  `cluster`, takes a restart.
"""

ALLOW = """\
## What `allow` takes

Feed, channel, entries: `iex: {trades: [AAPL, BRK*], bars: ["*"]}`. What no entry names is denied.

| entry | permits |
|---|---|
| `AAPL` | that symbol |
| `BRK*` | every symbol that begins so, but not to subscribe to `*` |
| `"*"` | every symbol, and to subscribe to `*` itself |
| `CHANNEL: "*"` | the same as `["*"]` |
| `"*": [AAPL]` | `AAPL` on every channel, channels included that Alpaca adds later |
| `FEED: "*"` | everything in the feed |

`{followers}` come with `trades` and cannot be listed.

Under `trading`, an update belongs to a client if an entry of `trade_updates` matches its order:

| entry | matches |
|---|---|
| `"momentum-*"` | orders whose `client_order_id` begins so; without the star, the one with that id |
| `symbol:TSLA` | orders of that symbol, and orders with such a leg, however they were placed |
| `"symbol:BTC*"` | the same, of every symbol that begins so; `"symbol:*"` of every symbol |

Slashes in symbols are ignored: `symbol:BTCUSD` matches `BTC/USD`. An update also belongs to a client if the order, what
it replaces, what replaced it, its parent or one of its legs is an order of the client's. Orders that belong to no
client are seen with `"*"` alone. Orders are remembered while they are open and for a day after, 50,000 at most;
the others are known from Alpaca's list of orders, which the proxy reads whenever the stream comes up.
"""

FEEDS = """\
## Feeds and channels

| feed | path | channels |
|---|---|---|
"""

LOCATIONS = """\

Further crypto locations are feeds as well: `crypto-us-1` is `/v1beta3/crypto/us-1`, and so on. The path is the same at
Alpaca and at the proxy."""


def document() -> str:
    """Return the whole document."""
    schema = model.schema()
    sections = schema["$defs"]
    parts = [BEGINNING, "\n".join(_table(schema, sections))]
    for name, section in (
        ("listen", "Listen"),
        ("listen.tls` and `cluster.tls", "Tls"),
        ("admin", "Admin"),
        ("log", "Log"),
    ):
        parts.append(_section(name, sections[section]))
    parts.append(_section("limits", sections["Limits"]))
    parts.append(_section("accounts.NAME", sections["Account"]))
    parts.append(_section("clients.NAME", sections["ClientEntry"]))
    parts.append(ALLOW.replace("{followers}", "` and `".join(FOLLOWERS)))
    parts.append(_section("record", sections["Record"]))
    parts.append(_section("cluster", sections["Cluster"]))
    parts.append(FEEDS + "\n".join(_feeds()) + "\n" + LOCATIONS)
    return "\n".join(parts) + "\n"


def _section(name: str, section: Schema) -> str:
    return "\n".join([f"## `{name}`", "", section["description"], "", *_table(section)])


def _table(section: Schema, sections: Schema | None = None) -> Iterator[str]:
    """Yield the table of a section's settings.

    `sections` describes the settings that are sections themselves.
    """
    yield "| setting | default | what it is |"
    yield "|---|---|---|"
    required = section.get("required", ())
    for name, setting in section["properties"].items():
        described = (sections or {}).get(setting.get("$ref", "").rpartition("/")[2], setting)
        text = described.get("description", "")
        if choices := setting.get("enum"):
            text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
        default = "needed" if name in required else _default(setting.get("default"))
        yield f"| `{name}` | {default} | {_cell(text)} |"
    yield ""


def _default(value: object) -> str:
    """Return a default as it is written in the file."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "see below" if value else "`{}`"
    if isinstance(value, list):
        return "`[]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value and value % values.KIB == 0:
        return f"`{values.in_units(value)}`"
    return f"`{value}`"


def _cell(text: str) -> str:
    """Return text for a table cell; references such as `${NAME}` become code."""
    return re.sub(r"(?<!`)(\$\{[^}]*\})(?!`)", r"`\1`", text).replace("|", "\\|").replace("\n", " ")


def _feeds() -> Iterator[str]:
    for name in feed_names():
        feed = endpoint(name)
        assert feed is not None
        channels = " ".join(f"`{channel}`" for channel in feed.channels)
        what = " (order updates)" if feed.dialect is Dialect.TRADING else ""
        yield f"| `{feed.feed}`{what} | `{feed.path}` | {channels} |"


if __name__ == "__main__":
    print(document(), end="")
