"""What can go wrong on purpose, beside a configuration (`config.errors`) and a log-in (`upstream.supervisor`).

A refusal that is sent to a client is no exception: it is a reply (`alpaca.market`), and the session goes on.
"""

from __future__ import annotations

import os


class ProxyError(Exception):
    """The root of what the proxy raises on purpose."""


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
