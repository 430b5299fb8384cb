"""The requests and answers of a session, for the log at level debug.

Both are bounded. Of a log-in only the fact is logged: its key may be a secret that was put into the wrong field. What
could not be decoded as a request is not logged either, for the same reason; the answer to it is.
"""

from __future__ import annotations

from itertools import islice

from proxy.alpaca.codec import Codec
from proxy.alpaca.server_protocol import Authenticate, Listen, Outcome, Reply, Subscribe, Unlisten, Unsubscribe
from proxy.alpaca.topics import NO_TOPICS, Subscription, words
from proxy.observe.logs import Log

TOPICS = 12  # shown of a request; of the others only their number
ANSWER_CHARACTERS = 500
ANSWER_BYTES = 16 * 1024  # a longer answer in msgpack would take long to decode


def log_request(log: Log, client: str, outcome: Outcome | None) -> None:
    """Log what a client asks for, if the level is debug."""
    if not log.debugging:
        return
    match outcome:
        case Authenticate():
            log.debug("request", action="auth")
        case Subscribe(topics):
            log.debug("request", client=client, action="subscribe", topics=_words(topics))
        case Unsubscribe(topics):
            log.debug("request", client=client, action="unsubscribe", topics=_words(topics))
        case Listen(trading, market):
            log.debug("request", client=client, action="listen", topics=_words((trading or NO_TOPICS) | market))
        case Unlisten(trading, market):
            log.debug("request", client=client, action="unlisten", topics=_words(trading | market))
        case Reply() | None:  # it was answered already, or is not complete
            pass


def log_answer(log: Log, client: str, codec: Codec, payload: bytes) -> None:
    """Log a control message to a client, if the level is debug."""
    if not log.debugging:
        return
    if len(payload) > ANSWER_BYTES and not codec.base.text:
        shown = f"{len(payload):,} bytes"
    else:
        shown = codec.base.readable(payload)
        shown = shown if len(shown) <= ANSWER_CHARACTERS else f"{shown[:ANSWER_CHARACTERS]}…"
    log.debug("answer", client=client, message=shown)


def _words(topics: Subscription) -> str:
    """Name some of the topics. An arbitrary selection: to sort thousands would take long."""
    shown = words(islice(topics, TOPICS)) or "none"
    more = len(topics) - TOPICS
    return f"{shown} and {more:,} more" if more > 0 else shown
