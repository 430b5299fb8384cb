"""Prometheus metrics, rendered from a snapshot at each scrape, so the data path keeps no second set of counters.

Names and units follow Prometheus' conventions. Labels are feed, channel, client and reason, and `account` if several
are configured; never a symbol, whose number is unbounded. Process metrics come from the client library's own
collectors, under their own names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import inf
from typing import TypeVar

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.samples import Sample

from proxy.observe.snapshot import ClusterFeed, ClusterState, FeedState, Key, RecordingState, Snapshot
from proxy.observe.version import __version__

PREFIX = "alpaca_proxy_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CLIENTS_PER_PART = 50  # of a metric
REASONS = ("slow", "closed")  # of a loss; each series exists from the start, so that `increase` sees its first rise
_REASONS = dict.fromkeys(REASONS)

Samples = Iterable[tuple[list[str], float]]
Make = Callable[[str, str, list[str], Samples], Metric]
Item = TypeVar("Item")
Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


def render(snapshot: Snapshot) -> Iterator[bytes]:
    """The exposition of one snapshot, in pieces, so that the caller can yield between them."""
    return written(families(snapshot))


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield every metric; a metric with many samples comes in several parts."""
    yield from _proxy(snapshot)
    yield from _feeds(snapshot)
    yield from _clients(snapshot)
    yield from _refusals(snapshot)
    yield from _recording(snapshot.recording)
    yield from _cluster(snapshot.cluster, snapshot.accounts > 1)
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        yield from collector.collect()


def written(families: Iterable[Metric]) -> Iterator[bytes]:
    """Yield metrics in the text format 0.0.4. `prometheus_client.generate_latest` does the same, without pieces."""
    name = ""
    for family in families:
        if family.name != name:
            yield _head(family)
            name = family.name
        yield "".join(map(_sample_line, family.samples)).encode()


def _head(family: Metric) -> bytes:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f"# HELP {name} {_escaped(family.documentation)}\n# TYPE {name} {family.type}\n".encode()


def _sample_line(sample: Sample) -> str:
    labels = ",".join([f'{name}="{_escaped(value)}"' for name, value in sample.labels.items()])
    return f"{sample.name}{{{labels}}} {sample.value!r}\n" if labels else f"{sample.name} {sample.value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _proxy(snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge("build_info", "The running version.", ["version"], [([__version__], 1)])
    yield _gauge("start_time_seconds", "Unix time of the start.", [], [([], snapshot.time - snapshot.uptime)])
    yield _gauge("ready", "Whether every needed feed is live.", [], [([], snapshot.ready)])
    reload = snapshot.reload
    yield _gauge(
        "config_last_reload_successful",
        "Whether the last reload of the configuration was applied; 1 before the first.",
        [],
        [([], reload.ok)],
    )
    yield _gauge(
        "config_last_reload_success_timestamp_seconds",
        "Unix time at which a configuration was last applied; at first that of the start.",
        [],
        [([], reload.applied_at)],
    )
    yield _gauge("outbox_bytes", "Bytes pending in all outboxes.", [], [([], snapshot.outboxes)])
    yield _gauge("outbox_limit_bytes", "Bytes that all outboxes may hold.", [], [([], snapshot.outboxes_limit)])
    yield _gauge(
        "unauthenticated_connections",
        "Client connections that have not authenticated yet.",
        [],
        [([], snapshot.unauthenticated)],
    )
    yield _gauge("delay_seconds", "Longest delay of the event loop in the last minute.", [], [([], snapshot.delay)])


