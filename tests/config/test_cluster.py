"""The section `cluster`: its values, its problems one by one, its warnings, and its secrets."""

from __future__ import annotations

import json
import socket
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import certificates, cluster, model
from proxy.config.cluster import Address, RedisUrl
from proxy.config.errors import ConfigError
from proxy.config.model import Cluster, Config
from proxy.config.values import Unsuitable

DATA = Path(__file__).parent / "data"
BASE = """\
accounts: {paper: {key: PKAAAABBBB1111, secret: "${X}"}}
clients: {momentum: {key: momentum, secret: "${X}"}}
"""
GOOD = {
    "redis": "redis://127.0.0.1:6379/0",
    "listen": "127.0.0.1:8767",
    "url": "ws://127.0.0.1:8767",
    "secret": "0123456789abcdef",
}
TLS = {"cert": "server.crt", "key": "server.key"}
SECURE = {"url": "wss://10.0.0.1:8767", "tls": TLS}


def configured(settings: dict[str, Any], more: str = "", environ: dict[str, str] | None = None) -> Config:
    text = f"{BASE}{more}\ncluster: {json.dumps({**GOOD, **settings})}\n"
    return model.parse(text, "proxy.yaml", {"X": "0123456789abcdef", **(environ or {})}, DATA)


def parsed(settings: dict[str, Any], **options: Any) -> Cluster:
    found = configured(settings, **options).cluster
    assert found is not None
    return found


