"""Reads what Alpaca's REST API records of an account's orders, for the router of its order updates.

- When the stream has come up: the open orders and those of the last day, so that the owners of related orders are known
  after a restart, an idle close and a weekend. Orders that were open and are not listed any more are read one by one.
- After an outage also the fills, since shortly before the last update, so that what was missed can be sent.
- For an update whose owner is not known: its order, the one that it replaces, and the orders of the same symbol, among
  whose legs it may be.

The account's algorithms share Alpaca's limit of 200 requests a minute, so the proxy makes few: `CallBudget`.

Everything runs in greenlets of its own. A failure of the API costs a line in the log; in a recovery also the sessions
that may have missed something, which are closed so that their algorithms look after their orders.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import gevent
from gevent.event import Event

from proxy.alpaca import order_records, timestamps
from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import JSON, Malformed, Raw
from proxy.alpaca.order_records import Fields, Fill, RecordedUpdate
from proxy.observe.logs import Log
from proxy.routing.order_router import OrderRouter, Recovery
from proxy.transport.time_slice import TimeSlice
from proxy.upstream.trading_rest import NOT_FOUND, RestError, TradingRest

GATHER_SECONDS = 0.3  # for which other nodes of a cluster may ask for what they have missed, before it is read
RECOVERY_SECONDS = 10.0  # for the reading of what was missed, from the stream's return
LEARNING_SECONDS = 60.0  # for the reading of the lists when nothing was missed
RETRY_SECONDS, MAX_RETRY_SECONDS = 60.0, 900.0  # between two attempts to read the lists
AGAIN_SECONDS = 1.0  # until the fills are read again, when they lack one that an order shows
UNLISTED_SECONDS = 15.0  # between the reading of two orders that were not listed, when nothing was missed
LOOKUP_SECONDS = 2.0  # for which an update waits for its owner
MAX_LOOKUPS = 64  # at the same time
MAX_REPLACED = 3  # orders that are followed from one to the one that it replaces
CALLS, SINGLE_ORDERS = 20, 8  # requests in CALLS_SECONDS, and those for single orders among them
RESERVED_CALLS = 6  # that are left for a recovery by the look-ups' lists
CALLS_SECONDS = 60.0
DAY = 24 * 3600 * 10**9  # nanoseconds
# Answers that Alpaca never gives to a list: another program listens there, perhaps another proxy.
NOT_SERVED = (404, 405, 410, 426, 501)

T = TypeVar("T")
U = TypeVar("U")


class NotServed(RestError):
    """There is no list of orders or fills on that host."""


class CallBudget:
    """The requests of the last CALLS_SECONDS, which are bounded."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls: deque[tuple[float, bool]] = deque()  # the time of each, and whether it was for a single order

    def __repr__(self) -> str:
        return f"<CallBudget {len(self._calls)} calls>"

    def has(self, *, single: bool = False, reserve: int = 0) -> bool:
        """Return whether a request may be made; `single`: for one order; `reserve`: calls that are left for others."""
        now = self._clock()
        while self._calls and now - self._calls[0][0] >= CALLS_SECONDS:
            self._calls.popleft()
        singles = sum(is_single for _, is_single in self._calls)
        return len(self._calls) < CALLS - reserve and not (single and singles >= SINGLE_ORDERS)

    def take(self, *, single: bool = False, reserve: int = 0) -> bool:
        """Count a request; return False, and do not count it, if it may not be made now."""
        if not self.has(single=single, reserve=reserve):
            return False
        self._calls.append((self._clock(), single))
        return True


