"""Reads what Alpaca's REST API records of an account's orders, for the router of its order updates.

- When the stream has come up: the open orders and those of the last day, so that the owners of related orders are known
  after a restart, an idle close and a weekend. Orders that were open and are not listed any more are read one by one.
- After an outage also the fills, since shortly before the last update, so that what was missed can be sent.
- For an update whose owner is not known: its order, the one that it replaces, and the orders of the same symbol, among
  whose legs it may be.

The account's algorithms share Alpaca's limit of 200 requests a minute, so the proxy makes few: `CallBudget`.

Everything runs in greenlets of its own. Whatever the API answers, or does not, costs a line in the log; in a recovery
also the sessions that may have missed something, which are closed so that their algorithms look after their orders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
from gevent.event import Event

from proxy.alpaca import order_records, timestamps
from proxy.alpaca.client_protocol import Login
from proxy.alpaca.codec import JSON, Malformed, Raw
from proxy.alpaca.order_records import Fields, Fill, RecordedUpdate
from proxy.observe.logs import Log
from proxy.routing.order_router import OrderRouter, Recovery
from proxy.transport.time_slice import TimeSlice
from proxy.upstream.trading_rest import NotFound, RestError, TradingRest

RECOVERY_SECONDS = 10.0  # for the reading of what was missed, from the stream's return
LEARNING_SECONDS = 60.0  # for the reading of the lists when nothing was missed, and between two attempts
UNLISTED_SECONDS = 15.0  # between the reading of two orders that were not listed, when nothing was missed
LOOKUP_SECONDS = 2.0  # for which an update waits for its owner
MAX_LOOKUPS = 64  # at the same time
MAX_REPLACED = 3  # orders that are followed from one to the one that it replaces
CALLS, SINGLE_ORDERS = 20, 8  # requests in CALLS_SECONDS, and those for single orders among them
CALLS_SECONDS = 60.0
DAY = 24 * 3600 * 10**9


class CallBudget:
    """The requests of the last CALLS_SECONDS, which are bounded."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls: deque[tuple[float, bool]] = deque(maxlen=CALLS)

    def __repr__(self) -> str:
        return f"<CallBudget {len(self._calls)} calls>"

    def wait(self, single: bool) -> float:
        """Return the seconds until a request may be made, 0 if at once; `single`: for one order."""
        now = self._clock()
        while self._calls and now - self._calls[0][0] >= CALLS_SECONDS:
            self._calls.popleft()
        limiting = [at for at, is_single in self._calls if single and is_single][-SINGLE_ORDERS:]
        due = limiting[0] if len(limiting) == SINGLE_ORDERS else None
        if len(self._calls) == CALLS:
            due = max(due or 0.0, self._calls[0][0])
        return 0.0 if due is None else due + CALLS_SECONDS - now

    def take(self, single: bool) -> bool:
        """Count a request; return False, and do not count it, if it may not be made now."""
        if self.wait(single) > 0:
            return False
        self._calls.append((self._clock(), single))
        return True


