"""Entries of the history of order updates on their way from the node that leads the trading feed to the others.

    {"stream":"trade_updates","at":…,"part":"first","replay":true,"family":[[client_order_id, symbol],…],"data":{…}}

The history is a log: each node keeps the leader's entries, with their `at`, and asks a leader for those after the last
that it has. An entry has what the leader knows of the family of its order, and each node decides by its own allowlists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxy.alpaca.codec import JSON, Malformed, Raw
from proxy.routing.order_history import Part
from proxy.routing.order_ownership import MAX_FAMILY, MAX_ID, ORDERS, Match

MAX_AT = 2**63 - 1  # nanoseconds, in the year 2262
ENVELOPE_BYTES = 16 * 1024  # that an entry may be larger than its update
_PREFIX = b'{"stream":"%b","at":' % ORDERS.encode()
_PARTS = {part.value: part for part in (Part.WHOLE, Part.FIRST, Part.REST)}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry: `at`, its receivers, what is known of the family of its order, and the `data` of the update.

    `is_replay`: it is older than the link that brings it.
    """

    at: int
    part: Part
    is_replay: bool
    matches: Sequence[Match]
    data: Raw


@dataclass(frozen=True, slots=True)
class Claim:
    """The request of a node to its leader: the entries after `at`, which was the last one in this `term` of a leader.

    Sessions of the node may have missed updates `since` a time; None if they have not.
    """

    term: str = ""
    at: int = 0
    since: int | None = None


def encode(data: Raw | bytes, at: int, part: Part, matches: Iterable[Match], *, is_replay: bool = False) -> bytes:
    """Return the message of an entry."""
    parts = [b"%b%d" % (_PREFIX, at)]
    if part in (Part.FIRST, Part.REST):
        parts.append(b'"part":"%b"' % part.value.encode())
    if is_replay:
        parts.append(b'"replay":true')
    if pairs := [*matches]:
        parts.append(b'"family":%b' % JSON.encode(pairs))
    parts.append(b'"data":%b}' % data)
    return b",".join(parts)


def parse(body: Raw | bytes) -> Entry:
    """Return the entry in a message. Raises Malformed."""
    fields = JSON.fields(body)
    at = JSON.integer_of(fields.get("at"))
    part = _PARTS.get(JSON.text_of(fields.get("part")) or "")
    if at is None or not 0 <= at <= MAX_AT or part is None or "data" not in fields:
        raise Malformed("no entry of a history")
    return Entry(at, part, bytes(fields.get("replay", b"")) == b"true", _matches(fields.get("family")), fields["data"])


def _matches(value: Raw | None) -> list[Match]:
    matches = []
    for pair in JSON.items_of(value)[:MAX_FAMILY]:
        texts = JSON.texts_of(pair) or []
        if len(texts) != 2 or max(map(len, texts)) > MAX_ID:
            raise Malformed("no entry of a history")
        matches.append((texts[0], texts[1]))
    return matches
