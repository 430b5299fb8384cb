"""Routes order updates: to their owners, in the order of Alpaca, with what was missed during an outage.

An update is held back in two cases, so that nothing newer of its order is sent before it may be:

- After an outage, until the updates that were missed are read from Alpaca's records: then all of an order's updates,
  read and held, are sent in the order of their times. An order that was created after the outage never waits.
- While the owner of its order is looked up: then it is sent at once to the clients that are permitted every update, and
  to the others when the look-up has ended.

The records are read elsewhere (`upstream.order_reader`): this module decides what is held, sent and left out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from proxy.alpaca import order_records
from proxy.alpaca.codec import BODY_BYTES, JSON, Codec, Malformed, Raw
from proxy.alpaca.endpoints import WILDCARD, Endpoint
from proxy.alpaca.order_events import EVENTS
from proxy.alpaca.order_records import Key, RecordedUpdate
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic
from proxy.alpaca.transcode import msgpack_of
from proxy.routing.order_history import OrderHistory
from proxy.routing.order_ownership import MAX_ID, ORDERS, Orders
from proxy.routing.router import ALL, Delivery, Member, Taken

ORDERS_TOPIC: Topic = (ORDERS, WILDCARD)
REPEAT_SECONDS = 60.0  # for which an update that equals a recovered one is left out
HELD_BYTES = 8 * 1024 * 1024  # of all updates that are held back
TOLD = 20_000  # updates that are remembered, so that none is sent twice
TOLD_NANOSECONDS = 3600 * 10**9  # likewise, before the newest; a recovery reads from a minute before the last update
YOUNG = 10_000  # orders that were created since the outage, during a recovery
OVERLAP = 60 * 10**9  # nanoseconds before the last update, from which on the records are read
CLOCK_NANOSECONDS = 2 * 10**9  # by which Alpaca's time may be known wrongly
# Events after which nothing that happened to the order before can be told from its record.
_FIRST_EVENTS = frozenset(("new", "accepted", "pending_new"))


class Update(NamedTuple):
    """An order update on its way: the body as Alpaca sent it, its `data`, and what it is about.

    `time` is Alpaca's, in nanoseconds since 1970, 0 if it names none. `only`: the members that may receive it; None for
    all. `is_sent`: it has been sent to the clients that are permitted every update.
    """

    body: bytes
    data: Raw | bytes
    order_id: str
    key: Key | None
    time: int
    only: frozenset[Member] | None = None
    is_sent: bool = False


@dataclass(frozen=True, slots=True)
class Recovery:
    """The recovery of what was missed in an outage.

    `since` is the time of the last update before it, or of the start of the stream, and `until` that of the stream's
    return; the records are read from `read_since` on. All are Alpaca's, in nanoseconds since 1970. `members` listened
    before it was back.
    """

    since: int
    until: int
    read_since: int
    members: frozenset[Member]


class RecordReader(Protocol):
    """The part of `upstream.order_reader.OrderReader` that the router uses. It never blocks."""

    def stream_is_up(self, recovery: Recovery | None) -> None:
        """Begin to read Alpaca's records; call `recover` for the recovery."""

    def abandon(self, reason: str) -> None:
        """End the reading of the records, and call `recover` without them."""

    def look_up(self, order_id: str) -> bool:
        """Begin to look up the owner of an order, and call `looked_up` after two seconds at most.

        Return whether it is possible now.
        """

    def alpaca_time(self) -> int:
        """Return the time by Alpaca's clock, in nanoseconds since 1970."""


