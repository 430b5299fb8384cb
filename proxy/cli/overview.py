"""/status.json as text: proxy, feeds, clients, cluster, recent warnings and errors.

`proxy.observe.status_document` describes the JSON. Any other document raises LookupError, TypeError, ValueError or
AttributeError.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.cli.terminal import Cell, plain, table, wrapped
from proxy.observe.style import Color, Style

RECENT = 5  # warnings and errors that are shown
MISSING = 20  # clients without a session that are named
NODES = 20  # of a cluster that are named
FULL = 0.5  # pending share of an outbox above which its client is marked slow

FEED = ("FEED", "STATE", "FOR", "MSG/S", "MESSAGES", "LAG P50", "P99", "LAST", "TOPICS", "CONNECTS")
CLIENT = ("CLIENT", "FEED", "SESSIONS", "TOPICS", "MSG/S", "DELIVERED", "PENDING", "LEFT OUT", "LOST")
CLUSTER = ("FEED", "LEADER", "LINK", "ROUND TRIP", "FOLLOWERS", "CHANGES")
# The columns that a narrow terminal does without, the first ones first.
FEED_OPTIONAL = ("CONNECTS", "MESSAGES", "FOR", "P99")
CLIENT_OPTIONAL = ("LEFT OUT", "DELIVERED", "TOPICS")
CLUSTER_OPTIONAL = ("CHANGES", "FOLLOWERS", "ROUND TRIP")

LINK_COLORS = {"working": Color.GOOD, "waiting": Color.WARNING, "mute": Color.BAD}

StatusJson = Mapping[str, Any]


def overview(document: StatusJson, style: Style, width: int | None = None) -> str:
    """Return the whole text, with lines of at most `width` characters."""
    parts = [_proxy(document, style, width)]
    if not document["reload"]["ok"]:
        clock = time.strftime("%H:%M:%S", time.localtime(document["reload"]["time"]))
        sentence = f"The reload at {clock} found problems and changed nothing; `reload` shows them."
        parts.append(style.paint(wrapped(sentence, width), Color.BAD))
    if feeds := document["feeds"]:
        lines = [table(FEED, [_feed(feed) for feed in feeds], style, width=width, optional=FEED_OPTIONAL)]
        lines += [_trouble(feed, style, width) for feed in feeds if feed["trouble"] and feed["phase"] != "live"]
        parts.append("\n".join(lines))
    if clients := document["clients"]:
        rows = [_client(client) for client in clients]
        parts.append(table(CLIENT, rows, style, width=width, optional=CLIENT_OPTIONAL))
    else:
        parts.append("No client has connected yet.")
    if recording := document.get("recording"):
        parts.append(_recording(recording, style, width))
    if cluster := document.get("cluster"):
        parts.append(_cluster(cluster, style, width))
    if missing := [client for client in document["configured"] if not client["connected"]]:
        parts.append(_missing(missing, document["time"], width))
    warnings = [event for event in document["events"] if event["level"] in ("warning", "error")]
    if warnings:
        parts.append("\n".join(_event(event, style, width) for event in warnings[-RECENT:]))
    return "\n\n".join(parts)


def _proxy(document: StatusJson, style: Style, width: int | None) -> str:
    ready, colour = ("ready", Color.GOOD) if document["ready"] else ("not ready", Color.BAD)
    pending, limit = document["outboxes"]["pending"], document["outboxes"]["limit"]
    name = f"alpaca-proxy {plain(str(document['proxy']))}: {plain(str(document['state']))}, "
    more, outboxes = f", up {span(document['uptime'])},", f"outboxes {size(pending)} of {size(limit)}"
    long = width is not None and len(f"{name}{ready}{more} {outboxes}") > width
    return name + style.paint(ready, colour) + more + ("\n  " if long else " ") + outboxes


def _trouble(feed: StatusJson, style: Style, width: int | None) -> str:
    text = plain(f"  {feed['account']}/{feed['feed']}: {feed['trouble']}").replace("\n", " ")
    return style.paint(wrapped(text, width, "    "), Color.BAD if feed["needed"] else None)


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


def _recording(recording: StatusJson, style: Style, width: int | None) -> str:
    feeds = recording["feeds"]
    dropped = sum(sum(feed["dropped"].values()) for feed in feeds)
    free = "" if recording["free"] is None else f", {size(recording['free'])} free"
    text = f"Recording {' '.join(feed['feed'] for feed in feeds)}: {sum(feed['messages'] for feed in feeds):,} messages"
    text += f", {size(sum(feed['bytes'] for feed in feeds))} in {recording['folder']}{free}"
    if dropped:
        text += f", {dropped:,} messages dropped"
    if others := [feed["feed"] for feed in feeds if not feed.get("active", True)]:
        text += f"; not by this node: {' '.join(others)}"
    if recording["problem"]:
        text += f"; it cannot write: {recording['problem']}"
    colour = Color.BAD if recording["problem"] else Color.WARNING if dropped else None
    return style.paint(wrapped(plain(text), width), colour)


def _cluster(cluster: StatusJson, style: Style, width: int | None) -> str:
    nodes = [f"{node['name']} ({node['version']})" for node in cluster["nodes"][:NODES]]
    if len(cluster["nodes"]) > NODES:
        nodes.append(f"and {len(cluster['nodes']) - NODES:,} more")
    lines = [wrapped(plain(f"Cluster: this node is {cluster['name']}, Redis is {cluster['redis']}"), width)]
    if nodes:
        lines.append(wrapped(plain(f"  Nodes: {', '.join(nodes)}"), width, "    "))
    if problem := cluster["redis_problem"]:
        text = f"  Redis cannot be used: {problem}. Streams go on; without Redis, nodes cannot agree on a new leader."
        lines.append(style.paint(wrapped(plain(text), width, "    "), Color.WARNING))
    if refused := cluster["refused"]:
        text = f"  Log-ins of other nodes that were refused: {refused:,}. Is `cluster.secret` the same on every node?"
        lines.append(style.paint(wrapped(text, width, "    "), Color.WARNING))
    if feeds := cluster["feeds"]:
        rows = [_cluster_feed(feed) for feed in feeds]
        lines.append(table(CLUSTER, rows, style, width=width, optional=CLUSTER_OPTIONAL))
    for feed in feeds:
        if feed["link"] == "mute":
            taker = "this" if feed["role"] == "leading" else "another"
            text = f"  {feed['account']}/{feed['feed']}: nothing comes through the link to the leader;"
            text += f" {taker} node takes over once Alpaca lets it in"
            lines.append(style.paint(wrapped(plain(text), width, "    "), Color.BAD))
    return "\n".join(lines)


def _cluster_feed(feed: StatusJson) -> list[Cell]:
    link = str(feed["link"])
    return [
        f"{feed['account']}/{feed['feed']}",
        "this node" if feed["role"] == "leading" else str(feed["leader"]) or "not known",
        ("-" if link == "none" else link, LINK_COLORS.get(link)),
        milliseconds(feed["round_trip"]),
        str(feed["links"]),
        f"{feed['changes']:,}",
    ]


def _missing(clients: Sequence[StatusJson], now: float, width: int | None) -> str:
    named = []
    for client in clients[:MISSING]:
        seen = client["last_seen"]
        when = "never since the start" if seen is None else f"last here {span(max(0.0, now - seen))} ago"
        named.append(f"{plain(str(client['client']))} ({when})")
    if len(clients) > MISSING:
        named.append(f"and {len(clients) - MISSING:,} more")
    return wrapped(f"Not connected: {', '.join(named)}", width)


def _event(event: StatusJson, style: Style, width: int | None) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    colour = Color.BAD if event["level"] == "error" else Color.WARNING
    fields = " ".join(f"{name}={value}" for name, value in event["fields"].items())
    level = plain(event["level"])
    text = wrapped(plain(f"{clock} {level} {event['event']} {fields}").replace("\n", " ").rstrip(), width)
    return text.replace(level, style.paint(level, colour), 1)


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
