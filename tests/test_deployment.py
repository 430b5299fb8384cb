"""The deployment files of config/: systemd units, containers, Redis, TLS in front.

Each is checked by its own tool. No Docker engine is needed: the Dockerfile's steps are executed in a temporary folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
import yaml
from websockets.exceptions import ConnectionClosed, WebSocketException

from proxy.cli.parser import parser
from proxy.cli.terminal import Exit
from proxy.cluster.registry import ACL, Registry, RegistryError
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.gateway import DRAIN_SECONDS, TICK_SECONDS
from proxy.simulator import Simulator
from tests.cluster.redis_server import program as redis_program
from tests.fronts import (
    CADDY,
    CADDY_CLUSTER,
    NGINX,
    NGINX_CLUSTER,
    Nodes,
    caddy,
    caddy_cluster,
    changed,
    free_port,
    nginx,
    nginx_cluster,
    until,
)
from tests.harness import CONNECTED, Client, Harness, Process, certificate, dial, wait_for
from tests.single_file import Built

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "config" / "docker"
UNIT = ROOT / "config" / "systemd" / "alpaca-proxy.service"
TEMPLATE = ROOT / "config" / "systemd" / "alpaca-proxy@.service"
REDIS = ROOT / "config" / "redis" / "alpaca-proxy.conf"
Front = Callable[[Path, tuple[str, int], Path, Path], AbstractContextManager[int]]

ENVIRON = {
    "APCA_API_KEY_ID": "PKAAAABBBB1111",
    "APCA_API_SECRET_KEY": "canary",
    "MOMENTUM_SECRET": "canary",
    "ALPACA_PROXY_ADMIN_TOKEN": "canary",
}
CLUSTER_ENVIRON = {**ENVIRON, "CLUSTER_SECRET": "canary" * 4, "CLUSTER_REDIS_PASSWORD": "canary"}
CLIENTS = '  alpha: {key: alpha, secret: alpha, allow: {iex: "*"}}'


# systemd


each_unit = pytest.mark.parametrize("path", [UNIT, TEMPLATE], ids=lambda path: path.stem)


def directives(path: Path = UNIT) -> dict[str, list[str]]:
    """A unit's settings, each with its list of values."""
    settings: dict[str, list[str]] = defaultdict(list)
    for line in path.read_text("utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[name].append(value)
    return settings


def arguments(command: str) -> list[str]:
    """The arguments after the single file in a command line."""
    return shlex.split(command.partition("alpaca-proxy.pyz")[2])


@each_unit
def test_the_unit_is_valid(path: Path) -> None:
    """Every line is a comment, a section or a setting.

    Where systemd-analyze is installed, it verifies the unit.
    """
    for line in path.read_text("utf-8").splitlines():
        assert re.match(r"$|#|\[(Unit|Service|Install)\]$|[A-Z]\w+=", line), line
    if analyze := shutil.which("systemd-analyze"):
        verified = subprocess.run([analyze, "verify", path], capture_output=True, text=True)
        assert (verified.returncode, verified.stderr) == (0, "")
        rated = subprocess.run(
            [analyze, "security", "--offline=true", "--no-pager", path], capture_output=True, text=True
        )
        level = re.search(r"Overall exposure level for .*: ([\d.]+)", rated.stdout)
        assert level is not None, rated.stderr
        assert float(level[1]) < 1.5


@each_unit
def test_the_unit_waits_for_the_proxy_and_watches_it(path: Path) -> None:
    unit = directives(path)
    assert (unit["Type"], unit["NotifyAccess"]) == (["notify"], ["main"])
    assert float(unit["WatchdogSec"][0]) / 2 > 4 * TICK_SECONDS
    assert float(unit["TimeoutStopSec"][0]) > DRAIN_SECONDS


@each_unit
def test_the_unit_starts_again_unless_the_configuration_cannot_work(path: Path) -> None:
    unit = directives(path)
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == (["always"], [str(int(Exit.CANNOT_WORK))])
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit["ExecStartPre"][0].startswith("-")  # a failed check is only logged; the status of `run` decides


@each_unit
def test_the_units_commands_are_valid_command_lines(path: Path) -> None:
    unit = directives(path)
    [check], [start], [reload] = unit["ExecStartPre"], unit["ExecStart"], unit["ExecReload"]
    assert parser().parse_args(arguments(check)).verb == "check"
    assert parser().parse_args(arguments(start)).verb == "run"
    assert parser().parse_args(arguments(reload)).verb == "reload"
    assert arguments(check)[1:] == arguments(reload)[1:] == arguments(start)
    programs = {command.removeprefix("-").partition(".pyz")[0] for command in (check, start, reload)}
    assert len(programs) == 1


@each_unit
def test_the_unit_unpacks_to_its_cache_folder_the_only_writable_one(path: Path) -> None:
    unit = directives(path)
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


def test_the_template_is_as_restricted_as_the_unit() -> None:
    """They differ in the order of start, and in the way that secrets take."""
    unit, template = directives(), directives(TEMPLATE)
    differing = {name for name in {*unit, *template} if unit.get(name) != template.get(name)}
    assert differing == {"Description", "After", "LoadCredential", "EnvironmentFile"}


def test_the_templates_instances_differ_by_their_ports() -> None:
    """The YAML lines in its comment, with the variables of each instance's file, as the comment installs it."""
    text = TEMPLATE.read_text("utf-8")
    installed = re.findall(r"^#   install -m \d+ /dev/stdin (\S+) +# ([^\n]+)$", text, re.MULTILINE)
    shared, *files = directives(TEMPLATE)["EnvironmentFile"]
    assert [name for name, _ in installed] == [shared, *(file.replace("%i", n) for n in "12" for file in files)]
    yaml_lines = text.partition("# In proxy.yaml, which all of them read:\n#\n")[2].partition("#\n")[0]
    section = re.sub("^#   ", "", yaml_lines, flags=re.MULTILINE)
    configs = []
    for _, settings in installed[1:]:
        variables = dict(setting.split("=") for setting in settings.split(", "))
        more = f"accounts:\n  main: {{key: key, secret: secret}}\nclients:\n{CLIENTS}\n"
        environ = {**CLUSTER_ENVIRON, **variables}
        configs.append(configuration.parse(section + more, "proxy.yaml", environ, Path("/nowhere")))
    clusters = [config.cluster for config in configs if config.cluster is not None]
    assert len(clusters) == len(configs) == 2
    assert all(config.listen.reuse_port for config in configs)
    assert len({port for config in configs for port in (config.listen.port, config.admin.port)}) == 3
    assert len({cluster.listen for cluster in clusters}) == 2
    assert all(cluster.url == f"ws://{cluster.listen}" for cluster in clusters)


# Redis


class Redis:
    """A redis-server that a command starts, on `port`; it ends with the block."""

    def __init__(self, command: list[str], port: int, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self._port = port
        self._start: dict[str, Any] = {"args": command, "cwd": folder, "env": {**os.environ, **(environ or {})}}

    def __enter__(self) -> Redis:
        self._server = subprocess.Popen(**self._start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.wait(10)

    def serves(self, password: str) -> bool:
        """Whether it does for this user and password what a node needs."""
        with closing(Registry(f"redis://{password}127.0.0.1:{self._port}/0")) as registry:
            try:
                registry.token()
                registry.announce("n", "v")
                return registry.nodes() == {"n": "v"} and registry.exchange("s", "", "t", "t") == ("t", "t")
            except RegistryError:
                return False


def test_the_redis_of_the_configuration_file_serves_nodes_alone(tmp_path: Path) -> None:
    text = REDIS.read_text("utf-8")
    assert f"\nuser alpaca-proxy on >PASSWORD {ACL}\n" in text
    port = free_port()
    file = tmp_path / "redis.conf"
    file.write_text(changed(text, {"\nport 6379\n": f"\nport {port}\n", ">PASSWORD resetkeys": ">canary resetkeys"}))
    with Redis([redis_program(), str(file)], port, tmp_path) as redis:
        assert until(lambda: redis.serves("alpaca-proxy:canary@"))
        assert not redis.serves("alpaca-proxy:other@")
        assert not redis.serves("")


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


def cluster_compose() -> dict[str, Any]:
    document = yaml.safe_load((DOCKER / "compose-cluster.yaml").read_text("utf-8"))
    assert isinstance(document, dict)
    return document


def node_config(node: str) -> Config:
    text = (DOCKER / "cluster.yaml").read_text("utf-8")
    return configuration.parse(text, "cluster.yaml", {**CLUSTER_ENVIRON, "NODE": node}, DOCKER)


def test_the_nodes_of_compose_are_restricted_as_the_single_container() -> None:
    """They differ from it in their configuration's name, their ports and their networks, and need no Redis to start."""
    single, services = compose(), cluster_compose()["services"]
    assert set(services) == {"node1", "node2", "redis"}
    for name in ("node1", "node2"):
        node = services[name]
        differing = {key for key in {*node, *single} if node.get(key) != single.get(key)}
        assert differing | {"ports"} == {"environment", "ports", "depends_on", "networks"}
        assert node["depends_on"] == ["redis"]


def test_the_nodes_of_compose_publish_on_the_loopback_address_alone() -> None:
    services = cluster_compose()["services"]
    published = [
        re.fullmatch(r"127\.0\.0\.1:(\d+):(\d+)", port) for n in "12" for port in services[f"node{n}"]["ports"]
    ]
    assert len({match[1] for match in published if match}) == len(published) == 4
    config = node_config("node1")
    assert [int(match[2]) for match in published if match] == [config.listen.port, config.admin.port] * 2
    assert "ports" not in services["redis"]


def test_redis_of_compose_is_reached_by_the_nodes_alone() -> None:
    document = cluster_compose()
    assert document["networks"] == {"cluster": {"internal": True}}
    networks = {name: service["networks"] for name, service in document["services"].items()}
    assert networks == {"node1": ["default", "cluster"], "node2": ["default", "cluster"], "redis": ["cluster"]}
    redis = document["services"]["redis"]
    assert (redis["read_only"], redis["cap_drop"]) == (True, ["ALL"])
    assert redis["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", redis["user"])


def test_the_nodes_of_compose_and_their_configuration_agree() -> None:
    services = cluster_compose()["services"]
    variables = set(re.findall(r"\$\{(\w+)\}", (DOCKER / "cluster.yaml").read_text("utf-8")))
    for name in ("node1", "node2"):
        environment = dict(services[name]["environment"])
        path = Path(environment.pop("ALPACA_PROXY_CONFIG"))
        assert services[name]["volumes"] == [f".:{path.parent}:ro"]
        assert (DOCKER / path.name).is_file()
        assert set(environment) == variables
        assert environment.pop("NODE") == name
        assert all(value == f"${{{variable}:?}}" for variable, value in environment.items())
        config = node_config(name)
        assert config.cluster is not None
        assert config.cluster.url == f"ws://{name}:{config.cluster.listen.port}"
        assert set(config.cluster.redis.hosts) <= set(services)
        assert set(config.admin.hosts) == {"node1", "node2"}
        [warning] = configuration.warnings(config, Path("/nowhere"))
        assert "sends its password unencrypted" in warning  # as the comment says: on the network `cluster` alone
    assert services["redis"]["environment"] == {"CLUSTER_REDIS_PASSWORD": "${CLUSTER_REDIS_PASSWORD:?}"}
    single = (DOCKER / "proxy.yaml").read_text("utf-8").partition("\naccounts:")[2]
    assert (DOCKER / "cluster.yaml").read_text("utf-8").endswith(f"\naccounts:{single}")


def test_the_command_of_compose_starts_a_redis_that_serves_nodes_alone(tmp_path: Path) -> None:
    """The shell's text, with Debian's redis-server in place of the image's valkey-server."""
    service = cluster_compose()["services"]["redis"]
    port = free_port()
    shell, options, text = [word.replace("$$", "$") for word in service["command"]]
    assert " ".join(re.search(r"resetkeys [^\"]*", text.replace("\\\n", ""))[0].split()) == ACL  # type: ignore[index]
    text = changed(text, {"exec valkey-server": f"exec {redis_program()}", "--port 6379": f"--port {port}"})
    command = [shell, options, text.replace("/tmp/", f"{tmp_path}/")]
    password = "a b'c\"$d\\"
    kind, check = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    check = changed(check, {"valkey-cli": f"redis-cli -p {port}"}).replace("$$", "$")

    def healthy(password: str) -> bool:
        environ = {**os.environ, "CLUSTER_REDIS_PASSWORD": password}
        return subprocess.run(["sh", "-c", check], env=environ, capture_output=True, timeout=10).returncode == 0

    with Redis(command, port, tmp_path, {"CLUSTER_REDIS_PASSWORD": password}) as redis:
        assert until(lambda: healthy(password))
        assert not healthy("other")
        assert redis.serves(f"alpaca-proxy:{quote(password, safe='')}@")
        assert not redis.serves("")
        assert not redis.serves(f"default:{quote(password, safe='')}@")
    assert (tmp_path / "users.acl").stat().st_mode & 0o077 == 0
    assert password not in (tmp_path / "users.acl").read_text()


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


def test_a_front_server_of_a_cluster_forwards_to_client_ports_alone() -> None:
    """Caddy asks the admin ports for /healthz, nginx does not use them."""
    listen, admin = Config.model_fields["listen"].default, Config.model_fields["admin"].default
    for path in (CADDY_CLUSTER, NGINX_CLUSTER):
        settings = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
        assert set(re.findall(r"10\.0\.0\.\d:(\d+)", settings)) == {str(listen.port)}
        assert "trusted: [10.0.0.9]" in path.read_text("utf-8")
        assert re.findall(rf"\w+ {admin.port}\b", settings) == ["health_port 8766"] * (path is CADDY_CLUSTER)


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


NODE = """\
listen: {host: HOST, port: PORT, trusted: [127.0.0.1]}
admin: {host: HOST, port: ADMIN, token: canary-token}
accounts:
  main: {key: key, secret: secret, data_url: "URL", trading_url: "URL"}
clients:
  alpha: {key: alpha, secret: alpha, allow: {iex: "*", trading: "*"}}
"""


class TwoNodes:
    """Two proxies as processes, at the same ports of two loopback addresses.

    Each has a simulator of its own: what a server in front does is the same without a cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.addresses = Nodes(("127.0.0.2", "127.0.0.3"), free_port(), free_port(), "canary-token")
        self.processes: list[Process] = []
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> TwoNodes:
        with ExitStack() as stack:
            for host in self.addresses.hosts:
                url = stack.enter_context(Simulator()).url
                ports = {"PORT": str(self.addresses.port), "ADMIN": str(self.addresses.admin_port)}
                text = NODE
                for name, value in {"HOST": host, "URL": url, **ports}.items():
                    text = text.replace(name, value)
                (self._folder / f"{host}.yaml").write_text(text)
                self.processes.append(stack.enter_context(self.node(host)))
            for process in self.processes:
                process.address()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def node(self, host: str) -> Process:
        return Process("-c", str(self._folder / f"{host}.yaml"), folder=self._folder)

    def sessions(self, number: int) -> int:
        """The number of WebSocket sessions that a node has authenticated since it was started."""
        address = f"http://{self.addresses.hosts[number]}:{self.addresses.admin_port}/metrics"
        request = Request(address, headers={"Authorization": f"Bearer {self.addresses.token}"})
        with urlopen(request, timeout=10) as response:
            text = response.read().decode()
        found = re.search(r'^alpaca_proxy_client_connects_total\{client="alpha",feed="iex"\} (\d+)', text, re.MULTILINE)
        return int(found[1]) if found else 0


@pytest.mark.build
@pytest.mark.timeout(120)
@pytest.mark.parametrize("front", [nginx_cluster, caddy_cluster], ids=lambda front: front.__name__)
def test_algorithms_reach_whichever_node_is_there(
    tmp_path: Path, front: Callable[[Path, Nodes, Path, Path], AbstractContextManager[int]]
) -> None:
    """Through the server in front, sessions are spread; the end of a node costs its own sessions alone."""
    cert, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(cert))
    with TwoNodes(tmp_path) as nodes, front(tmp_path, nodes.addresses, cert, key) as port, ExitStack() as stack:
        first, second = nodes.processes

        def connect(until: ExitStack = stack) -> Client:
            client = until.enter_context(dial(("localhost", port), ssl=trusting, source_address=("127.0.0.4", 0)))
            assert client.receive() == CONNECTED
            return client.log_in("alpha")

        def reaches_first() -> bool:
            with ExitStack() as now:
                connect(now)
                return nodes.sessions(0) > 0

        def events() -> int:
            stream = HTTPSConnection("localhost", port, context=trusting, timeout=10)
            stack.callback(stream.close)
            stream.request("GET", "/v2/events/trades", headers={"Authorization": "Basic YWxwaGE6YWxwaGE="})
            return stream.getresponse().status

        early = [connect() for _ in range(4)]
        assert [nodes.sessions(0), nodes.sessions(1)] == [2, 2]
        assert "127.0.0.4 via 127.0.0.1" in first.text
        assert events() == 200

        # The first node drains.
        first.popen.send_signal(signal.SIGTERM)
        wait_for(lambda: "gateway.draining" in first.text)
        late = [connect() for _ in range(4)]
        assert events() == 200
        assert first.end() == 0
        assert [code for client in early if (code := ended(client)) is not None] == [1001, 1001]
        assert [ended(client) for client in late] == [None] * 4

        # It comes back, and the second one is killed.
        first = stack.enter_context(nodes.node(nodes.addresses.hosts[0]))
        first.address()
        assert until(reaches_first)
        second.popen.kill()
        second.popen.wait(10)
        before = nodes.sessions(0)
        late = [connect() for _ in range(4)]
        assert nodes.sessions(0) == before + 4


@pytest.mark.build
def test_caddy_spares_a_node_that_hangs(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(cert))
    with TwoNodes(tmp_path) as nodes, caddy_cluster(tmp_path, nodes.addresses, cert, key) as port:

        def connects() -> bool:
            try:
                with dial(("localhost", port), ssl=trusting, open_timeout=1) as client:
                    return bool(client.receive(1) == CONNECTED)
            except (OSError, TimeoutError, WebSocketException):
                return False

        assert connects()
        nodes.processes[0].popen.send_signal(signal.SIGSTOP)
        assert until(lambda: all(connects() for _ in range(4)), 15)
        nodes.processes[0].popen.send_signal(signal.SIGCONT)


def ended(client: Client) -> int | None:
    """The code that the client was closed with; None while it is open."""
    try:
        client.silent()
    except ConnectionClosed:
        return client.closed()[0]
    return None
