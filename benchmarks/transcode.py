"""What a message costs in the other codec: `python benchmarks/transcode.py` prints nanoseconds as one line of JSON.

Cases take turns for a few seconds and the least time of each counts: the machine may be busy, but not all the time.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec

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


def main() -> None:
    cases = {
        f"{name} {source.name} to {target.name}": (kind, source, target, bodies(kind, source))
        for name, kind in (("trade", "t"), ("quote", "q"))
        for source, target in ((MSGPACK, JSON), (JSON, MSGPACK))
    }
    best = dict.fromkeys(cases, float("inf"))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for case, (kind, source, target, messages) in cases.items():
            began = time.thread_time_ns()
            for body in messages:
                transcode(kind, body, source, target)
            best[case] = min(best[case], (time.thread_time_ns() - began) / COUNT)
    print(json.dumps({case: round(found) for case, found in best.items()}))


if __name__ == "__main__":
    main()
