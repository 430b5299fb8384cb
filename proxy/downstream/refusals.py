"""Count and describe refusals of the client port: of HTTP requests, log-ins and subscriptions.

Each method counts one refusal for the metrics and returns the fields of its log event. Labels are bounded: a client is
a configured one or empty, a feed is one of Alpaca's list (or one that the client's allowlist names) or empty, and the
reasons are those below. A key is a name and is shown, but what may be a secret or an account's key is not; and of
values that a client chooses freely, only some are logged, so that it cannot fill the log.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any

from proxy.alpaca.endpoints import feed_names
from proxy.alpaca.topics import Topic, words
from proxy.routing.allowlists import Client, Directory, digest
from proxy.transport.http_request import NO_PLAIN_HTTP, NO_TLS

SHOWN_TOPICS = 20  # of a refused request; the others are counted
SHOWN_TEXT = 128  # characters of a path or an origin
LONGEST_KEY = 32  # characters; a longer one may be a secret in the wrong place, since Alpaca's have 40
DISTINCT = 64  # values that a client, or all strangers together, may add to the log in DISTINCT_SECONDS
DISTINCT_SECONDS = 60.0
MANY = "(many different ones)"

# The reasons, which are labels of the metrics.
WRONG_SECRET, UNKNOWN_KEY = "wrong_secret", "unknown_key"
LOGIN_REASONS = {404: "no_login", 406: "connection_limit", 409: "feed_not_allowed", 412: "codec"}
HTTP_REASONS = {
    "403": "origin",
    "404": "unknown_path",
    "426": "no_upgrade",
    NO_TLS: "tls_without_tls_port",
    NO_PLAIN_HTTP: "plain_at_tls_port",
}
MALFORMED = "malformed"
REQUEST_REASONS = {
    400: "invalid_syntax",
    401: "not_authenticated",
    403: "already_authenticated",
    405: "symbol_limit",
    409: "not_allowed",
    410: "foreign_channel",
    413: "wildcard",
}
REASONS = (WRONG_SECRET, UNKNOWN_KEY, *LOGIN_REASONS.values(), *HTTP_REASONS.values(), MALFORMED)

_HINTS = {
    NO_TLS: "a client speaks TLS to this port, which has none: use ws:// or http:// there, or set listen.tls here",
    NO_PLAIN_HTTP: "a client speaks plain text to this port, which has TLS: use wss:// or https:// there",
}
_RULES = {406: "max_connections", 409: "allow"}

# An Alpaca key, configured here or not.
_ALPACA_KEY = re.compile(r"[A-Z0-9]{12,}")

Fields = dict[str, Any]
Key = tuple[str, str, str]  # client, feed, reason


class Refusals:
    """The counts, by client, feed and reason.

    `conceal(text)` returns how to show an account's key or secret, and None for any other text; `clock` is in seconds.
    """

    def __init__(self, conceal: Callable[[str], str | None], clock: Callable[[], float]) -> None:
        # These series exist from the start, so that `increase` sees their first rise.
        self.refused: Counter[Key] = Counter({("", "", reason): 0 for reason in REASONS})
        self.refused_requests: Counter[Key] = Counter({("", "", reason): 0 for reason in REQUEST_REASONS.values()})
        self._conceal = conceal
        self._clock = clock
        self._distinct: dict[str, tuple[float, set[int]]] = {}  # by client, empty for strangers

    def __repr__(self) -> str:
        return f"<Refusals {self.refused.total()}, of requests {self.refused_requests.total()}>"

    def http(self, directory: Directory, status: str, *, feed: str, key: str, path: str, origin: str) -> Fields:
        """Count the refusal of an HTTP request; `status` begins with its code.

        `feed` is the feed at its path and `key` that of its headers; both are empty if it has none.
        """
        code = status[:3]
        reason = HTTP_REASONS.get(status) or HTTP_REASONS.get(code, MALFORMED)
        client = directory.with_key(key)
        self._count(self.refused, client, feed, reason)
        name = "" if client is None else client.name
        fields = {"path": path} if code != "403" else {"path": path, "origin": origin}
        return {
            "code": int(code),
            "reason": reason,
            **self._who(client, key, directory),
            "feed": feed,
            **{field: self._bounded(name, _cut(value)) for field, value in fields.items()},
            "rule": "listen.origins" if code == "403" else "",
            "hint": _HINTS.get(status, ""),
        }

    def login(self, directory: Directory, code: int, *, feed: str, key: str) -> Fields:
        """Count a refused log-in with this key."""
        client = directory.with_key(key)
        reason = LOGIN_REASONS.get(code) or (UNKNOWN_KEY if client is None else WRONG_SECRET)
        self._count(self.refused, client, feed, reason)
        rule = "" if client is None or code not in _RULES else f"clients.{client.name}.{_RULES[code]}"
        return {"code": code, "reason": reason, **self._who(client, key, directory), "rule": rule}

    def request(self, client: Client | None, code: int, *, feed: str, topics: Collection[Topic]) -> Fields:
        """Count a refused request of a session; `topics` are those that were refused."""
        reason = REQUEST_REASONS[code]
        self._count(self.refused_requests, client, feed, reason)
        name = "" if client is None else client.name
        more = len(topics) - SHOWN_TOPICS
        text = words(islice(topics, SHOWN_TOPICS)).strip() + (f" and {more} more" if more > 0 else "")
        return {
            "client": name,
            "feed": feed,
            "code": code,
            "reason": reason,
            "topics": self._bounded(name, text),
            "rule": f"clients.{name}.allow.{feed}" if code == 409 else "",
        }

    @staticmethod
    def _count(counts: Counter[Key], client: Client | None, feed: str, reason: str) -> None:
        listed = feed in _FEEDS or (client is not None and client.allow.names(feed))
        counts["" if client is None else client.name, feed if listed else "", reason] += 1

    def _who(self, client: Client | None, key: str, directory: Directory) -> Fields:
        """Return the client whose key was offered, or the part of the key that may be shown."""
        return {"key": self._bounded("", self._shown(key, directory))} if client is None else {"client": client.name}

    def _shown(self, key: str, directory: Directory) -> str:
        if (concealed := self._conceal(key)) is not None:
            return concealed
        if len(key) > LONGEST_KEY or directory.has_secret(digest(key)):
            return "(perhaps a secret)"
        return f"…{key[-4:]}" if _ALPACA_KEY.fullmatch(key) else key

    def _bounded(self, scope: str, text: str) -> str:
        """Return the text, or MANY if there were DISTINCT others within DISTINCT_SECONDS.

        Lines that differ in it alone are then merged as repeats.
        """
        if not text:
            return ""
        now = self._clock()
        began, seen = self._distinct.get(scope, (now, set()))
        if now - began >= DISTINCT_SECONDS:
            began, seen = now, set()
        self._distinct[scope] = began, seen
        if len(seen) >= DISTINCT and hash(text) not in seen:
            return MANY
        seen.add(hash(text))
        return text


_FEEDS = frozenset(feed_names())


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}…"
