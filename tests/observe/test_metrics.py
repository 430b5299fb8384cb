"""The metrics as Prometheus reads them; the dashboard and the alert rules use only existing metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from proxy.observe import metrics
from proxy.observe.snapshot import ClientPresence, Snapshot, Totals
from tests.snapshots import cluster, cluster_feed, feed, snapshot

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "config" / "grafana" / "alpaca-proxy.json"
ALERTS = ROOT / "config" / "prometheus" / "alerts.yml"

FUNCTIONS = {"rate", "increase", "sum", "min", "max", "time", "histogram_quantile"}
WORDS = {"by", "on", "and", "or", "unless", "le"}
TARGET_LABELS = {"instance", "job"}  # Prometheus adds these itself


def exposition(of: Snapshot) -> str:
    return b"".join(metrics.render(of)).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    by_name = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(by_name) == len(found)  # no duplicate series
    return by_name


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[f"alpaca_proxy_{name}", frozenset(labels.items())]


def test_values_of_a_snapshot() -> None:
    text = exposition(snapshot())
    iex, crypto = {"feed": "iex"}, {"feed": "crypto"}
    assert value(text, "ready") == 0
    assert value(text, "start_time_seconds") == 1_699_999_940.5
    assert (value(text, "feed_live", **iex), value(text, "feed_live", **crypto)) == (1, 0)
    assert value(text, "feed_wanted_topics", channel="trades", **iex) == 2
    assert value(text, "feed_acked_topics", **iex) == 3
    assert value(text, "feed_last_message_timestamp_seconds", **iex) == 1_700_000_000.25
    assert value(text, "client_sessions", client="alpha", feed="iex") == 2
    assert value(text, "client_pending_bytes", client="alpha", feed="iex") == 250
    assert value(text, "client_outbox_ratio", client="beta", feed="iex") == 0.9
    assert value(text, "client_lost_messages_total", client="beta", feed="iex", reason="slow") == 5


@pytest.mark.parametrize("count", ["unowned", "recovered"])
def test_counts_of_order_updates_are_those_of_the_trading_feed(count: str) -> None:
    text = exposition(snapshot(feeds=(feed(), feed("trading", **{count: 4}))))
    name = f"alpaca_proxy_order_updates_{count}_total"
    assert {key: number for key, number in samples(text).items() if key[0] == name} == {
        (name, frozenset([("feed", "trading")])): 4
    }


def test_the_last_reload() -> None:
    """As Prometheus' own metrics of these names: a start counts as a success; a failure keeps the last one's time."""
    start = 1_699_999_940.5
    text = exposition(snapshot())
    assert value(text, "config_last_reload_successful") == 1
    assert value(text, "config_last_reload_success_timestamp_seconds") == start
    failed = snapshot().reload.ended(start + 10, (), ("a problem",))
    text = exposition(snapshot(reload=failed))
    assert value(text, "config_last_reload_successful") == 0
    assert value(text, "config_last_reload_success_timestamp_seconds") == start
    text = exposition(snapshot(reload=failed.ended(start + 20, ("nothing changed",), ())))
    assert value(text, "config_last_reload_successful") == 1
    assert value(text, "config_last_reload_success_timestamp_seconds") == start + 20


def test_configured_clients_that_are_missing() -> None:
    text = exposition(snapshot())
    assert [value(text, "client_connected", client=name) for name in ("alpha", "gamma", "delta")] == [1, 0, 0]
    assert value(text, "client_last_seen_timestamp_seconds", client="gamma") == 1_699_999_990.25
    assert 'last_seen_timestamp_seconds{client="delta"}' not in text


def test_loss_series_exist_before_the_first_loss() -> None:
    """If a series appeared with its first loss, `increase` would miss that loss."""
    text = exposition(snapshot())
    for reason in metrics.REASONS:
        assert value(text, "client_lost_messages_total", client="alpha", feed="iex", reason=reason) == 0


def test_a_feed_without_messages_has_no_last_message_time() -> None:
    assert 'last_message_timestamp_seconds{feed="crypto"}' not in exposition(snapshot())


def test_the_same_feed_of_two_accounts() -> None:
    """Several configured accounts have the label `account`, even before each has a feed."""
    text = exposition(snapshot(accounts=2, feeds=(feed(), feed(account="spare", received=7))))
    assert value(text, "feed_messages_total", account="main", feed="iex") == 100
    assert value(text, "feed_messages_total", account="spare", feed="iex") == 7
    assert value(text, "feed_wanted_topics", account="spare", feed="iex", channel="trades") == 2


def test_the_cluster() -> None:
    text = exposition(snapshot())
    iex, crypto = {"feed": "iex"}, {"feed": "crypto"}
    assert (value(text, "cluster_redis_up"), value(text, "cluster_nodes")) == (1, 2)
    assert value(text, "cluster_refusals_total") == 3
    assert (value(text, "cluster_leading", **iex), value(text, "cluster_leading", **crypto)) == (0, 1)
    assert (value(text, "cluster_link_up", **iex), value(text, "cluster_link_up", **crypto)) == (1, 0)
    assert value(text, "cluster_link_round_trip_seconds", **iex) == 0.0004
    assert 'cluster_link_round_trip_seconds{feed="crypto"}' not in text
    assert value(text, "cluster_leader_changes_total", **iex) == 2
    assert value(text, "cluster_links", **crypto) == 1
    lost = cluster_feed(role="none", leader="", live=False, link="none", round_trip=None)
    mute = cluster_feed(account="spare", link="mute")
    text = exposition(snapshot(accounts=2, cluster=cluster(redis_problem="it is away", feeds=(lost, mute))))
    main, spare = {"account": "main", "feed": "iex"}, {"account": "spare", "feed": "iex"}
    assert value(text, "cluster_redis_up") == 0
    assert (value(text, "cluster_leader_known", **main), value(text, "cluster_leader_known", **spare)) == (0, 1)
    assert (value(text, "cluster_leader_live", **main), value(text, "cluster_leader_live", **spare)) == (0, 1)
    assert (value(text, "cluster_link_mute", **main), value(text, "cluster_link_mute", **spare)) == (0, 1)


def test_without_a_cluster_its_metrics_have_no_samples() -> None:
    text = exposition(snapshot(cluster=None))
    assert [name for name, _ in samples(text) if "cluster" in name] == []


def test_lag_histogram() -> None:
    text = exposition(snapshot())
    labels = {"feed": "iex"}
    assert value(text, "feed_lag_seconds_bucket", le="0.0025", **labels) == 0
    assert value(text, "feed_lag_seconds_bucket", le="0.005", **labels) == 1
    assert value(text, "feed_lag_seconds_bucket", le="+Inf", **labels) == 1
    assert value(text, "feed_lag_seconds_count", **labels) == 1
    assert value(text, "feed_lag_seconds_sum", **labels) == 0.003


class Registry(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


@given(st.dictionaries(st.tuples(st.text(min_size=1), st.text(min_size=1)), st.integers(0, 1 << 62), max_size=120))
def test_the_text_format_equals_that_of_the_client_library(delivered: dict[tuple[str, str], int]) -> None:
    """Names, labels with arbitrary text, and numbers equal those of `generate_latest`."""
    families = list(metrics.families(snapshot(sessions=(), totals={of: Totals(1, n) for of, n in delivered.items()})))
    ours = b"".join(metrics.written(families)).decode()
    lines = generate_latest(Registry(families)).decode().split("\n")
    heads = dict.fromkeys(line for line in lines if line.startswith("# "))
    assert [line for line in ours.split("\n") if line.startswith("# ")] == list(heads)
    # The library repeats the head for each part of a family.
    theirs = "\n".join([*heads, *(line for line in lines if line not in heads)])
    assert samples(ours) == samples(theirs)


def test_a_thousand_clients_are_rendered_in_small_pieces() -> None:
    totals = {(f"client-{number}", "iex"): Totals(1, number) for number in range(1000)}
    configured = tuple(ClientPresence(name, 0, 1_700_000_000.0) for name, _ in totals)
    pieces = list(metrics.render(snapshot(sessions=(), totals=totals, configured=configured)))
    assert max(map(len, pieces)) < 16_000
    assert value(b"".join(pieces).decode(), "client_messages_total", client="client-999", feed="iex") == 999


def test_names_follow_prometheus_conventions() -> None:
    """The rules of promtool's lint and of Prometheus' naming guide; promtool itself if it is installed."""
    text = exposition(snapshot())
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(metrics.PREFIX):
            assert family.name.startswith(("process_", "python_"))
            continue
        assert family.documentation.endswith("."), family.name
        assert re.fullmatch(r"[a-z_]+", family.name)
        assert not re.search(r"_(total|count|sum|bucket)$", family.name)
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|kib|mib|percent)(_|$)", family.name)
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name == f"{family.name}_total"
            assert set(sample.labels) <= {"feed", "channel", "client", "reason", "version", "le"}
    if promtool := shutil.which("promtool"):
        lint = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
        assert (lint.stdout + lint.stderr, lint.returncode) == ("", 0)


def test_process_metrics_are_included() -> None:
    names = {name for name, _ in samples(exposition(snapshot()))}
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= names


# The dashboard and the alert rules


def dashboard_expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def alert_expressions() -> list[str]:
    [group] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule["expr"] for rule in group["rules"]]


@pytest.mark.parametrize("expression", [*dashboard_expressions(), *alert_expressions()])
def test_expressions_use_existing_metrics_and_labels(expression: str) -> None:
    """Each name is an existing metric and each label one of its labels. web/test_prometheus.py evaluates it as well."""
    known: dict[str, set[str]] = {"up": set()}
    for name, labels in samples(exposition(snapshot(accounts=2))):
        known.setdefault(name, set()).update(label for label, _ in labels)
    used = re.findall(r"\b([a-z_]{2,})\b(?:\{([^}]*)\})?", re.sub(r'"[^"]*"|\$\w+', '""', without_groups(expression)))
    found = [(name, labels) for name, labels in used if name not in FUNCTIONS | WORDS | {"inf"}]
    assert [name for name, _ in found if name not in known and not name.endswith("_ratio_")] == []
    for name, labels in found:
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) <= known[name] | TARGET_LABELS
    all_labels = set().union(*known.values()) | TARGET_LABELS
    for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= all_labels


def without_groups(expression: str) -> str:
    return re.sub(r"\b(by|on)\s*\([^)]*\)", "", expression)


def test_the_dashboard_shows_every_metric_but_these() -> None:
    text = " ".join(dashboard_expressions())
    names = {name for name, _ in samples(exposition(snapshot())) if name.startswith(metrics.PREFIX)}
    unseen = {name for name in names if name not in text} - {"alpaca_proxy_feed_lag_seconds_sum"}
    assert unseen == {
        "alpaca_proxy_build_info",
        "alpaca_proxy_client_pending_bytes",
        "alpaca_proxy_feed_lag_seconds_count",
        "alpaca_proxy_outbox_limit_bytes",
    }


def test_the_panels_of_the_dashboard_have_no_gap_and_no_overlap() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)) == 24 * (1 + max(y for _, y in cells))


def test_every_alert_has_a_severity_a_summary_and_a_description() -> None:
    [group] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    for rule in group["rules"]:
        assert rule["alert"].startswith("AlpacaProxy")
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
    if promtool := shutil.which("promtool"):
        done = subprocess.run([promtool, "check", "rules", ALERTS], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
