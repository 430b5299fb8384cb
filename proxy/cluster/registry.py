"""The data that nodes share in Redis: leases, fencing tokens, the list of nodes, and places of clients.

redis-py has the protocol, the log-in and the errors; its `Redis` client and its pools are not used. They have no time
limit for a whole call, and after a kill a connection to Sentinel's primary goes back to the pool with an answer still
to come. Here a connection whose call failed is closed, so no answer can be taken for that of another call, and the next
call resolves the name, or asks Sentinel, anew.

The keys, all below `{name}:` (a slot is "{account's hash}:{feed}"):

    lease:{slot}   text of the lease, expires after LEASE_MS
    last:{slot}    text of the last leader, does not expire
    token          the highest fencing token that was given out
    node:{id}      text of a node, expires after NODE_MS
    places:{client}:{feed}  hash: by node, how many sessions the client has there on the feed; the counts of nodes
                   without a key count nothing. Expires PLACES_MS after a node has last written its count

The commands are those of `ACL`. Redis 5 or newer and Valkey have them; a Redis Cluster is refused, since scripts use
keys of several hash slots.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import gevent
from redis.connection import AbstractConnection
from redis.exceptions import AuthenticationError, InvalidResponse, NoScriptError, RedisError

from proxy.config.secret import Secret
from proxy.transport.errors import ProxyError
from proxy.upstream.websocket import tls_context

CALL_SECONDS = 0.5  # a whole call: name, connection, TLS, log-in, Sentinel, command
ADDRESS_SECONDS = 0.25  # each address of a host, so that a dead IPv6 route leaves time for IPv4
SENTINEL_SECONDS = 0.2  # each Sentinel, so that a dead one leaves time for the next
LEASE_MS = 1000
NODE_MS = 5000
PLACES_MS = 300_000
MAX_NODES = 1000  # that are read, and as many as one more step of SCAN finds
SCAN_COUNT = 1000  # keys that Redis looks at in one step of SCAN
SHOWN = 200  # characters of an unexpected error of Redis
REDIS_PORT, SENTINEL_PORT = 6379, 26379

NAME = "alpaca-proxy"

# The rule of an ACL user that may do what a node does, and nothing else: `ACL SETUSER node on >PASSWORD` and this.
# SELECT is needed if the URL names a database other than 0. With another name of the cluster the pattern of keys is
# another one. A user of Sentinel needs `+sentinel|get-master-addr-by-name` only.
ACL = (
    f"resetkeys ~{NAME}:* resetchannels -@all"
    " +del +eval +evalsha +exists +get +hdel +hgetall +hset +mget +pexpire +scan +select +set +time"
)

T = TypeVar("T")


class RegistryError(ProxyError):
    """Redis cannot be reached, or refuses. The text is a sentence with the next step, without a secret.

    A call that ended without an answer may have been carried out all the same.
    """


class _Script:
    """A Lua script. Redis knows it by its hash once it has run there, until it is restarted."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_EXCHANGE = _Script(f"""\
local now = redis.call('GET', KEYS[1]) or ''
if ARGV[2] ~= '' and now == ARGV[1] then
  if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
  redis.call('SET', KEYS[1], ARGV[2], 'PX', {LEASE_MS})
  now = ARGV[2]
end
return {{now, redis.call('GET', KEYS[2]) or ''}}
""")

_RELEASE = _Script("""\
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
""")

# Lua's numbers are exact up to 2^53; microseconds since 1970 reach that in the year 2255.
_TOKEN = _Script("""\
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[1])) or 0
local token = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', KEYS[1], token)
return token
""")

# A node without a key would be taken for dead by the next script of another one, so its key is set if it has none yet.
# A count is a number of up to five digits; anything else, which no node has written, is none.
_PLACES = _Script(f"""\
local node, prefix = ARGV[1], ARGV[2]
redis.call('SET', prefix .. node, '', 'PX', {NODE_MS}, 'NX')
local lives, answers = {{}}, {{}}
for n, key in ipairs(KEYS) do
  local own, asked, limit = tonumber(ARGV[3 * n]), tonumber(ARGV[3 * n + 1]), tonumber(ARGV[3 * n + 2])
  local before, others = 0, 0
  local counts = redis.call('HGETALL', key)
  for i = 1, #counts, 2 do
    local other, count = counts[i], tonumber(string.match(counts[i + 1], '^%d%d?%d?%d?%d?$') or 0)
    if lives[other] == nil then lives[other] = redis.call('EXISTS', prefix .. other) end
    if other == node then
      before = count
    elseif lives[other] == 1 then
      others = others + count
    else
      redis.call('HDEL', key, other)
    end
  end
  local granted = math.max(0, math.min(asked, limit - others - own))
  if own + granted > 0 then
    redis.call('HSET', key, node, own + granted)
    redis.call('PEXPIRE', key, {PLACES_MS})
  else
    redis.call('HDEL', key, node)
  end
  answers[n] = {{granted, before, others}}
