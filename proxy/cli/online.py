"""Test of an account's key and secret by one login to Alpaca.

The login is the one that the proxy makes. The connection is closed with a close frame, which frees its slot at once.
"""

from __future__ import annotations

import time

import gevent

from proxy.alpaca.client_protocol import HINTS, LoggedIn, Login, Refused
from proxy.alpaca.codec import CODECS, Codec, Malformed, Raw
from proxy.alpaca.endpoints import Dialect, endpoint
from proxy.config.model import Account
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.upstream.alpaca_connection import AlpacaConnection
from proxy.upstream.source import FeedSettings

ANSWER_SECONDS = 10.0


def log_in(name: str, account: Account, feed: str) -> str | None:
    """Log in and disconnect; return None, or the error and the next step."""
    try:
        return _log_in(name, account, feed)
    except UpgradeRefused as error:
        return _sentence(f"Alpaca refused the upgrade with HTTP {error.status}", error.status)
    except ConnectionLost as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        return f"no answer from {account.url(feed)}: {reason}; check the network, and the account's URLs"


def _log_in(name: str, account: Account, feed: str) -> str | None:
    target = endpoint(feed)
    assert target is not None  # the configuration is valid, so the feed exists
    codec = CODECS[account.speaks(feed)]
    login = Login(name, account.url(feed), account.key.reveal(), account.secret.reveal())
    connection = AlpacaConnection(target, FeedSettings(login, codec), time.monotonic)
    try:
        connection.open()
        with gevent.Timeout(ANSWER_SECONDS, ConnectionLost(f"no reply within {ANSWER_SECONDS:.0f} s")):
            while True:
                for frame in connection.receive():
                    for body in _bodies(codec, target.dialect, frame):
                        match connection.handle(body):
                            case LoggedIn():
                                return None
                            case Refused(code, msg):
                                return _sentence(f"Alpaca says {code} {msg}".rstrip(), code)
    finally:
        connection.close()


def _bodies(codec: Codec, dialect: Dialect, payload: bytes) -> list[Raw] | list[bytes]:
    """Return the messages of a frame: several on market data, one on trading."""
    if dialect is Dialect.TRADING:
        return [payload]
    try:
        return codec.split(payload)[0]
    except Malformed:
        return []


def _sentence(reason: str, code: int) -> str:
    hint = HINTS.get(code)
    return f"{reason}: {hint}" if hint else f"{reason}; try again later"
