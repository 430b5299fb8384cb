"""The sections of the configuration, and the loading of a file.

The docstrings of the attributes are the reference documentation; `schema` shows them in editors. No other module uses
pydantic: `Config.directory` returns the clients as plain values for the rest of the program.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from proxy.alpaca.endpoints import Dialect, endpoint
from proxy.config import (
    addresses,
    certificates,
    cluster,
    consistency,
    recording,
    references,
    secret,
    symbols,
    values,
    yamlfile,
)
from proxy.config.certificates import Certificate
from proxy.config.cluster import Address, RedisUrl
from proxy.config.errors import ConfigError, Problem
from proxy.config.secret import Secret
from proxy.config.values import Fault, Unsuitable, nearest
from proxy.config.yamlfile import Items, Step, Table, Text, YamlDocument, quoted
from proxy.routing.allowlists import DEFAULT, RECORDER, Allowlist, Client, Directory, OnOutage, WhenSlow


def _readable(value: object, info: ValidationInfo) -> Path:
    name = values.text(value)
    path: Path = (info.context or {}).get("folder", Path()) / name
    try:
        path.open("rb").close()
    except (OSError, ValueError) as error:
        raise Unsuitable(Fault(f"the file {quoted(name, longest=256)} {references.unreadable(error)}")) from None
    return path


def _folder(value: object, info: ValidationInfo) -> Path:
    name = str(value) if isinstance(value, Path) else values.text(value)
    if "\0" in name:
        raise Unsuitable(Fault("is not a path"))
    path: Path = (info.context or {}).get("folder", Path()) / name
    return path


def _blank_is(default: object) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value == "" else value)


_SCALAR = WithJsonSchema({"type": ["string", "number", "boolean"]})
Name = Annotated[str, BeforeValidator(values.name)]
Port = Annotated[int, BeforeValidator(values.port)]
Host = Annotated[str, BeforeValidator(addresses.host)]
Flag = Annotated[bool, BeforeValidator(values.flag)]
ReusePort = Annotated[bool, BeforeValidator(values.reuse_port)]
Networks = Annotated[tuple[Annotated[str, BeforeValidator(addresses.network)], ...], _blank_is(())]
Origins = Annotated[tuple[Annotated[str, BeforeValidator(addresses.origin)], ...], _blank_is(())]
HostNames = Annotated[tuple[Annotated[str, BeforeValidator(addresses.host_name)], ...], _blank_is(())]
Url = Annotated[str, BeforeValidator(addresses.url)]
File = Annotated[Path, BeforeValidator(_readable), WithJsonSchema({"type": "string"})]
Authorities = Annotated[
    Path, AfterValidator(cluster.authorities), BeforeValidator(_readable), WithJsonSchema({"type": "string"})
]
Folder = Annotated[
    Path, BeforeValidator(_folder), Field(validate_default=True), WithJsonSchema({"type": "string"})
]  # a default is relative to the configuration's folder, too
AccountSecret = Annotated[Secret, BeforeValidator(secret.account_secret), _SCALAR]
ClientSecret = Annotated[Secret, BeforeValidator(secret.client_secret), _SCALAR]
Token = Annotated[Secret, BeforeValidator(secret.token), _SCALAR]
ClusterSecret = Annotated[Secret, BeforeValidator(cluster.cluster_secret), _SCALAR]
Redis = Annotated[RedisUrl, BeforeValidator(cluster.redis), WithJsonSchema({"type": "string"})]
ListenAddress = Annotated[Address, BeforeValidator(cluster.listen), WithJsonSchema({"type": "string"})]
NodeUrl = Annotated[str, BeforeValidator(cluster.url)]
KeyPrefix = Annotated[str, BeforeValidator(cluster.name)]
Key = Annotated[str, BeforeValidator(values.key), _SCALAR]
Entries = Mapping[str, Mapping[str, tuple[str, ...]]]
Allow = Annotated[Entries, BeforeValidator(values.allow), WithJsonSchema(values.allow_schema())]


class Section(BaseModel):
    """A group of settings; a blank one has its defaults."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _blank(cls, value: object) -> object:
        return {} if value == "" else value


