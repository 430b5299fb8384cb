"""Topics and subscriptions."""

from __future__ import annotations

from proxy.alpaca.cooperative import run_to_end
from proxy.alpaca.topics import NO_TOPICS, by_channel, covers, words


def test_a_wildcard_covers_its_channel() -> None:
    held = frozenset([("trades", "AAPL"), ("quotes", "*")])
    assert covers(held, ("trades", "AAPL"))
    assert covers(held, ("quotes", "AAPL"))
    assert covers(held, ("quotes", "*"))
    assert not covers(held, ("trades", "SPY"))
    assert not covers(held, ("trades", "*"))
    assert not covers(NO_TOPICS, ("trades", "*"))


def test_symbols_by_channel_are_sorted() -> None:
    held = [("quotes", "B"), ("trades", "*"), ("quotes", "A")]
    assert list(run_to_end(by_channel(held)).items()) == [("quotes", ["A", "B"]), ("trades", ["*"])]
    assert run_to_end(by_channel(NO_TOPICS)) == {}


def test_words() -> None:
    assert words([("trades", "MSFT"), ("quotes", "*"), ("trades", "AAPL")]) == "quotes *, trades AAPL MSFT"
    many = [("trades", f"{number:03}") for number in range(30)]
    assert words(many, most=2) == "trades 000 001 and 28 more"
    assert words(many).endswith(" and 10 more")
    assert words([]) == ""