def _feeds(snapshot: Snapshot) -> Iterator[Metric]:
    several = snapshot.accounts > 1
    labels = ["account", "feed"] if several else ["feed"]

    def names(feed: FeedState) -> list[str]:
        return [feed.account, feed.feed] if several else [feed.feed]

    def each(read: Callable[[FeedState], float]) -> Samples:
        return [(names(feed), read(feed)) for feed in snapshot.feeds]

    wanted = [([*names(f), channel], count) for f in snapshot.feeds for channel, count in f.wanted.items()]
    yield _gauge("feed_live", "Whether the upstream connection is live.", labels, each(lambda f: f.phase == "live"))
    yield _gauge("feed_needed", "Whether any session needs the feed.", labels, each(lambda f: f.needed))
    yield _gauge("feed_wanted_topics", "Topics that sessions subscribed to.", [*labels, "channel"], wanted)
    yield _gauge("feed_acked_topics", "Topics that Alpaca confirmed.", labels, each(lambda f: f.acked))
    yield _counter("feed_connects", "Upstream connections that became live.", labels, each(lambda f: f.connects))
    yield _counter("feed_messages", "Messages received from Alpaca.", labels, each(lambda f: f.received))
    yield _counter(
        "feed_unrouted_messages", "Messages for which no session had subscribed.", labels, each(lambda f: f.unrouted)
    )
    yield _counter("feed_malformed_frames", "Frames that could not be decoded.", labels, each(lambda f: f.malformed))
    irregular = [([*names(f), reason], count) for f in snapshot.feeds for reason, count in f.irregular.items()]
    text = "Messages that could not be passed on as they came."
    yield _counter("feed_irregular_messages", text, [*labels, "reason"], irregular)
    unowned = [(names(f), f.unowned) for f in snapshot.feeds if f.unowned is not None]
    text = "Order updates that belong to no client, seen with `*` alone."
    yield _counter("order_updates_unowned", text, labels, unowned)
    recovered = [(names(f), f.recovered) for f in snapshot.feeds if f.recovered is not None]
    text = "Order updates that were missed in an outage, and sent afterwards from Alpaca's records."
    yield _counter("order_updates_recovered", text, labels, recovered)
    yield _counter("feed_outages", "Outages of the feed while it was needed.", labels, each(lambda f: f.outages))
    yield _counter(
        "feed_silences",
        "Times that it was connected anew since it had fallen silent.",
        labels,
        each(lambda f: f.silences),
    )
    yield _counter("feed_outage_seconds", "Total time of its outages.", labels, each(lambda f: f.outage_seconds))
    ages = [(names(f), snapshot.time - f.age) for f in snapshot.feeds if f.age is not None]
    yield _gauge("feed_last_message_timestamp_seconds", "Unix time of the last message.", labels, ages)
    lag = HistogramMetricFamily(
        f"{PREFIX}feed_lag_seconds", "Receive time minus message time, of sampled messages.", labels=labels
    )
    for feed in snapshot.feeds:
        buckets = [("+Inf" if bound == inf else str(bound), float(count)) for bound, count in feed.lag.samples]
        lag.add_metric(names(feed), buckets, feed.lag.sum)
    yield lag


def _clients(snapshot: Snapshot) -> Iterator[Metric]:
    totals = snapshot.totals
    sessions, pending = dict.fromkeys(totals, 0), dict.fromkeys(totals, 0)
    fullest = dict.fromkeys(totals, 0.0)
    for session in snapshot.sessions:
        key = session.client, session.feed
        sessions[key] += 1
        pending[key] += session.pending
        fullest[key] = max(fullest[key], session.pending / session.limit)

    def each(make: Make, name: str, text: str, read: Callable[[Key], float]) -> Iterator[Metric]:
        for part in _parts(totals):
            yield make(f"client_{name}", text, ["client", "feed"], [([*key], read(key)) for key in part])

    yield from each(_gauge, "sessions", "Open sessions.", sessions.__getitem__)
    yield from each(_gauge, "pending_bytes", "Bytes pending in the client's outboxes.", pending.__getitem__)
    yield from each(
        _gauge, "outbox_ratio", "Fill of the fullest outbox; at 1 its session is slow.", fullest.__getitem__
    )
    yield from each(_counter, "connects", "Sessions that authenticated.", lambda key: totals[key].sessions)
    yield from each(_counter, "messages", "Messages delivered.", lambda key: totals[key].delivered)
    yield from each(
        _counter, "conflated_messages", "Messages replaced by newer ones.", lambda key: totals[key].conflated
    )
    yield from each(_counter, "outages", "Outages of the feed while it had sessions.", lambda key: totals[key].outages)
    for some in _parts(snapshot.configured):
        connected = [([one.client], float(one.connected > 0)) for one in some]
        yield _gauge("client_connected", "Whether a configured client has any session.", ["client"], connected)
    for some in _parts(snapshot.configured):
        seen = [([one.client], one.last_seen) for one in some if one.last_seen is not None]
        text = "Unix time at which a configured client last had a session."
        yield _gauge("client_last_seen_timestamp_seconds", text, ["client"], seen)
    for part in _parts(totals):
        lost = [
            ([*key, reason], totals[key].lost.get(reason, 0))
            for key in part
            for reason in {**_REASONS, **totals[key].lost}
        ]
        yield _counter("client_lost_messages", "Messages lost, by reason.", ["client", "feed", "reason"], lost)