class OrderReader:
    """The reader of one account's records.

    `send` has the router's gathered updates sent, `close` ends the sessions of a recovery's members.
    """

    def __init__(
        self,
        router: OrderRouter,
        login: Login,
        clock: Callable[[], float],
        send: Callable[[], None],
        close: Callable[[Recovery], None],
    ) -> None:
        self._router = router
        self._clock = clock
        self._send = send
        self._close = close
        self._budget = CallBudget(clock)
        self._reading: gevent.Greenlet | None = None
        self._listed = Event()  # no lists are being read
        self._listed.set()
        self._lookups: set[gevent.Greenlet] = set()
        self._said_not_served = False
        self._log = Log("orders", account=login.account)
        self.configure(login)

    def __repr__(self) -> str:
        return f"<OrderReader {self._rest.host}>"

    def configure(self, login: Login) -> None:
        """Read with these credentials from now on."""
        self._rest = TradingRest(login)

    def stop(self) -> None:
        """End all reading."""
        gevent.killall([*self._lookups, *([self._reading] if self._reading is not None else [])])

    # Calls of the router; these never block

    def alpaca_time(self) -> int:
        return self._rest.alpaca_time()

    def stream_is_up(self, recovery: Recovery | None) -> None:
        self._restart(self._read, recovery)

    def abandon(self, reason: str) -> None:
        self._restart(self._abandon, reason)

    def look_up(self, order_id: str) -> bool:
        if len(self._lookups) >= MAX_LOOKUPS or (self._listed.is_set() and self._budget.wait(single=True) > 0):
            return False
        self._lookups.add(gevent.spawn(self._look_up, order_id))
        return True

    def _restart(self, part: Callable[..., None], *arguments: Any) -> None:
        if self._reading is not None:
            self._reading.kill(block=False)
        self._listed.clear()
        self._reading = gevent.spawn(part, *arguments)

    # The lists, and what was missed

    def _read(self, recovery: Recovery | None) -> None:
        """Read the lists until that has succeeded, the first time with what was missed."""
        unlisted = self._read_once(recovery)
        while unlisted is None:
            gevent.sleep(LEARNING_SECONDS)
            unlisted = self._read_once(None)
        for number, order_id in enumerate(unlisted):
            if number >= SINGLE_ORDERS // 2:  # the others are left for look-ups
                gevent.sleep(UNLISTED_SECONDS)
            with suppress(RestError):
                self._order(order_id)

    def _read_once(self, recovery: Recovery | None) -> list[str] | None:
        """Read the lists, and send what was missed; return the open orders that are not read, None for a failure."""
        seconds = LEARNING_SECONDS if recovery is None else RECOVERY_SECONDS
        try:
            with gevent.Timeout(seconds, RestError(f"{self._rest.host}: not read within {seconds:.0f} s")):
                records, unlisted = self._records(recovery)
            if recovery is not None:
                before = self._router.recovered
                self._finish(records)
                self._log.info("recovered", updates=self._router.recovered - before, **_span(recovery))
            return unlisted
        except RestError as error:
            self._log_failure(error, recovery)
        except Exception:  # an internal error costs this reading alone
            self._log.error("internal_error")
        finally:
            self._listed.set()
        self._give_up()
        return None

    def _log_failure(self, error: RestError, recovery: Recovery | None) -> None:
        if isinstance(error, NotFound) and not self._said_not_served:
            self._said_not_served = True
            result = "order updates that are missed in an outage are not recovered: the sessions are closed then"
            self._log.warning("not_served", reason=str(error), result=result)
        elif recovery is None and not isinstance(error, NotFound):
            self._log.warning("not_read", reason=str(error), retry_in=LEARNING_SECONDS)
        if recovery is not None:
            self._log.warning(
                "incomplete", reason=str(error), result="updates may be missing: closed", **_span(recovery)
            )

    def _abandon(self, reason: str) -> None:
        if (recovery := self._router.recovery) is not None:
            self._log_failure(RestError(reason), recovery)
        self._give_up()
        self._listed.set()
        gevent.sleep(LEARNING_SECONDS)
        self._read(None)

    def _give_up(self) -> None:
        """Send what was held for the recovery, if there is one, and close the sessions that may have missed updates."""
        if (recovery := self._router.recovery) is not None:
            self._finish([])
            self._close(recovery)

    def _finish(self, records: list[RecordedUpdate]) -> None:
        """Send what was missed, and what was held."""
        time_slice = TimeSlice()
        for _ in self._router.recover(records):
            if time_slice.over():
                self._send()
                time_slice.yield_to_hub()
        self._send()

    def _records(self, recovery: Recovery | None) -> tuple[list[RecordedUpdate], list[str]]:
        """Return what has happened since the recovery's start, and the open orders that were not read."""
        began = self._clock()
        day_ago = self.alpaca_time() - DAY
        since = day_ago if recovery is None else recovery.read_since
        orders = {**self._orders("open", None), **self._orders("all", min(since, day_ago))}
        unlisted = [order_id for order_id in self._router.orders.open_since(began) if order_id not in orders]
        if recovery is None:
            return [], unlisted
        for order_id in unlisted:
            orders |= self._order(order_id)
        records: list[RecordedUpdate | None] = []
        for fill in self._fills(since):
            key = (fill.order_id, order_records.quantity(fill.fields["cum_qty"]) or "")
            if self._router.is_told(key):
                continue
            if fill.order_id not in orders:
                orders |= self._order(fill.order_id)
            if fill.order_id not in orders:
                raise RestError(f"{self._rest.host} has a fill of an order that it does not have")
            records.append(order_records.filled(fill, orders[fill.order_id]))
        ends = (order_records.ended(order) for order in orders.values())
        records += (record for record in ends if record is not None and record.time >= since)
        return [record for record in records if record is not None], []

    def _orders(self, status: str, after: int | None) -> dict[str, Fields]:
        """Return the listed orders and their legs, by id, and learn from them. Raises RestError."""
        orders: dict[str, Fields] = {}
        until: int | None = None
        while True:
            read = len(orders)
            page = self._page(order_records.orders_path(status, after=after, until=until))
            for value in _with_pauses(page):
                if (order := order_records.order_of(value)) is None:
                    raise RestError(f"{self._rest.host}: an order in another form than Alpaca's")
                orders |= self._learned(order)
                submitted_at = order_records.time_of(order.get("submitted_at") or order.get("created_at"))
            if len(page) < order_records.ORDERS_PER_PAGE:
                return orders
            if len(orders) == read or submitted_at is None:
                raise RestError(f"{self._rest.host}: more orders at one time than a page has")
            until = submitted_at + 1000  # those of the same microsecond once more: they may go on behind the page

    def _order(self, order_id: str) -> dict[str, Fields]:
        """Return an order and its legs, by id, and learn from them; empty if Alpaca has it not. Raises RestError."""
        try:
            order = order_records.order_of(self._call(order_records.order_path(order_id), single=True))
        except NotFound:
            self._router.orders.end(order_id, self._clock())
            return {}
        if order is None:
            raise RestError(f"{self._rest.host}: an order in another form than Alpaca's")
        return self._learned(order)

    def _learned(self, order: Fields) -> dict[str, Fields]:
        self._router.orders.learn(order, self._clock())
        return {JSON.text_of(fields["id"]) or "": fields for fields in order_records.with_legs(order)}

    def _fills(self, since: int) -> Iterator[Fill]:
        """Yield the fills since a time in nanoseconds since 1970, the oldest first. Raises RestError."""
        token = ""
        while True:
            before = token
            page = self._page(order_records.fills_path(since, token))
            for value in _with_pauses(page):
                if (fill := order_records.fill_of(value)) is None:
                    raise RestError(f"{self._rest.host}: a fill in another form than Alpaca's")
                yield fill
                token = fill.id
            if len(page) < order_records.FILLS_PER_PAGE:
                return
            if token == before:
                raise RestError(f"{self._rest.host}: the same page of fills again")

    def _page(self, path: str) -> list[Raw]:
        """Return the items of a list that the API answers with. Raises RestError."""
        body = self._call(path, single=False)
        try:
            return order_records.items(body)
        except Malformed:
            raise RestError(f"{self._rest.host}: an answer that is not a list in JSON") from None

    def _call(self, path: str, *, single: bool) -> bytes:
        """Make a request within the budget. Raises RestError."""
        if not self._budget.take(single):
            kind = f"{SINGLE_ORDERS} requests for single orders" if single else f"{CALLS} requests"
            raise RestError(f"{self._rest.host}: the {kind} that the proxy makes in a minute are used up")
        return self._rest.get(path)

    # The owner of one order

    def _look_up(self, order_id: str) -> None:
        """Learn to which orders this one is related, and let the updates go on that wait for it."""
        try:
            with gevent.Timeout(LOOKUP_SECONDS, False):
                self._listed.wait()
                self._read_relatives(order_id)
        except RestError as error:
            self._log.warning("not_looked_up", reason=str(error))
        except Exception:
            self._log.error("internal_error")
        finally:
            self._lookups.discard(gevent.getcurrent())
            self._router.looked_up(order_id)
            self._send()

    def _read_relatives(self, order_id: str) -> None:
        """Read an order, the ones that it replaces, and those of its symbol, until an owner is known."""
        symbol, following = "", order_id
        for _ in range(1 + MAX_REPLACED):
            if not following or self._is_owned(order_id):
                break
            order = self._order(following).get(following, {})
            symbol = symbol or JSON.text_of(order.get("symbol")) or ""
            following = JSON.text_of(order.get("replaces")) or ""
        if symbol and not self._is_owned(order_id):
            for value in _with_pauses(self._page(order_records.orders_path("all", symbol=symbol))):
                if (listed := order_records.order_of(value)) is not None:
                    self._learned(listed)

    def _is_owned(self, order_id: str) -> bool:
        return bool(self._router.orders.owners_of(order_id))


def _span(recovery: Recovery) -> dict[str, str]:
    return {"since": timestamps.rfc3339(recovery.since), "until": timestamps.rfc3339(recovery.until)}


def _with_pauses(page: list[Raw]) -> Iterator[Raw]:
    time_slice = TimeSlice()
    for value in page:
        yield value
        time_slice.pause()
