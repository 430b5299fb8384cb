"""HTTP client for the running proxy's admin address.

The verbs `status`, `reload` and `healthcheck` use it. Only the section `admin` of the configuration is read. So these
verbs work without the environment variables of the secrets, and while the rest of the file is being edited and invalid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TypeVar

import gevent

from proxy.cli.terminal import print_err
from proxy.config import addresses, secret, values, yamlfile
from proxy.config.errors import ConfigError, Problem
from proxy.config.secret import Secret
from proxy.config.values import Unsuitable
from proxy.config.yamlfile import YamlDocument
from proxy.transport.errors import ProxyError

ANSWER_SECONDS = 5.0
QUIET_SECONDS = 1.0
LARGEST_ANSWER = 16 * 1024 * 1024
NO_HISTORY = 1 << 53
"""A second in the far future for /status.json, so that it has no history; only the status page uses it."""

T = TypeVar("T")


class NotRunning(ProxyError):
    """No proxy answers; the text is a sentence with the next step."""


@dataclass(frozen=True, slots=True)
class Running:
    """Admin address at which a proxy should be running."""

    host: str
    port: int
    token: Secret | None
    path: Path = field(compare=False)

    def get(self, page: str) -> tuple[int, str]:
        """Return the HTTP status and the body of a page. Raises NotRunning."""
        # Every proxy accepts the host `localhost`; any other host name would have to be listed in admin.hosts.
        headers = {"Host": "localhost", "Connection": "close"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.reveal()}"
        connection = HTTPConnection(near(self.host), self.port, timeout=ANSWER_SECONDS)
        try:
            with self._time_limit():
                connection.request("GET", page, headers=headers)
                response = connection.getresponse()
                status, body = response.status, response.read(LARGEST_ANSWER)
        except ConnectionRefusedError:
            raise NotRunning(f"no proxy is running at {self}; start it with -c {self.path}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NotRunning(f"no proxy answers at {self} ({reason}); check which program listens there") from None
        finally:
            connection.close()
        if status in (401, 403):
            raise NotRunning(
                f"the proxy at {self} refuses the admin token of {self.path}; if it was changed, send SIGHUP first"
            )
        return status, body.decode("utf-8", "replace")

    @contextlib.contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Limit a request to ANSWER_SECONDS; after QUIET_SECONDS print what it waits for."""
        waiting = gevent.spawn_later(QUIET_SECONDS, print_err, f"waiting for the proxy at {self} to answer")
        try:
            with gevent.Timeout(ANSWER_SECONDS, TimeoutError(f"no response within {ANSWER_SECONDS:.0f} s")):
                yield
        finally:
            waiting.kill()

    def __str__(self) -> str:
        return f"http://{authority((self.host, self.port))}"


def not_this_version(proxy: Running) -> NotRunning:
    """The error for an answer that this version of the proxy does not give."""
    return NotRunning(
        f"the program at {proxy} is not an alpaca-proxy of this version; check which program listens there"
    )


def authority(address: tuple[str, int]) -> str:
    """Return HOST:PORT of a URL that reaches a listening address from here."""
    host, port = near(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def near(host: str) -> str:
    """Return a host that reaches a listener on `host` from this machine.

    For an unspecified address (0.0.0.0, ::) that is the loopback address.
    """
    address = addresses.ip_address(host)
    if address is None or not address.is_unspecified:
        return host
    return addresses.LOOPBACK if address.version == 4 else "::1"


def running(path: Path, environ: Mapping[str, str]) -> Running:
    """Return the admin address of a configuration's proxy.

    Raises ConfigError for errors of the admin section alone.
    """
    document = yamlfile.parse(yamlfile.read(path), name=str(path), environ=environ, folder=path.parent)
    problems = [problem for problem in document.problems if problem.path.partition(".")[0] == "admin"]

    def setting(name: str, read: Callable[[object], T], default: T) -> T:
        value = document.find(("admin", name))
        if value is None:
            return default
        try:
            return read(value)
        except Unsuitable as error:
            problems.extend(_problems(document, name, error))
            return default

    host = setting("host", addresses.host, addresses.LOOPBACK)
    port = setting("port", values.port, values.ADMIN_PORT)
    token = setting("token", secret.token, None)
    if port == 0:
        reason = "is 0 (any free port), so the address is unknown; set a port number"
        problems.extend(filter(None, [document.problem(("admin", "port"), reason)]))
    if problems:
        raise ConfigError(problems)
    return Running(host, port, token, path)


def _problems(document: YamlDocument, name: str, error: Unsuitable) -> Iterator[Problem]:
    for fault in error.faults:
        problem = document.problem(("admin", name), fault.reason, fault.hint)
        if problem is not None:
            yield problem
