"""The differences between two configurations, as a plan that can be printed, logged and carried out.

Pure: two configurations in, a plan out. A reload does not affect anything that the plan does not list. An address
cannot be changed while it is in use; a configuration that does so is refused whole, and the old one stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy.config import certificates
from proxy.config.model import Config, certified
from proxy.routing.allowlists import Client


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """The steps of a reload. `restart` are changed settings that need a restart; if there are any, nothing is done.

    `gone` maps each client whose sessions are closed to the reason. The sessions of `changed` clients continue under
    the new rules. The feeds of changed `accounts` reconnect. Changed `settings` take effect at once. `certificates`
    maps each setting whose certificate is renewed to a sentence about it.
    """

    restart: tuple[str, ...]
    gone: dict[str, str]
    added: tuple[str, ...]
    changed: tuple[str, ...]
    accounts: tuple[str, ...]
    settings: tuple[str, ...]
    certificates: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The plan as sentences; one sentence if it is empty."""
        if self.restart:
            return [f"{name} changed: restart to apply it; nothing was reloaded" for name in self.restart]
        lines = [
            *(f"client {name}: {reason}, its sessions are closed" for name, reason in self.gone.items()),
            *(f"client {name}: new" for name in self.added),
            *(f"client {name}: changed, its sessions continue under the new rules" for name in self.changed),
            *(f"account {name}: changed, its feeds reconnect" for name in self.accounts),
            *(f"{name}: changed" for name in self.settings),
            *(f"{name}: {renewed}" for name, renewed in self.certificates.items()),
        ]
        return lines or ["nothing changed"]


def make_plan(old: Config, new: Config) -> ReloadPlan:
    """Compare two configurations; the plan leads from the old one to the new one."""
    before = {client.name: client for client in old.directory}
    after = {client.name: client for client in new.directory}
    gone = {name: reason for name, client in before.items() if (reason := _close_reason(client, after.get(name)))}
    return ReloadPlan(
        restart=tuple(_needing_restart(old, new)),
        gone=gone,
        added=tuple(name for name in after if name not in before),
        changed=tuple(name for name in after if name in before and name not in gone and after[name] != before[name]),
        accounts=tuple(name for name in old.accounts if old.accounts[name] != new.accounts.get(name)),
        settings=tuple(_changed_settings(old, new)),
        certificates=dict(_renewals(old, new)),
    )


def _close_reason(before: Client, after: Client | None) -> str:
    if after is None:
        return "removed"
    if after.key != before.key:
        return "key changed"
    return "secret changed" if after.digest != before.digest else ""


def _needing_restart(old: Config, new: Config) -> Iterator[str]:
    for name in ("listen.host", "listen.port", "listen.reuse_port", "admin.host", "admin.port"):
        section, _, setting = name.partition(".")
        if getattr(getattr(old, section), setting) != getattr(getattr(new, section), setting):
            yield name
    if (old.listen.tls is None) != (new.listen.tls is None):
        yield "listen.tls"
    if old.cluster is None or new.cluster is None:
        if old.cluster is not new.cluster:
            yield "cluster"
        return
    # Without the content of the certificate, which is read again at a reload as that of `listen.tls`.
    before, after = old.cluster.model_dump(), new.cluster.model_dump()
    yield from (f"cluster.{name}" for name in before if before[name] != after[name])


def _renewals(old: Config, new: Config) -> Iterator[tuple[str, str]]:
    for (name, before), (_, after) in zip(certified(old), certified(new), strict=True):
        if before is None or after is None or after.certificate in (None, before.certificate):
            continue
        until = certificates.validity(after.certificate)
        yield name, f"certificate renewed, {until}" if until else "certificate renewed"


def _changed_settings(old: Config, new: Config) -> Iterator[str]:
    """The changed settings that take effect at once. The files of `listen.tls` are read again at every reload."""
    for name in ("listen.origins", "listen.trusted", "admin.token", "admin.hosts", "log", "limits", "default_feed"):
        section, _, setting = name.partition(".")
        a, b = getattr(old, section), getattr(new, section)
        if (getattr(a, setting) != getattr(b, setting)) if setting else a != b:
            yield name
    if (old.record, old.recorder) != (new.record, new.recorder):  # or the account that serves it by default
        yield "record"
