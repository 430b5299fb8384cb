"""The errors of a configuration, each with its place in the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.transport.errors import ProxyError


def with_hint(reason: str, hint: str | None) -> str:
    """Return a reason with the question after what may be meant, if there is a hint."""
    return reason + (f'; did you mean "{hint}"?' if hint else "")


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a configuration, and its place.

    `line` and `column` count from 1; line 0 means the file as a whole. `path` names the setting, as in
    `clients.momentum.key`; it is empty for a syntax error. `hint` is the nearest valid name. No field ever holds a
    secret.
    """

    file: str
    line: int
    column: int
    path: str
    reason: str
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        prefix = f"{place}: {self.path}" if self.path else place
        return f"{prefix}: {with_hint(self.reason, self.hint)}"


class ConfigError(ProxyError):
    """A configuration that cannot be used; `problems` are all its errors, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
