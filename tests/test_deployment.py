"""The deployment files of config/: systemd unit, container, TLS in front.

Each is checked by its own tool. No Docker engine is needed: the Dockerfile's steps are executed in a temporary folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.cli.parser import parser
from proxy.cli.terminal import Exit
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.gateway import DRAIN_SECONDS, TICK_SECONDS
from tests.fronts import CADDY, NGINX, caddy, free_port, nginx, until
from tests.harness import Harness, certificate, dial
from tests.single_file import Built

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "config" / "docker"
UNIT = ROOT / "config" / "systemd" / "alpaca-proxy.service"
Front = Callable[[Path, tuple[str, int], Path, Path], AbstractContextManager[int]]

ENVIRON = {
    "APCA_API_KEY_ID": "PKAAAABBBB1111",
    "APCA_API_SECRET_KEY": "canary",
    "MOMENTUM_SECRET": "canary",
    "ALPACA_PROXY_ADMIN_TOKEN": "canary",
}
CLIENTS = '  alpha: {key: alpha, secret: alpha, allow: {iex: "*"}}'


# systemd


def directives() -> dict[str, list[str]]:
    """The unit's settings, each with its list of values."""
    settings: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text("utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[name].append(value)
    return settings


def arguments(command: str) -> list[str]:
    """The arguments after the single file in a command line."""
    return shlex.split(command.partition("alpaca-proxy.pyz")[2])


def test_the_unit_is_valid() -> None:
    """Every line is a comment, a section or a setting.

    Where systemd-analyze is installed, it verifies the unit.
    """
    for line in UNIT.read_text("utf-8").splitlines():
        assert re.match(r"$|#|\[(Unit|Service|Install)\]$|[A-Z]\w+=", line), line
    if analyze := shutil.which("systemd-analyze"):
        verified = subprocess.run([analyze, "verify", UNIT], capture_output=True, text=True)
        assert (verified.returncode, verified.stderr) == (0, "")
        rated = subprocess.run(
            [analyze, "security", "--offline=true", "--no-pager", UNIT], capture_output=True, text=True
        )
        level = re.search(r"Overall exposure level for .*: ([\d.]+)", rated.stdout)
        assert level is not None, rated.stderr
        assert float(level[1]) < 1.5


def test_the_unit_waits_for_the_proxy_and_watches_it() -> None:
    unit = directives()
    assert (unit["Type"], unit["NotifyAccess"]) == (["notify"], ["main"])
    assert float(unit["WatchdogSec"][0]) / 2 > 4 * TICK_SECONDS
    assert float(unit["TimeoutStopSec"][0]) > DRAIN_SECONDS


def test_the_unit_starts_again_unless_the_configuration_cannot_work() -> None:
    unit = directives()
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == (["always"], [str(int(Exit.CANNOT_WORK))])
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit["ExecStartPre"][0].startswith("-")  # a failed check is only logged; the status of `run` decides


def test_the_units_commands_are_valid_command_lines() -> None:
    unit = directives()
    [check], [start], [reload] = unit["ExecStartPre"], unit["ExecStart"], unit["ExecReload"]
    assert parser().parse_args(arguments(check)).verb == "check"
    assert parser().parse_args(arguments(start)).verb == "run"
    assert parser().parse_args(arguments(reload)).verb == "reload"
    assert arguments(check)[1:] == arguments(reload)[1:] == arguments(start)
    programs = {command.removeprefix("-").partition(".pyz")[0] for command in (check, start, reload)}
    assert len(programs) == 1


def test_the_unit_unpacks_to_its_cache_folder_the_only_writable_one() -> None:
    unit = directives()
    assert unit["Environment"] == [f"PEX_ROOT=%C/{unit['CacheDirectory'][0]}"]
    assert (unit["ProtectSystem"], unit["ProtectHome"]) == (["strict"], ["yes"])
    assert not unit["ReadWritePaths"]
    assert unit["User"] not in ([], ["root"])


def test_the_units_secrets_are_credentials(tmp_path: Path) -> None:
    """The YAML lines in its comment read the files that LoadCredential provides."""
    credentials = {value.partition(":")[0] for value in directives()["LoadCredential"]}
    folder = "/run/credentials/alpaca-proxy.service"
    shown = re.findall(rf"^#   (\w+: \$\{{file:{folder}/([\w-]+)\}})$", UNIT.read_text("utf-8"), re.MULTILINE)
    assert {name for _, name in shown} == credentials
    for name in credentials:
        (tmp_path / name).write_text("canary\n")
    account = "\n".join(f"    {line}" for line, _ in shown)
    account = account.replace(folder, str(tmp_path))
    text = f"accounts:\n  paper:\n{account}\nclients:\n  a: {{key: a, secret: {'x' * 20}, allow: {{iex: '*'}}}}\n"
    config = configuration.parse(text, "proxy.yaml", {}, tmp_path)
    assert config.accounts["paper"].secret.reveal() == "canary"


# Containers


def instructions() -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text("utf-8"))
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest


def dockerfile(name: str) -> list[str]:
    """The arguments of every instruction of this name in the Dockerfile."""
    return [rest for instruction, rest in instructions() if instruction == name]


def compose() -> dict[str, Any]:
    [service] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))["services"].values()
    assert isinstance(service, dict)
    return service


def container_config() -> Config:
    text = (DOCKER / "proxy.yaml").read_text("utf-8")
    return configuration.parse(text, "proxy.yaml", ENVIRON, DOCKER)


def test_the_containers_configuration_is_valid_and_holds_no_secret() -> None:
    config = container_config()
    assert (config.listen.host, config.listen.insecure, config.admin.host) == ("0.0.0.0", True, "0.0.0.0")
    assert config.admin.token is not None
    assert configuration.warnings(config, Path("/nowhere")) == []
    assert "canary" not in (DOCKER / "proxy.yaml").read_text("utf-8")


def test_files_copied_into_the_image_exist_and_pass_dockerignore() -> None:
    allowed = set(re.findall(r"^!(.+)$", (DOCKER / "Dockerfile.dockerignore").read_text("utf-8"), re.MULTILINE))
    copied = {source for rest in dockerfile("COPY") if "--from" not in rest for source in _sources(rest)}
    assert copied == allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_image_runs_unprivileged_and_has_a_health_check() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", dockerfile("USER")[-1])
    check = parser().parse_args(_words(dockerfile("HEALTHCHECK")[0].partition("CMD ")[2])[2:])
    assert (check.verb, check.live) == ("healthcheck", True)  # an outage of Alpaca must not end the container
    assert parser().parse_args(_words(dockerfile("CMD")[-1])).verb == "run"
    config = container_config()
    assert dockerfile("EXPOSE") == [f"{config.listen.port} {config.admin.port}"]


def test_compose_publishes_on_the_loopback_address_alone() -> None:
    service, config = compose(), container_config()
    ports = [config.listen.port, config.admin.port]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]


def test_compose_restricts_the_container() -> None:
    service = compose()
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKER / "Dockerfile")


def test_compose_and_the_image_agree() -> None:
    service = compose()
    variables = set(re.findall(r"\$\{(\w+)\}", (DOCKER / "proxy.yaml").read_text("utf-8")))
    assert set(service["environment"]) == variables
    assert all(value == f"${{{name}:?}}" for name, value in service["environment"].items())
    assert service["healthcheck"]["test"][1:] == _words(dockerfile("HEALTHCHECK")[0].partition("CMD ")[2])
    path = Path(dict(pair.split("=") for pair in dockerfile("ENV")[0].split())["ALPACA_PROXY_CONFIG"])
    assert service["volumes"] == [f".:{path.parent}:ro"]
    assert any(rest.endswith(str(path)) for rest in dockerfile("COPY"))


@pytest.mark.build
@pytest.mark.timeout(300)
def test_the_dockerfiles_steps_make_a_healthy_container(
    tmp_path: Path, start: Callable[..., Harness], built: Built
) -> None:
    """Execute each step, then start the container's process.

    A folder is the root of each stage.
    """
    image = _Image(tmp_path)
    for name, rest in instructions():
        image.step(name, rest)
        if name == "WORKDIR":
            built.give(image.root / rest.lstrip("/"), "*-*")  # the tools and wheels of an earlier build
    simulator = start(CLIENTS).simulator
    config = image.root / "etc" / "alpaca-proxy" / "proxy.yaml"
    text = config.read_text("utf-8").replace("host: 0.0.0.0", "host: 127.0.0.1")  # as if published there
    for section in ("listen", "admin"):
        text = text.replace(f"{section}:\n", f"{section}:\n  port: {free_port()}\n", 1)
    for setting in ("data_url", "trading_url"):
        text = text.replace("  paper:\n", f"  paper:\n    {setting}: {simulator.url}\n", 1)
    config.write_text(text, "utf-8")
    subprocess.run(["chmod", "-R", "a-w", image.root], check=True)
    try:
        container = subprocess.Popen(**image.process(image.entrypoint + image.command))
        try:
            assert until(lambda: subprocess.run(**image.process(image.healthcheck)).returncode == 0)
        finally:
            container.terminate()
            assert container.wait(20) == 0
    finally:
        subprocess.run(["chmod", "-R", "u+w", image.root], check=True)


