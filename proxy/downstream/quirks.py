"""Exceptions for some clients, which are known by their User-Agent; each with the reason.

Whatever can be served to every client in the same way is: extra keys, nil channels, several documents in a message, or
msgpack in text frames need no entry here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quirks:
    """`close_frame`: a close of the proxy's own begins with a close frame, as RFC 6455 §7.1.1 has it."""

    close_frame: bool = True


NO_QUIRKS = Quirks()

# By the beginning of the User-Agent header, in lower case.
_QUIRKS = {
    # OkHttp answers a close frame only when its listener does (`onClosing`), and reports no end until then. The
    # listener of net.jacobpeterson's alpaca-java, and many a program's own, does not: it would neither learn of the end
    # nor connect again. Alpaca ends every connection without a close frame, which is reported at once (`onFailure`).
    "okhttp/": Quirks(close_frame=False),
}


def quirks_of(user_agent: str) -> Quirks:
    """Return the quirks of the client with this User-Agent header."""
    name = user_agent.lower()
    return next((quirks for prefix, quirks in _QUIRKS.items() if name.startswith(prefix)), NO_QUIRKS)
