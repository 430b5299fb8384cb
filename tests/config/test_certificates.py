"""The validity of a certificate file, compared with the openssl program's answer."""

from __future__ import annotations

import ssl
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import certificates

DATA = Path(__file__).parent / "data"


def made(folder: Path, *options: str) -> str:
    """A certificate by openssl, as PEM."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=localhost", *options, "-keyout", str(folder / "key"), "-out", str(folder / "crt")]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    return (folder / "crt").read_text()


def end_by_openssl(pem: str) -> datetime:
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-enddate"], input=pem, capture_output=True, text=True, check=True, timeout=20
    ).stdout
    end = datetime.strptime(shown.strip().removeprefix("notAfter="), "%b %d %H:%M:%S %Y GMT")
    return end.replace(tzinfo=timezone.utc)


@pytest.mark.parametrize("days", ["90", "36500"], ids=["UTCTime", "GeneralizedTime"])
def test_the_end_is_that_of_openssl(tmp_path: Path, days: str) -> None:
    pem = made(tmp_path, "-days", days)
    assert certificates.read(pem).valid_until == end_by_openssl(pem)
    chain = f"subject=localhost\n{pem}{(DATA / 'server.crt').read_text()}"  # text before it, and an issuer's after it
    assert certificates.read(chain).valid_until == end_by_openssl(pem)
    assert certificates.read(without_version(pem)).valid_until == end_by_openssl(pem)


def without_version(pem: str) -> str:
    """The same certificate as one of version 1, which has no field for its version. Its signature is wrong."""
    der = bytearray(ssl.PEM_cert_to_DER_cert(pem))
    start = der.index(b"\xa0\x03\x02\x01\x02")
    del der[start : start + 5]
    for length in (2, 6):  # of the certificate, and of its fields: two bytes each
        der[length : length + 2] = (int.from_bytes(der[length : length + 2], "big") - 5).to_bytes(2, "big")
    return ssl.DER_cert_to_PEM_cert(bytes(der))


def test_another_content_is_another_certificate() -> None:
    pem = (DATA / "server.crt").read_text()
    assert certificates.read(pem) == certificates.read(pem)
    assert certificates.read(pem) != certificates.read(pem + "\n")


@given(st.binary(max_size=80))
def test_any_encoding_raises_nothing(der: bytes) -> None:
    assert certificates.read(ssl.DER_cert_to_PEM_cert(der)).valid_until is None
    assert certificates.read(der.decode("latin-1")).valid_until is None
