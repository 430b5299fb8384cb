"""`demo`: run simulator or replay, proxy and two sample algorithms in this process."""

from __future__ import annotations

import argparse
import sys

from proxy.cli.terminal import Exit, columns, fail, fitted


def run(options: argparse.Namespace) -> Exit:
    market = "replay" if options.replay else "simulated market"
    width = columns() if sys.stdout.isatty() else None
    print(fitted(f"starting a {market}, the proxy and two algorithms", width), flush=True)
    from proxy.cli.demonstration import Demo, Market  # loads the whole program, which takes a while

    if not options.replay:
        return Exit.GOOD if Demo(Market.simulated(), options.seconds).run() else Exit.FAILED
    from proxy.cli import replay
    from proxy.recording.files import NotARecording

    try:
        recordings = replay.read(options.replay)
    except (OSError, NotARecording) as error:
        return fail(str(error))
    return Exit.GOOD if Demo(Market.recorded(recordings), options.seconds).run() else Exit.FAILED
