"""`explain`: allowed or not, and by which line; the same answer that a session would get."""

from __future__ import annotations

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
      trading: {trade_updates: ["momentum-*"]}
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
    ],
)
def test_what_is_allowed_is_allowed_by_a_line(write: Write, call: Call, question: str, answer: str) -> None:
    path = write(CONFIG)
    said = call("explain", "momentum", *question.split(), "-c", path)
    assert said.out == f"allowed by {path}:{answer}\n"
    assert (said.code, said.err) == (0, "")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("momentum iex trades TSLA", '8:9: clients.momentum.allow.iex.trades: has no entry for "TSLA"; add one'),
        ("momentum iex trades *", '8:9: clients.momentum.allow.iex.trades: has no entry for "*"; add one'),
        ("momentum iex quotes X", "7:7: clients.momentum.allow.iex: does not list quotes; add quotes: [X]"),
        ("momentum iex quotes *", '7:7: clients.momentum.allow.iex: does not list quotes; add quotes: ["*"]'),
        ("momentum sip bars X", "6:5: clients.momentum.allow: does not name sip; add sip: {bars: [X]}"),
        ("idle sip cancelErrors X", "14:3: clients.idle: allows nothing; add allow: {sip: {trades: [X]}}"),
    ],
)
def test_what_is_not_allowed_is_told_where_to_be_added(write: Write, call: Call, question: str, answer: str) -> None:
    """The answer was found, so the exit status is good."""
    path = write(CONFIG)
    said = call("explain", *question.split(), "-c", path)
    assert (said.code, said.out, said.err) == (0, f"not allowed: {path}:{answer}\n", "")


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("momentm iex trades AAPL", 'unknown client "momentm"; did you mean "momentum"?'),
        ("zzz iex trades AAPL", 'unknown client "zzz"; there is momentum, idle'),
        ("momentum iexx trades AAPL", 'unknown feed "iexx"; did you mean "iex"?'),
        ("momentum iex trade AAPL", 'unknown channel of iex "trade"; did you mean "trades"?'),
        ("momentum trading corrections x", 'unknown channel of trading "corrections"; '),
        ("momentum iex trades BRK*", 'a symbol has 1 to 64 characters and no "*" inside of it'),
        (f"momentum iex trades {'A' * 65}", "a symbol has 1 to 64 characters"),
        ("momentum trading trade_updates a*b", "a client_order_id has 1 to 128 characters"),
    ],
)
def test_a_question_without_an_answer_is_a_mistake(write: Write, call: Call, question: str, sentence: str) -> None:
    said = call("explain", *question.split(), "-c", write(CONFIG))
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(sentence)


def test_a_broken_configuration_is_told_as_check_tells_it(write: Write, call: Call) -> None:
    path = write(CONFIG.replace("secret: canary-2", "secert: canary-2"))
    said = call("explain", "momentum", "iex", "trades", "AAPL", "-c", path)
    assert (said.code, said.out) == (1, "")
    assert said.err == call("check", "-c", path).err
    assert "canary" not in said.err


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    feed=st.sampled_from(["iex", "opra", "crypto", "trading", "sip"]),
    channel=st.sampled_from(["trades", "bars", "trade_updates", "corrections"]),
    symbol=st.sampled_from(["AAPL", "BRK", "BRK.B", "BR", "*", "momentum-", "momentum-1", "BTC/USD"]),
)
def test_it_agrees_with_the_allowlist(write: Write, call: Call, feed: str, channel: str, symbol: str) -> None:
    path = write(CONFIG)
    client = configuration.load(path, {}).directory().named("momentum")
    assert client is not None
    said = call("explain", "momentum", feed, channel, symbol, "-c", path)
    if said.code == 0:
        assert said.out.startswith("allowed") == client.allow.permits(feed, channel, symbol)
    else:
        assert not client.allow.permits(feed, channel, symbol)
