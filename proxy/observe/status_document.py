"""/status.json: the snapshot as JSON, for the status page, the command `status` and other programs.

`version` is the version of this format: it increases when a key changes its meaning or is removed, not when one is
added. Times are seconds since 1970, durations are seconds, sizes are bytes; a number that is not known yet is null.

    version proxy pid pid_start state ready time started uptime delay strangers
    outboxes  {pending limit}
    reload    {count running time ok plan: [line] problems: [line]} of the last reload of the configuration file
    feeds     [{account feed phase since next_attempt trouble needed connects received unheard unowned recovered
                malformed outages away silences age rate wanted acked irregular: {REASON: messages} lag: {p50 p99}
                topics: {CHANNEL: wanted}}]
    clients   [{client feed connects delivered conflated rate outages lost: {REASON: messages}
                sessions: [{address account codec since topics holds shown: {CHANNEL: [SYMBOL]} pending limit
                            delivered conflated lost slow}]}]
    configured  [{client connected last_seen}] of every configured client
    recording   {folder newest last free min_free pending limit problem
                 feeds: [{feed active messages bytes dropped: {REASON: messages}}]}, or null if nothing is recorded
    cluster     {name url redis redis_problem refused nodes: [{name url version feeds}]
                 feeds: [{account feed role leader live token link round_trip links changes}]}, or null without one
    events    [{time level event fields: {NAME: text}}], the newest last
    history   {first delivered delay
               feeds: [{account feed received p50 p99}]
               clients: [{client feed delivered pending}]}: one number a second each

`pid` is the proxy's process id, `pid_start` that process's start in the kernel's clock ticks. `reload.count` counts the
reloads that have ended; `ok` tells whether the last one was applied. `plan` is what it changed, `problems` why it was
not applied; at most RELOAD_LINES of each.

`configured` has the clients that are not connected as well: `connected` is the number of sessions, over all feeds.
`last_seen` is when the client last had one: now, the end of the last one, or null if it had none since the start.

`unowned` counts the order updates that belong to no client, `recovered` those that were missed in an outage and read
from Alpaca's records afterwards; both are null on other feeds.

In `cluster`, `role` is leading, following or none, and `link` is none, waiting, working or mute. `leader` is the name
of a node, empty if it is not known, `live` whether that node is connected to Alpaca. `redis_problem` is empty while
Redis answers. `nodes` includes this one; `links` counts the nodes that follow it.

`next_attempt` is the number of seconds until the feed's next connection. `shown` is a selection of the session's
topics. `history.first` is the number of its first second; `pending` are the bytes in the client's fullest outbox.
`?since=NUMBER` limits the history to seconds after that number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from proxy.alpaca.codec import JSON
from proxy.alpaca.topics import words
from proxy.observe.history import client_columns, columns
from proxy.observe.snapshot import (
    ClientPresence,
    ClusterState,
    FeedState,
    Key,
    LogEvent,
    RecordingState,
    ReloadState,
    SessionState,
    Snapshot,
    Totals,
)
from proxy.observe.version import __version__

CONTENT_TYPE = "application/json; charset=utf-8"
VERSION = 1
RELOAD_LINES = 100  # of a reload's plan or problems; the log has them all
RELOAD_LINE = 500  # characters of one
CLIENTS_PER_PIECE = 200
SESSIONS_PER_PIECE = 20
SHOWN_TOPICS = 12  # of a session; of the others only their number is shown


def render(snapshot: Snapshot, since: int = 0) -> Iterator[bytes]:
    """The document, in pieces, so that the caller can yield between them."""
    head = {
        "version": VERSION,
        "proxy": __version__,
        "pid": snapshot.pid,
        "pid_start": snapshot.pid_start,
        "state": snapshot.state,
        "ready": snapshot.ready,
        "time": round(snapshot.time, 3),
        "started": round(snapshot.time - snapshot.uptime, 3),
        "uptime": round(snapshot.uptime, 3),
        "delay": round(snapshot.delay, 4),
        "strangers": snapshot.unauthenticated,
        "outboxes": {"pending": snapshot.outboxes, "limit": snapshot.outboxes_limit},
        "feeds": [_feed(feed, snapshot.received.get((feed.account, feed.feed), 0.0)) for feed in snapshot.feeds],
    }
    yield JSON.encode(head)[:-1]
    yield b',"reload":' + JSON.encode(_reload(snapshot.reload))
    yield b',"configured":['
    comma = b""
    for first in range(0, len(snapshot.configured), CLIENTS_PER_PIECE):
        piece = [_presence(client) for client in snapshot.configured[first : first + CLIENTS_PER_PIECE]]
        yield comma + JSON.encode(piece)[1:-1]
        comma = b","
    yield b"]"
    yield b',"recording":' + JSON.encode(_recording(snapshot.recording))
    yield b',"cluster":' + JSON.encode(_cluster(snapshot.cluster))
    yield b',"events":' + JSON.encode([_event(event) for event in snapshot.events])
    yield from _history(snapshot, since)
    yield b',"clients":['
    comma = b""
    sessions: dict[Key, list[SessionState]] = {key: [] for key in snapshot.totals}
    for session in snapshot.sessions:
        sessions[session.client, session.feed].append(session)
    for key, totals in sorted(snapshot.totals.items()):
        client = _client(key, totals, snapshot.delivered.get(key, 0.0))
        yield comma + JSON.encode(client)[:-1] + b',"sessions":['
        yield from _sessions(sessions[key])
        yield b"]}"
        comma = b","
    yield b"]}"


def _sessions(sessions: Sequence[SessionState]) -> Iterator[bytes]:
    for first in range(0, len(sessions), SESSIONS_PER_PIECE):
        part = [_session(session) for session in sessions[first : first + SESSIONS_PER_PIECE]]
        yield (b"," if first else b"") + JSON.encode(part)[1:-1]


def _feed(feed: FeedState, rate: float) -> dict[str, Any]:
    return {
        "account": feed.account,
        "feed": feed.feed,
        "phase": feed.phase,
        "since": round(feed.state_age, 3),
        "next_attempt": None if feed.next_attempt is None else round(feed.next_attempt, 1),
        "trouble": feed.last_error,
        "needed": feed.needed,
        "wanted": sum(feed.wanted.values()),
        "acked": feed.acked,
        "topics": feed.wanted,
        "connects": feed.connects,
        "received": feed.received,
        "unheard": feed.unrouted,
        "unowned": feed.unowned,
        "recovered": feed.recovered,
        "malformed": feed.malformed,
        "irregular": dict(feed.irregular),
        "outages": feed.outages,
        "away": round(feed.outage_seconds, 3),
        "silences": feed.silences,
        "age": None if feed.age is None else round(feed.age, 3),
        "rate": round(rate, 2),
        "lag": {"p50": _lag(feed.lag.p50), "p99": _lag(feed.lag.p99)},
    }


def _presence(client: ClientPresence) -> dict[str, Any]:
    last_seen = None if client.last_seen is None else round(client.last_seen, 3)
    return {"client": client.client, "connected": client.connected, "last_seen": last_seen}


def _client(key: Key, totals: Totals, rate: float) -> dict[str, Any]:
    client, feed = key
    return {
        "client": client,
        "feed": feed,
        "connects": totals.sessions,
        "delivered": totals.delivered,
        "conflated": totals.conflated,
        "lost": totals.lost,
        "outages": totals.outages,
        "rate": round(rate, 2),
    }


def _session(session: SessionState) -> dict[str, Any]:
    topics = len(session.held)
    selection = sorted(islice(session.held, SHOWN_TOPICS))  # an arbitrary one: sorting thousands takes time
    shown = words(selection)
    return {
        "address": session.address,
        "account": session.account,
        "codec": session.codec,
        "since": round(session.age, 1),
        "topics": topics,
        "holds": shown if topics <= SHOWN_TOPICS else f"{shown} and {topics - SHOWN_TOPICS:,} more",
        "shown": {channel: [symbol for _, symbol in group] for channel, group in groupby(selection, itemgetter(0))},
        "pending": session.pending,
        "limit": session.limit,
        "delivered": session.delivered,
        "conflated": session.conflated,
        "lost": session.lost,
        "slow": session.slow,
    }


def _reload(reload: ReloadState) -> dict[str, Any]:
    return {
        "count": reload.count,
        "running": reload.running,
        "time": None if reload.time is None else round(reload.time, 3),
        "ok": reload.ok,
        "plan": _lines(reload.plan),
        "problems": _lines(reload.problems),
    }


def _recording(recording: RecordingState | None) -> dict[str, Any] | None:
    if recording is None:
        return None
    return {
        "folder": recording.folder,
        "newest": recording.newest,
        "last": None if recording.last_at is None else round(recording.last_at, 3),
        "free": recording.free,
        "min_free": recording.min_free,
        "pending": recording.pending,
        "limit": recording.limit,
        "problem": recording.problem,
        "feeds": [
            {
                "feed": feed,
                "active": feed in recording.active,
                "messages": recording.messages.get(feed, 0),
                "bytes": recording.bytes.get(feed, 0),
                "dropped": {reason: count for (of, reason), count in recording.dropped.items() if of == feed and count},
            }
            for feed in recording.feeds
        ],
    }


def _cluster(cluster: ClusterState | None) -> dict[str, Any] | None:
    if cluster is None:
        return None
    return {
        "name": cluster.name,
        "url": cluster.url,
        "redis": cluster.redis,
        "redis_problem": cluster.redis_problem,
        "refused": cluster.refused,
        "nodes": [node._asdict() for node in cluster.nodes],
        "feeds": [
            {
                "account": feed.account,
                "feed": feed.feed,
                "role": feed.role,
                "leader": feed.leader,
                "live": feed.live,
                "token": feed.token,
                "link": feed.link,
                "round_trip": None if feed.round_trip is None else round(feed.round_trip, 6),
                "links": feed.links,
                "changes": feed.changes,
            }
            for feed in cluster.feeds
        ],
    }


def _lines(lines: Sequence[str]) -> list[str]:
    shown = [line if len(line) <= RELOAD_LINE else f"{line[:RELOAD_LINE]}…" for line in lines[:RELOAD_LINES]]
    more = len(lines) - len(shown)
    return [*shown, f"and {more:,} more, which are in the log"] if more else shown


def _event(event: LogEvent) -> dict[str, Any]:
    return {"time": round(event.time, 3), "level": event.level, "event": event.name, "fields": event.fields}


def _history(snapshot: Snapshot, since: int) -> Iterator[bytes]:
    """The history, in pieces: the first request of a page has five minutes of every client."""
    seconds = [second for second in snapshot.seconds if second.number > since]
    feeds = []
    for feed in snapshot.feeds:
        received, p50, p99 = columns(seconds, (feed.account, feed.feed))
        feeds.append(
            {
                "account": feed.account,
                "feed": feed.feed,
                "received": [round(rate, 1) for rate in received],
                "p50": [_lag(lag) for lag in p50],
                "p99": [_lag(lag) for lag in p99],
            }
        )
    head = {
        "first": seconds[0].number if seconds else since + 1,
        "feeds": feeds,
        "delivered": [round(second.delivered, 1) for second in seconds],
        "delay": [round(second.delay, 4) for second in seconds],
    }
    yield b',"history":' + JSON.encode(head)[:-1] + b',"clients":['
    comma = b""
    for key in sorted(snapshot.totals):
        delivered, pending = client_columns(seconds, key)
        rates = [round(rate, 1) for rate in delivered]
        yield comma + JSON.encode({"client": key[0], "feed": key[1], "delivered": rates, "pending": pending})
        comma = b","
    yield b"]}"


def _lag(lag: float | None) -> float | None:
    return None if lag is None else round(lag, 6)
