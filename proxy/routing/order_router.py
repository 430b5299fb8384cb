"""Routes order updates: to their owners, in the order of Alpaca, with what was missed during an outage.

An update waits in two cases, so that nothing newer of its order is sent before it may be:

- After an outage, until the updates that were missed are read from Alpaca's records: then all of an order's updates,
  read and waiting, are sent in the order of their times. An order that was created after the outage never waits.
- While the owner of its order is looked up: then it is sent at once to the clients that are permitted every update, and
  to the others when the look-up has ended.

The records are read elsewhere (`upstream.order_reader`): this module decides what waits, is sent and is left out. Times
are nanoseconds since 1970 by Alpaca's clock, unless they are called local.

In a cluster one node leads the feed. Its history is a log that the others follow (`order_entries`): a node that follows
keeps the leader's entries, and sends each to its own sessions by its own allowlists. It looks nothing up, and recovers
what it has missed from the leader's log. What no log has, the leader recovers from Alpaca's records.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, Protocol

from proxy.alpaca import order_records
from proxy.alpaca.codec import BODY_BYTES, JSON, Codec, Malformed, Raw
from proxy.alpaca.cooperative import Steps, sorted_in_chunks
from proxy.alpaca.endpoints import WILDCARD, Endpoint
from proxy.alpaca.order_events import EVENTS
from proxy.alpaca.order_records import Fields, RecordedUpdate, UpdateKey
from proxy.alpaca.topics import NO_TOPICS, Subscription, Topic
from proxy.alpaca.transcode import msgpack_of
from proxy.routing import order_entries
from proxy.routing.order_entries import Claim
from proxy.routing.order_history import OrderHistory, Part
from proxy.routing.order_ownership import MAX_ID, ORDERS, Orders
from proxy.routing.router import ALL, Delivery, Member, Taken

ORDERS_TOPIC: Topic = (ORDERS, WILDCARD)
SECOND = 10**9
REPEAT_SECONDS = 60.0  # for which an update that equals a recovered one is left out
WAITING_BYTES = 8 * 1024 * 1024  # of all updates that wait
AWAITING_OWNER = 200  # updates; each takes 27 us when its look-up has ended
SENT_KEYS = 20_000  # updates that are remembered, so that none is sent twice
MAX_RETURNS = 8  # of the stream, before one recovery ends
NEW_ORDERS = 10_000  # orders that were created since the outage, during a recovery
OVERLAP = 60 * SECOND  # before the last update, from which on the records are read
CLOCK_ERROR = 2 * SECOND  # by which Alpaca's time may be known wrongly
# Between two states of an order with the same name: `done_for_day` comes each day.
SAME_STATE = 12 * 3600 * SECOND
# Events after which nothing that happened to the order before can be found in its record.
_FIRST_EVENTS = frozenset(("new", "accepted", "pending_new"))
_NO_MEMBERS: frozenset[Member] = frozenset()


class OrderUpdate(NamedTuple):
    """An order update on its way: the body as Alpaca sent it, its `data`, and what it is about.

    `only`: the members that may receive it, None for all; `besides`: those that have received it in another form.
    `is_sent`: it has been sent to the clients that are permitted every update. `is_recorded`: it was made from Alpaca's
    records. `entry`: it comes from the leader's log, and is in the own one, for these receivers; `event` is the form
    that event streams get.
    """

    body: bytes
    data: Raw | bytes
    order_id: str
    key: UpdateKey | None
    time: int
    only: frozenset[Member] | None = None
    besides: frozenset[Member] = _NO_MEMBERS
    is_sent: bool = False
    is_recorded: bool = False
    entry: Part | None = None
    event: bytes | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """The recovery of what was missed in an outage.

    `since` is the time of the last update before it, or of the start of the stream; the records are read from
    `read_since` on. `returns` has the time of the stream's return, and the members that listened before it was back;
    before that, those of outages whose recovery had not ended when the stream was lost again.
    """

    since: int
    read_since: int
    returns: tuple[tuple[int, frozenset[Member]], ...]

    @property
    def until(self) -> int:
        """The time of the stream's last return."""
        return self.returns[-1][0]

    @property
    def members(self) -> frozenset[Member]:
        """All members that listened before the stream was back."""
        return frozenset().union(*(members for _, members in self.returns))

    def members_at(self, time: int) -> frozenset[Member]:
        """Return the members that listened before the end of the outage at that time."""
        return next((members for until, members in self.returns if time < until), self.returns[-1][1])


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

    def local_time(self) -> int:
        """Return the time by this machine's clock."""

    def clock_offset(self) -> int:
        """Return the nanoseconds by which Alpaca's clock is ahead of this machine's, as far as that is known."""


