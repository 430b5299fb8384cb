"""Prometheus metrics, read from a snapshot at the time of the scrape: nothing is counted twice on the data path.

Labels are feed, account, client and reason; never a symbol, of which there are too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.snapshot import Snapshot
from proxy.version import __version__

PREFIX = "alpaca_proxy_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(snapshot: Snapshot) -> bytes:
    """The exposition of one snapshot."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(lambda: snapshot))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take

    def collect(self) -> Iterator[Metric]:
        snapshot = self._take()
        yield _gauge("info", "The running version.", ["version"], [([__version__], 1)])
        yield _gauge("uptime_seconds", "Seconds since the start.", [], [([], snapshot.uptime)])
        yield _gauge("outbox_bytes", "Bytes pending in all outboxes.", [], [([], snapshot.outboxes)])
        yield _gauge("strangers", "Sockets whose client is not known yet.", [], [([], snapshot.strangers)])
        yield from _feeds(snapshot)
        yield from _clients(snapshot)


def _feeds(snapshot: Snapshot) -> Iterator[Metric]:
    def each(read: Callable[..., float]) -> list[tuple[list[str], float]]:
        return [([feed.account, feed.feed], read(feed)) for feed in snapshot.feeds]

    labels = ["account", "feed"]
    yield _gauge("feed_live", "Whether the upstream connection is live.", labels, each(lambda f: f.phase == "live"))
    yield _gauge("feed_needed", "Whether somebody wants the feed.", labels, each(lambda f: f.needed))
    yield _gauge("feed_wanted_topics", "Topics that sessions asked for.", labels, each(lambda f: f.wanted))
    yield _gauge("feed_acked_topics", "Topics that Alpaca confirmed.", labels, each(lambda f: f.acked))
    yield _counter("feed_connects", "Upstream connections that became live.", labels, each(lambda f: f.connects))
    yield _counter("feed_messages", "Messages received from Alpaca.", labels, each(lambda f: f.received))
    yield _counter("feed_unheard_messages", "Of them, those nobody wanted.", labels, each(lambda f: f.unheard))
    yield _counter("feed_malformed_frames", "Frames that could not be read.", labels, each(lambda f: f.malformed))


def _clients(snapshot: Snapshot) -> Iterator[Metric]:
    labels = ["client", "feed"]
    open_sessions = dict.fromkeys(snapshot.totals, 0)
    pending = dict.fromkeys(snapshot.totals, 0)
    for session in snapshot.sessions:
        open_sessions[session.client, session.feed] += 1
        pending[session.client, session.feed] += session.pending
    totals = snapshot.totals.items()
    yield _gauge("client_sessions", "Open sessions.", labels, [([*of], n) for of, n in open_sessions.items()])
    yield _gauge("client_pending_bytes", "Bytes pending.", labels, [([*of], n) for of, n in pending.items()])
    yield _counter("client_connects", "Sessions that authenticated.", labels, [([*of], t.sessions) for of, t in totals])
    yield _counter("client_messages", "Messages delivered.", labels, [([*of], t.delivered) for of, t in totals])
    yield _counter(
        "client_conflated_messages", "Left out for newer.", labels, [([*of], t.conflated) for of, t in totals]
    )
    lost = [([*of, reason], count) for of, t in totals for reason, count in t.lost.items()]
    yield _counter("client_lost_messages", "Messages lost, and why.", [*labels, "reason"], lost)


def _gauge(name: str, text: str, labels: list[str], samples: Sequence[tuple[list[str], float]]) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), samples)


def _counter(name: str, text: str, labels: list[str], samples: Sequence[tuple[list[str], float]]) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), samples)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, samples: Sequence[tuple[list[str], float]]
) -> GaugeMetricFamily | CounterMetricFamily:
    for labels, value in samples:
        family.add_metric(labels, float(value))
    return family
