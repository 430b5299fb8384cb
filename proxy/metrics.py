"""Prometheus metrics, read from a snapshot at the time of the scrape: nothing is counted twice on the data path.

Names and units follow Prometheus' conventions. Labels are account, feed, channel, client and reason; never a symbol, of
which there are too many. The process itself is described by the client library's own collectors, under their own names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.snapshot import FeedState, Snapshot
from proxy.version import __version__

PREFIX = "alpaca_proxy_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REASONS = ("slow", "closed")  # of a loss; each is there from the beginning, so that its first rise is seen

Samples = Iterable[tuple[list[str], float]]
Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


def render(snapshot: Snapshot) -> Iterator[bytes]:
    """The exposition of one snapshot, a family at a time."""
    for family in (*_proxy(snapshot), *_feeds(snapshot), *_clients(snapshot), *_process()):
        yield generate_latest(_Family(family))


class _Family(Collector):
    """A registry of one family, as `generate_latest` wants it."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _proxy(snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge("build_info", "The running version.", ["version"], [([__version__], 1)])
    yield _gauge("start_time_seconds", "When it started.", [], [([], snapshot.time - snapshot.uptime)])
    yield _gauge("ready", "Whether every feed that somebody wants is live.", [], [([], snapshot.ready)])
    yield _gauge("outbox_bytes", "Bytes pending in all outboxes.", [], [([], snapshot.outboxes)])
    yield _gauge("outbox_limit_bytes", "Bytes that all outboxes may hold.", [], [([], snapshot.outboxes_limit)])
    yield _gauge("strangers", "Sockets whose client is not known yet.", [], [([], snapshot.strangers)])
    yield _gauge("delay_seconds", "The longest wait for a turn in the last minute.", [], [([], snapshot.delay)])


def _feeds(snapshot: Snapshot) -> Iterator[Metric]:
    labels = ["account", "feed"]

    def each(read: Callable[[FeedState], float]) -> Samples:
        return [([feed.account, feed.feed], read(feed)) for feed in snapshot.feeds]

    def by_channel(read: Callable[[FeedState], Iterable[tuple[str, int]]]) -> Samples:
        return [([f.account, f.feed, channel], count) for f in snapshot.feeds for channel, count in read(f)]

    channels = [*labels, "channel"]
    yield _gauge("feed_live", "Whether the upstream connection is live.", labels, each(lambda f: f.phase == "live"))
    yield _gauge("feed_needed", "Whether somebody wants the feed.", labels, each(lambda f: f.needed))
    yield _gauge(
        "feed_wanted_topics", "Topics that sessions asked for.", channels, by_channel(lambda f: f.wanted.items())
    )
    yield _gauge(
        "feed_acked_topics", "Topics that Alpaca confirmed.", channels, by_channel(lambda f: f.acked.items())
    )
    yield _counter("feed_connects", "Upstream connections that became live.", labels, each(lambda f: f.connects))
    yield _counter("feed_messages", "Messages received from Alpaca.", labels, each(lambda f: f.received))
    yield _counter("feed_unheard_messages", "Of them, those nobody wanted.", labels, each(lambda f: f.unheard))
    yield _counter("feed_malformed_frames", "Frames that could not be read.", labels, each(lambda f: f.malformed))
    ages = [([f.account, f.feed], snapshot.time - f.age) for f in snapshot.feeds if f.age is not None]
    yield _gauge("feed_last_message_timestamp_seconds", "When the last message came.", labels, ages)
    lag = HistogramMetricFamily(
        f"{PREFIX}feed_lag_seconds", "Receive time minus message time, of sampled messages.", labels=labels
    )
    for feed in snapshot.feeds:
        buckets = [(floatToGoString(bound), float(count)) for bound, count in feed.lag.samples]
        lag.add_metric([feed.account, feed.feed], buckets, feed.lag.sum)
    yield lag


def _clients(snapshot: Snapshot) -> Iterator[Metric]:
    labels = ["client", "feed"]
    open_sessions = dict.fromkeys(snapshot.totals, 0)
    pending = dict.fromkeys(snapshot.totals, 0)
    fullest = dict.fromkeys(snapshot.totals, 0.0)
    for session in snapshot.sessions:
        of = session.client, session.feed
        open_sessions[of] += 1
        pending[of] += session.pending
        fullest[of] = max(fullest[of], session.pending / session.limit)
    totals = snapshot.totals.items()
    yield _gauge("client_sessions", "Open sessions.", labels, [([*of], n) for of, n in open_sessions.items()])
    yield _gauge("client_pending_bytes", "Bytes pending.", labels, [([*of], n) for of, n in pending.items()])
    yield _gauge(
        "client_outbox_ratio",
        "How full the fullest outbox is: at 1 its session is slow.",
        labels,
        [([*of], share) for of, share in fullest.items()],
    )
    yield _counter("client_connects", "Sessions that authenticated.", labels, [([*of], t.sessions) for of, t in totals])
    yield _counter("client_messages", "Messages delivered.", labels, [([*of], t.delivered) for of, t in totals])
    yield _counter(
        "client_conflated_messages", "Left out for newer.", labels, [([*of], t.conflated) for of, t in totals]
    )
    lost = [
        ([*of, reason], t.lost.get(reason, 0)) for of, t in totals for reason in dict.fromkeys((*REASONS, *t.lost))
    ]
    yield _counter("client_lost_messages", "Messages lost, and why.", [*labels, "reason"], lost)


def _process() -> Iterator[Metric]:
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        yield from collector.collect()


def _gauge(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), samples)


def _counter(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), samples)


def _filled(family: Family, samples: Samples) -> Family:
    for labels, value in samples:
        family.add_metric(labels, float(value))
    return family