class Tls(Section):
    """The certificate of a port. A relative path starts at the configuration's folder."""

    cert: File
    """The certificate with its chain, PEM."""
    key: File
    """Its private key, PEM, not encrypted."""
    _certificate: Certificate | None = PrivateAttr(None)

    @property
    def certificate(self) -> Certificate | None:
        """The certificate file as it was when the configuration was read."""
        return self._certificate

    @model_validator(mode="after")
    def _matching(self) -> Tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")
            self._certificate = certificates.read(self.cert.read_text("latin-1"))
        except (OSError, ValueError) as error:
            mismatch = getattr(error, "reason", None) == "KEY_VALUES_MISMATCH"
            reason = "the key does not belong to the certificate" if mismatch else "cert and key are not both plain PEM"
            raise Unsuitable(Fault(reason)) from None
        return self


class Listen(Section):
    """The port for the algorithms."""

    host: Host = addresses.LOOPBACK
    """The address to listen on; any but a loopback address requires `tls`, or `insecure: true`."""
    port: Port = values.LISTEN_PORT
    """The TCP port; 0 takes any free one."""
    tls: Annotated[Tls | None, _blank_is(None)] = None
    """The certificate and its key, for wss://."""
    insecure: Flag = False
    """true allows plaintext on any address; secrets and data can then be read on the network."""
    origins: Origins = ()
    """Origins of web pages that may connect, besides loopback addresses and the address that is called itself:
    app.example.com for any scheme and port, or exactly https://app.example.com:8443."""
    trusted: Networks = ()
    """Reverse proxies, by address or network, whose X-Forwarded-For header tells the address of an algorithm:
    [127.0.0.1] behind nginx or Caddy on this machine. Waits after refused log-ins, and the limits on connections that
    have not logged in, then apply to that address; logs and pages show it."""
    reuse_port: ReusePort = False
    """true lets several processes of this machine listen on the same address, if each of them has it (SO_REUSEPORT):
    Linux spreads new connections over them, so nodes of a cluster use several cores. A process that is started twice
    by mistake is then not noticed."""


class Admin(Section):
    """The port for the status page, the metrics and the health checks."""

    host: Host = addresses.LOOPBACK
    """The address to listen on; any but a loopback address requires a `token`."""
    port: Port = values.ADMIN_PORT
    """The TCP port; 0 takes any free one."""
    token: Token | None = None
    """The bearer token that every request must carry; optional on a loopback address."""
    hosts: HostNames = ()
    """Names that a request's Host header may have, without a port, besides IP literals and localhost."""


class Log(Section):
    """The log, which goes to standard error."""

    format: Literal["auto", "human", "json"] = "auto"
    """auto: human on a terminal, otherwise json."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is logged. debug shows the requests of the clients and the answers to them, shortened
    and without keys and secrets; never market data."""


class Limits(Section):
    """Bounds on the memory that clients can make the proxy use."""

    message: Annotated[int, BeforeValidator(values.message_size)] = 1024 * 1024
    """The largest message that a client may send; 64KiB to 16MiB."""
    outboxes: Annotated[int, BeforeValidator(values.outboxes_size)] = values.OUTBOXES
    """The largest total size of all outboxes."""


