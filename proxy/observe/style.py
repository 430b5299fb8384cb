"""Colour in text output: only on a terminal, and never if the environment has NO_COLOR (no-color.org)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TextIO


class Color(Enum):
    """Colours by meaning; a value is the parameter of the escape sequence (ECMA-48 §8.3.117)."""

    HEADING = "1"
    ASIDE = "2"
    GOOD = "32"
    WARNING = "33"
    BAD = "31"


class Style:
    """Adds colour to text, if it is on."""

    def __init__(self, on: bool) -> None:
        self.on = on

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> Style:
        """The style for a stream: on for a terminal, unless NO_COLOR is set or TERM is `dumb`."""
        return cls(stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb")

    def paint(self, text: str, colour: Color | None) -> str:
        """The text in a colour; unchanged without a colour, or if the style is off."""
        return f"\x1b[{colour.value}m{text}\x1b[0m" if self.on and colour and text else text

    def __repr__(self) -> str:
        return f"Style(on={self.on})"
