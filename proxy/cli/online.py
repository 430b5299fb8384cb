"""One log-in to Alpaca, as the proxy would do it, and a farewell: does it take this account's key and secret?"""

from __future__ import annotations

import time

import gevent

from proxy.alpaca.client_protocol import HINTS, LoggedIn, Login, Refused, Send, client_protocol_for
from proxy.alpaca.codec import CODECS, Codec, Malformed, Raw
from proxy.alpaca.endpoints import Dialect, endpoint
from proxy.config.model import Account
from proxy.transport import frames
from proxy.transport.errors import ConnectionLost, UpgradeRefused
from proxy.upstream.alpaca_connection import AlpacaConnection

ANSWER_SECONDS = 10.0


def log_in(name: str, account: Account, feed: str) -> str | None:
    """Logs in and out again; None if Alpaca accepted, else what it or the network said, and the next step."""
    try:
        return _log_in(name, account, feed)
    except UpgradeRefused as error:
        return _sentence(f"Alpaca refused the upgrade with HTTP {error.status}", error.status)
    except ConnectionLost as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        return f"no answer from {account.url(feed)}: {reason}; check the network, and the account's URLs"


def _log_in(name: str, account: Account, feed: str) -> str | None:
    known = endpoint(feed)
    assert known is not None  # the configuration names no other
    codec = CODECS[account.speaks(feed)]
    login = Login(name, account.url(feed), account.key.reveal(), account.secret.reveal())
    protocol = client_protocol_for(known, codec, login)
    opcode = frames.TEXT if protocol.text else frames.BINARY
    connection = AlpacaConnection(login.url, codec.content_type, time.monotonic)
    try:
        for payload in protocol.opening():
            connection.send(opcode, payload)
        with gevent.Timeout(ANSWER_SECONDS, ConnectionLost(f"it was silent for {ANSWER_SECONDS:.0f} s")):
            while True:
                for frame in connection.receive():
                    for body in _bodies(codec, known.dialect, frame.payload):
                        match protocol.receive(body):
                            case Send(payload):
                                connection.send(opcode, payload)
                            case LoggedIn():
                                return None
                            case Refused(code, msg):
                                return _sentence(f"Alpaca says {code} {msg}".rstrip(), code)
    finally:
        connection.close()


def _bodies(codec: Codec, dialect: Dialect, payload: bytes) -> list[Raw] | list[bytes]:
    """The messages of a frame: an array of them on market data, one on trading."""
    if dialect is Dialect.TRADING:
        return [payload]
    try:
        return codec.split(payload)[0]
    except Malformed:
        return []


def _sentence(said: str, code: int) -> str:
    hint = HINTS.get(code)
    return f"{said}: {hint}" if hint else f"{said}; try again later"