class Account(Section):
    """One Alpaca identity."""

    key: AccountSecret
    """The key from Alpaca."""
    secret: AccountSecret
    """The secret from Alpaca; best as ${ENV} or ${file:PATH}."""
    trading: Literal["paper", "live"] = "paper"
    """The trading environment that the account belongs to."""
    codec: Annotated[Mapping[str, Literal["msgpack", "json"]], BeforeValidator(values.codecs)] = {}
    """The upstream codec by feed; msgpack by default (options always msgpack, trading always JSON)."""
    data_url: Url = "wss://stream.data.alpaca.markets"
    """The server of the market data."""
    trading_url: Url | None = None
    """The server of the order updates; by default the host that belongs to `trading`."""
    silence: Annotated[float | None, BeforeValidator(values.silence), _SCALAR] = 60.0
    """A feed that was busy and then sends nothing for so long, as in 60s, is connected anew; 5s to 1h, or off."""

    def url(self, feed: str) -> str:
        """The URL of a feed of this account. Raises LookupError if there is no such feed."""
        found = endpoint(feed)
        if found is None:
            raise LookupError(f"no such feed: {feed}")
        if found.dialect is Dialect.TRADING:
            paper = "paper-" if self.trading == "paper" else ""
            return (self.trading_url or f"wss://{paper}api.alpaca.markets") + found.path
        return self.data_url + found.path

    def speaks(self, feed: str) -> str:
        """The codec of a feed's upstream connection: `msgpack` or `json`."""
        found = endpoint(feed)
        return self.codec.get(feed) or (found.codecs[0] if found else "json")


class ClientEntry(Section):
    """One algorithm: its own key and secret, and the data that it may receive."""

    key: Key
    """The value that the algorithm passes as its Alpaca key; a name, not a secret."""
    secret: ClientSecret
    """The value that it passes as its secret: sha256:HEX (`keygen` makes one), a text, or ${ENV}."""
    account: Annotated[Mapping[str, str], BeforeValidator(values.accounts_by_feed)] = {}
    """The account that serves it: a name, or names by feed with a `default`; may be left out if there is only one."""
    allow: Allow = {}
    """The data that it may receive, by feed and channel: symbols, PREFIX* or "*". Nothing by default."""
    max_connections: Annotated[int, BeforeValidator(values.whole(1, 10_000))] = 16
    """Its largest number of sessions per feed at the same time, over all nodes of a cluster; more are refused with
    406."""
    when_slow: Literal["disconnect", "conflate"] = "disconnect"
    """The treatment of a session that reads too slowly: disconnect, with 407, once its outbox is full; or conflate,
    once 64 KiB wait: of quotes, updated bars and daily bars only the newest of each symbol is kept, of an order book's
    differences the whole book. Nothing else is left out, no order update either; an outbox that is full all the same
    is a 407."""
    on_outage: Literal["stay", "close"] = "stay"
    """The treatment of its sessions when the connection of their feed to Alpaca is lost: stay, and miss what Alpaca
    sends meanwhile; or close, with 1012, as they would at Alpaca, so that the algorithm notices. It may log in again at
    once, and its subscription takes effect when Alpaca is back."""
    outbox: Annotated[int, BeforeValidator(values.outbox_size)] = values.OUTBOX
    """The largest size of the outbox of each of its sessions."""


class Record(Section):
    """The recording of messages in files. Its topics are held like those of a client, so the plan's limits apply."""

    account: Annotated[Mapping[str, str], BeforeValidator(values.accounts_by_feed)] = {}
    """The account that serves the topics, as for a client; may be left out if there is only one."""
    folder: Folder = Path("recordings")
    """The folder of the files; a relative path starts at the configuration's folder. It is made, its parent is not."""
    topics: Annotated[Entries, BeforeValidator(values.recorded), WithJsonSchema(values.allow_schema())]
    """The topics by feed and channel, as in `allow`: symbols or "*". Under `trading`, entries choose orders as there;
    order updates are recorded only if they are named."""
    keep: Annotated[float, BeforeValidator(values.keep), _SCALAR] = values.KEEP
    """The time after which a file is deleted, as in 12h or 7d."""
    max: Annotated[int, BeforeValidator(values.recordings_size)] = values.RECORDINGS
    """The largest size of all files; above it, the oldest are deleted."""
    min_free: Annotated[int, BeforeValidator(values.free_size)] = values.MIN_FREE
    """The free space of the disk below which nothing is recorded."""


