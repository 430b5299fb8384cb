"""`demo`: a simulated market, the proxy and two sample algorithms in this process."""

from __future__ import annotations

import argparse

from proxy.cli.terminal import Exit
from proxy.demo import Demo


def run(options: argparse.Namespace) -> Exit:
    return Exit.GOOD if Demo(seconds=options.seconds).run() else Exit.FAILED
