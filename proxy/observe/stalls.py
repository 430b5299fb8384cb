"""The event `proxy.stalled`: for a time nothing in the proxy ran, so messages of all clients waited.

The metric `delay_seconds` and the history show that too, but only to those who look within minutes.
"""

from __future__ import annotations

from proxy.observe.logs import Log

STALL_SECONDS = 1.0

_log = Log("proxy")


def report(seconds: float) -> None:
    """Log a delay of the event loop, if it is a stall."""
    if seconds >= STALL_SECONDS:
        hint = "the process was suspended, or the machine is short of CPU or memory"
        _log.warning("stalled", seconds=seconds, hint=hint)
