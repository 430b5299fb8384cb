"""The root of the proxy's exceptions, and those of the transport.

`config.errors` has those of the configuration, `upstream.supervisor` that of a log-in. A refusal that is sent to a
client is not an exception but a reply (`alpaca.market`), and the session goes on.
"""

from __future__ import annotations

import os


class ProxyError(Exception):
    """The root of the exceptions that the proxy raises itself."""


class StartError(ProxyError):
    """The proxy cannot start; the text is a sentence that names the next step."""

    @classmethod
    def cannot_listen(cls, address: str, error: OSError, remedy: str) -> StartError:
        """An address that cannot be bound.

        gevent appends the address to the error's text, so the text is looked up again by its errno.
        """
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        return cls(f"cannot listen on {address}: {reason}; {remedy}")


class ConnectionLost(ProxyError):
    """The connection has ended; the text is the reason, and `hint` what to check.

    The peer closed, the network failed, or received data broke RFC 6455 or a limit.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


class UpgradeRefused(ProxyError):
    """An HTTP response other than 101 to an upgrade; `status` is its code."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status} in answer to the upgrade")
        self.status = status
