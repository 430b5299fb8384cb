"""The dialect of the links between nodes: messages of both sides, and the proofs of the log-in.

It is Alpaca's market dialect with more messages and fields, in the codec of the account and feed. The *edge* connects
to the node that *leads* the feed. Each message of the leader is an array of one object, so the router tells it from
data; the edge's messages are objects, as toward Alpaca.

    leader  success connected: version, node, challenge
    edge    auth: version, node, account, nonce, proof
    leader  success authenticated: proof               or error 402, 415 or 421, and a close
    leader  success waiting: reason, refused           while it has no connection to Alpaca
    leader  success live: token                        requests may be sent
    edge    subscribe, unsubscribe: id, alone, channels
    leader  subscription: id, channels                 the answer: all topics that the link holds
    leader  error: id, code, msg                       the request is refused, or (500) got no verdict
    leader  subscription: channels, error              the state has changed without a request
    leader  success away: reason, leading, blamed, …   the link ends

On the path of the trading feed, a subscribe to the order updates names what the edge has of the leader's history, and
the updates are entries of that (`routing.order_entries`).

    edge    subscribe: id, term, at, since, channels   the entries after that one are sent first
    leader  success caught up: term, from, complete    the edge has all entries; or updates may be missing, `since`

Both sides prove that they know the cluster's secret, which never travels. Pure: challenge and nonce are parameters.
What a peer sends is checked by type and bounded; anything else raises Malformed. Unknown fields are ignored, and so are
unknown messages of the leader's.

To change it: a further field, or message of the leader's, that the other side may ignore needs no version. For all else
put n before the others in VERSIONS, keep n-1 and drop n-2; each side reads and writes by the version of the greeting
(`Connected.version`, `NodeSession._version`). tests/cluster/test_upgrade.py runs the commit before as the other node.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.alpaca.client_protocol import MAX_TEXT, Acknowledged, acknowledged
from proxy.alpaca.codec import Codec, Malformed, Raw
from proxy.alpaca.cooperative import Steps
from proxy.alpaca.endpoints import FOLLOWERS
from proxy.alpaca.market import ControlFrame, change
from proxy.alpaca.topics import Subscription, Topic, by_channel, symbol_of
from proxy.routing.order_entries import Claim

VERSIONS = (1,)  # that this program speaks, newest first
HEADER = "Alpaca-Proxy-Node"  # of the upgrade request: the versions that the edge speaks
EDGE_BYTES = 64 * 1024  # of a message of the edge's: a request has at most request_builder.REQUEST_BYTES
LOGIN_BYTES = 64 * 1024  # of a message of the leader's before it is live
HEADER_NAME = "HTTP_ALPACA_PROXY_NODE"  # its name in a WSGI environ
MAX_OFFERED = 16  # versions in the header that are looked at
MAX_BLAMED = 16
MAX_INTEGER = 2**63 - 1
CHALLENGE_BYTES = 16
# Of all topics of a link: the edge takes an acknowledgement of up to `codec.CONTROL_BYTES`, which is one message.
UNMEASURED_TOPICS = 10_000
MAX_STATE_BYTES = 3 * 1024 * 1024

AUTH_FAILED, OTHER_CODEC, NOT_LEADING = 402, 415, 421
EDGE, LEADER = "edge", "leader"

_CHALLENGE = re.compile(r"[0-9a-f]{32}")
_PROOF = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[!-~]{1,128}")  # of a node or an account
_FLAGS = {b"true": True, b"false": False, b"\xc3": True, b"\xc2": False}


# What the leader says


@dataclass(frozen=True, slots=True)
class Connected:
    """The greeting; the edge proves that it knows the secret by means of the challenge."""

    version: int
    node: str
    challenge: str


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The log-in is accepted; `proof` is the leader's own."""

    proof: str


@dataclass(frozen=True, slots=True)
class Live:
    """Requests may be sent. `token` is that of the leader's lease."""

    token: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The leader waits for Alpaca; `refused` is the error if Alpaca does not serve the feed."""

    reason: str
    refused: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """The link ends.

    `leading`: the node still leads the feed, and has lost Alpaca. `blamed` are the ids of the link's requests that
    Alpaca was asked for when it closed, `others`: it had confirmed topics of others on that connection.
    """

    reason: str
    leading: bool = True
    refused: tuple[int, str] | None = None
    blamed: tuple[int, ...] = ()
    others: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """All topics that the link holds: the answer to the request `id`; without one, the state has changed unasked."""

    id: int | None
    stated: Acknowledged
    error: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An error: of the request `id`, or of the log-in."""

    id: int | None
    code: int
    msg: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The edge has all entries of the history that it has asked for.

    `term` is the leader's, `complete_from` the time since which its history is complete, in nanoseconds since 1970.
    Unless it is `complete`, updates may be missing since the time that the edge has named.
    """

    term: str
    complete_from: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message that this version does not have."""


