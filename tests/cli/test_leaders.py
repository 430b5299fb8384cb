"""`check --online` in a cluster: whether Redis answers, and which node leads each feed."""

from __future__ import annotations

from pathlib import Path

from proxy.cluster.lease import Lease, account_hash, slot_of
from proxy.cluster.registry import Registry
from proxy.simulator import Simulator
from tests.cli.conftest import Call, Write
from tests.cluster.redis_server import RedisServer
from tests.ports import free_port

SECRET = "canary-of-the-cluster"
CONFIG = """\
accounts:
  main: {key: key, secret: secret, data_url: "URL", trading_url: "URL"}
clients:
  one: {key: one, secret: canary-1, allow: {trading: "*", iex: {trades: [AAPL]}, news: "*", crypto: "*"}}
cluster:
  redis: REDIS
  listen: 127.0.0.1:8767
  url: ws://127.0.0.1:8767
  secret: canary-of-the-cluster
"""


def configured(write: Write, alpaca: Simulator, redis: str) -> Path:
    return write(CONFIG.replace("URL", alpaca.url).replace("REDIS", redis))


def test_online_names_the_leader_of_each_feed(write: Write, call: Call) -> None:
    account = account_hash(SECRET.encode(), "key", "secret")
    slots = {feed: slot_of(account, feed) for feed in ("iex", "news")}
    with Simulator() as alpaca, RedisServer() as redis:
        registry = Registry(redis.url)
        registry.announce("n1", "{}")
        leases = {feed: Lease(f"n-{feed}", f"ws://10.0.0.1:{9000 + len(feed)}", feed == "iex", 7) for feed in slots}
        for feed, slot in slots.items():
            registry.exchange(slot, "", leases[feed].encode(SECRET.encode(), slot))
        found = call("check", "--online", "-c", configured(write, alpaca, redis.url))
        registry.close()
        assert not alpaca.opened("iex")  # the leader has the only slot
    assert found.code == 0, found.out
    lines = found.out.splitlines()
    begin = lines.index(f"cluster: Redis answers at {redis.url}; it has 1 node of alpaca-proxy now")
    assert lines[begin + 1 :][:5] == [
        "main/trading: no node leads it now",
        "main/iex: node n-iex at ws://10.0.0.1:9003 leads it, connected to Alpaca",
        "main/news: node n-news at ws://10.0.0.1:9004 leads it, not yet connected to Alpaca",
        "main/crypto: no node leads it now",
        "main: Alpaca has accepted the key and secret of the node that leads iex",
    ]
    assert "canary" not in found.out + found.err


def test_online_with_the_lease_of_another_secret(write: Write, call: Call) -> None:
    slot = slot_of(account_hash(SECRET.encode(), "key", "secret"), "iex")
    with Simulator() as alpaca, RedisServer() as redis:
        registry = Registry(redis.url)
        registry.exchange(slot, "", Lease("n1", "ws://10.0.0.1:1", True, 7).encode(b"another", slot))
        found = call("check", "--online", "-c", configured(write, alpaca, redis.url))
        registry.close()
    assert found.code == 1
    assert "main/iex: its lease is not signed with this cluster.secret; give all nodes the same secret" in found.out


def test_online_without_redis(write: Write, call: Call) -> None:
    """The log-ins are made all the same."""
    with Simulator() as alpaca:
        url = f"redis://:canary-9@127.0.0.1:{free_port()}"
        found = call("check", "--online", "-c", configured(write, alpaca, url))
    assert found.code == 1
    assert "main: Alpaca accepts the key and secret for iex" in found.out
    [line] = [line for line in found.out.splitlines() if line.startswith("cluster: ")]
    assert "Connection refused; check that it runs" in line
    assert "good" not in found.out
    assert "canary" not in found.out + found.err


def test_online_asks_redis_also_after_a_refused_login(write: Write, call: Call) -> None:
    with Simulator() as alpaca, RedisServer() as redis:
        alpaca.fail_auth("iex", 402)
        found = call("check", "--online", "-c", configured(write, alpaca, redis.url))
    assert found.code == 1
    assert f"cluster: Redis answers at {redis.url}; it has 0 nodes of alpaca-proxy now" in found.out
