"""/status.json as text: proxy, feeds, clients, recent warnings and errors.

`proxy.observe.status_document` describes the JSON. Any other document raises LookupError, TypeError, ValueError or
AttributeError.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.cli.terminal import Cell, plain, table
from proxy.observe.style import Color, Style

RECENT = 5  # warnings and errors that are shown
MISSING = 20  # clients without a session that are named
WIDTH = 79  # of running text, so that it fits a terminal of 80 columns
FULL = 0.5  # pending share of an outbox above which its client is marked slow

FEED = ("FEED", "STATE", "FOR", "MSG/S", "MESSAGES", "LAG P50", "P99", "LAST", "TOPICS", "CONNECTS", "TROUBLE")
CLIENT = ("CLIENT", "FEED", "SESSIONS", "TOPICS", "MSG/S", "DELIVERED", "PENDING", "LEFT OUT", "LOST")

StatusJson = Mapping[str, Any]


def overview(document: StatusJson, style: Style) -> str:
    """Return the whole text."""
    parts = [_proxy(document, style)]
    if not document["reload"]["ok"]:
        clock = time.strftime("%H:%M:%S", time.localtime(document["reload"]["time"]))
        sentence = f"The reload at {clock} changed nothing, because of problems; `reload` shows them."
        parts.append(style.paint(sentence, Color.BAD))
    if document["feeds"]:
        parts.append(table(FEED, [_feed(feed) for feed in document["feeds"]], style))
    if document["clients"]:
        parts.append(table(CLIENT, [_client(client) for client in document["clients"]], style))
    else:
        parts.append("No client has connected yet.")
    if missing := [client for client in document["configured"] if not client["connected"]]:
        parts.append(_missing(missing, document["time"]))
    warnings = [event for event in document["events"] if event["level"] in ("warning", "error")]
    if warnings:
        parts.append("\n".join(_event(event, style) for event in warnings[-RECENT:]))
    return "\n\n".join(parts)


def _proxy(document: StatusJson, style: Style) -> str:
    ready = style.paint("ready", Color.GOOD) if document["ready"] else style.paint("not ready", Color.BAD)
    pending, limit = document["outboxes"]["pending"], document["outboxes"]["limit"]
    return (
        f"alpaca-proxy {plain(str(document['proxy']))}: {plain(str(document['state']))}, {ready}, "
        f"up {span(document['uptime'])}, outboxes {size(pending)} of {size(limit)}"
    )


def _feed(feed: StatusJson) -> list[Cell]:
    live = feed["phase"] == "live"
    bad = feed["needed"] and not live
    return [
        f"{feed['account']}/{feed['feed']}",
        (str(feed["phase"]), Color.GOOD if live else Color.BAD if bad else None),
        span(feed["since"]),
        f"{feed['rate']:.1f}",
        f"{feed['received']:,}",
        milliseconds(feed["lag"]["p50"]),
        milliseconds(feed["lag"]["p99"]),
        "-" if feed["age"] is None else f"{span(feed['age'])} ago",
        f"{feed['acked']}/{feed['wanted']}" if feed["acked"] != feed["wanted"] else f"{feed['wanted']}",
        str(feed["connects"]),
        (str(feed["trouble"]) if not live else "", Color.BAD if bad else None),
    ]


def _client(client: StatusJson) -> list[Cell]:
    sessions: Sequence[StatusJson] = client["sessions"]
    pending = sum(session["pending"] for session in sessions)
    slow = any(session["slow"] or session["pending"] > FULL * session["limit"] for session in sessions)
    lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(client["lost"].items()))
    return [
        str(client["client"]),
        str(client["feed"]),
        str(len(sessions)),
        str(sum(session["topics"] for session in sessions)),
        f"{client['rate']:.1f}",
        f"{client['delivered']:,}",
        (size(pending) + (" slow" if slow else ""), Color.WARNING if slow else None),
        f"{client['conflated']:,}",
        (lost or "0", Color.WARNING if lost else None),
    ]


def _missing(clients: Sequence[StatusJson], now: float) -> str:
    named = []
    for client in clients[:MISSING]:
        seen = client["last_seen"]
        when = "never since the start" if seen is None else f"last here {span(max(0.0, now - seen))} ago"
        named.append(f"{plain(str(client['client']))} ({when})")
    if len(clients) > MISSING:
        named.append(f"and {len(clients) - MISSING:,} more")
    return textwrap.fill(f"Not connected: {', '.join(named)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _event(event: StatusJson, style: Style) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    colour = Color.BAD if event["level"] == "error" else Color.WARNING
    fields = " ".join(f"{name}={value}" for name, value in event["fields"].items())
    level = style.paint(plain(event["level"]), colour)
    return f"{clock} {level} " + plain(f"{event['event']} {fields}").replace("\n", " ").rstrip()


def span(seconds: float) -> str:
    """Format a duration: `42 s`, `12 min`, `3 h 12 min`, `5 d 3 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{days} d {hours % 24} h"


def size(count: int) -> str:
    """Format a number of bytes, in a fitting unit."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def milliseconds(seconds: float | None) -> str:
    """Format a lag, or a dash if it is unknown."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