def problems(settings: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configured(settings, **options)
    assert all(problem.line == 4 and problem.column > 1 for problem in caught.value.problems)
    return [f"{problem.path}: {problem.reason}" for problem in caught.value.problems]


def warnings(settings: dict[str, Any], tmp_path: Path, environ: dict[str, str] | None = None) -> list[str]:
    path = tmp_path / "proxy.yaml"  # does not exist, so its mode is not warned of
    return [line.removeprefix(f"{path}: ") for line in model.warnings(configured(settings, environ=environ), path)]


def test_all_values() -> None:
    found = parsed({**SECURE, "ca": "server.crt", "name": "desk_2", "listen": "[::]:0"})
    assert found.redis.reveal() == found.redis.shown == "redis://127.0.0.1:6379/0"
    assert (found.listen.host, found.listen.port, str(found.listen)) == ("::", 0, "[::]:0")
    assert (found.url, found.secret.reveal(), found.name) == ("wss://10.0.0.1:8767", "0123456789abcdef", "desk_2")
    assert found.tls is not None
    assert (found.tls.cert, found.tls.key, found.ca) == (DATA / "server.crt", DATA / "server.key", DATA / "server.crt")


def test_defaults() -> None:
    found = parsed({})
    assert (found.tls, found.ca, found.name) == (None, None, "alpaca-proxy")
    assert found.listen == Address("127.0.0.1", 8767)
    for text in (BASE, f"{BASE}cluster:\n"):
        config = model.parse(text, "proxy.yaml", {"X": "x"}, DATA)
        assert (config.cluster, config.listen.reuse_port) == (None, False)


@pytest.mark.parametrize(
    ("url", "shown", "hosts"),
    [
        ("redis://localhost", "redis://localhost", ("localhost",)),
        ("redis://[::1]:6379/", "redis://[::1]:6379/", ("[::1]",)),
        ("rediss://pw-hidden@10.0.0.9/0", "rediss://10.0.0.9/0", ("10.0.0.9",)),
        ("rediss://:pw-hidden@redis.example:6380/15", "rediss://redis.example:6380/15", ("redis.example",)),
        ("rediss://me-hidden:pw%2Fhidden@10.0.0.9:6379", "rediss://10.0.0.9:6379", ("10.0.0.9",)),
        ("unix:///run/redis/redis.sock", "unix:///run/redis/redis.sock", ()),
        ("unix://me:hidden@/run/redis.sock?db=3", "unix:///run/redis.sock?db=3", ()),
        (
            "redis+sentinel://me:hidden@10.0.0.7:26379,10.0.0.8:26379/main/2",
            "redis+sentinel://10.0.0.7:26379,10.0.0.8:26379/main/2",
            ("10.0.0.7", "10.0.0.8"),
        ),
        ("redis+sentinel://s:26379/main", "redis+sentinel://s:26379/main", ("s",)),
    ],
)
def test_urls_of_redis(url: str, shown: str, hosts: tuple[str, ...]) -> None:
    found = parsed({"redis": url}).redis
    assert (found.reveal(), found.shown) == (url, shown)
    assert tuple(host.strip("[]") for host in hosts) == tuple(host.strip("[]") for host in found.hosts)
    assert found.has_password is (":" in url.rpartition("@")[0].partition("://")[2])
    assert "hidden" not in f"{found} {found!r}"


BEGIN = "should begin with redis://, rediss://, unix:// or redis+sentinel://"
ENCODE = "is not a URL; signs of the password have to be percent-encoded: @ as %40, / as %2F, # as %23"
FORM = "should be {}, with USER:PASSWORD@ before it if Redis asks for them"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("hidden", BEGIN),
        ("http://me:hidden@host", BEGIN),
        ("Redis://me:hidden@host", BEGIN),
        ("redis://me:hid@den@host/0", ENCODE),
        ("redis://me:hid#den@host/0", ENCODE),
        ("redis://me:hid den@host/0", ENCODE),
        ("redis://me:hid/den@host/0", ENCODE),
        ("redis://me:hidden@", FORM.format("redis://HOST:PORT/DATABASE")),
        ("redis://me:hidden@host:0", FORM.format("redis://HOST:PORT/DATABASE")),
        ("redis://me:hidden@host:65536", FORM.format("redis://HOST:PORT/DATABASE")),
        ("redis://me:hidden@one:1,two:2/0", FORM.format("redis://HOST:PORT/DATABASE")),
        ("rediss://me:hidden@host/x", FORM.format("rediss://HOST:PORT/DATABASE")),
        ("rediss://me:hidden@host/0?ssl_cert_reqs=none", FORM.format("rediss://HOST:PORT/DATABASE")),
        ("unix://me:hidden@host/run/redis.sock", FORM.format("unix:///PATH?db=DATABASE")),
        ("unix:///run/redis.sock?password=hidden", FORM.format("unix:///PATH?db=DATABASE")),
        ("redis+sentinel://me:hidden@h/main", FORM.format("redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DATABASE")),
        ("redis+sentinel://me:hidden@h:1", FORM.format("redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DATABASE")),
        ("redis+sentinel://h:1,/main", FORM.format("redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DATABASE")),
        (" redis://h", "contains a line break, a control character, or a space at an end"),
        ("", "must not be empty"),
    ],
)
def test_faulty_urls_of_redis_are_not_quoted(url: str, reason: str) -> None:
    assert problems({"redis": url}) == [f"cluster.redis: {reason}"]
    assert "hidden" not in reason


@given(st.one_of(st.text(), st.from_regex(r"(redis|unix|redis\+sentinel)://[!-~]{0,40}", fullmatch=True)))
def test_any_url_of_redis_is_read_or_refused(url: str) -> None:
    try:
        found = cluster.redis(url)
    except Unsuitable:
        return
    assert found.reveal() == url
    assert "@" not in found.shown


@pytest.mark.parametrize("url", ["ws://10.0.0.1:8767", "ws://10.0.0.1:8767/", "ws://node-1:1", "ws://[fd00::1]:8767"])
def test_urls_of_a_node(url: str) -> None:
    assert parsed({"url": url}).url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["10.0.0.1:8767", "ws://10.0.0.1", "ws://10.0.0.1:0", "ws://10.0.0.1:8767/v2", "ws://me:pw@h:1", "ws://h:1?x", "x"],
)
def test_faulty_urls_of_a_node(url: str) -> None:
    form = f'should be scheme, host and port alone, as in wss://10.0.0.1:8767, not "{url}"'
    assert problems({"url": url}) == [f"cluster.url: {form}"]


