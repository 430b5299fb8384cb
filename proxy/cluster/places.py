"""The places of clients in the whole cluster: `max_connections` sessions of a client on a feed, over all nodes.

In Redis each node has a count for each client and feed, and a place is free while the sum of those of the living nodes
is below the limit. A node always writes its counts as a whole, so that whatever goes wrong is put right by the next
writing. When Redis is away, each node counts its own sessions only.

One greenlet writes, one script after the other. It answers the log-ins that have asked since the last one and writes
the counts that have changed, so a burst of log-ins costs a few calls on one connection, and no two calls of a node can
overtake each other. Log-ins never wait for a Redis that is known to be away: the greenlet tries it again meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Protocol

import gevent
from gevent.event import Event

from proxy.cluster.registry import CALL_SECONDS, Places, Registry, RegistryError
from proxy.observe.logs import Log

CHECK_SECONDS = 1.0  # between two comparisons of all counts with what was written
AWAY_SECONDS = 0.3  # between two attempts while Redis is away
MAX_KEYS = 256  # of one script, and of those that are written again at each comparison

Key = tuple[str, str]  # client and feed


class SessionCounts(Protocol):
    """The part of `downstream.server.Server` that has the sessions of this node."""

    def held(self, client: str, feed: str) -> int:
        """Return the number of a client's open sessions on a feed."""

    def held_now(self) -> Mapping[Key, int]:
        """Return the numbers of open sessions by client and feed."""