class _Image:
    """An image under construction.

    Absolute paths of the Dockerfile lie below a folder for each stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages: dict[str, Path] = {}
        self.root = folder
        self.workdir = "/"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(("PEX", "APCA"))}
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.healthcheck: list[str] = []

    def step(self, name: str, rest: str) -> None:
        if name == "FROM":
            stage = rest.partition(" AS ")[2] or "final"
            self.root = self.stages[stage] = self.folder / stage
            self.root.mkdir()
            self.workdir = "/"
        elif name == "WORKDIR":
            self.workdir = rest
            self._at(rest).mkdir(parents=True)
        elif name == "COPY":
            self._copy(rest)
        elif name in ("ENV", "ARG"):
            self.environ |= {key: self._rebased(value) for key, value in (pair.split("=", 1) for pair in rest.split())}
        elif name == "RUN":
            command = ["sh", "-euc", self._rebased(rest)]
            done = subprocess.run(
                command,
                cwd=self._at(self.workdir),
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert done.returncode == 0, done.stderr
        elif name == "HEALTHCHECK":
            self.healthcheck = [self._rebased(word) for word in _words(rest.partition("CMD ")[2])]
        elif name == "ENTRYPOINT":
            self.entrypoint = [self._rebased(word) for word in _words(rest)]
        elif name == "CMD":
            self.command = [self._rebased(word) for word in _words(rest)]
        else:
            assert name in ("USER", "EXPOSE"), name

    def process(self, command: list[str]) -> dict[str, Any]:
        """The arguments of `subprocess` that run a command in the container."""
        environ = {**self._environment(), **ENVIRON, "HOME": "/nonexistent"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return {"args": command, "cwd": "/", "env": environ, **pipes}

    def _copy(self, rest: str) -> None:
        source = self.stages[stage[1]] if (stage := re.search(r"--from=(\w+)", rest)) else ROOT
        *names, target = [word for word in rest.split() if not word.startswith("--")]
        destination = self._at(target) if target.startswith("/") else self._at(self.workdir) / target
        for name in names:
            path = source / name.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, destination, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                file = destination / path.name if target.endswith("/") else destination
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, file)

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _rebased(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(?=(?:app|etc|src)\b)", f"{self.root}/", text)

    def _environment(self) -> dict[str, str]:
        """The environment, in which `python` is this Python."""
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        if not (programs / "python").exists():
            (programs / "python").symlink_to(sys.executable)
        return {**self.environ, "PATH": f"{programs}:{os.environ['PATH']}"}


def _words(array: str) -> list[str]:
    """The words of an instruction in exec form."""
    words = yaml.safe_load(array)
    assert isinstance(words, list)
    return words


def _sources(rest: str) -> list[str]:
    return [word for word in rest.split() if not word.startswith("--")][:-1]


# TLS in front


def test_a_front_server_forwards_to_the_client_port_alone() -> None:
    listen, admin = Config.model_fields["listen"].default, Config.model_fields["admin"].default
    for path in (CADDY, NGINX):
        settings = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
        assert f"{listen.host}:{listen.port}" in settings
        assert str(admin.port) not in settings
        assert "trusted: [127.0.0.1]" in path.read_text("utf-8")


@pytest.mark.build
@pytest.mark.parametrize("front", [nginx, caddy], ids=lambda front: front.__name__)
def test_an_algorithm_connects_through_the_front_server(
    tmp_path: Path, start: Callable[..., Harness], front: Front
) -> None:
    proxy = start(CLIENTS, config={"listen": "trusted: [127.0.0.1]"})  # as the comments of both files say
    cert, key = certificate(tmp_path)
    with front(tmp_path, proxy.address, cert, key) as port:
        _check_client_and_plain_request(proxy, port, cert)


def _check_client_and_plain_request(proxy: Harness, port: int, cert: Path) -> None:
    """An algorithm logs in, subscribes and receives trades. It is known by its own address.

    A plain HTTP request gets status 426.
    """
    trusting = ssl.create_default_context(cafile=str(cert))
    forged = {"X-Forwarded-For": "203.0.113.7"}
    own = ("127.0.0.2", 0)  # the server in front is at 127.0.0.1
    with dial(("localhost", port), ssl=trusting, headers=forged, source_address=own) as client:
        client.receive()
        client.log_in("alpha").subscribe(trades=["AAPL"])
        last = proxy.publish("iex", "AAPL", 300)
        assert client.numbers("AAPL", last)[-1] == last
        [session] = proxy.gateway.server.sessions
        assert session.address.startswith("127.0.0.2 via 127.0.0.1:")
    plain = HTTPSConnection("localhost", port, context=trusting, timeout=10)
    plain.request("GET", "/v2/iex")
    assert plain.getresponse().status == 426
    plain.close()
