"""What settings demand of each other, checked on a file's tree.

The tree is checked rather than the typed configuration, because that exists only when every type is right: a misspelt
port must not hide that a client names an account which does not exist. A setting that is not valid by itself is left
out here; whoever gives it its type complains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from proxy.alpaca.endpoints import endpoint
from proxy.config import addresses
from proxy.config import values as settings
from proxy.config.errors import Problem
from proxy.config.values import Unsuitable, in_units, nearest
from proxy.config.yamlfile import Step, Table, Text, YamlDocument, quoted
from proxy.routing.allowlists import DEFAULT

T = TypeVar("T")


def check(document: YamlDocument) -> Iterator[Problem | None]:
    """The contradictions in a configuration; None stands for one in a value that is reported already."""
    yield from _addresses(document)
    yield from _outboxes(document)
    yield from _keys(document)
    yield from _accounts(document)


def _addresses(document: YamlDocument) -> Iterator[Problem | None]:
    host = _valid(document, ("listen", "host"), addresses.host, addresses.LOOPBACK)
    port = _valid(document, ("listen", "port"), settings.port, settings.LISTEN_PORT)
    plaintext = not document.find(("listen", "tls"))
    insecure = _valid(document, ("listen", "insecure"), settings.flag, False)
    if host and not addresses.is_loopback(host) and plaintext and insecure is False:
        reason = "is beyond this machine, where plaintext can be read; set listen.tls, or insecure: true"
        yield document.problem(("listen", "host"), reason)
    admin_host = _valid(document, ("admin", "host"), addresses.host, addresses.LOOPBACK)
    admin_port = _valid(document, ("admin", "port"), settings.port, settings.ADMIN_PORT)
    if admin_host and not addresses.is_loopback(admin_host) and document.find(("admin", "token")) is None:
        yield document.problem(("admin", "host"), "is beyond this machine; set admin.token as well")
    if host and admin_host and port and port == admin_port and _overlap(host, admin_host):
        section = "admin" if document.find(("admin", "port")) is not None else "listen"
        yield document.problem((section, "port"), "is taken by both listen and admin; choose another port for one")


def _overlap(one: str, other: str) -> bool:
    """Whether two hosts cannot have the same port: they are one, or one of them stands for every address."""
    same = {"localhost": addresses.LOOPBACK}
    one, other = same.get(one, one), same.get(other, other)
    return one == other or any((address := addresses.ip_address(of)) and address.is_unspecified for of in (one, other))


def _outboxes(document: YamlDocument) -> Iterator[Problem | None]:
    together = _valid(document, ("limits", "outboxes"), settings.outboxes_size, settings.OUTBOXES)
    if together is None:
        return
    standard = False
    for name in _entries(document, "clients"):
        path = ("clients", name, "outbox")
        outbox = _valid(document, path, settings.outbox_size, None)
        if outbox is not None and outbox > together:
            yield document.problem(path, f"is more than all outboxes together may hold ({in_units(together)})")
        standard = standard or document.find(path) is None
    if standard and together < settings.OUTBOX:
        reason = f"is less than one client's outbox, which is {in_units(settings.OUTBOX)} unless given"
        yield document.problem(("limits", "outboxes"), reason)


def _keys(document: YamlDocument) -> Iterator[Problem | None]:
    holders: dict[str, str] = {}
    for name in _entries(document, "clients"):
        path = ("clients", name, "key")
        key = document.find(path)
        if isinstance(key, Text) and key and (holder := holders.setdefault(key, name)) != name:
            yield document.problem(path, f'is the key of the client "{holder}" already')


def _accounts(document: YamlDocument) -> Iterator[Problem | None]:
    known = _entries(document, "accounts")
    for client in _entries(document, "clients") if known else ():
        path: tuple[Step, ...] = ("clients", client, "account")
        chosen = document.find(path)
        if isinstance(chosen, Table):
            for feed, name in chosen.items():
                if isinstance(name, Text) and name and name not in known:
                    yield document.problem((*path, feed), f"unknown account {quoted(name)}", nearest(name, known))
            if DEFAULT not in chosen and len(known) > 1:
                yield from _unserved(document, client, chosen)
        elif chosen and isinstance(chosen, Text):
            if chosen not in known:
                yield document.problem(path, f"unknown account {quoted(chosen)}", nearest(chosen, known))
        elif not chosen and len(known) > 1:
            yield document.problem(path, "is missing; there are several accounts, so say which")


def _unserved(document: YamlDocument, client: str, chosen: Table) -> Iterator[Problem | None]:
    """The feeds that a client may use, but for which it has no account."""
    allowed = document.find(("clients", client, "allow"))
    for feed in allowed if isinstance(allowed, Table) else ():
        if feed not in chosen and endpoint(feed) is not None:
            reason = f"names no account for {feed}, which is allowed; add it, or a default"
            yield document.problem(("clients", client, "account"), reason)


def _entries(document: YamlDocument, section: str) -> Table:
    found = document.find((section,))
    return found if isinstance(found, Table) else Table()


def _valid(document: YamlDocument, path: tuple[Step, ...], decode: Callable[[object], T], default: T) -> T | None:
    """A setting's value, its default if it is left out, None if it is not valid."""
    node = document.find(path)
    if node is None:
        return default
    try:
        return decode(node)
    except Unsuitable:
        return None
