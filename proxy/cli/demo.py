"""`demo`: run simulator, proxy and two sample algorithms in this process."""

from __future__ import annotations

import argparse

from proxy.cli.terminal import Exit


def run(options: argparse.Namespace) -> Exit:
    print("starting a simulated market, the proxy and two algorithms", flush=True)
    from proxy.cli.demonstration import Demo  # loads the whole program, which takes a while

    return Exit.GOOD if Demo(seconds=options.seconds).run() else Exit.FAILED