class Cluster(Section):
    """Several proxies, the nodes, that share one connection to Alpaca for each account and feed. The settings are the
    same on every node, except `listen` and `url`."""

    redis: Redis
    """Redis or Valkey, through which the nodes find each other: redis://HOST:PORT/DATABASE, rediss:// for TLS,
    unix:///PATH?db=DATABASE, or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DATABASE; with USER:PASSWORD@ before the
    host if it asks for them, best as ${ENV} or ${file:PATH}."""
    listen: ListenAddress
    """This node's own port for the other nodes, as HOST:PORT; port 0 takes any free one."""
    url: NodeUrl
    """How the other nodes reach that port: ws://HOST:PORT, or wss://HOST:PORT with `tls`."""
    secret: ClusterSecret
    """The secret that all nodes have in common, 16 characters at least; best as ${ENV} or ${file:PATH}. It is never
    sent."""
    tls: Annotated[Tls | None, _blank_is(None)] = None
    """The certificate of the port and its key, for a wss:// URL."""
    ca: Authorities | None = None
    """The certificates, PEM, that those of the other nodes and of a rediss:// server have to be signed by; by default
    the system's. A relative path starts at the configuration's folder."""
    name: KeyPrefix = cluster.NAME
    """The prefix of the keys in Redis, for several clusters on one."""


