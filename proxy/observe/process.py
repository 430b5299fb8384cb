"""The identity of a process, for the verb `reload`, which sends a signal to the process that /status.json names.

A process id alone may mean another process: the proxy may run in a container, whose ids are counted separately, or it
may have ended and its id be in use again. The id and the start time together mean one process.
"""

from __future__ import annotations

from pathlib import Path

_START_TIME = 19  # of the fields after the name: field 22 in proc(5)


def start_ticks(pid: int) -> int | None:
    """When a process was started, in the kernel's clock ticks since the boot.

    None if there is no such process, or if the system does not tell (it has no /proc).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return int(fields[_START_TIME])
    except (OSError, ValueError, IndexError):
        return None