class OrderRouter:
    """Routes the updates of the trading feed of one account.

    The counterpart of `router.Router`; each frame holds one object. Updates of the account (`account_updates`) are sent
    to every member that listens to that stream. Each order update is recorded in the `history`, from which
    members with the codec EVENTS have their form of it. Without a `reader`, nothing is recovered or looked up.
    """

    def __init__(self, endpoint: Endpoint, orders: Orders, clock: Callable[[], float], history: OrderHistory) -> None:
        self.endpoint = endpoint
        self.received = 0  # updates
        self.unrouted = 0  # updates that no session received
        self.unowned = 0  # updates that belong to no client
        self.recovered = 0  # updates that were sent after an outage, from Alpaca's records
        self.recovery: Recovery | None = None
        self.reader: RecordReader | None = None
        self.orders = orders
        self.history = history
        self._oversized = 0
        self._untranslatable = 0
        self._clock = clock
        self._members: dict[Member, Subscription] = {}
        self._deliveries: list[Delivery] = []
        self._is_up = False
        self._up_at = 0  # Alpaca's time
        self._started_at = (
            0  # Alpaca's time at which the stream came up, without an outage since that was not recovered
        )
        self._last_time = 0  # of the last update since then
        self._lost_since: int | None = None  # the start of the outage, if a member has missed something
        self._held: dict[str, list[Update]] = {}  # by the order that is looked up; also of orders related to it
        self._waiting: deque[Update] = deque()  # for the end of the recovery, in the order in which they are sent
        self._held_bytes = 0
        self._young: set[str] = set()  # orders that were unknown and sent their first event after the outage
        self._told: OrderedDict[Key, int] = OrderedDict()  # what has been sent or is held, and Alpaca's time of it
        self._repeats: dict[Key, float] = {}  # what was recovered lately, and when

    def __repr__(self) -> str:
        return f"<OrderRouter {len(self._members)} members>"

    @property
    def irregular(self) -> Mapping[str, int]:
        """The numbers of updates that were dropped or had an id ignored, by reason."""
        return {
            "oversized": self._oversized,
            "untranslatable": self._untranslatable,
            "long_id": self.orders.long_ids,
        }

    # Members

    def set_subscription(self, member: Member, subscription: Subscription) -> list[Delivery]:
        """Replace the streams that the member receives.

        There are no order books to send first.
        """
        if subscription:
            self._members[member] = subscription
        else:
            self.remove(member)
        return []

    def revoke(self, member: Member, topics: Subscription) -> None:
        """Remove these streams from the member's subscription."""
        if member in self._members:
            self._members[member] -= topics

    def remove(self, member: Member) -> None:
        """Remove a member."""
        self._members.pop(member, None)

    def subscription_of(self, member: Member) -> Subscription:
        """Return the streams that the member receives."""
        return self._members.get(member, NO_TOPICS)

    def subscriptions(self) -> list[tuple[Member, Subscription]]:
        """Return each member's subscription."""
        return [*self._members.items()]

    def _listeners(self, topic: Topic = ORDERS_TOPIC) -> list[Member]:
        return [member for member, held in self._members.items() if topic in held]

    def book(self, symbol: str, codec: Codec) -> None:
        """Return None: the trading feed has no order books."""

    # The stream's losses and returns

    def acked_changed(self, acked: Set[Topic]) -> None:
        """Note whether Alpaca sends order updates.

        Only members that listen can miss any: without one, the end of the stream is no outage.
        """
        is_up = ORDERS_TOPIC in acked
        if is_up is self._is_up:
            return
        self._is_up = is_up
        listeners = self._listeners()
        if not is_up:
            self._lost_since = (self._last_time or self._up_at) if listeners else None
            return
        if self.reader is None:
            return
        now = self._up_at = self.reader.alpaca_time()
        self._last_time = 0
        if self._lost_since is not None and listeners:
            since = self._lost_since if self.recovery is None else min(self._lost_since, self.recovery.since)
            self.recovery = Recovery(since, now, self._read_since(since), frozenset(listeners))
        else:
            self._started_at = now
        self._lost_since = None
        self.reader.stream_is_up(self.recovery)

    def _read_since(self, since: int) -> int:
        """Return the time from which on records are read: a little before, but not before the stream's start.

        What happened before the start of the stream was not missed. An update that is older yet has come late.
        """
        return since - OVERLAP if since < self._started_at else max(since - OVERLAP, self._started_at)

    def recover(self, records: Iterable[RecordedUpdate]) -> Iterator[None]:
        """Send what was missed, as the records show it, and what was held meanwhile; then the recovery has ended.

        Each update that has not been sent yet is sent once, in the order of Alpaca's times for each order. Yield after
        each of them.
        """
        if (recovery := self.recovery) is None:
            return
        missed = [self._recorded(record, recovery) for record in records if self._was_missed(record)]
        now = self._clock()
        self._repeats = {key: at for key, at in self._repeats.items() if now - at < REPEAT_SECONDS}
        self._repeats |= {update.key: now for update in missed if update.key is not None}
        self._waiting = deque(_by_time(missed, self._waiting))
        while self._waiting:  # updates that arrive during a pause go to its end
            update = self._waiting.popleft()
            self._held_bytes -= len(update.body) if update.only is None else 0
            self._route(update)
            yield
        self.recovery = None
        self._young.clear()

    def is_told(self, key: Key) -> bool:
        """Return whether what the key says has been sent, or is held to be sent."""
        return key in self._told

    def _was_missed(self, record: RecordedUpdate) -> bool:
        young = record.key[0] in self._young or record.made_at >= self._up_at + CLOCK_NANOSECONDS
        return record.key not in self._told and not young

    def _recorded(self, record: RecordedUpdate, recovery: Recovery) -> Update:
        self._tell(record.key, record.time)
        body = b'{"stream":"%b","data":%b}' % (ORDERS.encode(), record.data)
        return Update(body, record.data, record.key[0], record.key, record.time, recovery.members)

    def looked_up(self, order_id: str) -> None:
        """Send the updates of an order whose owner was looked up."""
        for update in self._held.pop(order_id, []):
            self._held_bytes -= len(update.body)
            self._send(update, self.orders.owners(update.data, self._clock()))

    # Updates

    def pieces(self, frame: bytes) -> Iterator[bytes | None]:
        """Yield the frame, which holds one object and is not split."""
        yield frame

    def take(self, frame: bytes) -> Taken:
        """Gather the updates in a frame for their members, up to another message. Raises Malformed.

        An array is the same as its elements, each in a frame of its own.
        """
        if frame[:1] in b"[ \t\r\n" and JSON.is_array(frame.lstrip()):
            bodies: Sequence[Raw | bytes] = JSON.split(frame)[0]
        else:
            bodies = (frame,)
        for position, body in enumerate(bodies):
            if not self._take_update(body):
                rest = bodies[position + 1 :]
                return Taken(body, JSON.join(rest) if rest else None)
        return ALL

    def _take_update(self, body: Raw | bytes) -> bool:
        """Take an update; return False for any other message. Raises Malformed."""
        if len(body) > BODY_BYTES:
            self._oversized += 1
            return True
        message = JSON.envelope(body)
        stream = JSON.text_of(message.stream)
        if stream not in self.endpoint.channels:
            return False
        self.received += 1
        if stream == ORDERS:
            self._arrived(bytes(body), message.data)
        elif members := self._listeners((stream, WILDCARD)):
            self._gather(bytes(body), None, members)
        else:
            self.unrouted += 1
        return True

    def _arrived(self, body: bytes, data: Raw) -> None:
        """Send an update, or hold it for the end of the recovery."""
        fields = JSON.fields_of(data) or {}
        order = JSON.fields_of(fields.get("order")) or {}
        event = JSON.text_of(fields.get("event"))
        order_id = JSON.text_of(order.get("id")) or ""
        update = Update(
            body,
            data,
            order_id if len(order_id) <= MAX_ID else "",
            order_records.key_of(event, order) if len(order_id) <= MAX_ID else None,
            self._time_of(fields),
        )
        self._last_time = update.time
        if update.key is not None:
            if self._is_repeat(update.key):
                return
            self._tell(update.key, update.time)
        if self.recovery is None or not update.order_id or self._is_young(order_id, event, order):
            self._route(update)
            return
        self._waiting.append(update)
        self._held_bytes += len(body)
        if self._held_bytes > HELD_BYTES and self.reader is not None:
            self.reader.abandon("there are more new updates than can be held meanwhile")

    def _time_of(self, update: order_records.Fields) -> int:
        """Return the time that an update names, at most that of its arrival, which is the time of one that has none."""
        arrived = 0 if self.reader is None else self.reader.alpaca_time()
        times = (order_records.time_of(update.get(name)) for name in ("timestamp", "at"))
        return min(next((time for time in times if time is not None), arrived), arrived)

    def _is_repeat(self, key: Key) -> bool:
        """Return whether the same was recovered lately: Alpaca sends it although it came from the records before."""
        recovered_at = self._repeats.get(key)
        return recovered_at is not None and self._clock() - recovered_at < REPEAT_SECONDS

    def _is_young(self, order_id: str, event: str | None, order: order_records.Fields) -> bool:
        """Return whether an order was created after the outage, so that nothing of it was missed."""
        if event in _FIRST_EVENTS and not self.orders.knows(order_id) and len(self._young) < YOUNG:
            self._young.add(order_id)
        return order_id in self._young or (order_records.time_of(order.get("created_at")) or 0) >= self._up_at

    def _tell(self, key: Key, time: int) -> None:
        """Remember what an update tells: it is not told again."""
        self._told[key] = time
        while len(self._told) > TOLD or next(iter(self._told.values())) < time - TOLD_NANOSECONDS:
            self._told.popitem(last=False)

    def _route(self, update: Update) -> None:
        """Send an update to its receivers; those that are not permitted every update wait while it is looked up."""
        owners = self.orders.owners(update.data, self._clock())
        if owners:
            for order_id in [each for each in self._held if self.orders.owners_of(each)]:
                self.looked_up(order_id)
        elif look_up := self._look_up_of(update.order_id):
            self._hold(update, look_up)
            return
        self._send(update, owners)

    def _look_up_of(self, order_id: str) -> str:
        """Return the order whose look-up is awaited for this one; begin one, once, if a client might be the owner."""
        if not order_id or self.reader is None:
            return ""
        if look_up := self.orders.look_up_of(order_id):
            return look_up if look_up in self._held else ""
        everything = self.orders.permitted_all()
        waiting = any(member.name not in everything for member in self._listeners())
        if not waiting or self._held_bytes > HELD_BYTES or not self.reader.look_up(order_id):
            return ""
        self.orders.note_look_up(order_id)
        return order_id

    def _hold(self, update: Update, look_up: str) -> None:
        everything = self.orders.permitted_all()
        self._deliver(update, everything, everything)
        self._held.setdefault(look_up, []).append(update._replace(is_sent=True))
        self._held_bytes += len(update.body)
        if self._held_bytes > HELD_BYTES:
            self.looked_up(look_up)

    def _send(self, update: Update, owners: frozenset[str]) -> None:
        """Send an update to its owners and, if that has not been done, to those that are permitted every update."""
        self.unowned += not owners
        everything = self.orders.permitted_all()
        if not update.is_sent:
            was_sent = self._deliver(update, owners | everything, None)
            self.unrouted += not was_sent and update.only is None
        elif rest := owners - everything:
            self._deliver(update, rest, rest)

    def _deliver(self, update: Update, clients: frozenset[str], recorded_for: frozenset[str] | None) -> bool:
        """Gather an update for the members of these clients; return whether there is any."""
        members = [
            member
            for member in self._listeners()
            if member.name in clients and (update.only is None or member in update.only)
        ]
        event = self.history.record(update.data, self._clock(), recorded_for)
        if members:
            self.recovered += update.only is not None
            self._gather(update.body, event, members)
        return bool(members)

    def _gather(self, frame: bytes, event: bytes | None, members: list[Member]) -> None:
        """Gather an update for these members, in the codec of each; `event` is what event streams get."""
        same = [member for member in members if member.codec is JSON]
        streams = [member for member in members if member.codec is EVENTS]
        other = [member for member in members if member.codec is not JSON and member.codec is not EVENTS]
        if same:
            self._deliveries.append(Delivery(same, False, frame, 1))
        if streams:
            if event is None:
                self._untranslatable += 1
            else:
                self._deliveries.append(Delivery(streams, False, event, 1))
        if other:
            try:
                self._deliveries.append(Delivery(other, False, msgpack_of(frame), 1))
            except Malformed:
                self._untranslatable += 1

    def flush(self) -> list[Delivery]:
        """Return the updates that `take` gathered, in binary frames as Alpaca's."""
        deliveries, self._deliveries = self._deliveries, []
        return deliveries


def _by_time(missed: Iterable[Update], waiting: Iterable[Update]) -> list[Update]:
    """Return the updates by Alpaca's times; those that arrived of an order keep their order, whatever they name."""
    latest: dict[str, int] = {}
    timed = [(update.time, update) for update in missed]
    for update in waiting:
        latest[update.order_id] = time = max(update.time, latest.get(update.order_id, 0))
        timed.append((time, update))
    return [update for _, update in sorted(timed, key=lambda pair: pair[0])]
