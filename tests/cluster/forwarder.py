"""A line between two ends: it forwards TCP connections, and can freeze, slow down and cut them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import gevent
from gevent.event import Event

from tests.ports import free_port

CHUNK = 1 << 16
RST = struct.pack("ii", 1, 0)


class Pair:
    """One connection and its other half. `source` is the port that it came from, `sink` that which it goes on from."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.source: int = near.getpeername()[1]
        self.sink: int = far.getsockname()[1]
        self.near = near
        self.far = far
        self.flows = Event()
        self.flows.set()

    def cut(self) -> None:
        """End both halves with a RST."""
        self.flows.set()
        for end in (self.near, self.far):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            end.close()


class Forwarder:
    """Forwards what connects to `port` to another port of 127.0.0.1; `delay` is in seconds, for each piece of data."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.delay = 0.0
        self.dark = False
        self.pairs: list[Pair] = []
        self._target = target
        self._flows = Event()
        self._flows.set()
        self._listener: socket.socket | None = None
        self._accepting: gevent.Greenlet | None = None
        self._fillers: list[socket.socket] = []
        self._greenlets: set[gevent.Greenlet] = set()

    def __enter__(self) -> Forwarder:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.down()
        self.cut()
        gevent.killall([*self._greenlets], timeout=2)
        for filler in self._fillers:
            filler.close()

    def up(self) -> None:
        """Listen, if it does not yet."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._accepting = self._spawn(self._accept, self._listener)

    def down(self) -> None:
        """Listen no more: each connection is refused, as by a machine without the program."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def freeze(self, chosen: Callable[[Pair], bool] = lambda _: True) -> None:
        """Let nothing through on the chosen connections; they stay open. Without a choice, none is made either."""
        if all(chosen(pair) for pair in self.pairs):
            self._flows.clear()
        for pair in filter(chosen, self.pairs):
            pair.flows.clear()

    def resume(self) -> None:
        """Deliver what has waited, and go on."""
        self._flows.set()
        for pair in self.pairs:
            pair.flows.set()

    def cut(self) -> None:
        """End all connections; new ones are forwarded."""
        for pair in [*self.pairs]:
            pair.cut()

    def go_dark(self) -> None:
        """Be a machine without power: what is open stays so and is mute, and who connects gets no answer at all."""
        self.freeze()
        self.dark = True
        if self._listener is not None and self._accepting is not None:
            self._accepting.kill()
            self._listener.listen(0)
            for _ in range(4):  # fill the backlog, so that the kernel answers no one
                filler = socket.socket()
                filler.setblocking(False)
                assert filler.connect_ex(("127.0.0.1", self.port)) in (0, errno.EINPROGRESS)
                self._fillers.append(filler)

    def _spawn(self, run: Callable[..., None], *arguments: object) -> gevent.Greenlet:
        greenlet = gevent.spawn(run, *arguments)
        self._greenlets.add(greenlet)
        greenlet.rawlink(self._greenlets.discard)
        return greenlet

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                self._flows.wait()
                near, _ = listener.accept()
                self._spawn(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        with near, socket.socket() as far, suppress(OSError):
            self._flows.wait()
            far.connect(("127.0.0.1", self._target))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._forward(Pair(near, far))

    def _forward(self, pair: Pair) -> None:
        self.pairs.append(pair)
        back = gevent.spawn(self._pump, pair, pair.far, pair.near)
        try:
            self._pump(pair, pair.near, pair.far)
            back.join()
        finally:
            back.kill()
            self.pairs.remove(pair)

    def _pump(self, pair: Pair, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK):
                if self.delay:
                    gevent.sleep(self.delay)
                pair.flows.wait()
                sink.sendall(data)
            pair.flows.wait()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pair.flows.wait()
            pair.cut()
