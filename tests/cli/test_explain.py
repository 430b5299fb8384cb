"""`explain`: its result, the deciding line, and agreement with the allowlists."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.config import model as configuration
from tests.cli.conftest import Call, Write

CONFIG = """\
accounts: {main: {key: k, secret: canary-1}}
clients:
  momentum:
    key: m
    secret: canary-2
    allow:
      iex:
        trades: [AAPL, BRK*]
        bars: ["*"]
      opra: {trades: "*"}
      crypto: "*"
      news: {"*": [AAPL]}
      trading: {trade_updates: ["momentum-*", "symbol:TSLA", "symbol:BTC/*"]}
  idle: {key: i, secret: canary-3}
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("iex trades AAPL", "8:18: clients.momentum.allow.iex.trades[0]: AAPL"),
        ("iex trades BRK.B", "8:24: clients.momentum.allow.iex.trades[1]: BRK*"),
        ("iex corrections AAPL", "8:18: clients.momentum.allow.iex.trades[0]: AAPL"),
        ("iex bars *", "9:16: clients.momentum.allow.iex.bars[0]: *"),
        ("opra trades AAPL241220C00300000", "10:22: clients.momentum.allow.opra.trades: *"),
        ("crypto orderbooks BTC/USD", "11:15: clients.momentum.allow.crypto: *"),
        ("crypto to-be-invented BTC/USD", "11:15: clients.momentum.allow.crypto: *"),
        ("news news AAPL", "12:20: clients.momentum.allow.news.*[0]: AAPL"),
        ("trading trade_updates momentum-7", "13:33: clients.momentum.allow.trading.trade_updates[0]: momentum-*"),
        ("trading trade_updates symbol:TSLA", "13:47: clients.momentum.allow.trading.trade_updates[1]: symbol:TSLA"),
        ("trading trade_updates symbol:BTCUSD", "13:62: clients.momentum.allow.trading.trade_updates[2]: symbol:BTC/*"),
    ],
)
def test_allowed_names_the_line(write: Write, call: Call, question: str, answer: str) -> None:
    path = write(CONFIG)
    result = call("explain", "momentum", *question.split(), "-c", path)
    assert result.out == f"allowed by {path}:{answer}\n"
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("momentum iex trades TSLA", '8:9: clients.momentum.allow.iex.trades: has no entry for "TSLA"; add one'),
        ("momentum iex trades *", '8:9: clients.momentum.allow.iex.trades: has no entry for "*"; add one'),
        ("momentum iex quotes X", "7:7: clients.momentum.allow.iex: does not list quotes; add quotes: [X]"),
        ("momentum iex quotes *", '7:7: clients.momentum.allow.iex: does not list quotes; add quotes: ["*"]'),
        ("momentum sip bars X", "6:5: clients.momentum.allow: does not name sip; add sip: {bars: [X]}"),
        (
            "momentum trading trade_updates symbol:AAPL",
            '13:17: clients.momentum.allow.trading.trade_updates: has no entry for "symbol:AAPL"; add one',
        ),
        (
            "idle trading trade_updates symbol:*",
            '14:3: clients.idle: allows nothing; add allow: {trading: {trade_updates: ["symbol:*"]}}',
        ),
        ("idle sip cancelErrors X", "14:3: clients.idle: allows nothing; add allow: {sip: {trades: [X]}}"),
    ],
)
def test_not_allowed_names_the_line_to_extend(write: Write, call: Call, question: str, answer: str) -> None:
    """The exit status is 1, for scripts."""
    path = write(CONFIG)
    result = call("explain", *question.split(), "-c", path)
    assert (result.code, result.out, result.err) == (1, f"not allowed: {path}:{answer}\n", "")