class Config(Section):
    """The configuration of alpaca-proxy."""

    listen: Listen = Listen()
    """The port for the algorithms."""
    admin: Admin = Admin()
    """The port for the status page, the metrics and the health checks."""
    log: Log = Log()
    """The log, which goes to standard error."""
    limits: Limits = Limits()
    """Bounds on the memory that clients can make the proxy use."""
    default_feed: Annotated[str, BeforeValidator(values.market_feed)] = "iex"
    """The feed of the path / and of the legacy stream names."""
    accounts: Annotated[Mapping[Name, Account], BeforeValidator(values.some)]
    """The Alpaca accounts, by a name of your own; at least one."""
    clients: Annotated[Mapping[Name, ClientEntry], BeforeValidator(values.some)]
    """The algorithms, by name; at least one."""
    record: Annotated[Record | None, _blank_is(None)] = None
    """The recording of messages in files; none by default."""
    cluster: Annotated[Cluster | None, _blank_is(None)] = None
    """The cluster that this proxy is a node of; none by default."""

    @property
    def _only_account(self) -> dict[str, str]:
        return {DEFAULT: next(iter(self.accounts))} if len(self.accounts) == 1 else {}

    @cached_property
    def recorder(self) -> Client | None:
        """The recorded topics as a client that cannot log in: no client of the file can have its name or key."""
        if self.record is None:
            return None
        accounts = {**self._only_account, **self.record.account}
        return Client(RECORDER, "", b"", accounts, Allowlist(self.record.topics))

    @cached_property
    def directory(self) -> Directory:
        """The clients as values that do not depend on pydantic; made at first use."""
        only = self._only_account
        clients = (
            Client(
                name=name,
                key=entry.key,
                digest=entry.secret.digest(),
                accounts={**only, **entry.account},
                allow=Allowlist(entry.allow),
                max_connections=entry.max_connections,
                when_slow=WhenSlow(entry.when_slow),
                on_outage=OnOutage(entry.on_outage),
                outbox=entry.outbox,
            )
            for name, entry in self.clients.items()
        )
        return Directory(clients, self.recorder)


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Load a configuration file. Raises ConfigError with all its errors."""
    return load_with_document(path, environ)[0]


def load_with_document(path: Path, environ: Mapping[str, str]) -> tuple[Config, YamlDocument]:
    """Load a configuration file, and the document with the places of its settings. Raises as `load` does."""
    document = _document(path, environ)
    return _typed(document, path.parent), document


def load_allowlists(path: Path, environ: Mapping[str, str]) -> tuple[Mapping[str, Allowlist], YamlDocument]:
    """Load the allowlists of the clients, and the document with the places of their entries.

    References of keys and secrets need not be resolvable. Raises ConfigError with all other errors.
    """
    document = _document(path, environ)
    _, problems = _validated(document, path.parent)
    if found := [problem for problem in problems if not (problem in document.problems and _of_a_secret(problem))]:
        raise ConfigError(found)
    clients = document.find(("clients",))
    allowlists = {}
    for name in clients if isinstance(clients, Table) else ():
        allowed = document.find(("clients", name, "allow"))
        allowlists[name] = Allowlist({} if allowed is None else values.allow(allowed))
    return allowlists, document


def parse(text: str, name: str, environ: Mapping[str, str], folder: Path) -> Config:
    """Parse a configuration; problems show `name` as its file, and relative paths start at `folder`."""
    return _typed(yamlfile.parse(text, name=name, environ=environ, folder=folder), folder)


def _document(path: Path, environ: Mapping[str, str]) -> YamlDocument:
    return yamlfile.parse(yamlfile.read(path), name=str(path), environ=environ, folder=path.parent)


def _of_a_secret(problem: Problem) -> bool:
    """Whether a problem is in a setting whose value is a key, a secret, or may contain one."""
    return bool(
        re.fullmatch(r"(accounts|clients)\b.*\.(key|secret)|admin\.token|cluster\.(secret|redis)", problem.path)
    )


def explain(
    document: YamlDocument, allowlist: Allowlist, client: str, feed: str, channel: str, symbol: str
) -> str | None:
    """The line that allows a topic to a client, as `FILE:LINE:COL: PATH: ENTRY`; None if no line does."""
    granted = allowlist.granted_by(feed, channel, symbol)
    if granted is None:
        return None
    listed_channel, pattern = granted
    setting: tuple[Step, ...] = ("clients", client, "allow", feed)
    if isinstance(document.find(setting), Table):
        setting = (*setting, listed_channel)
    if isinstance(entries := document.find(setting), Items):
        setting = (*setting, entries.index(Text(pattern)))
    return str(document.problem(setting, pattern))


def warnings(config: Config, path: Path, document: YamlDocument | None = None, *, disk: bool = True) -> list[str]:
    """Sentences about settings that work but are unsafe, or probably not meant; none contains a secret.

    With the document that the configuration was made from, each has its line and column. The space for recordings is
    looked at only with `disk`, since a disk that hangs would hold up the caller.
    """
    found: list[Problem | None] = []
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        mode = 0
    if mode & 0o077:
        reason = f"other users of this machine can open it (mode {mode:04o}); chmod 600 {path}"
        found.append(Problem(str(path), 0, 0, "", reason))
    for fault in _doubtful(config, disk):
        if document is not None:
            found.append(document.problem(fault.path, fault.reason, fault.hint))
        else:
            found.append(Problem(str(path), 0, 0, yamlfile.dotted(fault.path), fault.reason, fault.hint))
    return [str(problem) for problem in found if problem is not None]


def _doubtful(config: Config, disk: bool) -> Iterator[Fault]:
    """Yield the settings that work but are unsafe, or probably not meant."""
    plain = "is in plain text; use ${ENV} or ${file:PATH}"
    for name, account in config.accounts.items():
        if account.secret.literal:
            yield Fault(plain, None, ("accounts", name, "secret"))
        for setting, url in (("data_url", account.data_url), ("trading_url", account.trading_url or "")):
            if url.startswith("ws://") and not addresses.is_loopback(urlsplit(url).hostname or ""):
                yield Fault("sends the account's secret unencrypted; use wss://", None, ("accounts", name, setting))
    for name, entry in config.clients.items():
        if entry.secret.literal and not entry.secret.is_digest():
            yield Fault(f"{plain}, or the sha256:… that `keygen` prints", None, ("clients", name, "secret"))
        yield from _unlikely(("clients", name, "allow"), entry.allow)
    if config.admin.token is not None and config.admin.token.literal:
        yield Fault(plain, None, ("admin", "token"))
    for setting, tls in certified(config):
        if tls is not None and tls.certificate is not None and (reason := certificates.warning(tls.certificate)):
            yield Fault(reason, None, (*setting.split("."), "cert"))
    if (node := config.cluster) is not None:
        yield from cluster.warnings(node.redis, node.listen, node.url, node.secret)
    if (record := config.record) is not None:
        yield from _unlikely(("record", "topics"), record.topics)
        yield from recording.plan_warnings(record.topics)
        if disk:
            yield from recording.disk_warnings(record.folder, record.max, record.min_free)


def _unlikely(path: tuple[Step, ...], entries: Entries) -> Iterator[Fault]:
    """Yield the entries that no symbol of their feed can match."""
    for feed, channels in entries.items():
        for channel, listed in channels.items():
            for index, entry in enumerate(listed):
                if (fault := symbols.unlikely(feed, entry)) is not None:
                    yield replace(fault, path=(*path, feed, channel, index))


def certified(config: Config) -> Iterator[tuple[str, Tls | None]]:
    """Yield the settings that name a certificate, with their values."""
    yield "listen.tls", config.listen.tls
    yield "cluster.tls", None if config.cluster is None else config.cluster.tls


def schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors. Numbers and flags may also be strings, because of `${…}`."""
    document = Config.model_json_schema()
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["$defs"]["ClientEntry"]["properties"]["account"]["type"] = ["string", "object"]
    document["$defs"]["Record"]["properties"]["account"]["type"] = ["string", "object"]
    document["$defs"]["Account"]["properties"]["silence"]["default"] = "60s"
    document["$defs"]["Record"]["properties"]["keep"]["default"] = "7d"
    for section in (document, *document["$defs"].values()):
        for setting in section["properties"].values():
            if setting.get("type") in ("integer", "boolean"):
                setting["type"] = [setting["type"], "string"]
    return document


