"""Checks that involve several settings, made on the file's tree.

The tree is checked rather than the typed configuration, which exists only when every type is right: a misspelt port
must not hide that a client names an account which does not exist. A setting that is invalid by itself is skipped here;
its decoder reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from proxy.alpaca.endpoints import Dialect, endpoint
from proxy.config import addresses, cluster, values
from proxy.config.errors import Problem
from proxy.config.values import Unsuitable, in_units, nearest
from proxy.config.yamlfile import Step, Table, Text, YamlDocument, quoted
from proxy.routing.allowlists import DEFAULT, WhenSlow

T = TypeVar("T")

OAUTH_KEY = "oauth"  # as an account's key: the secret is its token


def check(document: YamlDocument) -> Iterator[Problem | None]:
    """Yield the contradictions in a configuration; None for one in a value that is already reported."""
    yield from _addresses(document)
    yield from _outboxes(document)
    yield from _keys(document)
    yield from _account_keys(document)
    yield from _accounts(document)
    yield from _conflation(document)
    yield from _cluster(document)


def _addresses(document: YamlDocument) -> Iterator[Problem | None]:
    host = _valid(document, ("listen", "host"), addresses.host, addresses.LOOPBACK)
    port = _valid(document, ("listen", "port"), values.port, values.LISTEN_PORT)
    plaintext = not document.find(("listen", "tls"))
    insecure = _valid(document, ("listen", "insecure"), values.flag, False)
    if host and not addresses.is_loopback(host) and plaintext and insecure is False:
        reason = "is not a loopback address, so plaintext can be read on the network; set listen.tls, or insecure: true"
        yield document.problem(("listen", "host"), reason)
    admin_host = _valid(document, ("admin", "host"), addresses.host, addresses.LOOPBACK)
    admin_port = _valid(document, ("admin", "port"), values.port, values.ADMIN_PORT)
    if admin_host and not addresses.is_loopback(admin_host) and document.find(("admin", "token")) is None:
        yield document.problem(("admin", "host"), "is not a loopback address; set admin.token as well")
    if host and admin_host and port and port == admin_port and _overlap(host, admin_host):
        section = "admin" if document.find(("admin", "port")) is not None else "listen"
        yield document.problem((section, "port"), "is taken by both listen and admin; choose another port for one")


def _overlap(one: str, other: str) -> bool:
    """Whether two hosts cannot share a port: they are equal, or one of them is the unspecified address."""
    aliases = {"localhost": addresses.LOOPBACK}
    one, other = aliases.get(one, one), aliases.get(other, other)
    return one == other or any((address := addresses.ip_address(of)) and address.is_unspecified for of in (one, other))


def _outboxes(document: YamlDocument) -> Iterator[Problem | None]:
    total = _valid(document, ("limits", "outboxes"), values.outboxes_size, values.OUTBOXES)
    if total is None:
        return
    uses_default = False
    for name in _entries(document, "clients"):
        path = ("clients", name, "outbox")
        outbox = _valid(document, path, values.outbox_size, None)
        if outbox is not None and outbox > total:
            yield document.problem(path, f"is more than all outboxes together may hold ({in_units(total)})")
        uses_default = uses_default or document.find(path) is None
    if uses_default and total < values.OUTBOX:
        reason = f"is less than one client's outbox, which is {in_units(values.OUTBOX)} by default"
        yield document.problem(("limits", "outboxes"), reason)


def _keys(document: YamlDocument) -> Iterator[Problem | None]:
    holders: dict[str, str] = {}
    for name in _entries(document, "clients"):
        path = ("clients", name, "key")
        key = document.find(path)
        if isinstance(key, Text) and key and (holder := holders.setdefault(key, name)) != name:
            yield document.problem(path, f'is already the key of the client "{holder}"')


def _account_keys(document: YamlDocument) -> Iterator[Problem | None]:
    """Yield the accounts that are another account's: their connections would refuse each other with 406."""
    holders: dict[tuple[str, str], str] = {}
    for name in _entries(document, "accounts"):
        key, secret = (document.find(("accounts", name, setting)) for setting in ("key", "secret"))
        if not isinstance(key, Text) or not key:
            continue
        oauth = str(key) == OAUTH_KEY
        identity = (OAUTH_KEY, str(secret)) if oauth else ("", str(key))
        if (holder := holders.setdefault(identity, name)) != name:
            setting = "secret" if oauth else "key"
            reason = f'is already the {setting} of the account "{holder}"; let its clients use that one'
            yield document.problem(("accounts", name, setting), reason)