def test_a_url_with_the_scheme_of_a_page_gets_a_proposal() -> None:
    with pytest.raises(ConfigError, match=r'did you mean "wss://10.0.0.1:8767"\?$'):
        configured({"url": "https://10.0.0.1:8767"})
    with pytest.raises(ConfigError, match=r'not "\${X}"$'):
        configured({"url": "${X}"}, environ={"X": "https://10.0.0.1:8767"})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"listen": "8767"}, 'listen: should be host and port, as in 0.0.0.0:8767, not "8767"'),
        ({"listen": ":8767"}, 'listen: should be host and port, as in 0.0.0.0:8767, not ":8767"'),
        ({"listen": "::1:8767"}, 'listen: should be host and port, as in 0.0.0.0:8767, not "::1:8767"'),
        ({"listen": "h:65536"}, 'listen: should be host and port, as in 0.0.0.0:8767, not "h:65536"'),
        ({"url": "ws://0.0.0.0:1"}, "url: should name the address at which the other nodes reach this one"),
        (
            {"secret": "x" * 15},
            "secret: should have 16 characters at least; `openssl rand -hex 32` makes a good one",
        ),
        (
            {"secret": f"sha256:{'0' * 64}"},
            "secret: must be the text itself and not its digest; every node needs it",
        ),
        ({"name": "a:b"}, "name: cannot be a name; use letters, digits, dashes and underscores, 64 at most"),
        ({"ca": "cluster.yaml"}, "ca: has no certificate that can be read; it should be PEM"),
        ({"ca": "no-such.pem"}, 'ca: the file "no-such.pem" does not exist'),
        ({"ca": "server.crt"}, "ca: has no effect, since neither cluster.url nor cluster.redis uses TLS; "
         "use wss:// or rediss://"),
        ({"tls": TLS}, "tls: has no effect, since cluster.url begins with ws://; use wss:// there"),
        ({"url": "wss://h:1"}, "url: needs a certificate for wss://; set cluster.tls as well, or use ws://"),
        ({**SECURE, "tls": {"cert": "server.crt", "key": "other.key"}},
         "tls: the key does not belong to the certificate"),
        ({**SECURE, "tls": {"cert": "server.crt"}}, "tls.key: is missing"),
        ({"listen": "127.0.0.1:8765"}, "listen: has the port of listen; choose another one"),
        ({"listen": "0.0.0.0:8766"}, "listen: has the port of admin; choose another one"),
    ],
)  # fmt: skip
def test_each_fault_is_one_sentence_at_its_place(settings: dict[str, Any], expected: str) -> None:
    found = problems(settings)
    assert [line for line in found if "has no effect" not in line or "no effect" in expected] == [f"cluster.{expected}"]


def test_misspelt_settings_get_a_proposal() -> None:
    with pytest.raises(ConfigError) as caught:
        configured({**SECURE, "sekret": "x", "tls": {**TLS, "keys": "x"}})
    assert [(problem.path, problem.hint) for problem in caught.value.problems] == [
        ("cluster.tls.keys", "key"),
        ("cluster.sekret", "secret"),
    ]


def test_ports_that_are_free_or_on_other_hosts_do_not_clash() -> None:
    assert parsed({"listen": "127.0.0.1:0"}, more="listen: {port: 0}").listen.port == 0
    assert parsed({"listen": "127.0.0.2:8765"}).listen.port == 8765
    assert problems({"listen": "127.0.0.1:9"}, more="listen: {port: 9}") == [
        "cluster.listen: has the port of listen; choose another one"
    ]


def test_a_ca_without_tls_between_nodes_is_for_redis() -> None:
    assert parsed({"redis": "rediss://10.0.0.9", "ca": "server.crt"}).ca == DATA / "server.crt"