end
return answers
""")


class Places(NamedTuple):
    """A node's sessions of a client on a feed: `own` are open, `asked` more are wanted; all nodes may have `limit`."""

    client: str
    feed: str
    own: int
    asked: int
    limit: int


class Registry:
    """The access of a node to Redis, for any number of greenlets.

    `name` is the prefix of the keys. `ca`: a file of certificates that replaces the system's for `rediss://`. Every
    call ends within CALL_SECONDS, by a RegistryError if need be. No call is repeated here: callers try again
    themselves. Connections are made when needed and kept for the next call.
    """

    def __init__(self, url: str, name: str = NAME, ca: Path | None = None) -> None:
        self._url = _parsed(url)
        self._name = name
        self._ca = ca
        self._sentinels = list(self._url.addresses) if self._url.service else []  # the last that answered is the first
        self._idle: list[_Connection] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"<Registry {self._name} at {self._url}>"

    def exchange(self, slot: str, expected: str, new: str, last: str = "") -> tuple[str, str]:
        """Set a lease if it is still `expected`; return the lease and the last leader as they are now.

        "" stands for an absent lease or leader. With an empty `new` nothing is set. `last`, if not empty, becomes the
        last leader together with the lease.
        """
        keys = (self._key("lease", slot), self._key("last", slot))
        lease, leader = self._call(lambda redis: redis.run(_EXCHANGE, keys, expected, new, last))
        return lease, leader

    def release(self, slot: str, expected: str) -> None:
        """Delete a lease if it is still `expected`."""
        self._call(lambda redis: redis.run(_RELEASE, (self._key("lease", slot),), expected))

    def token(self) -> int:
        """Return a new fencing token, greater than all before it.

        It is at least Redis' time in microseconds, so that a Redis that lost its data gives out no old one.
        """
        return self._call(self._token)

    def knows_tokens(self) -> bool:
        """Return whether a token was ever given out; False for a Redis that lost its data."""
        return self._call(lambda redis: bool(redis.ask("EXISTS", self._key("token"))))

    def announce(self, node: str, value: str) -> None:
        """Enter a node for NODE_MS."""
        self._call(lambda redis: redis.ask("SET", self._key("node", node), value, "PX", NODE_MS))

    def withdraw(self, node: str) -> None:
        """Delete the entry of a node."""
        self._call(lambda redis: redis.ask("DEL", self._key("node", node)))

    def nodes(self) -> dict[str, str]:
        """Return the values of all nodes by their ids."""
        return self._call(self._nodes)

    def places(self, node: str, wanted: Sequence[Places]) -> list[tuple[int, int, int]]:
        """Set the counts of a node, and grant as many of the places that it asks for as are free.

        Return for each the number that was granted, the node's count as it was found, and that of all other nodes.
        The node counts as living from now on, for NODE_MS at least.
        """
        keys = tuple(self._key("places", places.client, places.feed) for places in wanted)
        numbers = [str(number) for places in wanted for number in (places.own, places.asked, places.limit)]
        arguments = (node, self._key("node", ""), *numbers)
        answers = self._call(lambda redis: redis.run(_PLACES, keys, *arguments))
        return [(granted, before, others) for granted, before, others in answers]

    def close(self) -> None:
        """Close the connections; one that is in use is closed when its call ends."""
        self._closed = True
        self._drop_idle()

    def _key(self, *parts: str) -> str:
        return ":".join((self._name, *parts))

    def _token(self, redis: _Connection) -> int:
        token = int(redis.run(_TOKEN, (self._key("token"),)))
        if not 0 < token < 2**53:  # written by something else
            raise ValueError("no token")
        return token

    def _nodes(self, redis: _Connection) -> dict[str, str]:
        prefix = self._key("node", "")
        pattern = re.sub(r"([\[\]*?\\])", r"\\\1", prefix) + "*"
        keys: set[str] = set()
        cursor = "0"
        while True:
            cursor, found = redis.ask("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            keys.update(found)
            if cursor == "0" or len(keys) >= MAX_NODES:
                break
        names = sorted(keys)
        values = redis.ask("MGET", *names) if names else []
        return {key[len(prefix) :]: value for key, value in zip(names, values, strict=True) if value is not None}

    def _call(self, use: Callable[[_Connection], T]) -> T:
        """Return what `use` makes of a connection; close the connection if that fails."""
        connection: _Connection | None = None
        where = str(self._url)
        try:
            with gevent.Timeout(CALL_SECONDS, _CallTimeout()):
                if (connection := self._take_idle()) is None:
                    connection = _Connection(self._address(), self._url, self._tls)
                where = connection.where
                connection.connect()  # type: ignore[no-untyped-call]
                result = use(connection)
        except BaseException as error:
            if connection is not None:
                connection.drop()
            self._drop_idle()
            if isinstance(error, (RedisError, OSError, ValueError, TypeError, _CallTimeout)):
                # Not `from error`: redis-py's texts quote what the server sent, which may be a password.
                raise RegistryError(f"Redis at {where} {self._reason(error)}") from None
            raise
        if self._closed:
            connection.drop()
        else:
            self._idle.append(connection)
        return result

    def _take_idle(self) -> _Connection | None:
        """Return a kept connection that Redis has not closed, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.drop()
        return None

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().drop()

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        """The context of encrypted connections, which verifies certificates and host names; None for plain ones."""
        if not self._url.tls:
            return None
        if self._ca is None:
            return tls_context()
        try:
            return ssl.create_default_context(cafile=str(self._ca))
        except OSError as error:
            reason = "it has no certificate" if isinstance(error, ssl.SSLError) else os.strerror(error.errno or 0)
            raise RegistryError(f"the CA file {self._ca} of cluster.redis cannot be read: {reason}") from None

    def _address(self) -> _Address:
        """Return the address of the server: the URL's, or that of the primary, from the first Sentinel that has it."""
        if not self._url.service:
            return self._url.addresses[0]
        reasons = []
        for sentinel in tuple(self._sentinels):
            try:
                with gevent.Timeout(SENTINEL_SECONDS, _SentinelTimeout()):
                    if (primary := self._ask_sentinel(sentinel)) is not None:
                        return primary
                reasons.append(f"{sentinel} does not know it")
            except (RedisError, OSError, ValueError, TypeError, _SentinelTimeout) as error:
                reasons.append(f"{sentinel} {self._reason(error).partition(';')[0]}")
            if self._sentinels[0] is sentinel:
                self._sentinels.append(self._sentinels.pop(0))
        raise RegistryError(
            f'no Sentinel has a primary for "{self._url.service}": {"; ".join(reasons)};'
            " check the Sentinels and the names in cluster.redis"
        )

    def _ask_sentinel(self, sentinel: _Address) -> _Address | None:
        """Return the address of the primary, None if the Sentinel does not know the service.

        A Sentinel without a password refuses one, so it is sent only to one that asks for it.
        """
        try:
            found = self._ask_once(_Connection(sentinel, self._url.anonymous(), None))
        except AuthenticationError:
            found = self._ask_once(_Connection(sentinel, self._url.of_sentinel(), None))
        return None if found is None else _Address(str(found[0]), int(found[1]))

    def _ask_once(self, connection: _Connection) -> Any:
        try:
            connection.connect()  # type: ignore[no-untyped-call]
            return connection.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
        finally:
            connection.drop()

    def _reason(self, error: BaseException) -> str:
        """Return why a call failed, and the next step, as the end of a sentence that begins with the server."""
        if isinstance(error, RedisError) and isinstance(error.__context__, OSError):
            error = error.__context__
        if isinstance(error, TimeoutError):
            return "does not answer in time; check that it runs, and the network to it"
        if isinstance(error, (OSError, UnicodeError)):
            return _reason_of_network(error)
        if isinstance(error, _CallTimeout):
            return f"does not answer within {CALL_SECONDS} s; check that it runs, and the network to it"
        if isinstance(error, _SentinelTimeout):
            return f"does not answer within {SENTINEL_SECONDS} s"
        return self._reason_of_server(error)

    def _reason_of_server(self, error: BaseException) -> str:
        text = " ".join(str(error).split())
        if text.startswith("Connection closed by server"):
            return _CLOSED
        # An error inside a script has its code inside the text in a Redis before 7.
        code = getattr(error, "status_code", None) or ""
        if code in ("", "ERR") and (inner := re.search(r"(?:^|-)([A-Z]{3,})\b", text)):
            code = inner[1] if inner[1] != "AUTH" else code
        for beginning, reason in _REFUSALS.items():
            if code == beginning or text.lower().startswith(beginning):
                return reason
        if code == "NOPERM" or "executing the script can't" in text:  # the latter in scripts, before Redis 7.2
            named = re.search(r"'([\w|-]+)' command", text)
            what = f"the command {named[1]}" if named else "a command" if "can't run" in text else "a key"
            rule = ACL.replace(f"~{NAME}:", f"~{self._name}:")
            return f"does not permit {what} to the user of cluster.redis; give the user the rule {rule}"
        if not isinstance(error, RedisError):
            return f"gave an answer that cannot be read ({type(error).__name__}); check what writes to its keys"
        if isinstance(error, InvalidResponse):
            return "does not speak the protocol of Redis; check the address in cluster.redis"
        # Redis quotes the arguments of a command that it does not know, which may be AUTH.
        shown = self._url.without_secret(text.partition(", with args")[0])[:SHOWN]
        return f"refuses: {shown if shown.isprintable() else ascii(shown)}; check Redis and its log"


class _CallTimeout(Exception):
    """The time of a call is over. No OSError, since redis-py and `_connected` go on after those."""


class _SentinelTimeout(Exception):
    """The time of one Sentinel is over."""


class _Address(NamedTuple):
    """A host and port, or the path of a Unix socket with port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class _Url:
    """The parts of cluster.redis. `service` is not empty if the addresses are Sentinels."""

    addresses: tuple[_Address, ...]
    service: str = ""
    tls: bool = False
    user: str = ""
    password: Secret = field(default_factory=lambda: Secret(""))
    database: int = 0

    def __str__(self) -> str:
        return ", ".join(map(str, self.addresses))

    def anonymous(self) -> _Url:
        return _Url(self.addresses)

    def of_sentinel(self) -> _Url:
        return _Url(self.addresses, user=self.user, password=self.password)

    def without_secret(self, text: str) -> str:
        """Return the text with "…" for each password in it."""
        password = self.password.reveal()
        return text.replace(password, "…") if password else text


class _Connection(AbstractConnection):
    """A connection of redis-py, on a socket that is made here.

    redis-py's own classes lose a socket whose greenlet is killed while it connects, build a TLS context for each
    connection (57 ms, which would hold the hub), and give each address of a host the whole time. RESP2 and no
    `driver_info`, so that neither HELLO nor CLIENT SETINFO has to be permitted. Bytes that are not UTF-8 are kept.
    """

    host, port = "", 0  # redis-py reads both when it counts errors, also of a connection that has neither

    def __init__(self, address: _Address, url: _Url, tls: ssl.SSLContext | None) -> None:
        super().__init__(
            db=url.database,
            username=url.user or None,
            password=url.password.reveal() or None,
            socket_timeout=CALL_SECONDS,
            encoding_errors="surrogateescape",
            decode_responses=True,
            driver_info=None,
            protocol=2,
        )
        self.where = str(address)
        self._address = address
        self._tls = tls

    def ask(self, *command: str | int) -> Any:
        """Send a command and return its answer. Raises RedisError."""
        self.send_command(*command)  # type: ignore[no-untyped-call]
        return self.read_response()

    def run(self, script: _Script, keys: tuple[str, ...], *arguments: str) -> Any:
        """Run a script, which Redis is sent only if it does not know it, and return its answer."""
        parameters: tuple[str | int, ...] = (len(keys), *keys, *arguments)
        try:
            return self.ask("EVALSHA", script.sha, *parameters)
        except NoScriptError:
            return self.ask("EVAL", script.text, *parameters)

    def drop(self) -> None:
        """Close the connection, if it is open."""
        self.disconnect()  # type: ignore[no-untyped-call]

    def usable(self) -> bool:
        """Return whether the other side has neither closed the connection nor sent anything unasked."""
        try:
            return not self.can_read()
        except RedisError:
            return False

    def repr_pieces(self) -> list[tuple[str, object]]:
        return [("where", self.where), ("db", self.db)]

    def _connect(self) -> socket.socket:
        sock = _connected(self._address)
        if self._tls is not None:
            sock = _encrypted(sock, self._tls, self._address.host)
        sock.settimeout(CALL_SECONDS)
        return sock

    def _host_error(self) -> str:
        return self.where


def _connected(address: _Address) -> socket.socket:
    """Connect to the first address of the host that accepts; a socket is closed also if the greenlet is killed."""
    if not address.port:
        return _connected_socket(socket.AF_UNIX, 0, address.host)
    last = OSError("the host name has no address")
    for family, _, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        try:
            sock = _connected_socket(family, protocol, place)
        except OSError as error:
            last = error
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise last


def _connected_socket(family: int, protocol: int, place: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        sock.settimeout(ADDRESS_SECONDS)
        sock.connect(place)
    except BaseException:
        sock.close()
        raise
    return sock


def _encrypted(sock: socket.socket, tls: ssl.SSLContext, host: str) -> socket.socket:
    try:
        encrypted = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        encrypted.do_handshake()
    except BaseException as error:
        encrypted.close()
        if isinstance(error, TimeoutError):  # a Redis without TLS waits for more
            raise ssl.SSLError("no answer") from None
        raise
    return encrypted


def _parsed(url: str) -> _Url:
    """Return the parts of a URL. Raises RegistryError, whose text does not have the URL."""
    try:
        return _parts(url)
    except ValueError as error:
        reason = str(error) if isinstance(error, _Invalid) else "a part of it cannot be read"
        raise RegistryError(
            f"cluster.redis is not the URL of a Redis: {reason}; write redis://host:port/0, rediss://host:port/0,"
            " unix:///path?db=0 or redis+sentinel://host:port,host:port/service"
        ) from None


class _Invalid(ValueError):
    """A fault of a URL; the text has no part of it."""


def _parts(url: str) -> _Url:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("redis", "rediss", "unix", "redis+sentinel"):
        raise _Invalid("it has another scheme")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    login, _, places = authority.rpartition("@")
    user, _, password = login.partition(":")
    service = ""
    if scheme == "unix":
        if places or not path:
            raise _Invalid("a Unix socket has a path and no host")
        addresses, path = [_Address("/" + unquote(path), 0)], ""
    else:
        sentinel = scheme == "redis+sentinel"
        default = SENTINEL_PORT if sentinel else REDIS_PORT
        split = [urlsplit(f"//{place}") for place in places.split(",")]
        addresses = [_Address(unquote(part.hostname or ""), part.port or default) for part in split]
        if not all(address.host for address in addresses):
            raise _Invalid("it has no host")
        if sentinel:
            service, _, path = path.partition("/")
            service = unquote(service)
            if not service:
                raise _Invalid("it has no service of Sentinel")
        elif len(addresses) > 1:
            raise _Invalid("only redis+sentinel:// has several hosts")
    options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    database = options.pop("db", path or "0")
    if options:
        raise _Invalid("it has another option than db")
    if not re.fullmatch("[0-9]{1,9}", database):
        raise _Invalid("the database is no number")
    return _Url(tuple(addresses), service, scheme == "rediss", unquote(user), Secret(unquote(password)), int(database))


def _reason_of_network(error: OSError | UnicodeError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not valid here: {error.verify_message}; check the host's name and its CA"
    if isinstance(error, ssl.SSLError):
        return (
            f"does not complete a TLS handshake ({getattr(error, 'reason', None) or 'no answer'}); check that it runs,"
            " and if it has no TLS write redis:// in cluster.redis"
        )
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "has a host name that cannot be resolved; check cluster.redis and the name service"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return _CLOSED
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error) or type(error).__name__
    return f"cannot be reached: {reason}; check that it runs, and the address in cluster.redis"


_CLOSED = "closed the connection; if it expects TLS, write rediss:// in cluster.redis"
_CLUSTER = "is a Redis Cluster, which is not supported; name a Redis without cluster mode, or use redis+sentinel://"
_REPLICA = "refuses writes: it is a replica; name the primary, or use redis+sentinel://"
_WRONG_PASSWORD = "refuses the user or the password; correct it in cluster.redis"

# By the code of the error, or the beginning of its text in lower case, for errors whose code is ERR.
_REFUSALS: Mapping[str, str] = {
    "READONLY": _REPLICA,
    "MASTERDOWN": "is a replica that has lost its primary; name the primary, or use redis+sentinel://",
    "NOREPLICAS": "refuses writes: it has too few replicas; start them, or lower min-replicas-to-write",
    "OOM": "refuses writes: its memory is full; raise maxmemory, or delete other keys",
    "MISCONF": "refuses writes: it cannot save its data; free its disk, or turn saving off",
    "LOADING": "is still loading its data; wait until it has",
    "BUSY": "is busy with a script of someone else; end that by SCRIPT KILL",
    "NOAUTH": "asks for a password; add it to cluster.redis as redis://:PASSWORD@host",
    "WRONGPASS": _WRONG_PASSWORD,
    "invalid password": _WRONG_PASSWORD,
    "auth <password> called without": "has no password, but cluster.redis gives one; remove it, or set one in Redis",
    "client sent auth, but no password": "has no password, but cluster.redis gives one; remove it, or set one in Redis",
    "DENIED": "is in protected mode; give it a password, or let it listen on a private address",
    "max number of clients": "has too many connections; raise maxclients, or end some",
    "db index is out of range": "has no such database; correct its number in cluster.redis",
    "MOVED": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "CLUSTERDOWN": _CLUSTER,
}
