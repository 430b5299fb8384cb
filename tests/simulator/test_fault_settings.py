"""Settings of a rehearsal from text: every value, and one sentence for each invalid one."""

from __future__ import annotations

import re

import pytest

from proxy.simulator.fault_settings import READERS, FaultSettings
from proxy.simulator.faults import REFUSALS, RestFault, Step


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("drop", "20", 20.0),
        ("drop", "0.5", 0.5),
        ("refuse", "406", 406),
        ("stall", "auth", Step.AUTH),
        ("stall", "connection", Step.CONNECTION),
        ("silence", "on", True),
        ("feeds", "iex,trading,iex", ("iex", "trading")),
        ("feeds", "crypto-us-1", ("crypto-us-1",)),
        *(("rest", kind.value, kind) for kind in RestFault),
        ("rate", "0", 0.0),
        ("rate", "2500", 2500.0),
        ("symbol-limit", "30", 30),
    ],
)
def test_a_value_is_set_and_off_ends_it(name: str, text: str, value: object) -> None:
    before = FaultSettings()
    after = before.changed({name: text})
    assert getattr(after, name.replace("-", "_")) == value
    assert after.changed({name: "off"}) == before


def test_only_what_is_named_changes() -> None:
    settings = FaultSettings().changed({"drop": "20", "refuse": "406"})
    assert settings.changed({"refuse": "off", "silence": "on"}) == FaultSettings(drop=20, silence=True)
    assert settings.changed({}) == settings


def test_the_document_has_the_names_of_the_options() -> None:
    settings = FaultSettings().changed({"stall": "auth", "feeds": "iex", "symbol-limit": "30"})
    assert settings.document() == {
        "drop": None,
        "refuse": None,
        "stall": "auth",
        "silence": False,
        "feeds": ["iex"],
        "rest": None,
        "rate": 20,
        "symbol-limit": 30,
    }
    assert list(FaultSettings().document()) == list(READERS)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("drop", "soon", 'drop should be a number of seconds from 0.1 to 86400, not "soon"'),
        ("drop", "nan", 'drop should be a number of seconds from 0.1 to 86400, not "nan"'),
        ("drop", "0", 'drop should be a number of seconds from 0.1 to 86400, not "0"'),
        ("stall", "lunch", 'stall should be upgrade, greeting, auth, subscribe or connection, not "lunch"'),
        ("silence", "yes", 'silence should be on or off, not "yes"'),
        (
            "feeds",
            "iex,nasdaq",
            'feeds should be feeds with commas between them, such as iex,trading, not "iex,nasdaq"',
        ),
        (
            "rest",
            "lunch",
            'rest should be away, 429, 500, html, slow, hang, cut, shape or none, not "lunch"',
        ),
        ("rate", "-1", 'rate should be a number from 0 to 10000, not "-1"'),
        ("rate", "inf", 'rate should be a number from 0 to 10000, not "inf"'),
        ("symbol-limit", "0", 'symbol-limit should be a whole number from 1 to 1000000, not "0"'),
        ("symbol-limit", "many", 'symbol-limit should be a whole number from 1 to 1000000, not "many"'),
        ("symbol_limit", "3", 'unknown fault "symbol_limit"; did you mean "symbol-limit"?'),
        (
            "lunch",
            "on",
            'unknown fault "lunch"; there is drop, refuse, stall, silence, feeds, rest, rate or symbol-limit',
        ),
    ],
)
def test_an_invalid_value_gets_one_sentence(name: str, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        FaultSettings().changed({name: text})


@pytest.mark.parametrize("text", ["7", "404", "", "4 6", "-406", "²"])
def test_an_unknown_code_gets_the_codes_and_what_they_refuse(text: str) -> None:
    with pytest.raises(ValueError, match="refuse should be ") as raised:
        FaultSettings().changed({"refuse": text})
    assert str(raised.value) == (
        "refuse should be 402, 406, 409, 411 or 500 (auth), 400, 405, 410 or 413 (subscribe), "
        f'429, 502 or 503 (upgrade), not "{text}"'
    )
    assert all(FaultSettings().changed({"refuse": str(code)}).refuse == code for code in REFUSALS)