_SECTIONS: dict[Step, type[Section]] = {
    "listen": Listen,
    "tls": Tls,
    "admin": Admin,
    "log": Log,
    "limits": Limits,
    "accounts": Account,
    "clients": ClientEntry,
    "record": Record,
    "cluster": Cluster,
}
_REASONS = {
    "missing": "is missing",
    "model_type": 'should hold settings, one "name: value" a line',
    "dict_type": 'should hold entries, one "name: value" a line',
    "tuple_type": "should be a list, as in [first, second]",
}


def _typed(document: YamlDocument, folder: Path) -> Config:
    config, problems = _validated(document, folder)
    # Raised outside of an `except` block: pydantic's error contains values, so it must not become this one's context.
    if config is None or problems:
        raise ConfigError(problems)
    return config


def _validated(document: YamlDocument, folder: Path) -> tuple[Config | None, list[Problem]]:
    """The configuration, if every setting by itself is valid, and all problems in the order of the file."""
    config = None
    problems: list[Problem | None] = [*document.problems]
    try:
        config = Config.model_validate(document.root, context={"folder": folder})
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=False):
            problems.extend(_problems(document, details))
    problems.extend(consistency.check(document))
    found = [problem for problem in problems if problem is not None]
    return config, sorted(found, key=lambda problem: (problem.line, problem.column))


def _problems(document: YamlDocument, details: ErrorDetails) -> Iterator[Problem | None]:
    """Translate an error of pydantic into problems with this product's sentences and positions in the file."""
    path, context = details["loc"], details.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Unsuitable):
        about_name = path[-1:] == ("[key]",)  # pydantic's mark for an error in a mapping's key
        path = path[:-1] if about_name else path
        for fault in cause.faults:
            problem = document.name_problem if fault.name or about_name else document.problem
            yield problem((*path, *fault.path), fault.reason, fault.hint)
    elif details["type"] == "extra_forbidden":
        depth = 2 if path[0] in ("accounts", "clients") else 1
        section = _SECTIONS["tls" if path[1:2] == ("tls",) else path[0]] if len(path) > depth else Config
        yield document.name_problem(path, "unknown key", nearest(str(path[-1]), section.model_fields))
    elif details["type"] == "literal_error":
        choices = re.findall("'([^']+)'", context["expected"])
        given = document.find(path)
        shown = f", not {quoted(given)}" if isinstance(given, Text) else ""
        hint = nearest(given, choices) if isinstance(given, Text) else None
        yield document.problem(path, f"should be {' or '.join(choices)}{shown}", hint)
    else:
        yield document.problem(path, _REASONS.get(details["type"], "cannot be used"))