@pytest.mark.parametrize(
    ("question", "missing", "meant"),
    [
        ("iex trades aapl", "8:9: clients.momentum.allow.iex.trades: ", "AAPL"),
        ("iex trades brk.b", "8:9: clients.momentum.allow.iex.trades: ", "BRK.B"),
        ("news news aapl", "12:7: clients.momentum.allow.news: ", "AAPL"),
        ("trading trade_updates MOMENTUM-7", "13:17: clients.momentum.allow.trading.trade_updates: ", "momentum-7"),
        ("trading trade_updates symbol:tsla", "13:17: clients.momentum.allow.trading.trade_updates: ", "symbol:TSLA"),
        ("crypto-us-1 trades btcusd", "14:7: clients.momentum.allow.crypto-us-1: ", "BTC/USD"),
    ],
)
def test_a_near_miss_names_the_symbol_that_is_allowed(
    write: Write, call: Call, question: str, missing: str, meant: str
) -> None:
    path = write(CONFIG.replace("  idle:", '      crypto-us-1: {"*": [BTC/USD]}\n  idle:'))
    result = call("explain", "momentum", *question.split(), "-c", path)
    symbol = question.split()[-1]
    answer = f'{path}:{missing}has no entry for "{symbol}"; did you mean "{meant}"?'
    assert (result.code, result.out, result.err) == (1, f"not allowed: {answer}\n", "")


def test_it_needs_no_secrets(write: Write, call: Call) -> None:
    """An unset variable of a key or a secret is an error of `check`, and not of this verb."""
    text = re.sub(r"(key|secret): [^,}\n]+", r"\1: '${UNSET}'", CONFIG)
    assert text.count("${UNSET}") == 6
    path = write(text)
    assert call("check", "-c", path).code == 1
    result = call("explain", "momentum", "iex", "trades", "AAPL", "-c", path)
    assert (result.code, result.err) == (0, "")
    result = call("explain", "momentum", "iex", "trades", "AAPL", "-c", write(text.replace("[AAPL]", "['${UNSET}']")))
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("clients.momentum.allow.news.*[0]: the environment variable UNSET is not set\n")


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("momentm iex trades AAPL", 'unknown client "momentm"; did you mean "momentum"?'),
        ("zzz iex trades AAPL", 'unknown client "zzz"; there is momentum, idle'),
        ("momentum iexx trades AAPL", 'unknown feed "iexx"; did you mean "iex"?'),
        ("momentum iex trade AAPL", 'unknown channel of iex "trade"; did you mean "trades"?'),
        ("momentum trading corrections x", 'unknown channel of trading "corrections"; '),
        ("momentum iex trades BRK*", 'a symbol has 1 to 64 characters and contains no "*"'),
        (f"momentum iex trades {'A' * 65}", "a symbol has 1 to 64 characters"),
        ("momentum trading trade_updates a*b", "a client_order_id has 1 to 128 characters"),
        ("momentum trading trade_updates symbol:", "a symbol has 1 to 64 characters"),
        ("momentum trading trade_updates symbol:T*", "a symbol has 1 to 64 characters"),
    ],
)
def test_invalid_arguments(write: Write, call: Call, question: str, sentence: str) -> None:
    result = call("explain", *question.split(), "-c", write(CONFIG))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(sentence)


def test_configuration_errors_are_those_of_check(write: Write, call: Call) -> None:
    path = write(CONFIG.replace("secret: canary-2", "secert: canary-2"))
    result = call("explain", "momentum", "iex", "trades", "AAPL", "-c", path)
    assert (result.code, result.out) == (1, "")
    assert result.err == call("check", "-c", path).err
    assert "canary" not in result.err


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    feed=st.sampled_from(["iex", "opra", "crypto", "trading", "sip"]),
    channel=st.sampled_from(["trades", "bars", "trade_updates", "corrections"]),
    symbol=st.sampled_from(["AAPL", "BRK", "BRK.B", "BR", "*", "momentum-", "momentum-1", "BTC/USD", "symbol:BTC/USD"]),
)
def test_it_agrees_with_the_allowlist(write: Write, call: Call, feed: str, channel: str, symbol: str) -> None:
    path = write(CONFIG)
    client = configuration.load(path, {}).directory.named("momentum")
    assert client is not None
    result = call("explain", "momentum", feed, channel, symbol, "-c", path)
    if result.code == 0:
        assert result.out.startswith("allowed") == client.allow.permits(feed, channel, symbol)
    else:
        assert not client.allow.permits(feed, channel, symbol)
