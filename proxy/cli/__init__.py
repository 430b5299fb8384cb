"""Command line: `main` runs one verb and returns its exit code.

Each verb is a module of the same name with `run(options)`. It is imported when it is called, so that `keygen` and
`healthcheck` do not load the proxy.

    parser            verbs and their arguments
    run               no verb: the proxy itself
    check             validation of a configuration, and the access of each client
    explain           whether a client may see a topic, and which line decides
    init              a first configuration, after a few questions
    keygen            key and secret of a new client
    demo              the verb `demo`
    demonstration     simulator, proxy and two algorithms in one process
    simulate          the simulator alone
    replay            recordings as a stand-in for Alpaca
    status            the running proxy as tables
    reload            the running proxy reads its configuration again
    healthcheck       /readyz or /healthz as an exit status
    schema            the JSON schema of the configuration
    completion        shell completion
    config_file       path of the configuration, and output of its errors
    terminal          exit codes, messages on standard error, tables
    running           HTTP client for the running proxy
    overview          /status.json as tables
    online            one login to Alpaca
    leaders           the cluster's Redis, and the nodes that lead its feeds
    answers           the answers to the questions of `init`
    starter           the file that `init` writes
    sdk_lines         the lines that connect an SDK to the proxy
    startup           the lines that the proxy logs at its start
    service_manager   sd_notify
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import gevent

from proxy.cli.parser import parser
from proxy.cli.terminal import Exit, fail
from proxy.transport.errors import ProxyError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    _open_streams()
    options = parser().parse_args(arguments)
    hub = gevent.get_hub()
    # gevent must not print a traceback for Ctrl-C. Extend the tuple: the resolver may have added its own errors to it.
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)
    try:
        code: int = import_module(f"proxy.cli.{options.verb}").run(options)
        sys.stdout.flush()
    except ProxyError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return Exit.FAILED
    except BrokenPipeError:
        # The reader of standard output has closed it; without this Python would report that again at its final flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return code


def _open_streams() -> None:
    """Replace closed output streams, and characters that their encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