def _refusals(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield the counts of what was refused; client and feed are empty where they are not known."""
    for name, text, counts in (
        ("refusals", "Log-ins and HTTP requests that were refused.", snapshot.refused),
        ("requests_refused", "Requests of sessions that were refused.", snapshot.refused_requests),
    ):
        for part in [*_parts(counts)] or [[]]:  # an empty metric is described all the same
            yield _counter(name, text, ["client", "feed", "reason"], [([*key], counts[key]) for key in part])


def _recording(recording: RecordingState | None) -> Iterator[Metric]:
    """Yield the metrics of the recording; without one they have no samples."""
    states = [] if recording is None else [recording]

    def each(read: Callable[[RecordingState, str], float]) -> Samples:
        return [([feed], read(state, feed)) for state in states for feed in state.feeds]

    active = each(lambda state, feed: feed in state.active)
    yield _gauge("recording_active", "Whether this proxy records the feed, and not another node.", ["feed"], active)
    messages = each(lambda state, feed: state.messages.get(feed, 0))
    yield _counter("recording_messages", "Messages written to files.", ["feed"], messages)
    sizes = each(lambda state, feed: state.bytes.get(feed, 0))
    yield _counter("recording_bytes", "Bytes written to files, compressed.", ["feed"], sizes)
    dropped = [([*key], count) for state in states for key, count in state.dropped.items()]
    text = "Messages that were not recorded, by reason."
    yield _counter("recording_dropped_messages", text, ["feed", "reason"], dropped)
    failing: Samples = [([], float(bool(state.problem))) for state in states]
    yield _gauge("recording_failing", "Whether nothing can be written now.", [], failing)
    yield _gauge("recording_pending_bytes", "Bytes that wait for the disk.", [], [([], s.pending) for s in states])
    free: Samples = [([], state.free) for state in states if state.free is not None]
    yield _gauge("recording_free_bytes", "Free space of the disk.", [], free)
    last: Samples = [([], state.last_at) for state in states if state.last_at is not None]
    yield _gauge("recording_last_write_timestamp_seconds", "Unix time of the last write.", [], last)


def _cluster(cluster: ClusterState | None, several: bool) -> Iterator[Metric]:
    """Yield the metrics of the cluster; without one they have no samples."""
    states = [] if cluster is None else [cluster]
    feeds = [feed for state in states for feed in state.feeds]
    labels = ["account", "feed"] if several else ["feed"]

    def names(feed: ClusterFeed) -> list[str]:
        return [feed.account, feed.feed] if several else [feed.feed]

    def each(read: Callable[[ClusterFeed], float]) -> Samples:
        return [(names(feed), read(feed)) for feed in feeds]

    up: Samples = [([], not state.redis_problem) for state in states]
    yield _gauge("cluster_redis_up", "Whether Redis can be used.", [], up)
    yield _gauge("cluster_nodes", "Nodes that Redis knows.", [], [([], len(state.nodes)) for state in states])
    text = "Log-ins of other nodes that were refused."
    yield _counter("cluster_refusals", text, [], [([], state.refused) for state in states])
    yield _gauge("cluster_leading", "Whether this node leads the feed.", labels, each(lambda f: f.role == "leading"))
    text = "Whether it is known which node leads the feed."
    yield _gauge("cluster_leader_known", text, labels, each(lambda f: bool(f.leader)))
    text = "Whether the node that leads the feed is connected to Alpaca."
    yield _gauge("cluster_leader_live", text, labels, each(lambda f: f.live))
    yield _counter("cluster_leader_changes", "Changes of the feed's leader.", labels, each(lambda f: f.changes))
    text = "Whether the link to the leader brings the feed."
    yield _gauge("cluster_link_up", text, labels, each(lambda f: f.link == "working"))
    text = "Whether the link to the leader is open, but nothing comes."
    yield _gauge("cluster_link_mute", text, labels, each(lambda f: f.link == "mute"))
    trips = [(names(feed), feed.round_trip) for feed in feeds if feed.round_trip is not None]
    text = "Time of the last ping to the leader and back."
    yield _gauge("cluster_link_round_trip_seconds", text, labels, trips)
    yield _gauge("cluster_links", "Nodes that follow this one.", labels, each(lambda f: f.links))


def _parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in parts small enough that the samples of one take little time."""
    rest = iter(items)
    while part := [*islice(rest, CLIENTS_PER_PART)]:
        yield part


def _gauge(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), samples)


def _counter(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), samples)


def _filled(family: Family, samples: Samples) -> Family:
    for labels, value in samples:
        family.add_metric(labels, float(value))
    return family
