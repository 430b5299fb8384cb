"""Order updates as server-sent events: one response that does not end, for one client.

It is a session at the trading feed like any other. Its outbox holds HTTP chunks, and its client sends nothing. The
response begins once the stream is subscribed, so that a client that has read the status misses no update; during an
outage of Alpaca, that is after ACK_SECONDS.

Updates that the client has missed come from the account's `OrderHistory`, which has no gap for a client that comes back
at once: the stream stays subscribed for RETURN_SECONDS after its end. They are read little by little, as fast as the
client takes them. Updates that arrive meanwhile are in the history as well, so the stream switches to live updates when
it has read everything.

The proxy cuts a stream: the last chunk is missing, which tells Alpaca's Go SDK to come back. It ends one only where the
client has named an end, `until`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any, Protocol

import gevent

from proxy.alpaca import order_events
from proxy.alpaca.endpoints import WILDCARD
from proxy.alpaca.order_events import EVENTS, Window
from proxy.alpaca.topics import NO_TOPICS
from proxy.downstream.outbox import Outbox
from proxy.downstream.session import BaseSession, FeedHost
from proxy.routing.allowlists import Client
from proxy.routing.order_history import Forgotten, OrderHistory
from proxy.routing.order_ownership import ORDERS
from proxy.routing.subscriber import Error, PendingRequest, RequestState, Subscriber
from proxy.transport import chunked, frames
from proxy.transport.connection import ClientConnection
from proxy.transport.errors import ConnectionLost

FEED = "trading"
TOPICS = frozenset([(ORDERS, WILDCARD)])
HEARTBEAT_SECONDS = 15.0
UNTIL_SECONDS = 2.0  # by which an update may arrive later than its `at`
REPLAY_PENDING_BYTES = 64 * 1024  # with more in the outbox, no older updates are added
REPLAY_POLL_SECONDS = 0.01
BEHIND_SECONDS = 11.0  # for which older updates may come from another node of a cluster
RETURN_SECONDS = 10.0  # for which a stream stays subscribed after its end
OPENING_SECONDS = 0.25
MAX_OPENING_SECONDS = 2.5

# Alpaca's codes of REST errors, and its texts where they are known, by HTTP status.
ERRORS = {
    "400 Bad Request": (40010001, "invalid request"),
    "401 Unauthorized": (40110000, "request is not authorized"),
    "403 Forbidden": (40310000, "forbidden: this client's allowlist has no trade_updates of trading"),
    "405 Method Not Allowed": (40510000, "method not allowed"),
    "429 Too Many Requests": (42910000, "connection limit exceeded"),
    "503 Service Unavailable": (50310000, "service unavailable"),
}


class EventHost(FeedHost, Protocol):
    """The part of `server.Server` that an event stream uses."""

    def order_history(self, client: Client) -> OrderHistory:
        """Return the order updates that the client's account has received."""

    def opening_delay(self, client: Client) -> float:
        """Return the seconds that a new stream of the client waits before it is served."""

    def auth_delay(self, session: BaseSession) -> float:
        """Return the seconds to wait before a refusal is sent."""

    def refused_login(self, session: BaseSession, key: str, code: int) -> dict[str, Any]:
        """Count the refusal of a log-in; return the fields of its log event."""


def refusal(status: str, message: str = "") -> tuple[str, str, str]:
    """Return a refusal as a response: status, body in the form of Alpaca's REST errors, content type."""
    code, words = ERRORS[status]
    return status, json.dumps({"code": code, "message": message or words}), "application/json"


def permitted(client: Client) -> bool:
    """Return whether the allowlist has any entry for order updates.

    Whether the client receives an update is decided for each update (`routing.order_ownership`).
    """
    entries = client.allow.entries(FEED)
    return bool(entries.get(ORDERS) or entries.get(WILDCARD))


class OpeningRate:
    """The rate at which one client opens event streams.

    A program that cannot read an update asks for it again as fast as it fails: the Go SDK connects again at once.
    `burst` streams may be opened at once, and then one every OPENING_SECONDS.
    """

    def __init__(self) -> None:
        self._free_at = 0.0

    def delay(self, now: float, burst: int) -> float:
        """Count a stream; return the seconds that it waits. `now` is in seconds of any monotonic clock."""
        self._free_at = max(now, self._free_at) + OPENING_SECONDS
        return min(max(0.0, self._free_at - now - burst * OPENING_SECONDS), MAX_OPENING_SECONDS)


