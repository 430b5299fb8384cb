"""The cost of transcoding a message.

`python benchmarks/transcode.py` prints nanoseconds as one line of JSON.

`ours` is the product's way. `generic` is the way without structs: a library decodes to a dict, the timestamp is
converted, a library encodes the dict. The libraries are the fastest ones that keep nanoseconds, and dates are computed
once a second, as in the product. msgspec alone would be faster, but only to microseconds.

The cases are repeated alternately for a few seconds and the minimum of each counts, because the machine may be busy at
times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import msgpack
import msgspec
import orjson

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proxy.alpaca import timestamps
from proxy.alpaca.codec import JSON, MSGPACK, Codec
from proxy.alpaca.transcode import transcode

SECONDS = 6.0
COUNT = 100

Ext = msgspec.msgpack.Ext


def bodies(kind: str, codec: Codec) -> list[bytes]:
    """COUNT messages as Alpaca documents them, ten a second, at different times."""
    encoded = []
    for number in range(COUNT):
        nanoseconds = (1_790_000_000 + number // 10) * 10**9 + (123_456_789 + 987_654_323 * number) % 10**9
        message: dict[str, object] = {"T": kind, "S": "AAPL"}
        if kind == "t":
            message |= {"i": 1_000_000 + number, "x": "D", "p": 126.55, "s": 100, "c": ["@", "I"], "z": "C"}
        else:
            message |= {"bx": "U", "bp": 87.66, "bs": 1, "ax": "X", "ap": 87.68, "as": 4, "c": ["R"], "z": "A"}
        if codec is MSGPACK:
            message["t"] = Ext(timestamps.EXT, timestamps.ext(nanoseconds))
        else:
            message["t"] = timestamps.rfc3339(nanoseconds)
        encoded.append(codec.encode(message))
    return encoded


def generic(kind: str, body: bytes, source: Codec, target: Codec) -> bytes:
    """Transcode a body by way of a dict."""
    if source is MSGPACK:
        message = msgpack.unpackb(body)
        message["t"] = timestamps.rfc3339(message["t"].to_unix_nano())
        return orjson.dumps(message)
    message = orjson.loads(body)
    time = message["t"]
    packed = int(time[20:-1].ljust(9, "0")) << 34 | _seconds(time[:19])
    message["t"] = Ext(timestamps.EXT, packed.to_bytes(8, "big"))
    return MSGPACK.encode(message)


@lru_cache(maxsize=64)
def _seconds(date: str) -> int:
    return int(datetime.fromisoformat(date + "+00:00").timestamp())


WAYS: dict[str, Callable[[str, bytes, Codec, Codec], object]] = {"ours": transcode, "generic": generic}


def main() -> None:
    cases = {
        f"{name} {source.name} to {target.name}": (kind, source, target, bodies(kind, source))
        for name, kind in (("trade", "t"), ("quote", "q"))
        for source, target in ((MSGPACK, JSON), (JSON, MSGPACK))
    }
    best = {case: dict.fromkeys(WAYS, float("inf")) for case in cases}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for case, (kind, source, target, messages) in cases.items():
            for name, way in WAYS.items():
                began = time.thread_time_ns()
                for body in messages:
                    way(kind, body, source, target)
                best[case][name] = min(best[case][name], (time.thread_time_ns() - began) / COUNT)
    print(json.dumps({case: {name: round(least) for name, least in times.items()} for case, times in best.items()}))


if __name__ == "__main__":
    main()
