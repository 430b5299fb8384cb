"""`check`: its tables, its warnings, and the logins of `--online`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.cli import online
from proxy.simulator import AccountPlan, Simulator
from tests.cli.conftest import Call, Write
from tests.harness import dial

CONFIG = """\
accounts:
  data: {key: PKDATA0001, secret: canary-1}
  paper: {key: PKPAPER002, secret: canary-2}
  spare: {key: short, secret: canary-3}
clients:
  momentum:
    key: momentum
    secret: canary-4
    account: {default: data, trading: paper}
    allow:
      iex: {trades: [AAPL, MSFT], bars: ["*"]}
      trading: {trade_updates: ["momentum-*", "symbol:TSLA"]}
  dashboard: {key: dashboard, secret: canary-5, account: data, allow: {crypto: "*", iex: {}}}
  idle: {key: idle, secret: canary-6, account: data}
"""

ONLINE = """\
accounts:
  main: {key: key, secret: SECRET, data_url: "URL", trading_url: "URL"}
clients:
  one: {key: one, secret: canary-1, allow: {trading: "*", iex: {trades: [AAPL]}}}
"""


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_access_table(write: Write, call: Call) -> None:
    result = call("check", "-c", write(CONFIG))
    assert result.code == 0
    assert [row for row in rows(result.out) if row and row[0] in ("momentum", "dashboard", "idle")] == [
        ["momentum", "iex", "data", "trades", "AAPL", "MSFT"],
        ["momentum", "iex", "data", "bars", "*"],
        ["momentum", "trading", "paper", "trade_updates", "momentum-*", "symbol:TSLA"],
        ["dashboard", "crypto", "data", "*", "*"],
        ["dashboard", "iex", "data", "-", "nothing"],
        ["idle", "-", "-", "-", "nothing"],
    ]


def test_the_legend_explains_symbols_where_there_are_order_updates(write: Write, call: Call) -> None:
    assert "symbol:TEXT permits all orders" in call("check", "-c", write(CONFIG)).out
    text = CONFIG.replace('trading: {trade_updates: ["momentum-*", "symbol:TSLA"]}', "news: {news: [TSLA]}")
    assert "symbol:" not in call("check", "-c", write(text)).out


def test_the_columns_are_aligned(write: Write, call: Call) -> None:
    lines = call("check", "-c", write(CONFIG)).out.splitlines()
    [first, *body] = [line for line in lines if line.startswith(("CLIENT ", "momentum ", "dashboard ", "idle "))]
    for name in ("FEED", "ACCOUNT", "CHANNEL", "SYMBOLS"):
        at = first.index(name)
        assert {line[at - 2 : at] for line in body} == {"  "}


def test_accounts_table(write: Write, call: Call) -> None:
    """A key is shown by its last four characters; a short key not at all."""
    table = rows(call("check", "-c", write(CONFIG)).out)
    assert ["data", "…0001", "paper", "iex", "crypto"] in table
    assert ["paper", "…R002", "paper", "trading"] in table
    assert ["spare", "…", "paper", "none:", "no", "client", "uses", "it"] in table


def test_a_long_list_of_symbols_is_wrapped(write: Write, call: Call) -> None:
    symbols = [f"S{number}" for number in range(500)]
    text = CONFIG.replace("[AAPL, MSFT]", f"[{', '.join(symbols)}]")
    lines = rows(call("check", "-c", write(text)).out)
    [first] = [at for at, row in enumerate(lines) if row[3:4] == ["trades"]]
    shown = [lines[first][4:], *lines[first + 1 : first + 42]]
    assert [symbol for line in shown for symbol in line] == symbols
    assert {len(line) for line in shown} == {12, 8}


def test_warnings_do_not_fail_the_check(write: Write, call: Call) -> None:
    path = write(CONFIG)
    path.chmod(0o640)
    result = call("check", "-c", path)
    assert result.code == 0
    assert f"warning: {path}: other users of this machine can open it (mode 0640); chmod 600 {path}" in result.err
    assert "canary" not in result.out + result.err


def test_symbols_of_another_form_are_warned_of_with_their_place(write: Write, call: Call, tmp_path: Path) -> None:
    text = f"""\
accounts: {{main: {{key: key, secret: canary}}}}
clients:
  one:
    key: one
    secret: sha256:{"0" * 64}
    allow:
      iex: {{trades: [AAPL, msft, BTC/USD, "*"], bars: [spy*]}}
      crypto: {{quotes: [BTC/USD, BTCUSD, ETH*]}}
      opra: {{trades: [AAPL, TSLA*]}}
      trading: {{trade_updates: ["one-*", "symbol:tsla"]}}
