"""`check`: tables that a person can read, and with `--online` one log-in per account."""

from __future__ import annotations

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
      trading: {trade_updates: ["momentum-*"]}
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


def test_the_table_says_who_may_see_what(write: Write, call: Call) -> None:
    said = call("check", "-c", write(CONFIG))
    assert said.code == 0
    assert [row for row in rows(said.out) if row and row[0] in ("momentum", "dashboard", "idle")] == [
        ["momentum", "iex", "data", "trades", "AAPL", "MSFT"],
        ["momentum", "iex", "data", "bars", "*"],
        ["momentum", "trading", "paper", "trade_updates", "momentum-*"],
        ["dashboard", "crypto", "data", "*", "*"],
        ["dashboard", "iex", "data", "-", "nothing"],
        ["idle", "-", "-", "-", "nothing"],
    ]


def test_the_columns_are_aligned(write: Write, call: Call) -> None:
    lines = call("check", "-c", write(CONFIG)).out.splitlines()
    [first, *body] = [line for line in lines if line.startswith(("CLIENT ", "momentum ", "dashboard ", "idle "))]
    for name in ("FEED", "ACCOUNT", "CHANNEL", "SYMBOLS"):
        at = first.index(name)
        assert {line[at - 2 : at] for line in body} == {"  "}


def test_it_says_which_connections_an_account_will_hold(write: Write, call: Call) -> None:
    """Of a key it shows the last four characters, and nothing where that were too much of it."""
    found = rows(call("check", "-c", write(CONFIG)).out)
    assert ["data", "…0001", "paper", "iex", "crypto"] in found
    assert ["paper", "…R002", "paper", "trading"] in found
    assert ["spare", "…", "paper", "none:", "no", "client", "uses", "it"] in found


def test_a_long_list_of_symbols_goes_on_in_lines_of_its_own(write: Write, call: Call) -> None:
    symbols = [f"S{number}" for number in range(500)]
    text = CONFIG.replace("[AAPL, MSFT]", f"[{', '.join(symbols)}]")
    lines = rows(call("check", "-c", write(text)).out)
    [first] = [at for at, row in enumerate(lines) if row[3:4] == ["trades"]]
    shown = [lines[first][4:], *lines[first + 1 : first + 42]]
    assert [symbol for line in shown for symbol in line] == symbols
    assert {len(line) for line in shown} == {12, 8}


def test_warnings_are_sentences_and_no_problem(write: Write, call: Call) -> None:
    path = write(CONFIG)
    path.chmod(0o640)
    said = call("check", "-c", path)
    assert said.code == 0
    assert f"warning: {path}: other users of this machine can open it (mode 0640); chmod 600 {path}" in said.err
    assert "canary" not in said.out + said.err


def test_a_file_that_is_not_there(tmp_path: Path, call: Call) -> None:
    said = call("check", "-c", tmp_path / "none.yaml")
    assert (said.code, said.out) == (1, "")
    assert said.err.splitlines()[0] == f"{tmp_path / 'none.yaml'}: does not exist"
    assert "`python3 -m proxy init`" in said.err


def test_no_colour_where_nobody_sees_it(write: Write, call: Call) -> None:
    said = call("check", "-c", write(CONFIG))
    assert "\x1b" not in said.out + said.err


# --online


def configured(write: Write, alpaca: Simulator, secret: str = "secret", text: str = ONLINE) -> Path:
    return write(text.replace("URL", alpaca.url).replace("SECRET", secret))


def test_online_logs_in_once_and_says_so_beforehand(write: Write, call: Call) -> None:
    """It takes the slot of one market feed, and gives it back: with a farewell, or its ghost would stay."""
    with Simulator(plan=AccountPlan(ghost_seconds=90)) as alpaca:
        for _ in range(2):
            said = call("check", "--online", "-c", configured(write, alpaca))
            assert said.code == 0
            assert "main: Alpaca accepts the key and secret for iex" in said.out
            assert (
                f"main: logging in to iex at {alpaca.url}/v2/iex; this takes the account's connection slot" in said.err
            )
        assert (alpaca.opened("iex"), alpaca.opened("trading")) == (2, 0)


def test_online_without_the_option_asks_nobody(write: Write, call: Call) -> None:
    with Simulator() as alpaca:
        assert call("check", "-c", configured(write, alpaca)).code == 0
        assert alpaca.opened("iex") == 0


def test_online_asks_the_trading_stream_of_an_account_for_orders_alone(write: Write, call: Call) -> None:
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
def test_online_says_what_to_do_about_a_refusal(write: Write, call: Call, code: int, hint: str) -> None:
    with Simulator() as alpaca:
        alpaca.fail_auth("iex", code)
        said = call("check", "--online", "-c", configured(write, alpaca))
    assert said.code == 1
    assert f"main: Alpaca says {code} " in said.out
    assert hint in said.out
    assert "good" not in said.out


def test_online_beside_a_program_that_holds_the_connection(write: Write, call: Call) -> None:
    with Simulator() as alpaca:
        host, _, port = alpaca.url.removeprefix("ws://").partition(":")
        with dial((host, int(port))) as other:
            other.receive()
            other.log_in("key", "secret")
            said = call("check", "--online", "-c", configured(write, alpaca))
    assert said.code == 1
    assert "Alpaca says 406 connection limit exceeded: another program holds this account's connection" in said.out


def test_online_when_the_upgrade_is_refused(write: Write, call: Call) -> None:
    with Simulator() as alpaca:
        alpaca.refuse_upgrade("iex", 503)
        said = call("check", "--online", "-c", configured(write, alpaca))
    assert said.code == 1
    assert "main: Alpaca refused the upgrade with HTTP 503; try again later" in said.out


def test_online_when_nobody_is_there(write: Write, call: Call) -> None:
    with Simulator() as alpaca:
        path = configured(write, alpaca)
    said = call("check", "--online", "-c", path)
    assert said.code == 1
    assert f"main: no answer from {alpaca.url}/v2/iex: Connection refused; check the network" in said.out


@pytest.mark.parametrize("step", ["greeting", "auth"])
def test_online_when_alpaca_is_silent(write: Write, call: Call, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(online, "ANSWER_SECONDS", 0.1)
    with Simulator() as alpaca:
        alpaca.stall(step, "iex")
        said = call("check", "--online", "-c", configured(write, alpaca))
    assert said.code == 1
    assert "it was silent for 0 s" in said.out
