"""One log-in to Alpaca, as the proxy would do it, and a farewell: does it take this account's key and secret?"""

from __future__ import annotations

import time

import gevent

from proxy.config.model import Account
from proxy.errors import ConnectionLost, UpgradeRefused
from proxy.net import frames
from proxy.net.line import Line
from proxy.protocol import feed as talk
from proxy.protocol.codec import CODECS, Codec, Malformed, Raw
from proxy.protocol.feed import Login
from proxy.protocol.feeds import Dialect, endpoint

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
    conversation = talk.open_feed(known, codec, login)
    opcode = frames.TEXT if conversation.text else frames.BINARY
    line = Line(login.url, codec.content_type, time.monotonic)
    try:
        for payload in conversation.opening():
            line.say(opcode, payload)
        with gevent.Timeout(ANSWER_SECONDS, ConnectionLost(f"it was silent for {ANSWER_SECONDS:.0f} s")):
            while True:
                for frame in line.receive():
                    for body in _bodies(codec, known.dialect, frame.payload):
                        match conversation.hear(body):
                            case talk.Say(payload):
                                line.say(opcode, payload)
                            case talk.Authenticated():
                                return None
                            case talk.Refused(code, msg):
                                return _sentence(f"Alpaca says {code} {msg}".rstrip(), code)
    finally:
        line.close()


def _bodies(codec: Codec, dialect: Dialect, payload: bytes) -> list[Raw] | list[bytes]:
    """The messages of a frame: an array of them on market data, one on trading."""
    if dialect is Dialect.TRADING:
        return [payload]
    try:
        return codec.split(payload)[0]
    except Malformed:
        return []


def _sentence(said: str, code: int) -> str:
    hint = talk.HINTS.get(code)
    return f"{said}: {hint}" if hint else f"{said}; try again later"
