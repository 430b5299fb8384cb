"""The garbage collector does not hold the hub during large subscribes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest

from proxy.gateway import GC_THRESHOLDS
from tests.harness import Harness

CLIENTS = '  alpha: {key: alpha, secret: alpha, allow: {iex: "*"}}'


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="its collector is incremental and counts otherwise")
def test_large_subscribes_cause_no_full_collection(start: Callable[..., Harness]) -> None:
    """A full collection walks every set of topics that is held."""
    proxy = start(CLIENTS)
    clients = [proxy.client("alpha") for _ in range(4)]
    assert gc.get_threshold() == GC_THRESHOLDS
    gc.collect()
    before = gc.get_stats()[2]["collections"]
    for number, client in enumerate(clients):
        client.subscribe(trades=[f"S{number}{symbol}" for symbol in range(8000)])
    assert gc.get_stats()[2]["collections"] == before
