"""The running proxy, as the verbs `status` and `healthcheck` reach it: by HTTP, at its admin address.

Of the configuration only the section `admin` is read. So these verbs work in a shell that has not the secrets'
variables, and while somebody is editing the rest of the file: a proxy does not fall ill because its file does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TypeVar

import gevent

from proxy.cli.terminal import say
from proxy.config import addresses, secret, yamlfile
from proxy.config import values as settings
from proxy.config.errors import ConfigError, Problem
from proxy.config.secret import Secret
from proxy.config.values import Unsuitable
from proxy.config.yamlfile import YamlDocument
from proxy.transport.errors import ProxyError

ANSWER_SECONDS = 5.0
QUIET_SECONDS = 1.0
LARGEST_ANSWER = 16 * 1024 * 1024

T = TypeVar("T")


class NotRunning(ProxyError):
    """No proxy answers; the text is a sentence with the next step."""


@dataclass(frozen=True, slots=True)
class Running:
    """Where a proxy should be running. `ask` finds out."""

    host: str
    port: int
    token: Secret | None
    path: Path = field(compare=False)

    def ask(self, page: str) -> tuple[int, str]:
        """The HTTP status and the body of a page. Raises NotRunning."""
        # Any proxy accepts `localhost`; a name of this machine's own would have to be listed in admin.hosts.
        headers = {"Host": "localhost", "Connection": "close"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.reveal()}"
        connection = HTTPConnection(near(self.host), self.port, timeout=ANSWER_SECONDS)
        try:
            with self._patience():
                connection.request("GET", page, headers=headers)
                answer = connection.getresponse()
                status, body = answer.status, answer.read(LARGEST_ANSWER)
        except ConnectionRefusedError:
            raise NotRunning(f"no proxy is running at {self}; start it with -c {self.path}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NotRunning(f"no proxy answers at {self} ({reason}); see what else has that address") from None
        finally:
            connection.close()
        if status in (401, 403):
            raise NotRunning(
                f"the proxy at {self} refuses the admin token of {self.path}; if it was changed, send SIGHUP first"
            )
        return status, body.decode("utf-8", "replace")

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Says what is being waited for if that takes longer than a second, and ends the wait."""
        waiting = gevent.spawn_later(QUIET_SECONDS, say, f"waiting for the proxy at {self} to answer")
        try:
            with gevent.Timeout(ANSWER_SECONDS, TimeoutError(f"silent for {ANSWER_SECONDS:.0f} s")):
                yield
        finally:
            waiting.kill()

    def __str__(self) -> str:
        return f"http://{authority((self.host, self.port))}"


def authority(address: tuple[str, int]) -> str:
    """Where an address is reached from this machine, as a URL has it."""
    host, port = near(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def near(host: str) -> str:
    """The host by which this machine reaches what listens there: every address includes its own."""
    known = addresses.ip_address(host)
    if known is None or not known.is_unspecified:
        return host
    return addresses.LOOPBACK if known.version == 4 else "::1"


def running(path: Path, environ: Mapping[str, str]) -> Running:
    """Where the proxy of a configuration should be running. Raises ConfigError for its admin section alone."""
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
    port = setting("port", settings.port, settings.ADMIN_PORT)
    token = setting("token", secret.token, None)
    if port == 0:
        reason = "is 0, any free port, so nobody can know which; give it a number"
        problems.extend(filter(None, [document.problem(("admin", "port"), reason)]))
    if problems:
        raise ConfigError(problems)
    return Running(host, port, token, path)


def _problems(document: YamlDocument, name: str, error: Unsuitable) -> Iterator[Problem]:
    for fault in error.faults:
        problem = document.problem(("admin", name), fault.reason, fault.hint)
        if problem is not None:
            yield problem
