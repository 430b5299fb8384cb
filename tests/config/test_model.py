"""Loading of a configuration, and the exact problems reported for the broken files in `data`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import model as config
from proxy.config import yamlfile
from proxy.config.errors import ConfigError
from proxy.config.model import Config
from proxy.config.secret import Secret
from proxy.routing.allowlists import Client, OnOutage, WhenSlow, digest

ROOT = Path(__file__).parent.parent.parent
DATA = Path(__file__).parent / "data"
BROKEN = sorted(path.stem for path in DATA.glob("*.yaml"))
PARSERS = [yaml.BaseLoader] + ([yaml.CBaseLoader] if yaml.__with_libyaml__ else [])
EXAMPLE_ENVIRON = {"APCA_API_KEY_ID": "PKAAAABBBB1111", "APCA_API_SECRET_KEY": "s3cret", "MOMENTUM_SECRET": "hunter2"}

ACCOUNT = "accounts: {paper: {key: PKAAAABBBB1111, secret: s3cret}}\n"
TWO_ACCOUNTS = "accounts: {data: {key: a, secret: b}, paper: {key: c, secret: d}}\n"
CLIENT = "clients: {momentum: {key: momentum, secret: hunter2}}\n"


def parsed(text: str, environ: Mapping[str, str] | None = None, folder: Path = DATA) -> Config:
    return config.parse(text, "proxy.yaml", environ or {}, folder)


def problems(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parsed(text, environ)
    return [str(problem) for problem in caught.value.problems]


def client(settings: str, accounts: str = ACCOUNT) -> config.ClientEntry:
    return parsed(f"{accounts}clients: {{c: {{key: c, secret: hunter2, {settings}}}}}").clients["c"]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
@pytest.mark.parametrize("name", BROKEN)
def test_every_problem_of_a_broken_file_is_reported(name: str, parser: type) -> None:
    path = DATA / f"{name}.yaml"
    environ = {"SECRET": "hunter2", "EMPTY": "", "PORT": "eighty", "ORIGIN": "wss://hunter2", "HOST": "hunter2:1"}
    with patch.object(yamlfile, "_LOADER", parser), pytest.raises(ConfigError) as caught:
        config.parse(path.read_text(), path.name, environ, DATA)
    assert f"{caught.value}\n" == path.with_suffix(".txt").read_text()
    assert not re.search("hunter2|s3cret|cannot be used", str(caught.value))


def test_hints_for_origins_and_hosts_are_valid() -> None:
    proposed = re.findall(r'(origins|hosts)\[.* did you mean "(.+)"', (DATA / "origins-and-hosts.txt").read_text())
    assert len(proposed) > 6
    for setting, text in proposed:
        section = "listen" if setting == "origins" else "admin"
        assert parsed(f"{section}: {{{setting}: ['{text}']}}\n{ACCOUNT}{CLIENT}")


def test_every_broken_file_has_its_expected_problems() -> None:
    assert len(BROKEN) >= 12
    assert {path.stem for path in DATA.glob("*.txt")} == set(BROKEN)


def test_example_loads_and_shows_the_defaults() -> None:
    example = config.load(ROOT / "config" / "proxy.yaml", EXAMPLE_ENVIRON)
    minimal = parsed(ACCOUNT + CLIENT)
    for section in ("listen", "admin", "log", "limits", "default_feed"):
        assert getattr(example, section) == getattr(minimal, section)
    for name in ("trading", "codec", "data_url", "trading_url", "silence"):
        assert getattr(example.accounts["paper"], name) == getattr(minimal.accounts["paper"], name)
    for name in ("max_connections", "when_slow", "on_outage", "outbox"):
        assert getattr(example.clients["momentum"], name) == getattr(minimal.clients["momentum"], name)
    momentum = example.directory.named("momentum")
    assert momentum is not None
    assert momentum.allow.permits("crypto", "quotes", "BTC/USD")


def test_example_mentions_every_setting() -> None:
    text = (ROOT / "config" / "proxy.yaml").read_text()
    sections = (
        Config,
        config.Listen,
        config.Tls,
        config.Admin,
        config.Log,
        config.Limits,
        config.Account,
        config.Record,
        config.Cluster,
    )
    for section in (*sections, config.ClientEntry):
        for name in section.model_fields:
            assert re.search(rf"\b{name}:", text), name


def test_example_reports_unset_variables() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(ROOT / "config" / "proxy.yaml", {})
    assert [problem.reason for problem in caught.value.problems] == [
        f"the environment variable {name} is not set" for name in EXAMPLE_ENVIRON
    ]


def test_defaults() -> None:
    found = parsed(ACCOUNT + CLIENT)
    assert (found.listen.host, found.listen.port, found.listen.tls, found.listen.insecure) == (
        "127.0.0.1",
        8765,
        None,
        False,
    )
    assert (found.admin.host, found.admin.port, found.admin.token) == ("127.0.0.1", 8766, None)
    assert (found.listen.origins, found.listen.trusted, found.admin.hosts) == ((), (), ())
    assert (found.log.format, found.log.level, found.default_feed) == ("auto", "info", "iex")
    assert (found.limits.message, found.limits.outboxes) == (1024**2, 256 * 1024**2)
    entry = found.clients["momentum"]
    assert (entry.max_connections, entry.when_slow, entry.outbox, entry.allow) == (16, "disconnect", 8 * 1024**2, {})
    assert entry.on_outage == "stay"


def test_blank_sections_have_their_defaults() -> None:
    blank = "listen:\n  tls:\n  origins:\n  trusted:\nadmin:\nlog:\nlimits:\n"
    assert parsed(blank + ACCOUNT + CLIENT) == parsed(ACCOUNT + CLIENT)
    entry = client("account: , allow: ")
    assert (entry.account, entry.allow) == ({}, {})


def test_configuration_is_frozen() -> None:
    found = parsed(ACCOUNT + CLIENT)
    with pytest.raises(ValueError, match="frozen"):
        found.listen.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("64KiB", 64 * 1024),
        ("8 MiB", 8 * 1024**2),
        ("8mib", 8 * 1024**2),
        ("1MB", 1_000_000),
        ("70000", 70_000),
        ("70000B", 70_000),
        ("70KB", 70_000),
        ("1GiB", 1024**3),
    ],
)
def test_sizes(written: str, size: int) -> None:
    assert (
        parsed(f"{ACCOUNT}limits: {{outboxes: 16GiB}}\nclients: {{c: {{key: c, secret: s, outbox: {written}}}}}")
        .clients["c"]
        .outbox
        == size
    )


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("App.Example.COM", "app.example.com"),
        ("app.example.com.", "app.example.com"),
        ("http://app.example.com/", "http://app.example.com"),
        ("HTTPS://app.example.com:443", "https://app.example.com"),
        ("https://app.example.com:80", "https://app.example.com:80"),
        ("https://bücher.example:8443", "https://xn--bcher-kva.example:8443"),
        ("http://[::1]:80", "http://[::1]"),
        ("192.0.2.7", "192.0.2.7"),
    ],
)
def test_origins_are_normalized_as_browsers_send_them(written: str, origin: str) -> None:
    assert parsed(f"listen: {{origins: ['{written}']}}\n{ACCOUNT}{CLIENT}").listen.origins == (origin,)


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("Status.Example.COM", "status.example.com"),
        ("status.example.com.", "status.example.com"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("[::1]", "::1"),
        ("alpaca_proxy", "alpaca_proxy"),
    ],
)
def test_hosts_are_normalized_as_browsers_send_them(written: str, host: str) -> None:
    assert parsed(f"admin: {{hosts: ['{written}']}}\n{ACCOUNT}{CLIENT}").admin.hosts == (host,)


@pytest.mark.parametrize(
    ("written", "network"),
    [
        ("127.0.0.1", "127.0.0.1/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("::1", "::1/128"),
        ("FD00::/8", "fd00::/8"),
        ("::ffff:127.0.0.1", "127.0.0.1/32"),
    ],
)
def test_trusted_networks(written: str, network: str) -> None:
    assert parsed(f"listen: {{trusted: ['{written}']}}\n{ACCOUNT}{CLIENT}").listen.trusted == (network,)


@pytest.mark.parametrize(("written", "value"), [("true", True), ("False", False), ("yes", True), ("off", False)])
def test_flags(written: str, value: bool) -> None:
    assert parsed(f"listen: {{insecure: {written}}}\n{ACCOUNT}{CLIENT}").listen.insecure is value


def test_urls_and_codecs_of_an_account() -> None:
    text = "accounts: {a: {key: k, secret: s, codec: {iex: json}}, b: {key: l, secret: s, trading: live}}\n"
    accounts = parsed(text + "clients: {c: {key: c, secret: s, account: a}}").accounts
    assert accounts["a"].url("iex") == "wss://stream.data.alpaca.markets/v2/iex"
    assert accounts["a"].url("crypto-us-1") == "wss://stream.data.alpaca.markets/v1beta3/crypto/us-1"
    assert accounts["a"].url("trading") == "wss://paper-api.alpaca.markets/stream"
    assert accounts["b"].url("trading") == "wss://api.alpaca.markets/stream"
    assert [accounts["a"].speaks(feed) for feed in ("iex", "sip", "opra", "trading")] == [
        "json",
        "msgpack",
        "msgpack",
        "json",
    ]
    with pytest.raises(LookupError):
        accounts["a"].url("iexx")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("5s", 5), ("60s", 60), ("90s", 90), ("5m", 300), ("1h", 3600), ("3600s", 3600), ("off", None), ("'off'", None)],
)
def test_silence_of_an_account(written: str, seconds: float | None) -> None:
    account = f"accounts: {{a: {{key: k, secret: s, silence: {written}}}}}\n"
    assert parsed(account + CLIENT).accounts["a"].silence == seconds
    assert parsed(ACCOUNT + CLIENT).accounts["paper"].silence == 60


@pytest.mark.parametrize(
    ("written", "words"),
    [
        *(
            (text, "should be 5s to 1h, or off")
            for text in ("4s", "0s", "61m", "2h", "60", "-5s", "1.5m", "5S", "on", "Off", "1d")
        ),
        ("''", "must not be empty"),
        ("[60s]", "should be a single value"),
    ],
)
def test_invalid_silence_of_an_account(written: str, words: str) -> None:
    [problem] = problems(f"accounts:\n  a: {{key: k, secret: s, silence: {written}}}\n{CLIENT}")
    assert re.fullmatch(rf"proxy\.yaml:2:\d+: accounts\.a\.silence: {words}", problem)


def test_account_with_its_own_urls() -> None:
    text = "accounts: {a: {key: k, secret: s, data_url: ws://127.0.0.1:9/base/, trading_url: 'wss://host'}}\n"
    account = parsed(text + CLIENT).accounts["a"]
    assert account.url("iex") == "ws://127.0.0.1:9/base/v2/iex"
    assert account.url("trading") == "wss://host/stream"


def test_all_forms_of_an_allowlist() -> None:
    allow = client(
        "allow: {iex: '*', sip: {trades: [ON, NO, 7203, 'SPY*'], bars: '*', '*': [AAPL]}, news: {news: []}}"
    ).allow
    assert allow == {
        "iex": {"*": ("*",)},
        "sip": {"trades": ("ON", "NO", "7203", "SPY*"), "bars": ("*",), "*": ("AAPL",)},
        "news": {"news": ()},
    }


@given(st.lists(st.from_regex(r"[A-Z0-9][A-Z0-9./_-]{0,20}\*?", fullmatch=True), min_size=1, max_size=8))
def test_symbols_stay_text(symbols: list[str]) -> None:
    assert client(f"allow: {{iex: {{trades: [{', '.join(symbols)}]}}}}").allow["iex"]["trades"] == tuple(symbols)


@given(st.one_of(st.text(), st.text(alphabet="accountslie:{}[]*& \n#'\"-${}x1,", max_size=60)))
def test_any_text_raises_only_config_errors(text: str) -> None:
    for document in (text, ACCOUNT + "clients: {c: {key: c, secret: s, allow: {iex: {trades: [" + text):
        with pytest.raises(ConfigError):
            parsed(document)


NODES = st.recursive(
    st.sampled_from(["", "x", "*", "8MiB", "1", "paper", "${X}", "a b", "sha256:0", "ws://h", "true", "[key]"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["iex", "trades", "key", "secret", "default", "x", "[key]", "cert"]), inner, max_size=4
        ),
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*Config.model_fields, "other"]),
        st.one_of(
            NODES, st.dictionaries(st.sampled_from(["a", "paper", "[key]", "host", "port", "tls"]), NODES, max_size=3)
        ),
    )
)
def test_any_tree_raises_only_config_errors(tree: dict[str, Any]) -> None:
    try:
        found = parsed(json.dumps(tree), {"X": "hunter2"})
    except ConfigError as error:
        output = str(error)
        assert output
    else:
        output = repr(found)
    assert "hunter2" not in output


def scalar_paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, dict | list):
        for step, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from scalar_paths(value, (*path, step))
    else:
        yield path


FULL: dict[str, Any] = {
    "listen": {
        "host": "::1",
        "port": "1",
        "tls": {"cert": "server.crt", "key": "server.key"},
        "insecure": "no",
        "origins": ["app.example.com", "https://b.example:8443"],
        "trusted": ["127.0.0.1", "10.0.0.0/8"],
        "reuse_port": "on",
    },
    "admin": {"host": "localhost", "port": "2", "token": "secret-token", "hosts": ["status.example.com"]},
    "log": {"format": "json", "level": "debug"},
    "limits": {"message": "64KiB", "outboxes": "1GiB"},
    "default_feed": "sip",
    "accounts": {
        "data": {
            "key": "PKAAAABBBB1111",
            "secret": "account-secret",
            "trading": "live",
            "codec": {"iex": "json", "opra": "msgpack"},
            "data_url": "ws://127.0.0.1:1",
            "trading_url": "ws://127.0.0.1:2",
        },
        "paper": {"key": "PKCCCCDDDD2222", "secret": "other-secret"},
    },
    "clients": {
        "one": {
            "key": "one",
            "secret": "client-secret",
            "account": {"default": "data", "trading": "paper"},
            "allow": {"iex": {"trades": ["AAPL"]}, "trading": {"trade_updates": ["one-*"]}},
            "max_connections": "2",
            "when_slow": "conflate",
            "on_outage": "close",
            "outbox": "64KiB",
        },
        "two": {"key": "two", "secret": f"sha256:{'0' * 64}", "account": "data"},
    },
    "cluster": {
        "redis": "rediss://user:redis-password@10.0.0.9:6379/0",
        "listen": "0.0.0.0:8767",
        "url": "wss://10.0.0.1:8767",
        "secret": "the-secret-of-the-cluster",
        "tls": {"cert": "server.crt", "key": "server.key"},
        "ca": "server.crt",
        "name": "desk",
    },
}


def test_full_configuration() -> None:
    found = parsed(json.dumps(FULL))
    assert found.listen.tls is not None
    assert found.listen.tls.cert == DATA / "server.crt"
    assert found.listen.origins == ("app.example.com", "https://b.example:8443")
    assert found.admin.token == Secret("secret-token")
    directory = found.directory
    one, two = directory
    assert (one.on_outage, two.on_outage) == (OnOutage.CLOSE, OnOutage.STAY)
    assert (one.name, one.key, one.max_connections, one.when_slow, one.outbox) == (
        "one",
        "one",
        2,
        WhenSlow.CONFLATE,
        65536,
    )
    assert (one.account("iex"), one.account("trading"), two.account("trading")) == ("data", "paper", "data")
    assert one.digest == digest("client-secret")
    assert two.digest == bytes(32)
    assert directory.authenticate("one", "client-secret") is one
    secrets = ("account-secret", "other-secret", "client-secret", "secret-token", "PKAAAABBBB1111")
    for text in (*secrets, "redis-password", "the-secret-of-the-cluster"):
        assert text not in repr(found) + str(found) + repr(directory) + repr(found.model_dump())


def test_every_setting_of_a_client_is_handed_on() -> None:
    """`Config.directory` does so; FULL has a value for each setting that is not the default."""
    settings = {*config.ClientEntry.model_fields} - {"key", "secret", "account", "allow"}
    assert settings == {field.name for field in fields(Client)} - {"name", "key", "digest", "accounts", "allow"}
    one, two = parsed(json.dumps(FULL)).directory  # the second has the defaults
    assert [name for name in settings if getattr(one, name) == getattr(two, name)] == []


@pytest.mark.parametrize("path", list(scalar_paths(FULL)), ids=yamlfile.dotted)
def test_no_problem_quotes_the_value_of_a_reference(path: tuple[Any, ...]) -> None:
    tree = json.loads(json.dumps(FULL))
    node = tree
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = "${X}"
    with pytest.raises(ConfigError, match=r"^proxy\.yaml:1:") as caught:
        parsed(json.dumps(tree), {"X": " hunter2,*x\n"})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_repr_and_tail_of_a_secret() -> None:
    assert Secret("PKAAAABBBB1111").tail() == "…1111"
    assert Secret("PK1111").tail() == "…"
    assert not Secret("PK1111").literal
    assert repr(Secret("hunter2")) == str(Secret("hunter2")) == f"{Secret('hunter2')}" == "Secret(…)"


def test_equality_of_secrets() -> None:
    assert Secret("a", literal=True) == Secret("a")
    assert Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a", literal=True)}) == 1
    text = "accounts: {paper: {key: PKAAAABBBB1111, secret: '${X}'}}\n" + CLIENT
    assert parsed(text, {"X": "1"}) == parsed(text, {"X": "1"})
    assert parsed(text, {"X": "1"}) != parsed(text, {"X": "2"})


@pytest.mark.parametrize(
    ("chosen", "feed", "account"),
    [
        ("paper", "iex", "paper"),
        ("{default: data, trading: paper}", "iex", "data"),
        ("{default: data, trading: paper}", "trading", "paper"),
        ("{iex: paper}", "iex", "paper"),
    ],
)
def test_account_of_a_feed(chosen: str, feed: str, account: str) -> None:
    text = f"{TWO_ACCOUNTS}clients: {{c: {{key: c, secret: s, account: {chosen}, allow: {{iex: '*'}}}}}}"
    found = parsed(text).directory.named("c")
    assert found is not None
    assert found.account(feed) == account


def test_the_only_account_is_the_default() -> None:
    for more in ("", "account: {trading: paper}"):
        text = f"{ACCOUNT}clients: {{c: {{key: c, secret: s, allow: {{iex: '*'}}, {more}}}}}"
        (found,) = parsed(text).directory
        assert (found.account("iex"), found.account("trading")) == ("paper", "paper")


def test_a_feed_without_an_account_raises_lookup_error() -> None:
    (found,) = parsed(TWO_ACCOUNTS + "clients: {c: {key: c, secret: s, account: {iex: data}}}").directory
    with pytest.raises(LookupError, match="the client c has no account for the feed sip"):
        found.account("sip")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_addresses_need_neither_tls_nor_token(host: str) -> None:
    found = parsed(f"listen: {{host: '{host}'}}\nadmin: {{host: '{host}'}}\n{ACCOUNT}{CLIENT}")
    assert found.listen.host == host.strip("[]").lower()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "proxy.example.com"])
def test_other_addresses_need_tls_or_insecure_and_an_admin_token(host: str) -> None:
    reason = "is not a loopback address, so plaintext can be read on the network; set listen.tls, or insecure: true"
    assert problems(f"listen: {{host: '{host}'}}\n{ACCOUNT}{CLIENT}") == [f"proxy.yaml:1:16: listen.host: {reason}"]
    assert parsed(f"listen: {{host: '{host}', insecure: true}}\n{ACCOUNT}{CLIENT}").listen.insecure
    assert parsed(
        f"listen: {{host: '{host}', tls: {{cert: server.crt, key: server.key}}}}\n{ACCOUNT}{CLIENT}"
    ).listen.tls
    reason = "is not a loopback address; set admin.token as well"
    assert problems(f"admin: {{host: '{host}'}}\n{ACCOUNT}{CLIENT}") == [f"proxy.yaml:1:15: admin.host: {reason}"]
    assert parsed(f"admin: {{host: '{host}', token: abc}}\n{ACCOUNT}{CLIENT}").admin.token


@pytest.mark.parametrize(
    "line",
    [
        "listen: {port: 65535}",
        "limits: {message: 64KiB, outboxes: 8MiB}",
        "limits: {message: 16MiB, outboxes: 1024GiB}",
        "log: {level: warning}",
        "default_feed: crypto-eu-1",
    ],
)
def test_bounds_are_inclusive(line: str) -> None:
    assert parsed(f"{line}\n{ACCOUNT}{CLIENT}").directory.named("momentum")


def test_port_zero_and_other_hosts_do_not_clash() -> None:
    found = parsed(f"listen: {{port: 0}}\nadmin: {{port: 0}}\n{ACCOUNT}{CLIENT}")
    assert (found.listen.port, found.admin.port) == (0, 0)
    assert parsed(f"listen: {{host: 127.0.0.2, port: 8766}}\n{ACCOUNT}{CLIENT}").listen.port == 8766


def test_relative_paths_start_at_the_configurations_folder(tmp_path: Path) -> None:
    (tmp_path / "server.crt").write_bytes((DATA / "server.crt").read_bytes())
    (tmp_path / "server.key").write_bytes((DATA / "server.key").read_bytes())
    (tmp_path / "secret").write_text("hunter2\n")
    path = tmp_path / "proxy.yaml"
    path.write_text(
        "listen: {tls: {cert: server.crt, key: server.key}}\n"
        "accounts: {paper: {key: PKAAAABBBB1111, secret: '${file:secret}'}}\n" + CLIENT
    )
    found = config.load(path, {})
    assert found.accounts["paper"].secret.reveal() == "hunter2"
    assert found.listen.tls is not None
    assert found.listen.tls.key == tmp_path / "server.key"
    path.write_text(f"{ACCOUNT}{CLIENT}record: {{topics: {{iex: {{trades: [AAPL]}}}}}}\n")
    record = config.load(path, {}).record
    assert record is not None
    assert record.folder == tmp_path / "recordings"
    assert (record.keep, record.max, record.min_free) == (7 * 86_400, 20 * 10**9, 2 * 10**9)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/none.yaml: does not exist$"):
        config.load(tmp_path / "none.yaml", {})


def test_warnings(tmp_path: Path) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_text(
        "admin: {token: hunter2}\n"
        "accounts:\n"
        "  one: {key: PKAAAABBBB1111, secret: hunter2, data_url: ws://alpaca.example}\n"
        "  two: {key: PKAAAABBBB2222, secret: '${X}', trading_url: ws://127.0.0.1:1}\n"
        "clients:\n"
        "  one: {key: one, secret: hunter2, account: one}\n"
        "  two: {key: two, secret: '${Y:-hunter2}', account: one}\n"
        f"  three: {{key: three, secret: sha256:{'0' * 64}, account: one}}\n"
        "  four: {key: four, secret: '${X}', account: one}\n"
    )
    path.chmod(0o640)
    plain = "is in plain text; use ${ENV} or ${file:PATH}"
    expected = [
        f"{path}: other users of this machine can open it (mode 0640); chmod 600 {path}",
        f"{path}: accounts.one.secret: {plain}",
        f"{path}: accounts.one.data_url: sends the account's secret unencrypted; use wss://",
        f"{path}: clients.one.secret: {plain}, or the sha256:… that `keygen` prints",
        f"{path}: admin.token: {plain}",
    ]
    environ = {"X": "hunter2", "Y": "hunter2"}
    assert config.warnings(config.load(path, environ), path) == expected
    path.chmod(0o600)
    assert config.warnings(config.load(path, environ), path) == expected[1:]
    defaulted = config.warnings(config.load(path, {"X": "hunter2"}), path)
    assert [line for line in defaulted if "clients.two" in line] == [expected[3].replace("one", "two")]


def test_explain_returns_the_line_that_allows_a_topic(tmp_path: Path) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_text(
        f"{ACCOUNT}clients:\n  c:\n    key: c\n    secret: hunter2\n    allow:\n"
        "      iex:\n        trades: [AAPL, 'SPY*']\n        '*': ['*']\n      sip: '*'\n      otc: {bars: '*'}\n"
    )

    allowlists, document = config.load_allowlists(path, {})

    def explained(*topic: str) -> str | None:
        found = config.explain(document, allowlists["c"], "c", *topic)
        return found and found.removeprefix(f"{path}:")

    assert explained("iex", "trades", "AAPL") == "8:18: clients.c.allow.iex.trades[0]: AAPL"
    assert explained("iex", "corrections", "SPY") == "8:24: clients.c.allow.iex.trades[1]: SPY*"
    assert explained("iex", "quotes", "AAPL") == "9:15: clients.c.allow.iex.*[0]: *"
    assert explained("sip", "anything", "*") == "10:12: clients.c.allow.sip: *"
    assert explained("otc", "bars", "X") == "11:19: clients.c.allow.otc.bars: *"
    assert explained("otc", "trades", "X") is None
    assert explained("crypto", "trades", "X") is None


def test_allowlists_need_no_keys_and_secrets_but_everything_else(tmp_path: Path) -> None:
    path = tmp_path / "proxy.yaml"
    text = (
        "accounts:\n  a: {key: '${A}', secret: '${B}'}\n  b: {key: '${A}', secret: '${file:none}'}\n"
        "clients:\n  a.b: {key: '${C}', secret: '${D}', account: a, allow: {iex: {trades: [AAPL]}}}\n"
        "  c: {key: '${C}', secret: '${D}', account: a}\n  d: {key: d, secret: d, account: b, allow: ''}\n"
        "admin: {token: '${E}'}\n"
        "cluster: {redis: '${F}', listen: '127.0.0.1:1', url: 'ws://127.0.0.1:1', secret: '${G}'}\n"
    )
    path.write_text(text)
    allowlists, _ = config.load_allowlists(path, {})
    assert {name: allowlist.feeds() for name, allowlist in allowlists.items()} == {"a.b": ("iex",), "c": (), "d": ()}
    assert allowlists["a.b"].permits("iex", "trades", "AAPL")
    for setting, problem in {
        "log: {level: '${H}'}": "log.level: the environment variable H is not set",
        "listen: {tls: {key: '${H}', cert: x}}": "listen.tls.key: the environment variable H is not set",
        "limits: {secret: x}": "limits.secret: unknown key",
    }.items():
        path.write_text(f"{text}{setting}\n")
        with pytest.raises(ConfigError, match=f": {problem}"):
            config.load_allowlists(path, {})
    path.write_text(text.replace("[AAPL]", "['${H}']").replace("secret: d", "secret: 'sha256:0'"))
    with pytest.raises(ConfigError) as caught:
        config.load_allowlists(path, {})
    assert [problem.path for problem in caught.value.problems] == [
        'clients["a.b"].allow.iex.trades[0]', "clients.d.secret"
    ]  # fmt: skip


def test_schema_describes_every_setting_and_allows_references() -> None:
    schema = config.schema()
    sections = [schema, *schema["$defs"].values()]
    assert len(sections) == 10
    for section in sections:
        assert section["additionalProperties"] is False
        assert section["description"]
        assert all("description" in setting or "$ref" in setting for setting in section["properties"].values())
    assert schema["$defs"]["Listen"]["properties"]["port"]["type"] == ["integer", "string"]
    silence = schema["$defs"]["Account"]["properties"]["silence"]
    assert "string" in silence["type"], "it is written as 60s or off"
    allow = schema["$defs"]["ClientEntry"]["properties"]["allow"]
    channels = allow["properties"]["iex"]["anyOf"][1]["properties"]
    assert {"trades", "imbalances", "*"} <= set(channels)
    assert "corrections" not in channels
    json.dumps(schema)


def test_configuration_does_not_import_gevent() -> None:
    program = "import sys; sys.modules['gevent'] = None; import proxy.config.model, proxy.routing.allowlists"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