class _Request:
    """A log-in that asks for a place. `granted` is None until Redis has answered."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.granted: bool | None = None
        self.over = False  # the log-in waits no more
        self.answered = Event()


class ClusterPlaces:
    """This node's part of the counts (`downstream.server.SharedPlaces`). `counts` returns the sessions of this node."""

    def __init__(
        self, registry: Registry, node: str, counts: Callable[[], SessionCounts], clock: Callable[[], float]
    ) -> None:
        self.problem = ""  # of Redis, in a sentence
        self._registry = registry
        self._node = node
        self._counts = counts
        self._clock = clock
        self._asked: dict[Key, list[_Request]] = {}
        self._granted: Counter[Key] = Counter()  # places of log-ins that have not gone on yet
        self._written: dict[Key, int] = {}  # what Redis holds of this node, as far as that is known; no zeros
        self._due: dict[Key, None] = {}  # to be written, the oldest first
        self._elsewhere: dict[Key, int] = {}  # places of other nodes, when a log-in was last refused
        self._checked_at = clock()
        self._restored = False  # all counts were written anew since the last comparison
        self._ended = False
        self._wake = Event()
        self._greenlet: gevent.Greenlet | None = None
        self._log = Log("cluster")

    def __repr__(self) -> str:
        return f"<ClusterPlaces {self._node} {len(self._written)} counts>"

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def end(self) -> None:
        """Give all places back, and ask Redis no more: sessions that are still open are leaving."""
        self._ended = True
        self._wake.set()

    def join(self) -> None:
        """Wait until the places are given back, for as long as a call may take."""
        if self._greenlet is not None:
            self._greenlet.join(CALL_SECONDS)
        self.stop()

    def stop(self) -> None:
        """End the greenlet."""
        self._ended = True
        if self._greenlet is not None:
            self._greenlet.kill()

    # Calls of the client port

    def take(self, client: str, feed: str, limit: int) -> bool:
        """Take a place for a log-in; return False if all are taken. Wait for Redis, for CALL_SECONDS at most.

        True as well if Redis is away. The caller counts the session as open, or gives it up, before any other greenlet
        runs: until then the place is counted here.
        """
        if self.problem or self._ended:
            return True
        key = client, feed
        request = _Request(limit)
        self._asked.setdefault(key, []).append(request)
        self._wake.set()
        try:
            request.answered.wait(CALL_SECONDS)
        finally:
            request.over = True
            if request.granted:
                self._granted[key] -= 1
        return request.granted is not False

    def changed(self, client: str, feed: str) -> None:
        """Have a count written again, since a session has ended."""
        self._due[client, feed] = None
        self._wake.set()

    def elsewhere(self, client: str, feed: str) -> int:
        """Return how many places other nodes held when a log-in was last refused; 0 after one that was not."""
        return self._elsewhere.get((client, feed), 0)

    # Call of the node

    def redis_failed(self, problem: str) -> None:
        """Record that another call has found Redis away, so that no log-in has to find out."""
        if not self.problem:
            self._failed(problem)
            self._wake.set()

    # The greenlet

    def _run(self) -> None:
        while not self._ended:
            if self.problem:
                gevent.sleep(AWAY_SECONDS)
            else:
                self._wake.wait(CHECK_SECONDS)
            self._wake.clear()
            self._safely(self._round)
        if not self.problem:
            self._due.update(dict.fromkeys(self._written))
            self._safely(self._round)

    def _safely(self, step: Callable[[], None]) -> None:
        """Take a step; an internal error counts as an absence of Redis."""
        try:
            step()
        except Exception:
            self._log.error("internal_error")
            self._failed("an internal error; the log has its traceback")

    def _round(self) -> None:
        """Answer the log-ins, and write what is due; while Redis is away, find out whether it is back."""
        if self._clock() - self._checked_at >= CHECK_SECONDS:
            self._checked_at = self._clock()
            self._check()
        while self._asked or self._due or self.problem:
            try:
                self._write()
            except RegistryError as error:
                self._failed(str(error))
                return

    def _check(self) -> None:
        """Have the counts written that are not what was written last, and some of the others, in turn.

        What is found in Redis then tells whether it has lost data.
        """
        held = self._counts().held_now()
        for key in {**held, **self._written}:
            if held.get(key, 0) + self._granted[key] != self._written.get(key, 0):
                self._due[key] = None
        for key in [*islice(self._written, MAX_KEYS)]:
            self._due[key] = None
        self._restored = False
        self._granted += Counter()  # drops the zeros

    def _write(self) -> None:
        """Send one script, and take in its answer. Raises RegistryError."""
        requests: dict[Key, list[_Request]] = {}
        for key in [*islice(self._asked, MAX_KEYS)]:
            requests[key] = [request for request in self._asked.pop(key) if not request.over]
        due = [*islice((key for key in self._due if key not in requests), MAX_KEYS - len(requests))]
        keys = [*requests, *due]
        for key in keys:
            self._due.pop(key, None)
        places = [self._places(key, requests.get(key, ())) for key in keys]
        try:
            answers = self._registry.places(self._node, places)
        except BaseException:
            self._due.update(dict.fromkeys(keys))
            _answer(request for asked in requests.values() for request in asked)
            raise
        self.problem = ""
        for key, sent, (granted, before, others) in zip(keys, places, answers, strict=True):
            if key in self._written and before != self._written[key]:
                self._restore()
            self._written.pop(key, None)  # so that those written last are the last
            if sent.own + granted:
                self._written[key] = sent.own + granted
            self._grant(key, requests.get(key, []), granted, others)

    def _places(self, key: Key, requests: Iterable[_Request]) -> Places:
        limits = [request.limit for request in requests]
        client, feed = key
        own = self._counts().held(client, feed) + self._granted[key]
        return Places(client, feed, own, len(limits), limits[-1] if limits else 0)

    def _grant(self, key: Key, requests: list[_Request], granted: int, others: int) -> None:
        """Answer the log-ins that have asked for a place, the first ones by yes."""
        for number, request in enumerate(requests):
            request.granted = number < granted
            if request.granted and request.over:
                self._due[key] = None
            elif request.granted:
                self._granted[key] += 1
            request.answered.set()
        if len(requests) > granted:
            self._elsewhere[key] = others
        elif requests:
            self._elsewhere.pop(key, None)

    def _restore(self) -> None:
        """Have all counts written anew, since Redis has lost some."""
        if not self._restored:
            self._restored = True
            self._due.update(dict.fromkeys(self._written))

    def _failed(self, problem: str) -> None:
        """Let log-ins go on, and have all counts written when Redis is back, which may hold any others by then."""
        self.problem = problem
        self._due.update(dict.fromkeys(self._written))
        self._written.clear()
        self._checked_at = self._clock() - CHECK_SECONDS
        for requests in self._asked.values():
            _answer(requests)
        self._asked.clear()


def _answer(requests: Iterable[_Request]) -> None:
    """Let log-ins go on without an answer of Redis."""
    for request in requests:
        request.answered.set()
