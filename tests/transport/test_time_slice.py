"""Work that yields by time lets sockets be served, not only other greenlets that are ready."""

from __future__ import annotations

import socket

import gevent

from proxy.transport.time_slice import TimeSlice


def test_a_socket_is_served_at_the_next_yield() -> None:
    """Not after the dozens of rounds for which gevent serves `sleep(0)` alone."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = gevent.spawn(ours.recv, 1)
        gevent.sleep(0.01)
        time_slice = TimeSlice()
        time_slice.yield_to_hub()
        theirs.send(b"x")
        yields = 0
        while not reader.ready():
            time_slice.yield_to_hub()
            yields += 1
        assert yields <= 3