class EventStream(BaseSession):
    """One event stream of a client that has authenticated."""

    def __init__(self, connection: ClientConnection, host: EventHost, client: Client, window: Window) -> None:
        outbox = Outbox(
            connection,
            host.outboxes,
            opcode=frames.TEXT,
            limit=client.outbox,
            slow_words=order_events.SLOW,
            encode=_encode,
        )
        outbox.close_frame = False  # the end of the connection takes the place of a close frame
        super().__init__(connection, host, outbox, feed=FEED, codec=EVENTS)
        self.client = client
        self.name = client.name
        self._host = host
        self._window = window
        self._history = host.order_history(client)
        self._budget = host.budget(client.name)
        self._sender: gevent.Greenlet | None = None  # of what was missed, or of a refusal
        self._begun = False  # the response
        self._live = False  # every older update has been sent
        self._heartbeat_at = self.opened

    def permits(self, client: Client) -> bool:
        return permitted(client)

    def unresponsive(self, now: float) -> float:
        """Return 0: the client sends nothing, so its silence means nothing.

        The kernel ends the connection when the client acknowledges nothing for GONE_SECONDS (`transport.connection`).
        """
        return 0.0

    # The greenlet

    def run(self) -> None:
        """Serve the stream until it ends."""
        assert self.client is not None
        writer = gevent.spawn(self.outbox.run)
        try:
            self._log.info("authenticated", client=self.name)
            self._log.debug("request", client=self.name, action="events", topics=ORDERS)
            gevent.sleep(self._host.opening_delay(self.client))
            if self.outbox.closing is None:
                self._subscribe()
                self._read()
        except ConnectionLost as error:
            self.ended = self.ended or str(error)
        except Exception:
            self._log.error("internal_error", client=self.name)
            self.ended = self.ended or "internal error"
        finally:
            self._leave_feeds()
            if self._sender is not None:
                self._sender.kill()
                self._sender = None
            self.close(frames.NORMAL, "client went away")
            self._finish(writer)

    def _leave(self, subscriber: Subscriber) -> None:
        """Leave the feed, but not at once: until then, the history has what arrives before the client is back."""
        if not self._begun:
            super()._leave(subscriber)
        else:
            subscriber.put = lambda frame, messages: None
            gevent.spawn_later(RETURN_SECONDS, super()._leave, subscriber)

    def _subscribe(self) -> None:
        assert self.client is not None
        feed = self._host.upstream(self.client, FEED)
        subscriber = Subscriber(self, feed, self.requests, name=self.name, codec=EVENTS, put=self._put)
        self.subscribers.append(subscriber)
        request = PendingRequest(subscriber, TOPICS, NO_TOPICS, self._clock())
        self.requests.append(request)
        for _ in subscriber.feed.request(request):
            pass
        self.answer()

    def _read(self) -> None:
        """Drop what the client sends, within the hub budget, until it leaves."""
        while self._connection.receive():
            self._budget.charge(self._budget.reserve())
        self.ended = self.ended or "client went away"

    def _begin(self) -> None:
        """Begin the response, and send what the client has missed."""
        self._begun = True
        head = (
            "HTTP/1.1 200 OK",
            f"Content-Type: {order_events.CONTENT_TYPE}",
            "Cache-Control: no-store, no-transform",
            "X-Accel-Buffering: no",  # nginx would collect events until its buffer is full
            "Connection: close",
            "Transfer-Encoding: chunked",
            f"Date: {formatdate(usegmt=True)}",
        )
        self.outbox.put("\r\n".join([*head, "", ""]).encode(), 0)
        if self._window.since is None:
            self._live = True
        else:
            self._sender = gevent.spawn(self._send_missed, self._window.since)

    def _send_missed(self, since: int) -> None:
        """Send the updates of the history since a time, then switch to those that arrive."""
        try:
            until = self._clock() + BEHIND_SECONDS
            while self._history.is_behind and self._clock() < until:
                gevent.sleep(REPLAY_POLL_SECONDS)
            position = self._history.position(since)
            while position < self._history.end and self.outbox.closing is None:
                began = self._budget.reserve()
                updates, position = self._history.read(self.name, position, self._clock())
                for update in updates:
                    if self._is_after_end(update.at):
                        return
                    self._send(update.body)
                self._budget.charge(began)
                while self.outbox.pending > REPLAY_PENDING_BYTES and self.outbox.closing is None:
                    gevent.sleep(REPLAY_POLL_SECONDS)
            self._live = True
        except Forgotten:  # the client takes older updates more slowly than new ones arrive
            self.outbox.disconnect_slow()
        except Exception:
            self._log.error("internal_error", client=self.name)
            self.close(frames.INTERNAL_ERROR, "internal error")

    def _put(self, frame: bytes, messages: int) -> None:
        """Send an update that has arrived, in the frame that `upstream.supervisor` makes for all members."""
        if self._live:
            body = frames.payload_of(frame)
            if self._window.until is None or not self._is_after_end(order_events.time_of(body)):
                self._send(body)

    def _send(self, body: bytes) -> None:
        self.outbox.put(chunked.chunk(order_events.event(body)), 1)

    def _is_after_end(self, at: int) -> bool:
        """Return whether a time is after `until`; end the stream then."""
        if self._window.until is None or at <= self._window.until:
            return False
        if self.outbox.closing is None:
            self.outbox.put(chunked.LAST, 0)
            self.close(frames.NORMAL, "its time `until` has come")
        return True

    # Called by the feeds

    def answer(self) -> None:
        """Begin the response once the subscription is confirmed or remembered."""
        while self.requests:
            request = self.requests[0]
            assert isinstance(request, PendingRequest)  # it has no other kind
            if not request.resolved:
                return
            self.requests.popleft()
            if request.state is RequestState.REFUSED:
                self._refuse(request.error)
            else:
                feed = request.subscriber.feed
                feed.apply(request)
                self.report(None)
                feed.install(request.subscriber)

    def report(self, error: Error | None) -> None:
        """Begin, or cut a stream that has begun if its updates will not come any more."""
        if self.requests:
            return  # the answer to the request tells more
        if error is not None or not self._held():
            self._refuse(error)
        elif not self._begun:
            self._begin()

    def _refuse(self, error: Error | None) -> None:
        words = "Alpaca does not serve trade_updates to this account" if error is None else error[1]
        if self._begun:
            self.close(frames.POLICY, words)
        elif self._sender is None:
            wait = self._host.auth_delay(self)
            self._log.info("refused", wait=wait, **self._host.refused_login(self, self.name, 409))
            self._sender = gevent.spawn_later(wait, self._send_refusal, words)

    def _send_refusal(self, words: str) -> None:
        """Send a refusal by Alpaca, which came when the connection was not the HTTP server's any more."""
        status, body, content_type = refusal("403 Forbidden", words)
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nConnection: close\r\n"
        self.outbox.put(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode(), 0)
        self.close(frames.POLICY, words)

    # Called by the server and the gateway

    def reconfigure(self, client: Client) -> Iterator[None]:
        """Cut the stream if its client has changed: it comes back under the new rules."""
        if client != self.client:
            self.close(frames.POLICY, "this client was reconfigured")
        yield from ()

    def tick(self, now: float) -> None:
        """Send a heartbeat when due; end the stream at `until`; enforce the time limit of its end."""
        if self._is_closing(now):
            return
        if now - self._heartbeat_at >= HEARTBEAT_SECONDS:
            self._heartbeat_at = now
            if self._begun:
                self.outbox.ping()
        if self._live and self._window.until is not None:
            self._is_after_end(time.time_ns() - int(UNTIL_SECONDS * 1e9))


def _encode(opcode: int, payload: bytes) -> bytes:
    """Return a message of the outbox as a chunk; a ping is a heartbeat."""
    return chunked.chunk(order_events.HEARTBEAT if opcode == frames.PING else payload)