record: {{folder: {tmp_path}, topics: {{sip: {{trades: [ETH/USD]}}}}, max: 1MiB, min_free: 0}}
"""
    path = write(text)
    result = call("check", "-c", path)
    assert result.code == 0
    lower_case = "is in lower case, and symbols are in upper case; did you mean"
    warned = {
        ("msft", "clients.one.allow.iex.trades[1]"): f'"msft" {lower_case} "MSFT"?',
        ("BTC/USD", "clients.one.allow.iex.trades[2]"): '"BTC/USD" is a pair of crypto; list it under crypto',
        ("spy*", "clients.one.allow.iex.bars[0]"): f'"spy*" {lower_case} "SPY*"?',
        ("BTCUSD", "clients.one.allow.crypto.quotes[1]"): (
            '"BTCUSD" is no pair, such as BTC/USD; did you mean "BTC/USD"?'
        ),
        ("AAPL, TSLA", "clients.one.allow.opra.trades[0]"): (
            '"AAPL" is no contract, such as AAPL241220C00300000; did you mean "AAPL*"?'
        ),
        ('"symbol:tsla"', "clients.one.allow.trading.trade_updates[1]"): f'"tsla" {lower_case} "symbol:TSLA"?',
        ("ETH/USD", "record.topics.sip.trades[0]"): '"ETH/USD" is a pair of crypto; list it under crypto',
    }
    expected = []
    for (written, setting), sentence in warned.items():
        before = text.partition(written)[0]
        line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1
        expected.append(f"warning: {path}:{line}:{column}: {setting}: {sentence}")
    assert [line for line in result.err.splitlines() if "plain text" not in line] == expected


def test_a_certificate_that_ends_soon_is_warned_of_with_its_place(
    write: Write, call: Call, certificate: tuple[Path, Path]
) -> None:
    """The certificate of the tests is valid for two days."""
    cert, key = certificate
    path = write(f"{CONFIG}listen:\n  tls:\n    cert: {cert}\n    key: {key}\n")
    result = call("check", "-c", path)
    line = len(CONFIG.splitlines()) + 3
    assert result.code == 0
    assert re.search(
        rf"^warning: {path}:{line}:11: listen\.tls\.cert: is valid until \d{{4}}-\d\d-\d\d \d\d:\d\d UTC, "
        "less than 30 days from now; renew it and run `reload`$",
        result.err,
        re.MULTILINE,
    )


def test_missing_file(tmp_path: Path, call: Call) -> None:
    result = call("check", "-c", tmp_path / "none.yaml")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[0] == f"{tmp_path / 'none.yaml'}: does not exist"
    assert "`python3 -m proxy init`" in result.err


def test_no_colour_outside_a_terminal(write: Write, call: Call) -> None:
    result = call("check", "-c", write(CONFIG))
    assert "\x1b" not in result.out + result.err


# --online


def configured(write: Write, alpaca: Simulator, secret: str = "secret", text: str = ONLINE) -> Path:
    return write(text.replace("URL", alpaca.url).replace("SECRET", secret))


def test_online_logs_in_once_after_a_notice(write: Write, call: Call) -> None:
    """A close frame frees the slot of the login at once."""
    with Simulator(plan=AccountPlan(ghost_seconds=90)) as alpaca:
        for _ in range(2):
            result = call("check", "--online", "-c", configured(write, alpaca))
            assert result.code == 0
            assert "main: Alpaca accepts the key and secret for iex" in result.out
            assert (
                f"main: logging in to iex at {alpaca.url}/v2/iex; this takes the account's connection slot"
                in result.err
            )
        assert (alpaca.opened("iex"), alpaca.opened("trading")) == (2, 0)


def test_no_login_without_the_option(write: Write, call: Call) -> None:
    with Simulator() as alpaca:
        assert call("check", "-c", configured(write, alpaca)).code == 0
        assert alpaca.opened("iex") == 0


def test_online_uses_the_trading_stream_if_there_is_no_other_feed(write: Write, call: Call) -> None:
    text = ONLINE.replace(", iex: {trades: [AAPL]}", "")
    with Simulator() as alpaca:
        accepted = call("check", "--online", "-c", configured(write, alpaca, text=text))
        assert "accepts the key and secret for trading" in accepted.out
        refused = call("check", "--online", "-c", configured(write, alpaca, "canary-2", text))
    assert refused.code == 1
    assert "check the account's key and secret" in refused.out
    assert "canary" not in refused.out + refused.err


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (402, "check the account's key and secret"),
        (406, "another program holds"),
        (409, "the account's plan does not include this feed"),
        (500, "try again later"),
    ],
)
def test_online_refusal_has_a_hint(write: Write, call: Call, code: int, hint: str) -> None:
    with Simulator() as alpaca:
        alpaca.fail_auth("iex", code)
        result = call("check", "--online", "-c", configured(write, alpaca))
    assert result.code == 1
    assert f"main: Alpaca says {code} " in result.out
    assert hint in result.out
    assert "good" not in result.out


def test_online_while_another_program_holds_the_slot(write: Write, call: Call) -> None:
    with Simulator() as alpaca:
        host, _, port = alpaca.url.removeprefix("ws://").partition(":")
        with dial((host, int(port))) as other:
            other.receive()
            other.log_in("key", "secret")
            result = call("check", "--online", "-c", configured(write, alpaca))
    assert result.code == 1
    assert "Alpaca says 406 connection limit exceeded: another program holds this account's connection" in result.out


def test_online_with_a_refused_upgrade(write: Write, call: Call) -> None:
    with Simulator() as alpaca:
        alpaca.refuse_upgrade("iex", 503)
        result = call("check", "--online", "-c", configured(write, alpaca))
    assert result.code == 1
    assert "main: Alpaca refused the upgrade with HTTP 503; try again later" in result.out


def test_online_with_a_refused_connection(write: Write, call: Call) -> None:
    with Simulator() as alpaca:
        path = configured(write, alpaca)
    result = call("check", "--online", "-c", path)
    assert result.code == 1
    assert f"main: no answer from {alpaca.url}/v2/iex: Connection refused; check the network" in result.out


@pytest.mark.parametrize("step", ["greeting", "auth"])
def test_online_without_a_reply(write: Write, call: Call, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(online, "ANSWER_SECONDS", 0.1)
    with Simulator() as alpaca:
        alpaca.stall(step, "iex")
        result = call("check", "--online", "-c", configured(write, alpaca))
    assert result.code == 1
    assert "no reply within 0 s" in result.out


def recording(folder: Path, topics: str, more: str = "") -> str:
    return f"{ONLINE.replace('URL', 'ws://127.0.0.1:1')}record: {{folder: {folder}, topics: {topics}{more}}}\n"


def test_what_is_recorded_is_in_both_tables(call: Call, write: Write, tmp_path: Path) -> None:
    text = recording(tmp_path / "rec", "{crypto: {trades: [BTC/USD]}}", ", max: 1MiB, min_free: 0")
    found = call("check", "-c", write(text))
    assert found.code == 0
    assert ["(recorder)", "crypto", "main", "trades", "BTC/USD"] in rows(found.out)
    assert any(row[0] == "main" and row[-3:] == ["trading", "iex", "crypto"] for row in rows(found.out) if row)
    assert "record." not in found.err


def test_topics_beyond_the_basic_plan_are_warned_of(call: Call, write: Write, tmp_path: Path) -> None:
    symbols = ", ".join(f"S{number}" for number in range(31))
    topics = f'{{sip: {{trades: ["*"]}}, iex: {{quotes: [{symbols}]}}, crypto: {{bars: ["*"]}}, trading: "*"}}'
    found = call("check", "-c", write(recording(tmp_path, topics)))
    plan = "is more than Alpaca's Basic plan has (30 symbols of trades and quotes); the rest gets 405"
    for feed in ("sip", "iex"):
        assert f"record.topics.{feed}: {plan}" in found.err
    assert "record.topics.crypto" not in found.err
    assert "record.topics.trading" not in found.err


def test_a_small_disk_and_a_missing_one_are_warned_of(call: Call, write: Write, tmp_path: Path) -> None:
    topics = "{crypto: {bars: [BTC/USD]}}"
    found = call("check", "-c", write(recording(tmp_path / "rec", topics, ", max: 900000GB")))
    assert "GB free, less than record.max and record.min_free together" in found.err
    found = call("check", "-c", write(recording(tmp_path / "rec", topics, ", min_free: 900000GB")))
    assert "GB free, less than record.min_free: nothing is recorded" in found.err
    found = call("check", "-c", write(recording(tmp_path / "none" / "rec", topics)))
    missing = f"record.folder: {tmp_path / 'none'}: No such file or directory; nothing is recorded until it is there"
    assert missing in found.err


CLUSTER = """\
cluster:
  redis: redis://user:canary-9@10.0.0.9:6379/1
  listen: 127.0.0.1:8767
  url: ws://127.0.0.1:8767
  secret: canary-of-the-cluster
"""


def test_the_cluster_is_one_line_without_secrets(write: Write, call: Call) -> None:
    found = call("check", "-c", write(CONFIG + CLUSTER))
    assert found.code == 0
    line = (
        "Cluster alpaca-proxy: this node listens on 127.0.0.1:8767, is ws://127.0.0.1:8767 to the others, "
        "and uses Redis at redis://10.0.0.9:6379/1"
    )
    assert line in found.out.splitlines()
    assert "cluster.redis: holds its password in plain text" in found.err
    assert "cluster.redis: sends its password unencrypted; use rediss://" in found.err
    assert "cluster.secret: is in plain text" in found.err
    assert "canary" not in found.out + found.err
    assert "Cluster" not in call("check", "-c", write(CONFIG)).out
