"""The command line: `main` parses the arguments, calls one verb, and returns the exit code.

Each verb is a module of its name with `run(options)`, imported when it is called, so that `keygen` and `healthcheck` do
not load the proxy.

    parser            the verbs and their arguments
    run               no verb: the proxy itself
    check             what is wrong with a configuration, or who may see what
    explain           whether a client may see a topic, and by which line
    init              a first configuration, after a few questions
    keygen            a new client
    demo              the verb `demo`
    demonstration     simulator, proxy and two algorithms in one process
    simulate          the simulator alone
    status            the running proxy as tables
    healthcheck       the exit status of /readyz
    schema            the JSON schema, or the reference of settings
    completion        shell completion
    config_file       where the configuration is, and what is said of one that cannot work
    terminal          exit codes, sentences on standard error, tables
    running           how verbs reach the running proxy
    overview          /status.json as tables
    online            one log-in to Alpaca
    starter           the file that `init` writes
    startup           the lines that the proxy prints at its start
    reference         docs/configuration.md from the schema
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
    """Runs one verb; the exit code."""
    _open_streams()
    options = parser().parse_args(arguments)
    hub = gevent.get_hub()
    # Ctrl-C is somebody's wish, and no error to be printed. The resolver has its own to add, perhaps already.
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)
    try:
        code: int = import_module(f"proxy.cli.{options.verb}").run(options)
        sys.stdout.flush()
    except ProxyError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return Exit.FAILED
    except BrokenPipeError:
        # Whoever read our output has left; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return code


def _open_streams() -> None:
    """Somebody may have started us with standard output closed, or in a language that lacks a character of ours."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