class OrderRouter:
    """Routes the updates of the trading feed of one account.

    The counterpart of `router.Router`; each frame holds one object. Updates of the account (`account_updates`) are sent
    to every member that listens to that stream. Each order update is recorded in the `history`, from which members with
    the codec EVENTS have their form of it. `reader` is set before the first frame.

    In a cluster: `term` names the time for which this node leads the feed, or that of the leader that it follows; it is
    empty without one. `complete_from`: since then the history has all updates, if it has not begun after an outage that
    is not recovered; None if nothing is known. `needs_records`: the recovery is for members or other nodes, and not
    only the time for which these may ask for one.
    """

    reader: RecordReader

    def __init__(self, endpoint: Endpoint, orders: Orders, clock: Callable[[], float], history: OrderHistory) -> None:
        self.endpoint = endpoint
        self.received = 0  # updates
        self.unrouted = 0  # updates that no session received
        self.unowned = 0  # updates that belong to no client
        self.recovered = 0  # updates that were sent after an outage, from Alpaca's records
        self.recovery: Recovery | None = None
        self.is_up = False
        self.follows = False
        self.term = ""
        self.complete_from: int | None = None
        self.needs_records = False
        self.orders = orders
        self.history = history
        self._oversized = 0
        self._untranslatable = 0
        self._clock = clock
        self._members: dict[Member, Subscription] = {}
        self._deliveries: list[Delivery] = []
        # Local times of the stream's last return, and since when no outage is left that was not recovered.
        self._up_at = self._started_at = 0
        self._last_time = 0  # of the newest update since the last return
        self._lost_since: int | None = None  # the start of an outage in which a member misses updates
        self._gap_since = 0  # the start of the last outage, whether a member misses updates or not
        self._heard = self._owed = Claim()  # the last entry of a leader's log; the one at the start of the outage
        self._newest_at = 0  # of the entries of the present link
        self._is_caught_up = False  # by that
        self._looks_up_again = False  # what waits for the look-ups of a former leader
        self._owes_log = False  # members are owed all entries after that one
        self._term_begin = 0  # the position in the history at which the own term began
        self._followers: dict[Member, bool] = {}  # other nodes, and whether they get entries as they are made
        self._claims: dict[Member, Claim] = {}  # of other nodes, while the stream is not up
        self._awaiting_owner: dict[str, list[OrderUpdate]] = {}  # by the order that is looked up, with related ones
        self._awaiting_recovery: deque[OrderUpdate] = deque()  # in the order in which they are sent
        self._orders_of_waiting: set[str] = set()  # entries that wait for the end of the recovery
        self._waiting_bytes = self._waiting_for_owner = 0
        self._is_overflowing = False
        self._new_orders: set[str] = set()  # orders whose first event came since the return
        self._sent: OrderedDict[UpdateKey, int] = OrderedDict()  # what was sent or waits to be sent, and its time
        # Entries that have come from leaders: the `at`, part, order and time of each.
        self._entries: OrderedDict[tuple[int, Part, str, int], None] = OrderedDict()
        self._repeats: dict[UpdateKey, tuple[float, frozenset[Member]]] = {}  # what was recovered: when, to whom

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
        if not subscription:
            self.remove(member)
            return []
        self._members[member] = subscription
        is_owed = ORDERS_TOPIC in subscription and member not in self._followers
        if self.term and member.name in self.orders.observers:  # another node has recorded what was before
            is_owed = False
        if not self.is_up and self._lost_since is None and is_owed:
            self._lost_since = self._alpaca_time()  # it was told that it listens, and Alpaca is away
        return []

    def revoke(self, member: Member, topics: Subscription) -> None:
        """Remove these streams from the member's subscription."""
        if member in self._members:
            self._members[member] -= topics

    def remove(self, member: Member) -> None:
        """Remove a member."""
        self._members.pop(member, None)
        self._followers.pop(member, None)
        self._claims.pop(member, None)

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

    def books(self, member: Member) -> Iterator[Delivery]:
        """Yield nothing: the trading feed has no order books."""
        yield from ()

    # The stream's losses and returns

    def _alpaca_time(self) -> int:
        return self.reader.local_time() + self.reader.clock_offset()

    def acked_changed(self, acked: Set[Topic]) -> None:
        """Note whether Alpaca sends order updates.

        Only members that listen can miss any: without one, the end of the stream is no outage.
        """
        is_up = ORDERS_TOPIC in acked
        if is_up is self.is_up:
            return
        self.is_up = is_up
        self._new_orders.clear()
        listeners = frozenset(self._listeners()) - self._followers.keys()
        if not is_up:
            self._gap_since = self._last_time or self._up_at + self.reader.clock_offset()
            if self.follows and not self._is_caught_up:
                self.complete_from = None
            self._lost_since = self._gap_since if listeners else None
            self._owes_log = bool(listeners)
            if self.recovery is None:
                self._owed = self.heard
            return
        lost_since, self._lost_since, self._last_time = self._lost_since, None, 0
        self._up_at = self.reader.local_time()
        if lost_since is not None and listeners:
            self._begin_recovery(lost_since, listeners)
        elif self.term and not self.follows:
            self._begin_gathering()
        else:
            self._started_at = self._up_at
        self.reader.stream_is_up(self.recovery)
        if self.term and not self.follows:
            self._answer_claims()
            self._look_up_again()

    def _begin_recovery(self, lost_since: int, listeners: frozenset[Member]) -> None:
        self.needs_records = True
        returns = [(self._alpaca_time(), listeners)]
        if self.recovery is not None:
            lost_since = min(lost_since, self.recovery.since)
            returns = [*self.recovery.returns, *returns][-MAX_RETURNS:]
        if not self.follows and lost_since > self._gap_since:  # it is for members that came during the outage
            self.complete_from = None
        if self.follows and self.recovery is not None:
            read_since = self.recovery.read_since  # of the first loss, and so is the position that is asked for
        elif self.follows and self._owes_log:
            read_since = 0
        else:
            read_since = self._read_since(lost_since)
        self.recovery = Recovery(lost_since, read_since, tuple(returns))

    def _read_since(self, since: int) -> int:
        """Return the time from which on records are read: a little before, but not before the stream's start.

        What happened before the start of the stream was not missed. An update that is older yet has come late.
        """
        started_at = self._started_at + self.reader.clock_offset()
        return max(since - OVERLAP if since < started_at else max(since - OVERLAP, started_at), 0)

    def recover(self, recovery: Recovery, records: Iterable[RecordedUpdate] | None) -> Iterator[None]:
        """Send what was missed, as the records show it, and what has waited; then the recovery has ended.

        Each update that has not been sent yet is sent once, in the order of Alpaca's times for each order. Without
        records only what has waited is sent. Yield between the steps; the rest is left to a new recovery, if there is
        one meanwhile.
        """
        if self.recovery is not recovery:
            return
        waiting = self._awaiting_recovery
        for record in records or ():
            if not self.was_sent(record.key, record.time) and not self._is_new(record):
                waiting.append(self._recorded(record, recovery))
            yield
        ordered = yield from _by_time([*waiting])
        ordered += islice(waiting, len(ordered), None)  # those that have arrived during a pause
        waiting.clear()
        waiting.extend(ordered)
        while waiting and self.recovery is recovery:
            update = waiting.popleft()
            self._waiting_bytes -= 0 if update.is_recorded else len(update.body)
            self._route(update)
            yield
        if self.recovery is recovery:
            self.recovery = None
            self._is_overflowing = False
            self._new_orders.clear()
            self._orders_of_waiting.clear()
            self.history.is_behind = self.follows and not self._is_caught_up
            is_complete = records is not None and self.needs_records
            self.needs_records = False
            if not is_complete:
                self._started_at = self._up_at
            if not self.follows:
                since = recovery.since if is_complete else self._up_at + self.reader.clock_offset()
                known = self.complete_from if is_complete and since <= self._gap_since else None
                self.complete_from = since if known is None else min(known, since)

    def was_sent(self, key: UpdateKey, time: int) -> bool:
        """Return whether what the key says has been sent, or waits to be sent; `time` is that of its record."""
        sent = self._sent.get(key)
        return sent is not None and time - sent < SAME_STATE

    def _is_new(self, record: RecordedUpdate) -> bool:
        created_after = record.created_at >= self._up_at + self.reader.clock_offset() + CLOCK_ERROR
        return created_after or record.key[0] in self._new_orders

    def _recorded(self, record: RecordedUpdate, recovery: Recovery) -> OrderUpdate:
        members = recovery.members_at(record.time)
        self._note_sent(record.key, record.time)
        now = self._clock()
        if len(self._repeats) >= SENT_KEYS:
            self._repeats = {key: each for key, each in self._repeats.items() if now - each[0] < REPEAT_SECONDS}
        self._repeats[record.key] = now, members
        body = b'{"stream":"%b","data":%b}' % (ORDERS.encode(), record.data)
        return OrderUpdate(body, record.data, record.key[0], record.key, record.time, members, is_recorded=True)

    def looked_up(self, order_id: str) -> None:
        """Send the updates of an order whose owner was looked up."""
        for update in self._awaiting_owner.pop(order_id, []):
            self._waiting_bytes -= len(update.body)
            self._waiting_for_owner -= 1
            self._send(update, self.orders.owners(update.data, self._clock()))

    # The leader of a cluster, and those that follow it

    @property
    def heard(self) -> Claim:
        """The last entry of the log of the leader that is followed, or of the own log."""
        return self._heard if self.follows else Claim(self.term, self.history.last_at)

    @property
    def awaited(self) -> list[str]:
        """The orders whose look-up is awaited."""
        return [*self._awaiting_owner]

    def lead(self, term: str) -> None:
        """Read from Alpaca, and keep the log that other nodes follow, in a new term unless this node led before.

        Call it while the stream is not up.
        """
        if self.term and not self.follows:
            return
        self.follows, self.term, self._term_begin = False, term, self.history.end
        self.history.is_behind = bool(self._orders_of_waiting)
        self._looks_up_again = bool(self._awaiting_owner)

    def follow_leader(self) -> None:
        """Read from the leader's log. Call it while the stream is not up."""
        if not self.follows:
            self._heard = self.heard
            self.follows = True
        self.history.is_behind = True
        self._newest_at, self._is_caught_up = 0, False

    def claim(self) -> Claim:
        """Return what the leader that is followed is to be asked for."""
        recovery = () if self.recovery is None else (self.recovery.since,)
        lost = () if self._lost_since is None else (self._lost_since,)
        return replace(self._owed if recovery else self._heard, since=min((*recovery, *lost), default=None))

    def caught_up(self, asked: Claim, term: str, complete_from: int) -> None:
        """Note that all entries that were asked for have come, and what the leader says of its log."""
        known = self.complete_from
        self.term = term
        if self._newest_at:  # else what was heard last is of a former term
            self._heard = Claim(term, self._newest_at)
        self.complete_from = known if known is not None and asked.at >= complete_from else complete_from
        self._is_caught_up = True
        self.history.is_behind = self.recovery is not None  # an event stream that read now would get what waits twice

    def add_follower(self, member: Member, claim: Claim) -> bool:
        """Let a node follow, before its subscription; return False if the history has forgotten what it asks for."""
        self._followers[member] = False
        if claim.since is None:
            return True
        if max(claim.at, claim.since) < self.history.forgotten_at:
            return False
        if self.is_up:
            self._answer_claim(claim)
        else:
            self._claims[member] = claim
        return True

    def begin_of(self, claim: Claim) -> int:
        """Return the position in the history of the first entry that a node may not have."""
        position = self.history.position(claim.at + 1)
        return position if claim.term == self.term else min(position, max(self._term_begin, self.history.begin))

    def replay(self, position: int, claim: Claim) -> tuple[list[bytes], int]:
        """Return the messages of the next few entries from a position on, and the position after them.

        Raises Forgotten.
        """
        updates = self.history.read_all(position, self._clock())
        entries = [
            order_entries.encode(each.data, each.at, each.part, self._matches_of(each.data), is_replay=True)
            for number, each in enumerate(updates, position)
            if each.part is not Part.REPEAT and (each.at > claim.at or number >= self._term_begin)
        ]
        return entries, position + len(updates)

    def serve_live(self, member: Member) -> None:
        """Send entries to a node as they are made from now on: it has all before."""
        if member in self._followers:
            self._followers[member] = True

    def _matches_of(self, data: bytes) -> Sequence[tuple[str, str]]:
        order = JSON.fields_of((JSON.fields_of(data) or {}).get("order")) or {}
        return self.orders.matches_of(JSON.text_of(order.get("id")) or "")

    def _look_up_again(self) -> None:
        """Look up what a former leader was looking up."""
        if self._looks_up_again:
            self._looks_up_again = False
            for order_id in self.awaited:
                if not self.reader.look_up(order_id):
                    self.looked_up(order_id)

    def _begin_gathering(self) -> None:
        """Begin a recovery that ends at once unless another node asks for one."""
        if self.recovery is None:
            self.needs_records = False
            now = self._alpaca_time()
            since = self._gap_since or now
            self.recovery = Recovery(since, max(since - OVERLAP, 0), ((now, _NO_MEMBERS),))

    def _answer_claims(self) -> None:
        claims, self._claims = self._claims, {}
        for claim in claims.values():
            self._answer_claim(claim)

    def _answer_claim(self, claim: Claim) -> None:
        """Begin or extend a recovery if the history lacks what a node has asked for."""
        assert claim.since is not None
        heard_until = max(claim.at, claim.since) if claim.term == self.term else claim.since
        is_known = self.complete_from is not None and heard_until >= self.complete_from
        recovery = self.recovery
        if recovery is not None:
            is_covered = is_known or claim.since >= recovery.since
            if is_covered and self.needs_records:
                return
            since, returns = recovery.since if is_covered else claim.since, recovery.returns
        elif is_known:
            return
        else:
            since, returns = claim.since, ((self._up_at + self.reader.clock_offset(), _NO_MEMBERS),)
        self.needs_records = True
        self.recovery = Recovery(since, max(since - OVERLAP, 0), returns)
        self.reader.stream_is_up(self.recovery)

    def _take_entry(self, body: bytes) -> None:
        """Record an entry of the leader's log, and send it, or have it wait for the end of the recovery."""
        entry = order_entries.parse(body)
        message = b'{"stream":"%b","data":%b}' % (ORDERS.encode(), entry.data)
        update, fields = self._parsed(message, entry.data, entry.at)
        order_id, key = update.order_id, update.key
        self._newest_at = entry.at
        if self._is_caught_up:  # else all entries are asked for again if the link ends
            self._heard = Claim(self.term, entry.at)
        if order_id:
            self.orders.relate(order_id, entry.matches, self._clock())
        identity = entry.at, entry.part, order_id, update.time
        if entry.is_replay and identity in self._entries:
            return
        self._entries[identity] = None
        if len(self._entries) > SENT_KEYS:
            self._entries.popitem(last=False)
        is_recovered = bytes(fields.get("recovered", b"")) == b"true"
        only: frozenset[Member] | None = None
        if entry.is_replay or is_recovered:
            if entry.part is not Part.REST and self._has_sent(update, is_recovered):
                if entry.part is Part.WHOLE:  # the leader knows the owner, who may wait for it here
                    self.looked_up(order_id)
                if is_recovered and key is not None:
                    self._note_repeat(key, frozenset(self._members))
                return
            only = self._owed_members(update)
        elif key is not None and (members := self._received_by(key)) is not None:
            repeat, receivers = update._replace(besides=members), self._receivers(update)
            self._deliver(repeat, receivers, only=frozenset(), part=Part.REPEAT, at=entry.at)
            return
        if entry.part is Part.REST and not self._rest_waits(update):
            return  # it has been sent
        if key is not None:
            self._note_sent(key, update.time)
            if is_recovered:
                self._note_repeat(key, only or _NO_MEMBERS)
        update = self._logged(update._replace(only=only, entry=entry.part), entry)
        order = JSON.fields_of(fields.get("order")) or {}
        event = JSON.text_of(fields.get("event"))
        waits = self.recovery is not None and order_id and only != _NO_MEMBERS
        if waits and only is None and order_id not in self._orders_of_waiting:
            waits = not self._is_new_order(order_id, event, order)
        if not waits:
            self._route(update)
        else:
            self._orders_of_waiting.add(order_id)
            self._await_recovery(update)

    def _note_repeat(self, key: UpdateKey, members: frozenset[Member]) -> None:
        self._repeats.pop(key, None)
        self._repeats[key] = self._clock(), members
        if len(self._repeats) > SENT_KEYS:
            del self._repeats[next(iter(self._repeats))]

    def _has_sent(self, update: OrderUpdate, is_recovered: bool) -> bool:
        """Return whether an update that comes once more, from the log of a leader, has been sent."""
        if update.key is None or not self.was_sent(update.key, update.time):
            return False
        is_fill = not isinstance(update.key[1], str)
        return is_fill or is_recovered or update.key in self._repeats or self._sent[update.key] == update.time

    def _owed_members(self, update: OrderUpdate) -> frozenset[Member]:
        """Return the members that were listening when an update was missed."""
        recovery = self.recovery
        if recovery is None or update.time < recovery.read_since:
            return _NO_MEMBERS
        return recovery.members_at(update.time)

    def _logged(self, update: OrderUpdate, entry: order_entries.Entry) -> OrderUpdate:
        """Record an entry as the leader has, by the own allowlists."""
        everything = self.orders.permitted_all() if entry.part is not Part.WHOLE else frozenset[str]()
        only = everything if entry.part is Part.FIRST else None
        without = everything if entry.part is Part.REST else frozenset[str]()
        event = self.history.record(update.data, self._clock(), only, without, part=entry.part, at=entry.at)
        return update._replace(event=event)

    def _route_entry(self, update: OrderUpdate) -> None:
        """Send an entry to its receivers. What the rest waits for comes in an entry of its own, but for an outage."""
        owners = self.orders.owners(update.data, self._clock())
        if update.entry is Part.WHOLE:
            if owners - self.orders.observers:
                self.looked_up(update.order_id)  # what an outage has cut off goes first
            self._send(update, owners)
        elif update.entry is Part.FIRST:
            everything = self.orders.permitted_all()
            self._deliver(update, everything, only=everything)
            self._await_rest(update)
        elif self._end_wait(update):
            self._send(update._replace(is_sent=True), owners)

    def _await_rest(self, update: OrderUpdate) -> None:
        order_id, update = update.order_id, update._replace(is_sent=True, entry=None, event=None)
        if order_id not in self._awaiting_owner and not self.reader.look_up(order_id):
            self._send(update, self.orders.owners(update.data, self._clock()))
            return
        self._awaiting_owner.setdefault(order_id, []).append(update)
        self._waiting_for_owner += 1
        self._waiting_bytes += len(update.body)
        if self._is_full():
            self.looked_up(order_id)

    def _rest_waits(self, update: OrderUpdate) -> bool:
        """Return whether the first part of an entry has come, and the rest has not."""
        waiting = self._awaiting_owner.get(update.order_id, [])
        held = (each for each in self._awaiting_recovery if each.entry is Part.FIRST)
        return any((each.order_id, each.key) == (update.order_id, update.key) for each in (*waiting, *held))

    def _end_wait(self, update: OrderUpdate) -> bool:
        """Return whether the rest has waited for this update, which ends with that."""
        waiting = self._awaiting_owner.get(update.order_id, [])
        for each in waiting:
            if each.key == update.key:
                waiting.remove(each)
                self._waiting_for_owner -= 1
                self._waiting_bytes -= len(each.body)
                if not waiting:
                    del self._awaiting_owner[update.order_id]
                return True
        return False

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
        if len(body) > BODY_BYTES + (order_entries.ENVELOPE_BYTES if self.follows else 0):
            self._oversized += 1
            return True
        message = JSON.envelope(body)
        stream = JSON.text_of(message.stream)
        if stream not in self.endpoint.channels:
            return False
        self.received += 1
        if stream == ORDERS and self.follows:
            self._take_entry(bytes(body))
        elif stream == ORDERS:
            self._take_order_update(bytes(body), message.data)
        elif members := self._listeners((stream, WILDCARD)):
            self._gather(bytes(body), None, members)
        else:
            self.unrouted += 1
        return True

    def _take_order_update(self, body: bytes, data: Raw) -> None:
        """Send an update, or have it wait for the end of the recovery."""
        update, fields = self._parsed(body, data, self._alpaca_time())
        order_id, key, time = update.order_id, update.key, update.time
        if key is not None:
            if (members := self._received_by(key)) is not None:
                repeat = update._replace(besides=members)
                self._deliver(repeat, self._receivers(update), only=frozenset(), part=Part.REPEAT)
                return
            self._note_sent(key, time)
        event, order = JSON.text_of(fields.get("event")), JSON.fields_of(fields.get("order")) or {}
        if self.recovery is None or not order_id or self._is_new_order(order_id, event, order):
            self._route(update)
        else:
            self._await_recovery(update)

    def _parsed(self, body: bytes, data: Raw, arrived_at: int) -> tuple[OrderUpdate, Fields]:
        """Return an update that has arrived, and the fields of its `data`."""
        fields = JSON.fields_of(data) or {}
        order = JSON.fields_of(fields.get("order")) or {}
        order_id = JSON.text_of(order.get("id")) or ""
        if len(order_id) > MAX_ID:
            order_id = ""
        key = order_records.key_of(JSON.text_of(fields.get("event")), order) if order_id else None
        times = (order_records.time_of(fields.get(name)) for name in ("timestamp", "at"))
        time = next((time for time in times if time is not None), arrived_at)
        self._last_time = max(self._last_time, min(time, arrived_at))
        return OrderUpdate(body, data, order_id, key, time), fields

    def _received_by(self, key: UpdateKey) -> frozenset[Member] | None:
        """Return the members that received the same lately, from the records; None if it was not recovered."""
        recovered_at, members = self._repeats.get(key, (float("-inf"), None))
        return members if self._clock() - recovered_at < REPEAT_SECONDS else None

    def _receivers(self, update: OrderUpdate) -> frozenset[str]:
        return self.orders.owners(update.data, self._clock()) | self.orders.permitted_all()

    def _is_new_order(self, order_id: str, event: str | None, order: Fields) -> bool:
        """Return whether an order was created after the outage, so that nothing of it was missed."""
        if event in _FIRST_EVENTS and not self.orders.knows(order_id) and len(self._new_orders) < NEW_ORDERS:
            self._new_orders.add(order_id)
        created_at = order_records.time_of(order.get("created_at")) or 0
        return order_id in self._new_orders or created_at >= self._up_at + self.reader.clock_offset()

    def _await_recovery(self, update: OrderUpdate) -> None:
        self._awaiting_recovery.append(update)
        self._waiting_bytes += len(update.body)
        if self._waiting_bytes > WAITING_BYTES and not self._is_overflowing:
            self._is_overflowing = True
            self.reader.abandon("more new updates arrived meanwhile than can wait")

    def _note_sent(self, key: UpdateKey, time: int) -> None:
        self._sent[key] = time
        if len(self._sent) > SENT_KEYS:
            self._sent.popitem(last=False)

    def _route(self, update: OrderUpdate) -> None:
        """Send an update to its receivers; those that are not permitted every update wait while it is looked up."""
        if update.entry is not None:
            self._route_entry(update)
            return
        owners = self.orders.owners(update.data, self._clock())
        if owners - self.orders.observers:
            for order_id in [each for each in self._awaiting_owner if self.orders.owners_of(each)]:
                self.looked_up(order_id)
        elif look_up := self._look_up_of(update.order_id):
            self._await_owner(update, look_up)
            return
        self._send(update, owners)

    def _look_up_of(self, order_id: str) -> str:
        """Return the order whose look-up is awaited for this one; begin one, once, if a client might be the owner."""
        if not order_id:
            return ""
        if look_up := self.orders.look_up_of(order_id):
            return look_up if look_up in self._awaiting_owner else ""
        no_owners = self.orders.permitted_all() | self.orders.observers
        if all(member.name in no_owners for member in self._listeners()) or self._is_full():
            return ""
        if not self.reader.look_up(order_id):
            return ""
        self.orders.note_look_up(order_id)
        return order_id

    def _is_full(self) -> bool:
        return self._waiting_for_owner >= AWAITING_OWNER or self._waiting_bytes > WAITING_BYTES

    def _await_owner(self, update: OrderUpdate, look_up: str) -> None:
        everything = self.orders.permitted_all()
        self._deliver(update, everything, only=everything, part=Part.FIRST)
        self._awaiting_owner.setdefault(look_up, []).append(update._replace(is_sent=True))
        self._waiting_for_owner += 1
        self._waiting_bytes += len(update.body)
        if self._is_full():
            self.looked_up(look_up)

    def _send(self, update: OrderUpdate, owners: frozenset[str]) -> None:
        """Send an update to its owners and, if that has not been done, to those that are permitted every update."""
        self.unowned += not owners - self.orders.observers
        everything = self.orders.permitted_all()
        if update.is_sent:
            self._deliver(update, owners - everything, without=everything, part=Part.REST)
        elif not self._deliver(update, owners | everything) and update.only is None:
            self.unrouted += 1

    def _deliver(
        self,
        update: OrderUpdate,
        clients: frozenset[str],
        *,
        only: frozenset[str] | None = None,
        without: frozenset[str] = frozenset(),
        part: Part = Part.WHOLE,
        at: int | None = None,
    ) -> bool:
        """Gather an update for the members of these clients, and return whether there is any.

        In the history it is for all clients, or for those in `only`, or for those that are not in `without`.
        """
        members = [
            member
            for member in self._listeners()
            if member.name in clients
            and (update.only is None or member in update.only)
            and member not in update.besides
        ]
        event = update.event
        if update.entry is None:
            event = self.history.record(update.data, self._clock(), only, without, part=part, at=at)
            if self._followers and event is not None:
                self._gather_entry(update, part)
        if members:
            self.recovered += update.only is not None
            self._gather(update.body, event, members)
        return bool(members)

    def _gather_entry(self, update: OrderUpdate, part: Part) -> None:
        """Gather the newest entry of the history for the nodes that follow."""
        if nodes := [member for member in self._listeners() if self._followers.get(member)]:
            matches = self.orders.matches_of(update.order_id)
            entry = order_entries.encode(update.data, self.history.last_at, part, matches)
            self._deliveries.append(Delivery(nodes, False, entry, 1))

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
        """Return the updates that were gathered, in binary frames as Alpaca's."""
        deliveries, self._deliveries = self._deliveries, []
        return deliveries


def _by_time(updates: list[OrderUpdate]) -> Steps[list[OrderUpdate]]:
    """Return the updates by Alpaca's times, recovered ones first; yield between chunks.

    Those that have arrived of an order keep their order, whatever times they name.
    """
    latest: dict[str, int] = {}
    keys = []
    for number, update in enumerate(updates):
        time, has_arrived = update.time, not update.is_recorded
        if has_arrived:
            latest[update.order_id] = time = max(time, latest.get(update.order_id, 0))
        keys.append((time, has_arrived, number))
        yield
    return [updates[number] for _, _, number in (yield from sorted_in_chunks(keys))]