class OrderReader:
    """The reader of one account's records.

    `send` has the router's gathered updates sent, `close` ends the sessions of a recovery's members, and `ended` is
    called with whether a recovery was complete; they must not block.
    """

    def __init__(
        self,
        router: OrderRouter,
        login: Login,
        clock: Callable[[], float],
        send: Callable[[], None],
        close: Callable[[Recovery], None],
        ended: Callable[[bool], None] = lambda complete: None,
    ) -> None:
        self._router = router
        self._clock = clock
        self._send = send
        self._close = close
        self._ended = ended
        self._budget = CallBudget(clock)
        self._rest = TradingRest(login)
        self._reading: gevent.Greenlet | None = None
        self._lists_read = Event()  # also if that has failed
        self._lists_read.set()
        self._lookups: set[gevent.Greenlet] = set()
        self._has_said_not_served = False
        self._log = Log("orders", account=login.account)

    def __repr__(self) -> str:
        return f"<OrderReader {self._rest.host}>"

    def configure(self, login: Login) -> None:
        """Read with these credentials from now on."""
        self._rest = TradingRest(login, self._rest.clock_offset)

    def stop(self) -> None:
        """End all reading; what waits for it goes on to wait."""
        lookups, self._lookups = self._lookups, set()
        gevent.killall([*lookups, *([self._reading] if self._reading is not None else [])], block=False)
        self._reading = None
        self._lists_read.set()

    # Calls of the router; these never block

    def local_time(self) -> int:
        return time.time_ns()

    def clock_offset(self) -> int:
        return self._rest.clock_offset

    def stream_is_up(self, recovery: Recovery | None) -> None:
        self._restart(recovery, None)

    def abandon(self, reason: str) -> None:
        self._restart(self._router.recovery, RestError(reason))

    def look_up(self, order_id: str) -> bool:
        if len(self._lookups) >= MAX_LOOKUPS or (self._lists_read.is_set() and not self._budget.has(single=True)):
            return False
        self._lookups.add(gevent.spawn(self._look_up, order_id))
        return True

    def _restart(self, recovery: Recovery | None, failure: RestError | None) -> None:
        if self._reading is not None:
            self._reading.kill(block=False)
        self._lists_read.clear()
        self._reading = gevent.spawn(self._read, recovery, failure)

    # The lists, and what was missed

    def _read(self, recovery: Recovery | None, failure: RestError | None) -> None:
        """Read the lists until that has succeeded; the first time with what was missed, unless that has failed."""
        if recovery is not None and failure is None and self._router.term:
            gevent.sleep(GATHER_SECONDS)
            if not self._router.needs_records:
                self._end(recovery, [])
                recovery = None
        unlisted = self._read_once(recovery, failure)
        wait = RETRY_SECONDS
        while unlisted is None:
            gevent.sleep(wait)
            wait = min(2 * wait, MAX_RETRY_SECONDS)
            self._lists_read.clear()
            unlisted = self._read_once(None, None)
        for number, order_id in enumerate(unlisted):
            if number >= SINGLE_ORDERS // 2:  # the others are left for look-ups
                gevent.sleep(UNLISTED_SECONDS)
            try:
                self._order(order_id)
            except RestError as error:
                if error.status == NOT_FOUND:
                    self._router.orders.end(order_id, self._clock())

    def _read_once(self, recovery: Recovery | None, failure: RestError | None) -> list[str] | None:
        """Read the lists, and send what was missed; return the open orders that are not read, None for a failure."""
        records: list[RecordedUpdate] | None = None
        unlisted: list[str] | None = None
        seconds = LEARNING_SECONDS if recovery is None else RECOVERY_SECONDS
        try:
            if failure is not None:
                raise failure
            with gevent.Timeout(seconds, RestError(f"{self._rest.host}: not read within {seconds:.0f} s")):
                records, unlisted = self._records(recovery)
        except RestError as error:
            failure = error
        except Exception as error:  # an internal error is a failure to read
            self._log.error("internal_error")
            failure = RestError(f"an internal error: {type(error).__name__}")
        if gevent.getcurrent() is self._reading:  # else another one reads them
            self._lists_read.set()
        if failure is not None:
            self._log_failure(failure, recovery)
        if recovery is not None:
            self.end_recovery(recovery, records)
        return unlisted

    def _log_failure(self, error: RestError, recovery: Recovery | None) -> None:
        is_not_served = isinstance(error, NotServed)
        if is_not_served and not self._has_said_not_served:
            self._has_said_not_served = True
            result = "order updates that are missed in an outage are not recovered: the sessions are closed then"
            self._log.warning("not_served", reason=str(error), result=result)
        elif not is_not_served and recovery is None:
            self._log.warning("not_read", reason=str(error))
        if recovery is not None:
            result = "updates may be missing; the sessions that listened are closed"
            self._log.warning("incomplete", reason=str(error), result=result, **_span(recovery))

    def send_looked_up(self, order_id: str) -> None:
        """Let the updates go on that wait for the owner of an order."""
        self._router.looked_up(order_id)
        self._send()

    def end_recovery(self, recovery: Recovery, records: Iterable[RecordedUpdate] | None) -> None:
        """Send what was missed and what has waited; close the sessions that may have missed updates.

        It may yield.
        """
        before = self._router.recovered
        if self._end(recovery, records):
            self._log.info("recovered", updates=self._router.recovered - before, **_span(recovery))
        else:
            self._close(recovery)

    def _end(self, recovery: Recovery, records: Iterable[RecordedUpdate] | None) -> bool:
        is_complete = False
        try:
            for _ in _with_pauses(self._router.recover(recovery, records), self._send):
                pass
            is_complete = records is not None
        except Exception:
            self._log.error("internal_error")
        finally:
            self._send()
        if self._router.recovery is None:
            self._ended(is_complete)
        return is_complete

    def _records(self, recovery: Recovery | None) -> tuple[list[RecordedUpdate], list[str]]:
        """Return what has happened since the recovery's start, and the open orders that were not read."""
        began = self._clock()
        day_ago = self.local_time() + self.clock_offset() - DAY
        since = day_ago if recovery is None else recovery.read_since
        orders = {**self._orders("open", None), **self._orders("all", min(since, day_ago))}
        known = _with_pauses(self._router.orders.open_before(began))
        unlisted = [order_id for order_id in known if order_id not in orders]
        if recovery is None:
            return [], unlisted
        for order_id in unlisted:
            orders |= self._order(order_id)
        fills = self._all_fills(orders, since)
        records = []
        for fill in _with_pauses(fills):
            if not self._router.was_sent(fill.key, fill.time):
                if fill.key[0] not in orders:
                    orders |= self._order(fill.key[0])
                records.append(order_records.filled(fill, orders[fill.key[0]]))
        for order in _with_pauses(orders.values()):
            record = self._parsed(order_records.ended, order)
            if record is not None and record.time >= since:
                records.append(record)
        return records, []

    def _all_fills(self, orders: dict[str, Fields], since: int) -> list[Fill]:
        """Return the fills since a time; read them again while they lack one that an order shows.

        That may be for a moment: nothing promises that the orders and the fills are of the same moment.
        """
        while True:
            fills = self._fills(since)
            keys = {fill.key for fill in fills}
            for order in _with_pauses(orders.values()):
                key = order_records.last_fill(order, since)
                if key is not None and key not in keys and not self._router.was_sent(key, since):
                    break
            else:
                return fills
            gevent.sleep(AGAIN_SECONDS)

    def _orders(self, status: str, after: int | None) -> dict[str, Fields]:
        """Return the listed orders and their legs, by id, and learn from them. Raises RestError."""
        orders: dict[str, Fields] = {}
        until: int | None = None
        while True:
            before, submitted_at = len(orders), None
            path = order_records.orders_path(status, after=after, until=until)
            page = self._page(path, order_records.ORDERS_PER_PAGE)
            for value in _with_pauses(page):
                order = self._parsed(order_records.order_of, value)
                orders |= self._learned(order)
                times = (order_records.time_of(order.get(name)) for name in ("submitted_at", "created_at"))
                submitted_at = next((time for time in times if time is not None), None)
            if len(page) < order_records.ORDERS_PER_PAGE:
                return orders
            if len(orders) == before or submitted_at is None:
                raise RestError(f"{self._rest.host}: more orders at one time than a page has")
            until = submitted_at + 1000  # those of the same microsecond once more: they may go on behind the page

    def _order(self, order_id: str) -> dict[str, Fields]:
        """Return an order and its legs, by id, and learn from them. Raises RestError."""
        body = self._call(order_records.order_path(order_id), single=True)
        orders = self._learned(self._parsed(order_records.order_of, body))
        if order_id not in orders:
            raise RestError(f"{self._rest.host}: another order than the one that was asked for")
        return orders

    def _learned(self, order: Fields) -> dict[str, Fields]:
        orders = self._parsed(order_records.with_legs, order)
        self._router.orders.learn(order, self._clock())
        return {JSON.text_of(fields["id"]) or "": fields for fields in orders}

    def _fills(self, since: int) -> list[Fill]:
        """Return the fills since a time in nanoseconds since 1970, the oldest first. Raises RestError."""
        fills: list[Fill] = []
        while True:
            token = fills[-1].id if fills else ""
            page = self._page(order_records.fills_path(since, token), order_records.FILLS_PER_PAGE)
            fills += (self._parsed(order_records.fill_of, value) for value in _with_pauses(page))
            if len(page) < order_records.FILLS_PER_PAGE:
                return fills
            if fills[-1].id == token:
                raise RestError(f"{self._rest.host}: the same page of fills again")

    def _page(self, path: str, most: int, *, reserve: int = 0) -> list[Raw]:
        """Return the items of a list of at most so many. Raises RestError."""
        try:
            body = self._call(path, reserve=reserve)
        except RestError as error:
            raise NotServed(str(error)) if error.status in NOT_SERVED else error from error
        return self._parsed(lambda body: order_records.page_of(body, most), body)

    def _call(self, path: str, *, single: bool = False, reserve: int = 0) -> bytes:
        """Make a request within the budget. Raises RestError."""
        if not self._budget.take(single=single, reserve=reserve):
            raise RestError(f"the {CALLS} requests, {SINGLE_ORDERS} for single orders, of this minute are used up")
        return self._rest.get(path)

    def _parsed(self, parse: Callable[[T], U], value: T) -> U:
        """Return what `parse` makes of a value. Raises RestError if it has another form than Alpaca's."""
        try:
            return parse(value)
        except Malformed as error:
            raise RestError(f"{self._rest.host}: {error}") from error

    # The owner of one order

    def _look_up(self, order_id: str) -> None:
        """Learn to which orders this one is related, and let the updates go on that wait for it."""
        is_answered = False
        try:
            with gevent.Timeout(LOOKUP_SECONDS, False):
                self._lists_read.wait()
                self._read_relatives(order_id)
                is_answered = True
        except RestError as error:
            is_answered = error.status == NOT_FOUND
            if not is_answered and not self._has_said_not_served:
                self._log.warning("not_looked_up", reason=str(error))
        except Exception:
            self._log.error("internal_error")
        finally:
            if gevent.getcurrent() in self._lookups:  # else it was stopped
                self._lookups.discard(gevent.getcurrent())
                if not is_answered:
                    self._router.orders.forget_look_up(order_id)
                self.send_looked_up(order_id)

    def _read_relatives(self, order_id: str) -> None:
        """Read an order, the ones that it replaces, and those of its symbol, until an owner is known."""
        symbol, following = "", order_id
        for _ in range(1 + MAX_REPLACED):
            if not following or self._is_owned(order_id):
                break
            order = self._order(following)[following]
            symbol = symbol or JSON.text_of(order.get("symbol")) or ""
            following = JSON.text_of(order.get("replaces")) or ""
        if symbol and not self._is_owned(order_id):
            path = order_records.orders_path("all", symbol=symbol)
            for value in _with_pauses(self._page(path, order_records.ORDERS_PER_PAGE, reserve=RESERVED_CALLS)):
                self._learned(self._parsed(order_records.order_of, value))

    def _is_owned(self, order_id: str) -> bool:
        return bool(self._router.orders.owners_of(order_id))


def _with_pauses(items: Iterable[T], before_pause: Callable[[], None] = lambda: None) -> Iterator[T]:
    """Yield the items, and let other greenlets run when the time slice is over."""
    time_slice = TimeSlice()
    for item in items:
        yield item
        if time_slice.over():
            before_pause()
            time_slice.yield_to_hub()


def _span(recovery: Recovery) -> dict[str, str]:
    return {"since": timestamps.rfc3339(recovery.since), "until": timestamps.rfc3339(recovery.until)}