def _accounts(document: YamlDocument) -> Iterator[Problem | None]:
    accounts = _entries(document, "accounts")
    if not accounts:
        return
    for client in _entries(document, "clients"):
        yield from _accounts_of(document, ("clients", client), "allow", accounts)
    if document.find(("record",)):
        yield from _accounts_of(document, ("record",), "topics", accounts)


def _accounts_of(
    document: YamlDocument, holder: tuple[Step, ...], topics: str, accounts: Table
) -> Iterator[Problem | None]:
    """Yield the problems of the accounts that serve the `topics` of a client or of the recorder."""
    path: tuple[Step, ...] = (*holder, "account")
    chosen = document.find(path)
    if isinstance(chosen, Table):
        for feed, name in chosen.items():
            if isinstance(name, Text) and name and name not in accounts:
                yield document.problem((*path, feed), f"unknown account {quoted(name)}", nearest(name, accounts))
        if DEFAULT not in chosen and len(accounts) > 1:
            yield from _unserved(document, path, document.find((*holder, topics)), chosen)
    elif chosen and isinstance(chosen, Text):
        if chosen not in accounts:
            yield document.problem(path, f"unknown account {quoted(chosen)}", nearest(chosen, accounts))
    elif not chosen and len(accounts) > 1:
        yield document.problem(path, "is missing; it is required when there are several accounts")


def _unserved(
    document: YamlDocument, path: tuple[Step, ...], listed: object, chosen: Table
) -> Iterator[Problem | None]:
    """Yield the feeds that are listed but have no account."""
    for feed in listed if isinstance(listed, Table) else ():
        if feed not in chosen and endpoint(feed) is not None:
            what = "allowed" if path[0] == "clients" else "recorded"
            yield document.problem(path, f"names no account for {feed}, which is {what}; add it, or a default")


def _conflation(document: YamlDocument) -> Iterator[Problem | None]:
    """Yield the clients whose `conflate` cannot have an effect, since they may use nothing but order updates."""
    for name in _entries(document, "clients"):
        path = ("clients", name, "when_slow")
        setting, allowed = document.find(path), document.find(("clients", name, "allow"))
        if setting != WhenSlow.CONFLATE.value or not isinstance(allowed, Table) or not allowed:
            continue
        endpoints = [endpoint(feed) for feed in allowed]
        if all(found is not None and found.dialect is Dialect.TRADING for found in endpoints):
            reason = "conflate has no effect on order updates, which are never left out, and allow names nothing else"
            yield document.problem(path, f"{reason}; remove it")


def _cluster(document: YamlDocument) -> Iterator[Problem | None]:
    if not document.find(("cluster",)):
        return
    url = _valid(document, ("cluster", "url"), cluster.url, None) or ""
    redis = _valid(document, ("cluster", "redis"), cluster.redis, None)
    if url.startswith("wss://") and not document.find(("cluster", "tls")):
        yield document.problem(
            ("cluster", "url"), "needs a certificate for wss://; set cluster.tls as well, or use ws://"
        )
    if url.startswith("ws://") and document.find(("cluster", "tls")):
        yield document.problem(
            ("cluster", "tls"), "has no effect, since cluster.url begins with ws://; use wss:// there"
        )
    if url.startswith("ws://") and redis and redis.scheme != "rediss" and document.find(("cluster", "ca")):
        reason = "has no effect, since neither cluster.url nor cluster.redis uses TLS; use wss:// or rediss://"
        yield document.problem(("cluster", "ca"), reason)
    listen = _valid(document, ("cluster", "listen"), cluster.listen, None)
    if listen is None or not listen.port:
        return
    for section, default in (("listen", values.LISTEN_PORT), ("admin", values.ADMIN_PORT)):
        host = _valid(document, (section, "host"), addresses.host, addresses.LOOPBACK)
        port = _valid(document, (section, "port"), values.port, default)
        if host and port == listen.port and _overlap(host, listen.host):
            yield document.problem(("cluster", "listen"), f"has the port of {section}; choose another one")


def _entries(document: YamlDocument, section: str) -> Table:
    table = document.find((section,))
    return table if isinstance(table, Table) else Table()


def _valid(document: YamlDocument, path: tuple[Step, ...], decode: Callable[[object], T], default: T) -> T | None:
    """A setting's value: its default if it is left out, None if it is invalid."""
    node = document.find(path)
    if node is None:
        return default
    try:
        return decode(node)
    except Unsuitable:
        return None
