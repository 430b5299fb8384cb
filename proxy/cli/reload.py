"""`reload`: have the running proxy read its configuration again, and show what that changed or what is wrong.

The admin port is read-only, so the verb sends SIGHUP to the process that /status.json names, and asks until that
reports one more reload. A process on this machine that has the same id by chance must not get the signal: a proxy in a
container has an id of its container. So its start time is compared as well, where the system tells it
(not where there is no /proc, nor under systemd's `ProtectProc=invisible` with `PrivateUsers=yes`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from dataclasses import dataclass

from proxy.cli.config_file import config_path, report_config_error
from proxy.cli.running import NO_HISTORY, NotRunning, Running, not_this_version, running
from proxy.cli.terminal import Exit, fail, plain, print_err
from proxy.config.errors import ConfigError
from proxy.observe.process import start_ticks
from proxy.transport.errors import ProxyError

WAIT_SECONDS = 30.0  # for the end of the reload
QUIET_SECONDS = 1.0
POLL_SECONDS = (0.05, 1.0)  # the first wait and the longest; a large status takes a while to render


class NotReloaded(ProxyError):
    """The proxy could not be told, or did not end the reload in time; the text is a sentence with the next step."""


@dataclass(frozen=True, slots=True)
class Reload:
    """The part of /status.json that concerns reloads."""

    pid: int
    pid_start: int | None
    count: int
    running: bool
    ok: bool
    plan: list[str]
    problems: list[str]


def run(options: argparse.Namespace) -> Exit:
    path = config_path(options, os.environ)
    try:
        proxy = running(path, os.environ)
        before = _fetch(proxy)
        _signal(before, proxy)
        # A reload that is under way may have read the file before it was changed; the next one has not.
        after = _wait(proxy, before.count + (2 if before.running else 1))
    except ConfigError as error:
        return report_config_error(error, path)
    except (NotRunning, NotReloaded) as error:
        return fail(str(error))
    if after.ok:
        print(plain("\n".join(after.plan)))
        return Exit.GOOD
    return fail("\n".join([*after.problems, "nothing was reloaded"]))


def _fetch(proxy: Running) -> Reload:
    """Ask for the reloads so far. Raises NotRunning."""
    status, body = proxy.get(f"/status.json?since={NO_HISTORY}")
    try:
        if status != 200:
            raise ValueError(status)
        document = json.loads(body)
        reload, start = document["reload"], document["pid_start"]
        return Reload(
            int(document["pid"]),
            None if start is None else int(start),
            int(reload["count"]),
            bool(reload["running"]),
            bool(reload["ok"]),
            [str(line) for line in reload["plan"]],
            [str(line) for line in reload["problems"]],
        )
    except (ValueError, LookupError, TypeError):
        raise not_this_version(proxy) from None


def _signal(proxy_process: Reload, proxy: Running) -> None:
    """Send SIGHUP to the proxy. Raises NotReloaded."""
    pid, hangup = proxy_process.pid, getattr(signal, "SIGHUP", None)
    if hangup is None:
        raise NotReloaded("this system has no SIGHUP, so nothing can be reloaded; restart the proxy to apply changes")
    elsewhere = NotReloaded(
        f"the proxy at {proxy} is not a process of this machine or container (its process id there is {pid}); "
        "run `reload` there, or send that process SIGHUP"
    )
    start, found = proxy_process.pid_start, start_ticks(pid)
    unknown = start is None or found is None
    # 0 and negative ids are groups of processes. 1 is a proxy in a container, and outside of it the system's first.
    if pid <= 0 or (pid == 1 and unknown) or not (unknown or start == found):
        raise elsewhere
    try:
        os.kill(pid, hangup)
    except ProcessLookupError:
        raise elsewhere from None
    except PermissionError:
        raise NotReloaded(
            f"the proxy (process {pid}) belongs to another user; run this as that user, or as root"
        ) from None


def _wait(proxy: Running, count: int) -> Reload:
    """Wait until so many reloads have ended. Raises NotRunning or NotReloaded."""
    began, pause, told = time.monotonic(), POLL_SECONDS[0], False
    while True:
        state = _fetch(proxy)
        if state.count >= count:
            return state
        waited = time.monotonic() - began
        if waited >= WAIT_SECONDS:
            raise NotReloaded(
                f"the reload has not ended within {WAIT_SECONDS:.0f} s; the proxy's log will have its result"
            )
        if waited >= QUIET_SECONDS and not told:
            told = True
            print_err(f"waiting for the proxy at {proxy} to read its configuration")
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS[1])