LeaderMessage = Connected | Authenticated | Live | Waiting | Away | State | Failure | CaughtUp | Unknown


# What the edge says


@dataclass(frozen=True, slots=True)
class Auth:
    """The log-in of an edge for one account."""

    version: int
    node: str
    account: str
    nonce: str
    proof: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """A subscribe or an unsubscribe; `fields` are for `market.request`.

    `alone`: it is not to be merged with topics of others, since it has failed before. `claim`: what the edge has of the
    history of order updates.
    """

    id: int
    alone: bool
    fields: Mapping[str, Raw]
    claim: Claim | None = None


EdgeMessage = Auth | Request


# Versions and proofs


def offered() -> str:
    """Return the header's value: the versions that this program speaks."""
    return ", ".join(map(str, VERSIONS))


def negotiate(offer: str) -> int | None:
    """Return the newest version that both sides speak, given the header's value; None without one."""
    names = {name.strip() for name in offer.split(",", MAX_OFFERED)[:MAX_OFFERED]}
    return next((version for version in VERSIONS if str(version) in names), None)


def proof(secret: bytes, role: str, *, version: int, challenge: str, nonce: str, account: str, path: str) -> str:
    """Return the proof of a side, EDGE or LEADER, that it knows the secret, for this log-in alone."""
    words = "\n".join((role, str(version), challenge, nonce, account, path))
    return hmac.new(secret, words.encode(), hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Compare two proofs in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


# Messages of the leader


def connected(version: int, node: str, challenge: str) -> ControlFrame:
    return [{"T": "success", "msg": "connected", "version": version, "node": node, "challenge": challenge}]


def authenticated(proof: str) -> ControlFrame:
    return [{"T": "success", "msg": "authenticated", "proof": proof}]


def live(token: int) -> ControlFrame:
    return [{"T": "success", "msg": "live", "token": token}]


def waiting(reason: str, refused: tuple[int, str] | None = None) -> ControlFrame:
    return [{"T": "success", "msg": "waiting", "reason": reason[:MAX_TEXT], **_refused(refused)}]


def away(message: Away) -> ControlFrame:
    return [
        {
            "T": "success",
            "msg": "away",
            "reason": message.reason[:MAX_TEXT],
            "leading": message.leading,
            "blamed": [*message.blamed],
            "others": message.others,
            **_refused(message.refused),
        }
    ]


def _refused(refused: tuple[int, str] | None) -> dict[str, Any]:
    return {} if refused is None else {"refused": [refused[0], refused[1][:MAX_TEXT]]}


def caught_up(message: CaughtUp) -> ControlFrame:
    told = {"term": message.term, "from": message.complete_from, "complete": message.complete}
    return [{"T": "success", "msg": "caught up", **told}]


def failure(code: int, msg: str, request: int | None = None) -> ControlFrame:
    identity = {} if request is None else {"id": request}
    return [{"T": "error", **identity, "code": code, "msg": msg[:MAX_TEXT]}]


def state(
    channels: Iterable[str],
    held: Subscription,
    request: int | None = None,
    error: tuple[int, str] | None = None,
) -> Steps[ControlFrame]:
    """Return the state of a link, yielding between chunks.

    Each of these channels is in it, also one without a topic: about any other the state would say nothing.
    """
    message: dict[str, Any] = {"T": "subscription"}
    if request is not None:
        message["id"] = request
    if error is not None:
        message["error"] = [error[0], error[1][:MAX_TEXT]]
    message |= {channel: [] for channel in channels if channel not in FOLLOWERS}
    return [message | (yield from by_channel(held))]


def is_too_much(held: Subscription, more: Subscription) -> bool:
    """Whether the state of a link with these topics would be too large for one message."""
    if len(held) + len(more) <= UNMEASURED_TOPICS:
        return False
    topics = held | more
    return len("".join(map(symbol_of, topics)).encode()) + len(topics) * len('"",') > MAX_STATE_BYTES


def leader_message(codec: Codec, body: Raw | bytes) -> LeaderMessage:
    """Parse a message of the leader, one object. Raises Malformed."""
    fields = codec.fields(body)
    kind, msg = codec.text_of(fields.get("T")), codec.text_of(fields.get("msg"))
    if kind == "subscription":
        names = {name: value for name, value in fields.items() if name not in ("id", "error")}
        return State(_identity(codec, fields), acknowledged(codec, names), _error(codec, fields.get("error")))
    if kind == "error":
        code = _integer(codec, fields.get("code"))
        return Failure(_identity(codec, fields), code, (msg or "")[:MAX_TEXT])
    if kind != "success":
        return Unknown()
    if msg == "connected":
        version = _integer(codec, fields.get("version"))
        return Connected(version, _text(codec, fields, "node", _NAME), _text(codec, fields, "challenge", _CHALLENGE))
    if msg == "authenticated":
        return Authenticated(_text(codec, fields, "proof", _PROOF))
    if msg == "live":
        return Live(_integer(codec, fields.get("token")))
    if msg == "caught up":
        term = _text(codec, fields, "term", _NAME)
        return CaughtUp(term, _integer(codec, fields.get("from")), _flag(fields, "complete"))
    reason = (codec.text_of(fields.get("reason")) or "")[:MAX_TEXT]
    refused = _error(codec, fields.get("refused"))
    if msg == "waiting":
        return Waiting(reason, refused)
    if msg == "away":
        blamed = codec.items_of(fields.get("blamed"))
        if len(blamed) > MAX_BLAMED:
            raise Malformed("too many requests in one message")
        ids = tuple(_integer(codec, one) for one in blamed)
        leading = _flag(fields, "leading", default=True)
        return Away(reason, leading, refused, ids, _flag(fields, "others"))
    return Unknown()


# Messages of the edge


def auth(message: Auth) -> dict[str, Any]:
    return {
        "action": "auth",
        "version": message.version,
        "node": message.node,
        "account": message.account,
        "nonce": message.nonce,
        "proof": message.proof,
    }


def request(
    number: int, add: bool, topics: Iterable[Topic], alone: bool = False, claim: Claim | None = None
) -> dict[str, Any]:
    named: dict[str, Any] = {"alone": True} if alone else {}
    if claim is not None:
        named |= {"term": claim.term, "at": claim.at, **({} if claim.since is None else {"since": claim.since})}
    return {"id": number, **named, **change(add, topics)}


def edge_message(codec: Codec, payload: bytes) -> EdgeMessage:
    """Parse a message of the edge. Raises Malformed."""
    fields = codec.fields(payload)
    if codec.text_of(fields.get("action")) != "auth":
        return Request(_integer(codec, fields.get("id")), _flag(fields, "alone"), fields, _claim(codec, fields))
    return Auth(
        _integer(codec, fields.get("version")),
        _text(codec, fields, "node", _NAME),
        _text(codec, fields, "account", _NAME),
        _text(codec, fields, "nonce", _CHALLENGE),
        _text(codec, fields, "proof", _PROOF),
    )


# Values


def _text(codec: Codec, fields: Mapping[str, Raw], name: str, form: re.Pattern[str]) -> str:
    text = codec.text_of(fields.get(name))
    if text is None or not form.fullmatch(text):
        raise Malformed(f"no valid {name}")
    return text


def _integer(codec: Codec, value: Raw | bytes | None) -> int:
    number = codec.integer_of(value)
    if number is None or not 0 <= number <= MAX_INTEGER:
        raise Malformed("no valid number")
    return number


def _claim(codec: Codec, fields: Mapping[str, Raw]) -> Claim | None:
    if "at" not in fields:
        return None
    term = codec.text_of(fields.get("term")) or ""
    since = _integer(codec, fields["since"]) if "since" in fields else None
    return Claim(term[:MAX_TEXT], _integer(codec, fields["at"]), since)


def _identity(codec: Codec, fields: Mapping[str, Raw]) -> int | None:
    return _integer(codec, fields["id"]) if "id" in fields else None


def _flag(fields: Mapping[str, Raw], name: str, default: bool = False) -> bool:
    """Return a boolean, in JSON or in msgpack; the default if there is none, or another value."""
    return _FLAGS.get(bytes(fields[name]), default) if name in fields else default


def _error(codec: Codec, value: Raw | bytes | None) -> tuple[int, str] | None:
    if value is None or codec.is_null(value):
        return None
    items = codec.items_of(value)
    if len(items) != 2:
        raise Malformed("no valid error")
    return _integer(codec, items[0]), (codec.text_of(items[1]) or "")[:MAX_TEXT]
