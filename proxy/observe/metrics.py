"""Prometheus metrics, read from a snapshot at the time of the scrape: nothing is counted twice on the data path.

Names and units follow Prometheus' conventions. Labels are feed, channel, client and reason, and `account` where several
are configured; never a symbol, of which there are too many. The process itself is described by the client library's own
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

from proxy.observe.snapshot import FeedState, Key, Snapshot
from proxy.observe.version import __version__

PREFIX = "alpaca_proxy_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TOGETHER = 50  # clients in one part of a metric
REASONS = ("slow", "closed")  # of a loss; each is there from the beginning, so that its first rise is seen
_REASONS = dict.fromkeys(REASONS)

Samples = Iterable[tuple[list[str], float]]
Make = Callable[[str, str, list[str], Samples], Metric]
Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


def render(snapshot: Snapshot) -> Iterator[bytes]:
    """The exposition of one snapshot, in pieces, so that whoever has others waiting can let them have their turn."""
    return written(families(snapshot))


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Every metric, one after the other; one with many samples in several parts."""
    yield from _proxy(snapshot)
    yield from _feeds(snapshot)
    yield from _clients(snapshot)
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        yield from collector.collect()


def written(families: Iterable[Metric]) -> Iterator[bytes]:
    """Metrics in the text format 0.0.4. `prometheus_client.generate_latest` writes the same, in one long step."""
    name = ""
    for family in families:
        if family.name != name:
            yield _head(family)
            name = family.name
        yield "".join(map(_connection_, family.samples)).encode()


def _head(family: Metric) -> bytes:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f"# HELP {name} {_escaped(family.documentation)}\n# TYPE {name} {family.type}\n".encode()


def _connection_(sample: Sample) -> str:
    labels = ",".join([f'{name}="{_escaped(value)}"' for name, value in sample.labels.items()])
    return f"{sample.name}{{{labels}}} {sample.value!r}\n" if labels else f"{sample.name} {sample.value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _proxy(snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge("build_info", "The running version.", ["version"], [([__version__], 1)])
    yield _gauge("start_time_seconds", "When it started.", [], [([], snapshot.time - snapshot.uptime)])
    yield _gauge("ready", "Whether every feed that somebody wants is live.", [], [([], snapshot.ready)])
    yield _gauge("outbox_bytes", "Bytes pending in all outboxes.", [], [([], snapshot.outboxes)])
    yield _gauge("outbox_limit_bytes", "Bytes that all outboxes may hold.", [], [([], snapshot.outboxes_limit)])
    yield _gauge(
        "unauthenticated_connections", "Sockets whose client is not known yet.", [], [([], snapshot.unauthenticated)]
    )
    yield _gauge("delay_seconds", "The longest wait for a turn in the last minute.", [], [([], snapshot.delay)])


def _feeds(snapshot: Snapshot) -> Iterator[Metric]:
    several = snapshot.accounts > 1
    labels = ["account", "feed"] if several else ["feed"]

    def names(feed: FeedState) -> list[str]:
        return [feed.account, feed.feed] if several else [feed.feed]

    def each(read: Callable[[FeedState], float]) -> Samples:
        return [(names(feed), read(feed)) for feed in snapshot.feeds]

    wanted = [([*names(f), channel], count) for f in snapshot.feeds for channel, count in f.wanted.items()]
    yield _gauge("feed_live", "Whether the upstream connection is live.", labels, each(lambda f: f.phase == "live"))
    yield _gauge("feed_needed", "Whether somebody wants the feed.", labels, each(lambda f: f.needed))
    yield _gauge("feed_wanted_topics", "Topics that sessions asked for.", [*labels, "channel"], wanted)
    yield _gauge("feed_acked_topics", "Topics that Alpaca confirmed.", labels, each(lambda f: f.acked))
    yield _counter("feed_connects", "Upstream connections that became live.", labels, each(lambda f: f.connects))
    yield _counter("feed_messages", "Messages received from Alpaca.", labels, each(lambda f: f.received))
    yield _counter(
        "feed_unrouted_messages", "Of them, those that no session holds.", labels, each(lambda f: f.unrouted)
    )
    yield _counter("feed_malformed_frames", "Frames that could not be read.", labels, each(lambda f: f.malformed))
    yield _counter("feed_outages", "Times that a needed feed was lost.", labels, each(lambda f: f.outages))
    yield _counter("feed_outage_seconds", "Time until it was live again.", labels, each(lambda f: f.outage_seconds))
    ages = [(names(f), snapshot.time - f.age) for f in snapshot.feeds if f.age is not None]
    yield _gauge("feed_last_message_timestamp_seconds", "When the last message came.", labels, ages)
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
        of = session.client, session.feed
        sessions[of] += 1
        pending[of] += session.pending
        fullest[of] = max(fullest[of], session.pending / session.limit)

    def each(make: Make, name: str, text: str, read: Callable[[Key], float]) -> Iterator[Metric]:
        for part in _parts(totals):
            yield make(f"client_{name}", text, ["client", "feed"], [([*of], read(of)) for of in part])

    yield from each(_gauge, "sessions", "Open sessions.", sessions.__getitem__)
    yield from each(_gauge, "pending_bytes", "Bytes pending.", pending.__getitem__)
    yield from each(
        _gauge, "outbox_ratio", "How full the fullest outbox is: at 1 its session is slow.", fullest.__getitem__
    )
    yield from each(_counter, "connects", "Sessions that authenticated.", lambda of: totals[of].sessions)
    yield from each(_counter, "messages", "Messages delivered.", lambda of: totals[of].delivered)
    yield from each(_counter, "conflated_messages", "Left out for newer.", lambda of: totals[of].conflated)
    yield from each(_counter, "outages", "Outages of the feed while it had sessions.", lambda of: totals[of].outages)
    for part in _parts(totals):
        lost = [([*of, why], totals[of].lost.get(why, 0)) for of in part for why in {**_REASONS, **totals[of].lost}]
        yield _counter("client_lost_messages", "Messages lost, and why.", ["client", "feed", "reason"], lost)


def _parts(keys: Iterable[Key]) -> Iterator[list[Key]]:
    """So few clients at a time that their samples take no more than a moment."""
    rest = iter(keys)
    while part := [*islice(rest, TOGETHER)]:
        yield part


def _gauge(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), samples)


def _counter(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), samples)


def _filled(family: Family, samples: Samples) -> Family:
    for labels, value in samples:
        family.add_metric(labels, float(value))
    return family
