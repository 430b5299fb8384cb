"""What a message costs in the other codec: `python benchmarks/transcode.py` prints nanoseconds as one line of JSON, by
case the proxy's own and those of the generic way.

Cases take turns for a few seconds and the least time of each counts: the machine may be busy, but not all the time. The
generic way decodes everything, turns the timestamp and encodes everything, each by the fastest library that keeps the
nanoseconds.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import msgpack
import msgspec
import orjson

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proxy.protocol.codec import JSON, MSGPACK, Codec
from proxy.protocol.transcode import transcode

SECONDS = 4.0
COUNT = 100


def bodies(kind: str, codec: Codec) -> list[bytes]:
    """Messages as Alpaca documents them, each with a time of its own."""
    made = []
    for number in range(COUNT):
        nanoseconds = 123_456_789 + 1_000_003 * number
        second = 1_790_000_000 + number // 10
        message: dict[str, object] = {"T": kind, "S": "AAPL"}
        if kind == "t":
            message |= {"i": 1_000_000 + number, "x": "D", "p": 126.55, "s": 100, "c": ["@", "I"], "z": "C"}
        else:
            message |= {"bx": "U", "bp": 87.66, "bs": 1, "ax": "X", "ap": 87.68, "as": 4, "c": ["R"], "z": "A"}
        if codec is MSGPACK:
            message["t"] = msgspec.msgpack.Ext(-1, (nanoseconds << 34 | second).to_bytes(8, "big"))
        else:
            date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            message["t"] = f"{date}.{nanoseconds:09d}Z"
        made.append(codec.encode(message))
    return made


def generic_to_json(body: bytes) -> bytes:
    message = msgpack.unpackb(body)
    moment = message["t"]
    date = datetime.fromtimestamp(moment.seconds, timezone.utc)
    message["t"] = f"{date:%Y-%m-%dT%H:%M:%S}.{moment.nanoseconds:09d}Z"
    return orjson.dumps(message)


def generic_to_msgpack(body: bytes) -> bytes:
    message = orjson.loads(body)
    text = message["t"]
    seconds = int(datetime.fromisoformat(text[:19] + "+00:00").timestamp())
    message["t"] = msgspec.msgpack.Ext(-1, (int(text[20:29]) << 34 | seconds).to_bytes(8, "big"))
    return msgspec.msgpack.encode(message)


def main() -> None:
    cases = {
        f"{name} {source.name} to {target.name}": (kind, source, target, generic, bodies(kind, source))
        for name, kind in (("trade", "t"), ("quote", "q"))
        for source, target, generic in ((MSGPACK, JSON, generic_to_json), (JSON, MSGPACK, generic_to_msgpack))
    }
    best = {case: [float("inf")] * 2 for case in cases}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for case, (kind, source, target, generic, messages) in cases.items():
            began = time.thread_time_ns()
            for body in messages:
                transcode(kind, body, source, target)
            between = time.thread_time_ns()
            for body in messages:
                generic(body)
            took = between - began, time.thread_time_ns() - between
            best[case] = [min(least, now / COUNT) for least, now in zip(best[case], took, strict=True)]
    print(json.dumps({case: [round(found) for found in both] for case, both in best.items()}))


if __name__ == "__main__":
    main()
