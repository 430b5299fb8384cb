"""Warnings about the section `record`: topics beyond Alpaca's Basic plan, and a small disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from proxy.alpaca.endpoints import WILDCARD, Dialect, endpoint
from proxy.config.values import Fault

# Of Alpaca's Basic plan, by feed: symbols of these channels together, and quotes of options.
COUNTED = ("trades", "quotes", "orderbooks", WILDCARD)
BASIC_SYMBOLS = 30
BASIC_OPTION_QUOTES = 200

FOLDER = ("record", "folder")


def plan_warnings(topics: Mapping[str, Mapping[str, tuple[str, ...]]]) -> Iterator[Fault]:
    """Yield the feeds whose topics are more than Alpaca's Basic plan has."""
    for name, channels in topics.items():
        feed = endpoint(name)
        if feed is None or feed.dialect is Dialect.TRADING:
            continue
        limit, counted = (BASIC_OPTION_QUOTES, ("quotes",)) if feed.options else (BASIC_SYMBOLS, COUNTED)
        listed = [entry for channel, entries in channels.items() if channel in counted for entry in entries]
        if WILDCARD in listed or len(listed) > limit:
            what = "quotes" if feed.options else "symbols of trades and quotes"
            reason = f"is more than Alpaca's Basic plan has ({limit} {what}); the rest gets 405"
            yield Fault(reason, None, ("record", "topics", name))


def disk_warnings(folder: Path, most: int, min_free: int) -> Iterator[Fault]:
    """Yield whether the disk is too small for all that may be recorded, or its folder cannot be made."""
    place = folder.parent
    try:
        if folder.is_dir():
            place = folder
        free = shutil.disk_usage(place).free
    except OSError as error:
        reason = f"{place}: {error.strerror or error}; nothing is recorded until it is there"
        yield Fault(reason, None, FOLDER)
        return
    recorded = _recorded_bytes(folder)
    if free < min_free:
        reason = f"the disk has {free / 1e9:.1f} GB free, less than record.min_free: nothing is recorded"
        yield Fault(reason, None, FOLDER)
    elif free + recorded < most + min_free:
        reason = f"the disk has {free / 1e9:.1f} GB free, less than record.max and record.min_free together"
        yield Fault(reason, None, FOLDER)


def _recorded_bytes(folder: Path) -> int:
    size = 0
    with suppress(OSError):  # a folder that is not made yet, or may not be read
        for file in folder.glob("*.jsonl.zst*"):
            with suppress(OSError):  # a file that was sealed or deleted a moment ago
                size += file.lstat().st_size
    return size
