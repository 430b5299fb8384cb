"""The values of the section `cluster`, and the warnings about it.

The URL of Redis may hold a password, so no fault and no warning quotes it; `RedisUrl.shown` is the URL without user and
password.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from proxy.config import addresses, secret
from proxy.config.secret import Secret
from proxy.config.values import Fault, Unsuitable, text
from proxy.config.yamlfile import quoted

NAME = "alpaca-proxy"
SHORTEST_SECRET = 16

SENTINEL = "redis+sentinel"
_SCHEMES = ("redis", "rediss", "unix", SENTINEL)
_REDIS = re.compile(
    r"[a-z+]+://(?:(?P<user>[^@/?#]*)@)?(?P<hosts>[^@/?#]*)(?P<path>(?:/[^@?#]*)?)(?P<query>(?:\?[^@?#]*)?)"
)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+):([0-9]{1,5})")
_DATABASE = "[0-9]{1,4}"
# The part after the host: a database; of a socket its path; of Sentinel the name of the service.
_PATHS = {
    "redis": re.compile(rf"/?|/{_DATABASE}"),
    "rediss": re.compile(rf"/?|/{_DATABASE}"),
    "unix": re.compile("/.+"),
    SENTINEL: re.compile(rf"/[A-Za-z0-9._-]+(/{_DATABASE})?"),
}
_FORMS = {
    "redis": "redis://HOST:PORT/DATABASE",
    "rediss": "rediss://HOST:PORT/DATABASE",
    "unix": "unix:///PATH?db=DATABASE",
    SENTINEL: f"{SENTINEL}://HOST:PORT,HOST:PORT/SERVICE/DATABASE",
}
_LOCAL_DOMAINS = (".internal", ".local")  # names that are not on the public network


class Address(NamedTuple):
    """An address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RedisUrl:
    """The URL of Redis; neither its repr nor `shown` has the user and the password.

    `hosts` are those of the server or of its Sentinels, without ports; none for a Unix socket. `literal`: the URL is
    written in the configuration file itself.
    """

    __slots__ = ("_url", "has_password", "hosts", "literal", "scheme", "shown")

    def __init__(self, url: str, shown: str, hosts: tuple[str, ...], *, has_password: bool, literal: bool) -> None:
        self._url = url
        self.shown = shown
        self.scheme = shown.partition("://")[0]
        self.hosts = hosts
        self.has_password = has_password
        self.literal = literal

    def reveal(self) -> str:
        """The URL itself, for the code that connects."""
        return self._url

    def __eq__(self, other: object) -> bool:
        return self._url == other._url if isinstance(other, RedisUrl) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._url)

    def __repr__(self) -> str:
        return f"RedisUrl({self.shown})"


def redis(value: object) -> RedisUrl:
    """The URL of Redis: a server, a Unix socket, or Sentinels."""
    decoded = secret.secret(value)
    written = decoded.reveal()
    scheme = written.partition("://")[0]
    if "://" not in written or scheme not in _SCHEMES:
        raise Unsuitable(Fault(f"should begin with redis://, rediss://, unix:// or {SENTINEL}://"))
    match = _REDIS.fullmatch(written)
    if match is None or not re.fullmatch("[!-~]+", written):
        raise Unsuitable(
            Fault("is not a URL; signs of the password have to be percent-encoded: @ as %40, / as %2F, # as %23")
        )
    user, listed, path, query = match["user"] or "", match["hosts"], match["path"], match["query"]
    hosts = _hosts(scheme, listed)
    database = re.fullmatch(rf"(\?db={_DATABASE})?" if scheme == "unix" else "", query)
    if hosts is None or not _PATHS[scheme].fullmatch(path) or database is None:
        raise Unsuitable(Fault(f"should be {_FORMS[scheme]}, with USER:PASSWORD@ before it if Redis asks for them"))
    shown = f"{scheme}://{listed}{path}{query}"
    has_password = bool(user.partition(":")[2])
    return RedisUrl(written, shown, hosts, has_password=has_password, literal=decoded.literal)


