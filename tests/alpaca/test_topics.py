"""Topics and subscriptions."""

from __future__ import annotations

import pytest

from proxy.alpaca import topics
from proxy.alpaca.cooperative import run_to_end
from proxy.alpaca.topics import NO_TOPICS, by_channel, covers, intern_topics, known, of_channels, words


def test_a_wildcard_covers_its_channel() -> None:
    held = of_channels({"trades": ["AAPL"], "quotes": ["*"]})
    assert held == {("trades", "AAPL"), ("quotes", "*")}
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


def test_interned_topics_are_the_same_objects_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "_interned", {"trades": {}, "quotes": {}, "bars": {}})
    monkeypatch.setattr(topics, "MAX_INTERNED", 10)
    names = ["A", "B", "A"]
    first = intern_topics("trades", names)
    assert first == [("trades", "A"), ("trades", "B"), ("trades", "A")]
    for second in (first, intern_topics("trades", ["A", "B", "A"])):
        assert all(one is other for one, other in zip(second, first, strict=True))
    for number in range(30):
        channel = ("trades", "quotes", "bars")[number % 3]
        assert intern_topics(channel, [f"S{number}"]) == [(channel, f"S{number}")]
        assert intern_topics(channel, []) == []
        assert sum(map(len, topics._interned.values())) <= 10
    assert intern_topics("trades", [f"S{number}" for number in range(30)]) == [("trades", f"S{n}") for n in range(30)]


def test_undocumented_channels_are_not_interned() -> None:
    """A message may have tens of thousands, and each call goes over all channels."""
    before = list(topics._interned)
    for number in range(100):
        assert intern_topics(f"channel{number}", ["A", "B"]) == [(f"channel{number}", "A"), (f"channel{number}", "B")]
        assert known(f"channel{number}", "A") == (f"channel{number}", "A")
    assert list(topics._interned) == before


def test_words() -> None:
    assert words([("trades", "MSFT"), ("quotes", "*"), ("trades", "AAPL")]) == "quotes *, trades AAPL MSFT"
    many = [("trades", f"{number:03}") for number in range(30)]
    assert words(many, most=2) == "trades 000 001 and 28 more"
    assert words(many).endswith(" and 10 more")
    assert words([]) == ""
