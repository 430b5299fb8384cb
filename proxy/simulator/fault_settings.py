"""Settings of a rehearsal: faults of the simulated Alpaca, its rate and its symbol limit, from text.

The options of `simulate` and the queries of `/faults` have the same names and values: `drop=20`, `refuse=406`,
`silence=on`. `off` ends a fault.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from proxy.alpaca.endpoints import endpoint
from proxy.simulator.faults import REFUSALS, RestFault, Step
from proxy.simulator.market import Market

OFF = "off"
MIN_DROP_SECONDS, MAX_DROP_SECONDS = 0.1, 86_400
MAX_RATE = 10_000  # price changes a second on each feed; crypto takes two thirds of a core then
MAX_SYMBOL_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """The faults that the simulated Alpaca is set to.

    `drop` is the number of seconds between two drops, `refuse` a code of `REFUSALS`, and `stall` the step that is
    stalled. With `silence` no data is sent. These four concern the `feeds` alone (empty: every feed). `rest` is how
    REST calls fail, `rate` is price changes a second on each feed, and `symbol_limit` that of the account's plan.
    """

    drop: float | None = None
    refuse: int | None = None
    stall: Step | None = None
    silence: bool = False
    feeds: tuple[str, ...] = ()
    rest: RestFault | None = None
    rate: float = Market().rate
    symbol_limit: int | None = None

    def changed(self, texts: Mapping[str, str]) -> FaultSettings:
        """Return the settings after a change of those that are named.

        Raises ValueError with one sentence for a name or a value that is invalid.
        """
        for name in texts:
            if name not in READERS:
                hint = get_close_matches(name[:64], READERS, n=1)
                tail = f'did you mean "{hint[0]}"?' if hint else f"there is {_listed(READERS)}"
                raise ValueError(f'unknown fault "{name[:64]}"; {tail}')
        values: dict[str, Any] = {name.replace("-", "_"): read(name, text) for name, text in texts.items()}
        return replace(self, **values)

    def document(self) -> dict[str, object]:
        """Return the settings by the names of the options, for JSON; null is off."""
        return {
            "drop": self.drop,
            "refuse": self.refuse,
            "stall": self.stall and self.stall.value,
            "silence": self.silence,
            "feeds": list(self.feeds) or None,
            "rest": self.rest and self.rest.value,
            "rate": self.rate,
            "symbol-limit": self.symbol_limit,
        }


def read(name: str, text: str) -> object:
    """Return the value of a setting.

    Raises ValueError with a sentence that begins with the name.
    """
    if text == OFF:
        return _DEFAULTS[name.replace("-", "_")]
    try:
        return READERS[name](text)
    except ValueError as error:
        raise ValueError(f'{name} should be {error}, not "{text[:64]}"') from None


_DEFAULTS = {field.name: field.default for field in fields(FaultSettings)}


def _drop(text: str) -> float:
    return _number(text, MIN_DROP_SECONDS, MAX_DROP_SECONDS, "a number of seconds")


def _rate(text: str) -> float:
    return _number(text, 0, MAX_RATE, "a number")


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:  # also false for NaN
        raise ValueError(f"{what} from {low:g} to {high:g}")
    return number


def _refuse(text: str) -> int:
    if not text.isdecimal() or int(text[:9]) not in REFUSALS:
        by_step = [
            f"{_listed([str(code) for code, step in REFUSALS.items() if step is each])} ({each.value})"
            for each in dict.fromkeys(REFUSALS.values())
        ]
        raise ValueError(", ".join(by_step))
    return int(text)


def _stall(text: str) -> Step:
    steps = [step.value for step in Step]
    if text not in steps:
        raise ValueError(_listed(steps))
    return Step(text)


def _silence(text: str) -> bool:
    if text != "on":
        raise ValueError(f"on or {OFF}")
    return True


def _feeds(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if any(endpoint(name) is None for name in names):
        raise ValueError("feeds with commas between them, such as iex,trading")
    return names


def _rest(text: str) -> RestFault:
    kinds = [kind.value for kind in RestFault]
    if text not in kinds:
        raise ValueError(_listed(kinds))
    return RestFault(text)


def _symbol_limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,7}", text) or not 0 < int(text) <= MAX_SYMBOL_LIMIT:
        raise ValueError(f"a whole number from 1 to {MAX_SYMBOL_LIMIT}")
    return int(text)


def _listed(names: list[str] | Mapping[str, object]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


READERS: Mapping[str, Callable[[str], object]] = {
    "drop": _drop,
    "refuse": _refuse,
    "stall": _stall,
    "silence": _silence,
    "feeds": _feeds,
    "rest": _rest,
    "rate": _rate,
    "symbol-limit": _symbol_limit,
}
