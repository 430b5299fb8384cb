"""Timestamps in both formats, checked against the msgpack library and `datetime`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.alpaca import timestamps

SECOND = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FIRST = (datetime(1, 1, 1, tzinfo=timezone.utc) - EPOCH) // timedelta(seconds=1) * SECOND
LAST = (datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc) - EPOCH) // timedelta(seconds=1) * SECOND + 999_999_999

EDGES = st.sampled_from([FIRST, LAST, -1, 0, 1, SECOND, 2**32 * SECOND, 2**34 * SECOND, 2**34 * SECOND - 1])
MOMENTS = EDGES | st.integers(FIRST, LAST)


@given(MOMENTS)
def test_rfc3339_round_trip_is_exact(moment: int) -> None:
    assert timestamps.nanoseconds(timestamps.rfc3339(moment)) == moment


@given(MOMENTS)
def test_rfc3339_agrees_with_datetime(moment: int) -> None:
    seconds, rest = divmod(moment, SECOND)
    date = (EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()
    text = timestamps.rfc3339(moment)
    assert text[:19] == date
    assert text.endswith("Z")
    fraction = text[19:-1]
    assert fraction == "" if rest == 0 else fraction == f".{rest:09d}".rstrip("0")


@given(MOMENTS)
def test_msgpack_agrees_with_its_library(moment: int) -> None:
    data = timestamps.ext(moment)
    assert data == msgpack.Timestamp.from_unix_nano(moment).to_bytes()
    assert timestamps.of_ext(data) == timestamps.of_ext(memoryview(data)) == moment


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2023-04-06T13:15:42.835409580Z", "2023-04-06T13:15:42.83540958Z"),
        ("2023-04-06T13:15:42.000Z", "2023-04-06T13:15:42Z"),
        ("2022-04-19T13:45:04.980944666-04:00", "2022-04-19T17:45:04.980944666Z"),
        ("2022-04-19T23:45:04+05:30", "2022-04-19T18:15:04Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("0999-12-31T23:59:59.999999999Z", "0999-12-31T23:59:59.999999999Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_any_offset_and_precision_is_parsed(text: str, same: str) -> None:
    assert timestamps.rfc3339(timestamps.nanoseconds(text)) == same


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2023-04-06",
        "2023-04-06T13:15:42",
        "2023-04-06T13:15:42.Z",
        "2023-04-06T13:15:42.1234567890Z",
        "2023-04-06 13:15:42Z",
        "2023-02-29T00:00:00Z",
        "2023-04-06T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "2023-04-06T13:15:42+24:00",
        "٢٠٢٣-04-06T13:15:42Z",
        "2023-04-06T13:15:42Z\n",
    ],
)
def test_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        timestamps.nanoseconds(text)


@pytest.mark.parametrize("moment", [FIRST - 1, LAST + 1, 2**63 * SECOND, -(2**63) * SECOND])
def test_no_rfc3339_outside_of_the_years_1_to_9999(moment: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        timestamps.rfc3339(moment)


@pytest.mark.parametrize("data", [b"", bytes(2), bytes(16), b"\xff" * 8, b"\xff" * 4 + bytes(8)])
def test_invalid_extension_data_is_refused(data: bytes) -> None:
    """Of another length, or with more nanoseconds than a second has."""
    with pytest.raises(ValueError, match=r"timestamp"):
        timestamps.of_ext(data)
