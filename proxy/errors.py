"""What can go wrong, as a small public vocabulary.

    ProxyError
    ├── ConfigError        the configuration cannot work; carries every problem with its place
    ├── StartError         the proxy cannot start as things are: an address in use, say
    ├── ConnectionLost     a WebSocket is gone, or its peer broke the protocol
    ├── UpgradeRefused     Alpaca answered the upgrade with an HTTP status
    └── LoginRefused       Alpaca refused the log-in, with a code of its own

A refusal that is said to a client is no exception: it is a reply (`protocol.market`), and its session lives on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass


class ProxyError(Exception):
    """The root of what the proxy raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration, and where.

    `line` and `column` count from 1; line 0 means the file as a whole. `path` names the setting, as in
    `clients.momentum.key`; it is empty for what concerns the syntax. `hint` is the nearest known name. No field ever
    holds a secret.
    """

    file: str
    line: int
    column: int
    path: str
    reason: str
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        where = f"{place}: {self.path}" if self.path else place
        return f"{where}: {self.reason}" + (f'; did you mean "{self.hint}"?' if self.hint else "")


class ConfigError(ProxyError):
    """A configuration that cannot work. `problems` holds all that is wrong with it, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class StartError(ProxyError):
    """The proxy cannot start as things are; the text is a sentence with the next step."""

    @classmethod
    def cannot_listen(cls, place: str, error: OSError, remedy: str) -> StartError:
        """An address that cannot be had. gevent adds the address to the system's words, so they are asked for anew."""
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        return cls(f"cannot listen on {place}: {reason}; {remedy}")


class ConnectionLost(ProxyError):
    """The peer closed, the network broke, or what came broke RFC 6455 or a bound; the text says which."""


class UpgradeRefused(ProxyError):
    """An HTTP answer in place of 101; `status` is its code."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status} in answer to the upgrade")
        self.status = status


class LoginRefused(ProxyError):
    """Alpaca's answer to a log-in; `code` is one of its own."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(f"Alpaca says {code} {msg}")
        self.code = code