PASSWORD = "rediss://:hunter2-hunter2@10.0.0.9"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"secret": "hunter2-hunter2-hunter2"}, ["cluster.secret: is in plain text; use ${ENV} or ${file:PATH}"]),
        ({"redis": PASSWORD}, ["cluster.redis: holds its password in plain text; use ${ENV} or ${file:PATH}"]),
        ({"redis": "rediss://:${X}@10.0.0.9"}, []),
        ({"redis": "redis://:${X}@10.0.0.9"}, ["cluster.redis: sends its password unencrypted; use rediss://"]),
        ({"redis": "redis://:${X}@redis"}, ["cluster.redis: sends its password unencrypted; use rediss://"]),
        ({"redis": "redis://:${X}@127.0.0.1"}, []),
        ({"redis": "redis://:${X}@localhost:6379"}, []),
        ({"redis": "redis://10.0.0.9"}, []),
        ({"redis": "unix://:${X}@/run/redis.sock"}, []),
        (
            {"redis": "redis+sentinel://:${X}@127.0.0.1:1,10.0.0.9:1/main"},
            ["cluster.redis: sends its password unencrypted; keep that network private"],
        ),
        *(
            ({"url": f"ws://{host}:8767"}, [])
            for host in (
                "10.0.0.1",
                "192.168.1.1",
                "100.64.0.1",
                "[::1]",
                "[fd00::1]",
                "node-1",
                "a.b.svc.cluster.local",
            )
        ),
        *(
            (
                {"url": f"ws://{host}:8767"},
                ["cluster.url: frames travel unencrypted between the nodes; use wss:// with cluster.tls"],
            )
            for host in ("8.8.8.8", "[2600::1]", "node.example.com")
        ),
        ({"url": "wss://8.8.8.8:8767", "tls": TLS}, []),
        (
            {"listen": "0.0.0.0:0"},
            ["cluster.listen: takes any free port, so the other nodes reach it only if something forwards cluster.url"],
        ),
    ],
)
def test_warnings(tmp_path: Path, settings: dict[str, Any], expected: list[str]) -> None:
    assert warnings({"secret": "${X}", **settings}, tmp_path) == expected


def test_an_expired_certificate_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return cls(2200, 1, 1, tzinfo=tz)

    config = configured({"secret": "${X}", **SECURE}, f"listen: {{tls: {json.dumps(TLS)}}}")
    path = tmp_path / "proxy.yaml"
    assert model.warnings(config, path) == []
    monkeypatch.setattr(certificates, "datetime", Later)
    until = "was valid until 2126-10-31 02:35 UTC; renew it and run `reload`, or peers refuse it"
    assert model.warnings(config, path) == [f"{path}: listen.tls.cert: {until}", f"{path}: cluster.tls.cert: {until}"]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    secrets = {"redis": "redis://me:hunter2@8.8.8.8/0", "secret": "hunter2-hunter2-hunter2"}
    config = configured(secrets)
    shown = f"{config!r} {config} {config.model_dump()!r} {config.cluster!r} {warnings(secrets, tmp_path)}"
    assert "hunter2" not in shown
    assert "redis://8.8.8.8/0" in shown
    assert "hunter2" not in json.dumps(model.schema())


def test_secrets_may_come_from_outside(tmp_path: Path) -> None:
    (tmp_path / "redis-url").write_text("rediss://me:hunter2@10.0.0.9/0\n")
    found = parsed(
        {"redis": f"${{file:{tmp_path}/redis-url}}", "secret": "${Y}"}, environ={"Y": "hunter2-hunter2-hunter2"}
    )
    assert found.redis.reveal() == "rediss://me:hunter2@10.0.0.9/0"
    assert (found.redis.literal, found.secret.literal) == (False, False)
    assert parsed({"secret": "${Y:-hunter2-hunter2-hunter2}"}).secret.literal


def test_equality_of_urls_of_redis() -> None:
    one, same, other = (
        RedisUrl(url, "redis://h", ("h",), has_password=True, literal=literal)
        for url, literal in (("redis://:a@h", True), ("redis://:a@h", False), ("redis://:b@h", True))
    )
    assert one == same
    assert one != other
    assert one != "redis://:a@h"
    assert len({one, same, other}) == 2


def test_a_port_cannot_be_shared_without_support_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured({}, "listen: {reuse_port: true}").listen.reuse_port is True
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    assert configured({}, "listen: {reuse_port: false}").listen.reuse_port is False
    with pytest.raises(ConfigError) as caught:
        configured({}, "listen: {reuse_port: true}")
    reason = "cannot be true: this system has no SO_REUSEPORT; give each process a port of its own"
    assert str(caught.value) == f"proxy.yaml:3:22: listen.reuse_port: {reason}"