def _hosts(scheme: str, listed: str) -> tuple[str, ...] | None:
    """The hosts of a Redis URL without their ports; None if one is invalid."""
    if scheme == "unix":
        return None if listed else ()
    found = []
    for one in listed.split(",") if scheme == SENTINEL else [listed]:
        parts = _authority(one) or (None if scheme == SENTINEL else _authority(f"{one}:6379"))
        if parts is None or not parts.port:
            return None
        found.append(parts.host)
    return tuple(found)


def _authority(written: str) -> Address | None:
    """Parse HOST:PORT; None for anything else."""
    match = _AUTHORITY.fullmatch(written)
    if match is None or not int(match[2]) < 65536:
        return None
    try:
        return Address(addresses.host(match[1]), int(match[2]))
    except Unsuitable:
        return None


def listen(value: object) -> Address:
    """The address of the port for links between nodes."""
    written = text(value)
    found = _authority(written)
    if found is None:
        raise Unsuitable(Fault(f"should be host and port, as in 0.0.0.0:8767, not {quoted(written)}"))
    return found


def url(value: object) -> str:
    """The URL of a node: ws:// or wss:// with host and port, without a path."""
    written = text(value)
    match = re.fullmatch(r"([a-z]+)://([^/]+)/?", written)
    scheme, found = (match[1], _authority(match[2])) if match else ("", None)
    if found is None or not found.port or scheme not in ("ws", "wss"):
        suggested = {"http": "ws", "https": "wss"}.get(scheme)
        hint = f"{suggested}://{found}" if suggested and found and getattr(value, "literal", True) else None
        raise Unsuitable(
            Fault(f"should be scheme, host and port alone, as in wss://10.0.0.1:8767, not {quoted(written)}", hint)
        )
    address = addresses.ip_address(found.host)
    if address is not None and address.is_unspecified:
        raise Unsuitable(Fault("should name the address at which the other nodes reach this one"))
    return f"{scheme}://{found}"


def cluster_secret(value: object) -> Secret:
    """The secret with which the nodes authenticate each other."""
    decoded = secret.secret(value)
    if decoded.is_digest():
        raise Unsuitable(Fault("must be the text itself and not its digest; every node needs it"))
    if len(decoded.reveal()) < SHORTEST_SECRET:
        raise Unsuitable(
            Fault(f"should have {SHORTEST_SECRET} characters at least; `openssl rand -hex 32` makes a good one")
        )
    return decoded


def name(value: object) -> str:
    """The prefix of the keys in Redis."""
    written = text(value)
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", written):
        raise Unsuitable(Fault("cannot be a name; use letters, digits, dashes and underscores, 64 at most"))
    return str(written)


def authorities(path: Path) -> Path:
    """A file of certificates to trust; at least one is in it."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        raise Unsuitable(Fault("has no certificate that can be read; it should be PEM")) from None
    return path


def warnings(redis: RedisUrl, listen: Address, url: str, secret: Secret) -> Iterator[Fault]:
    """Yield the settings that work but are unsafe, or probably not meant."""
    plain = "in plain text; use ${ENV} or ${file:PATH}"
    remote = [host for host in redis.hosts if not addresses.is_loopback(host)]
    if redis.has_password and redis.literal:
        yield Fault(f"holds its password {plain}", None, ("cluster", "redis"))
    if redis.has_password and remote and redis.scheme != "rediss":
        step = "use rediss://" if redis.scheme == "redis" else "keep that network private"
        yield Fault(f"sends its password unencrypted; {step}", None, ("cluster", "redis"))
    if secret.literal:
        yield Fault(f"is {plain}", None, ("cluster", "secret"))
    host = urlsplit(url).hostname or ""
    if url.startswith("ws://") and not _is_private(host):
        reason = "frames travel unencrypted between the nodes; use wss:// with cluster.tls"
        yield Fault(reason, None, ("cluster", "url"))
    if not listen.port:
        reason = "takes any free port, so the other nodes reach it only if something forwards cluster.url"
        yield Fault(reason, None, ("cluster", "listen"))


def _is_private(host: str) -> bool:
    """Whether a host is on this machine or, as far as its name tells, on a private network."""
    address = addresses.ip_address(host)
    if address is None:
        return "." not in host or host.endswith(_LOCAL_DOMAINS)
    return not address.is_global
