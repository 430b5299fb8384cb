"""Read of a certificate's PEM file whether it has changed, for a reload, and until when it is valid.

Python's ssl module shows the fields of a peer's certificate only, so the one field is read from the DER encoding here
(RFC 5280 §4.1, X.690).
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

RENEW_BEFORE = timedelta(days=30)

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18  # DER tags
_VALIDITY = 4  # the fourth field: serial number, signature algorithm, issuer, validity


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate file: a digest, and the end of its first certificate's validity, None if unknown."""

    digest: bytes
    valid_until: datetime | None


def read(pem: str) -> Certificate:
    """Describe the content of a PEM file."""
    begin = pem.find("-----BEGIN CERTIFICATE-----")
    end = pem.find("-----END CERTIFICATE-----", begin)
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len("-----END CERTIFICATE-----")])
        valid_until = _valid_until(der)
    except (ValueError, IndexError):  # of an encoding that OpenSSL reads and this does not
        valid_until = None
    return Certificate(hashlib.sha256(pem.encode()).digest(), valid_until)


def warning(certificate: Certificate) -> str | None:
    """Why a certificate should be renewed, and the next step; None if it need not, or if its end is unknown."""
    if certificate.valid_until is None:
        return None
    left = certificate.valid_until - datetime.now(timezone.utc)
    if left < timedelta():
        return f"was {validity(certificate)}; renew it and run `reload`, or peers refuse it"
    if left < RENEW_BEFORE:
        return f"is {validity(certificate)}, less than {RENEW_BEFORE.days} days from now; renew it and run `reload`"
    return None


def validity(certificate: Certificate) -> str:
    """The end of its validity, as a part of a sentence: `valid until …`; empty if it is unknown."""
    until = certificate.valid_until
    return "" if until is None else f"valid until {until:%Y-%m-%d %H:%M} UTC"


def _valid_until(der: bytes) -> datetime:
    """The field notAfter. Raises ValueError or IndexError for anything but a certificate."""
    _, certificate, _ = _element(der, _SEQUENCE)
    _, fields, _ = _element(certificate, _SEQUENCE)
    if fields[0] == _VERSION:  # left out by version 1
        _, _, fields = _element(fields)
    validity = b""
    for _ in range(_VALIDITY):
        _, validity, fields = _element(fields)
    _, _, rest = _element(validity)  # notBefore
    tag, written, _ = _element(rest)
    text = written.decode("ascii")
    if tag == _UTC_TIME:
        # RFC 5280 §4.1.2.5.1: years from 50 on are of the 20th century. (strptime's own rule splits at 69.)
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"tag {tag} is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


def _element(data: bytes, expected: int | None = None) -> tuple[int, bytes, bytes]:
    """Split the first element off: its tag, its content, and the bytes after it."""
    tag, size, start = data[0], data[1], 2
    if expected is not None and tag != expected:
        raise ValueError(f"tag {tag} in place of {expected}")
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
    if len(data) < start + size:
        raise ValueError("the encoding is cut off")
    return tag, data[start : start + size], data[start + size :]
