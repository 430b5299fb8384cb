"""The single file, from build to run: `python3 build_zipapp.py`, then `python3 alpaca-proxy.pyz …` from anywhere.

It is built from a copy of this tree as git sees it, committed there, so that what the file says of itself is known:
once for the Python that runs the tests, and once for every Python on Linux, which every Python on this machine tries.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import build_zipapp
from proxy.version import COMMIT_FILE, __version__, commit

ROOT = Path(__file__).resolve().parent.parent
LISTED = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")

CONFIG = """\
listen: {port: PORT}
admin: {port: 0}
accounts:
  paper:
    key: PKEXAMPLE
    secret: ${EXAMPLE_SECRET}
    data_url: ws://127.0.0.1:9
    trading_url: ws://127.0.0.1:9
clients:
  momentum:
    key: momentum
    secret: sha256:5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8
    allow:
      iex: {trades: [AAPL]}
"""

pytestmark = [pytest.mark.build, pytest.mark.timeout(300)]


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: the tree it was made in, the commit of that tree, and what the build printed."""

    tree: Path
    commit: str
    printed: str

    @property
    def file(self) -> Path:
        return self.tree / "alpaca-proxy.pyz"

    @property
    def wheels(self) -> dict[str, str]:
        """The wheels inside, with their sums."""
        with zipfile.ZipFile(self.file) as packed:
            wheels = [name for name in packed.namelist() if name.endswith(".whl")]
            return {name.rpartition("/")[2]: hashlib.sha256(packed.read(name)).hexdigest() for name in wheels}


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that never saw the file: an empty home, no cache of unpacked files, and a working folder of its own."""

    built: Built
    folder: Path
    python: str = sys.executable

    def run(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str | Path) -> list[str]:
        return [self.python, str(self.built.file), *map(str, arguments)]

    def environment(self, **variables: str) -> dict[str, str]:
        home = str(self.folder / "home")
        return {**environment(), "HOME": home, "EXAMPLE_SECRET": "an-example-only", **variables}

    @property
    def unpacked(self) -> list[Path]:
        """Where something was unpacked, below the home."""
        return sorted((self.folder / "home" / ".cache" / "alpaca-proxy").glob("*"))

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, "utf-8")
        path.chmod(0o600)
        return path


def environment() -> dict[str, str]:
    """This process's variables without those that would steer git, pex or the caches of the tools."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIT_", "PEX", "XDG_", "ALPACA_", "APCA_"))
    }


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**environment(), **variables}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def git(*arguments: str, cwd: Path) -> str:
    own = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    done = run("git", *own, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pythons() -> list[tuple[tuple[int, int], str]]:
    """Every CPython on this machine, with its version: this one, those on PATH, those installed by pyenv."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if "shims" not in folder]
    folders += sorted(Path("~/.pyenv/versions").expanduser().glob("*/bin"))
    named = [
        (re.fullmatch(r"python([23])\.(\d+)", path.name), path) for folder in folders for path in folder.glob("p*")
    ]
    found = [((int(match[1]), int(match[2])), str(path)) for match, path in named if match]
    return [(sys.version_info[:2], sys.executable), *found]


FIT: dict[tuple[int, int], str] = {}
UNFIT: dict[tuple[int, int], str] = {}
for version, python in pythons():
    (FIT if (3, 10) <= version <= (3, 14) else UNFIT).setdefault(version, python)


def of_anybody() -> tuple[str, int | None]:
    """A Python and a user to run it: as root, a user who is nobody, with a Python of the system's; else oneself."""
    if os.geteuid() != 0:
        return sys.executable, None
    systems = [python for version, python in pythons() if version in FIT and python.startswith("/usr/")]
    assert systems, "no Python in /usr that any user could run"
    return systems[0], 65534


def build(tree: Path) -> Built:
    """Copy what git would keep of this tree to `tree`, commit it there and build."""
    for name in git(*LISTED[1:], cwd=ROOT).split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / name)
    git("init", "--quiet", cwd=tree)
    git("add", "--all", cwd=tree)
    git("commit", "--quiet", "--no-verify", "--message=test", cwd=tree)
    done = run(sys.executable, "build_zipapp.py", cwd=tree)
    assert done.returncode == 0, done.stderr
    return Built(tree, git("rev-parse", "--short=7", "HEAD", cwd=tree), done.stdout)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def linux(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The build for every Python on Linux, from the same sources."""
    tree = tmp_path_factory.mktemp("linux") / "tree"
    git("clone", "--quiet", str(built.tree), str(tree), cwd=built.tree)
    done = run(sys.executable, "build_zipapp.py", "--targets", "linux", cwd=tree)
    assert done.returncode == 0, done.stderr
    return Built(tree, built.commit, done.stdout)


@pytest.fixture
def machine(built: Built, tmp_path: Path) -> Machine:
    (tmp_path / "home").mkdir()
    return Machine(built, tmp_path)


@pytest.fixture(scope="session")
def unpacked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine on which the file has run before, for what the first start has no part in."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "home").mkdir()
    machine = Machine(built, folder)
    assert machine.run("--version").returncode == 0
    return machine


# How it is built


def test_the_build_ends_with_path_size_sum_and_next_command(built: Built) -> None:
    path, beside, digest, step = built.printed.splitlines()[-4:]
    assert re.match(rf"{re.escape(str(built.file))}: \d+\.\d MB", path)
    assert beside == "beside it: SHA256SUMS, alpaca-proxy.cdx.json"
    assert digest == f"sha256 {hashlib.sha256(built.file.read_bytes()).hexdigest()}"
    assert step == "next: python3 alpaca-proxy.pyz demo"


def test_the_sums_beside_it_are_those_of_the_files(built: Built) -> None:
    lines = (built.tree / "SHA256SUMS").read_text("ascii").splitlines()
    assert {name: digest for digest, name in (line.split("  ") for line in lines)} == {
        name: hashlib.sha256((built.tree / name).read_bytes()).hexdigest()
        for name in ("alpaca-proxy.pyz", "alpaca-proxy.cdx.json")
    }


def test_the_bill_of_materials_is_what_is_inside(built: Built) -> None:
    bill = json.loads((built.tree / "alpaca-proxy.cdx.json").read_text("utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    product = bill["metadata"]["component"]
    assert (product["name"], product["version"]) == ("alpaca-proxy", __version__)
    assert product["hashes"][0]["content"] == hashlib.sha256(built.file.read_bytes()).hexdigest()
    listed = {part["purl"].partition("?file_name=")[2]: part["hashes"][0]["content"] for part in bill["components"]}
    assert listed.pop("") == build_zipapp.PEX_SHA256
    assert listed == built.wheels


def test_the_same_sources_give_the_same_bytes_elsewhere(built: Built, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    again = tmp_path / "tree"
    git("clone", "--quiet", str(built.tree), str(again), cwd=tmp_path)
    done = run(sys.executable, again / "build_zipapp.py", cwd=tmp_path, SOURCE_DATE_EPOCH="1700000000", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    assert (again / "alpaca-proxy.pyz").read_bytes() == built.file.read_bytes()


def test_the_wheels_inside_are_the_ones_that_the_lock_names(built: Built, linux: Built) -> None:
    locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", (ROOT / "requirements.lock").read_text("utf-8")))
    for wheels in (built.wheels, linux.wheels):
        assert {name for name, digest in wheels.items() if digest not in locked} == set()
    assert set(built.wheels) <= set(linux.wheels)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("tag", ["cp310", "cp311", "cp312", "cp313", "cp314"])
def test_the_file_for_linux_has_what_is_native_for_each(linux: Built, tag: str, machine: str) -> None:
    native = {name.partition("-")[0] for name in linux.wheels if f"-{tag}-" in name and machine in name}
    assert native == {"gevent", "greenlet", "msgspec", "pydantic_core", "pyyaml", "zope_interface"}


def test_whichever_python_builds_for_linux_the_bytes_are_the_same(linux: Built, tmp_path: Path) -> None:
    another = max(FIT, key=lambda version: abs(version[1] - sys.version_info[1]))
    tree = tmp_path / "tree"
    git("clone", "--quiet", str(linux.tree), str(tree), cwd=tmp_path)
    (tree / "build").mkdir()
    shutil.copytree(linux.tree / "build" / "wheels-linux", tree / "build" / "wheels-linux")
    shutil.copy(linux.tree / "build" / "wheels-linux.ready", tree / "build")
    done = run(FIT[another], "build_zipapp.py", "--targets", "linux", cwd=tree, SOURCE_DATE_EPOCH="1700000000")
    assert done.returncode == 0, done.stderr
    for name in ("alpaca-proxy.pyz", "alpaca-proxy.cdx.json", "SHA256SUMS"):
        assert (tree / name).read_bytes() == (linux.tree / name).read_bytes(), name


def test_a_build_with_no_network_says_so_and_keeps_the_old_file(built: Built, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git("clone", "--quiet", str(built.tree), str(tree), cwd=tmp_path)
    (tree / "alpaca-proxy.pyz").write_bytes(b"yesterday's")
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    done = run(sys.executable, tree / "build_zipapp.py", cwd=tmp_path, PIP_NO_CACHE_DIR="1", **nowhere)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no package index answers" in done.stderr
    assert (tree / "alpaca-proxy.pyz").read_bytes() == b"yesterday's"


def test_a_python_without_venv_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_zipapp, "BUILD", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", {"venv": object()}.get)  # Debian's Python, without python3-venv
    with pytest.raises(build_zipapp.BuildError, match=r"has no venv module; .* apt install python3-venv"):
        build_zipapp.install_tools()


def test_a_python_that_is_too_old_can_read_as_far_as_the_sentence_for_it() -> None:
    source = (ROOT / "build_zipapp.py").read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    first = next(statement for statement in tree.body if isinstance(statement, ast.If))
    before = tree.body[: tree.body.index(first)]
    assert [ast.unparse(statement) for statement in before[1:]] == ["import sys"]
    assert "needs Python 3.10 or newer" in ast.unparse(first)


# How it runs


def test_version_names_the_version_the_commit_and_the_python(unpacked: Machine) -> None:
    done = unpacked.run("--version")
    python = ".".join(map(str, sys.version_info[:3]))
    assert done.returncode == 0
    assert re.fullmatch(
        rf"alpaca-proxy \d+\.\d+\.\d+ \(commit {unpacked.built.commit}, CPython {python}\)\n", done.stdout
    )


def test_a_checkout_names_its_commit_and_a_bare_copy_does_not_know(built: Built, tmp_path: Path) -> None:
    assert commit(built.tree / "proxy") == built.commit
    package = tmp_path / "proxy"
    package.mkdir()
    assert commit(package) == "unknown"
    (tmp_path / ".git").mkdir()  # no repository, though it looks like one
    assert commit(package) == "unknown"
    (package / COMMIT_FILE).write_bytes(b"\xff")
    assert commit(package) == "unknown"


def test_check_accepts_a_good_configuration(unpacked: Machine) -> None:
    done = unpacked.run("check", "-c", unpacked.write("good.yaml", CONFIG.replace("PORT", "8765")))
    assert (done.returncode, done.stderr) == (0, "")
    assert "an-example-only" not in done.stdout


def test_check_refuses_a_broken_configuration_with_its_place(unpacked: Machine) -> None:
    path = unpacked.write("broken.yaml", CONFIG.replace("PORT", "8765").replace("allow:", "alow:"))
    done = unpacked.run("check", "-c", path)
    assert done.returncode == 1
    assert re.search(r'broken\.yaml:13:5: .*did you mean "allow"\?', done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


def test_the_demo_runs_and_ends_well(unpacked: Machine) -> None:
    done = unpacked.run("demo", "--seconds", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("demo ok: ")


def test_a_port_in_use_is_one_sentence_and_exit_status_1(unpacked: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = unpacked.run("-c", unpacked.write("taken.yaml", CONFIG.replace("PORT", port)))
    assert done.returncode == 1
    assert port in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_first_start_says_that_it_unpacks_and_the_next_says_nothing(machine: Machine) -> None:
    first = machine.run("--version")
    [folder] = machine.unpacked
    assert first.stderr == f"alpaca-proxy: first start of this file; unpacking to {folder}\n"
    assert machine.run("--version").stderr == ""


def test_the_first_starts_may_come_at_once(machine: Machine) -> None:
    starts = [machine.start("--version") for _ in range(3)]
    ended = [(*start.communicate(timeout=120), start.returncode) for start in starts]
    assert [status for _, _, status in ended] == [0, 0, 0], ended
    assert len({said for said, _, _ in ended}) == 1


def test_a_first_start_that_is_killed_spoils_nothing(machine: Machine) -> None:
    start = machine.start("--version")
    deadline = time.monotonic() + 30
    while not any(path.is_file() for folder in machine.unpacked for path in folder.rglob("*.py")):
        assert time.monotonic() < deadline
        assert start.poll() is None
    start.send_signal(signal.SIGKILL)
    start.communicate()
    done = machine.run("--version")
    assert (done.returncode, done.stdout[:13]) == (0, "alpaca-proxy "), done.stderr


def test_it_needs_no_network(machine: Machine) -> None:
    unshared = ["unshare", "--map-root-user", "--net"]
    done = subprocess.run(
        [*unshared, *machine.command("--version")], env=machine.environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout[:13]) == (0, "alpaca-proxy "), done.stderr


@pytest.mark.parametrize("home", ["a-file/home", "read-only"])
def test_a_home_that_cannot_be_written_is_no_obstacle(machine: Machine, home: str) -> None:
    machine.write("a-file", "")
    (machine.folder / "read-only").mkdir(mode=0o555)
    done = machine.run("--version", HOME=str(machine.folder / home))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("alpaca-proxy ")
    assert "Traceback" not in done.stderr


def test_the_place_may_be_named(machine: Machine) -> None:
    folder = machine.folder / "a place"
    first, second = (machine.run("--version", PEX_ROOT=str(folder)) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert (str(folder) in first.stderr, second.stderr) == (True, "")
    assert machine.unpacked == []


def test_options_of_python_survive_the_unpacking(machine: Machine) -> None:
    command = [machine.python, "-X", "importtime", *machine.command("--version")[1:]]
    for _ in range(2):
        done = subprocess.run(command, env=machine.environment(), capture_output=True, text=True)
        assert "gevent.monkey" in done.stderr


# On every Python here


@pytest.mark.parametrize("version", sorted(FIT), ids=lambda version: f"{version[0]}.{version[1]}")
def test_the_file_for_linux_runs(linux: Built, tmp_path: Path, version: tuple[int, int]) -> None:
    (tmp_path / "home").mkdir()
    machine = Machine(linux, tmp_path, FIT[version])
    first = machine.run("--version")
    assert first.returncode == 0, first.stderr
    demo = machine.run("demo", "--seconds", "2")
    assert (demo.returncode, demo.stderr) == (0, "")
    assert demo.stdout.splitlines()[-1].startswith("demo ok: ")
    [folder] = machine.unpacked
    wheels = {path.name for path in folder.glob("installed_wheels/*/*/*.whl")}
    foreign = {wheel for wheel in wheels if not wheel.endswith("-none-any.whl") and f"-{folder.name[:5]}-" not in wheel}
    assert wheels
    assert foreign == set()


def test_another_user_with_no_home_runs_it_as_well(linux: Built) -> None:
    """As root: somebody else, with a Python that is theirs to use. Otherwise: oneself, as somebody without a home."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        file = Path(shutil.copy(linux.file, folder))
        python, user = of_anybody()
        done = subprocess.run(
            [python, str(file), "--version"],
            env={"HOME": "/nonexistent", "PATH": os.environ["PATH"]},
            cwd="/",
            user=user,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stdout[:13]) == (0, "alpaca-proxy "), done.stderr
    [said] = done.stderr.splitlines()
    assert "unpacking to a temporary folder, because /nonexistent/.cache/alpaca-proxy/" in said
    assert said.endswith("cannot be written; set PEX_ROOT to one that can")


def test_what_is_unpacked_may_be_read_only(linux: Built) -> None:
    """As in a container: unpacked by root, run by another user from a place that neither can write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        file = Path(shutil.copy(linux.file, folder))
        python, user = of_anybody()
        variables = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], "PEX_ROOT": str(folder / "unpacked")}
        subprocess.run([python, file, "--version"], env=variables, cwd="/", check=True, capture_output=True)
        subprocess.run(["chmod", "-R", "a-w", folder], check=True)
        done = subprocess.run(
            [python, file, "demo", "--seconds", "2"], env=variables, cwd="/", user=user, capture_output=True, text=True
        )
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    assert (done.returncode, done.stderr) == (0, "")


# On what it is not for


def test_a_python_that_does_not_fit_is_told_so(built: Built, linux: Built, tmp_path: Path) -> None:
    newest = max(FIT)
    for version, python in UNFIT.items():
        told = Machine(linux, tmp_path, python).run("--version", PATH=str(Path(FIT[newest]).parent))
        assert told.returncode == 78, version
        assert told.stderr.startswith("alpaca-proxy.pyz is for CPython 3.10, 3.11, 3.12, 3.13 or 3.14 on Linux x86_64 ")
        assert f"; this is CPython {version[0]}.{version[1]}." in told.stderr
        assert len(told.stderr.splitlines()) == 1
    others = {version: python for version, python in FIT.items() if version != sys.version_info[:2]}
    for python in others.values():
        told = Machine(built, tmp_path, python).run("--version")
        assert (told.returncode, len(told.stderr.splitlines())) == (78, 1)


FACTS = {"PYTHONS": ((3, 10), (3, 14)), "SYSTEM": "Linux", "MACHINES": ("x86_64", "aarch64"), "GLIBC": (2, 28)}
HERE = "os.uname = lambda: ('Linux', '', '', '', 'x86_64'); os.confstr = lambda name: 'glibc 2.36'; "


@pytest.mark.parametrize(
    ("pretended", "said"),
    [
        ("", "call it with python3.14"),
        ("os.environ['PATH'] = ''", "call it with such a Python; none is on PATH"),
        ("sys.version_info = (3, 14)", ""),
        ("sys.version_info = (3, 14); sys.abiflags = 't'", "this is free-threaded CPython"),
        ("sys.version_info = (3, 14); sys.implementation.name = 'pypy'", "this is pypy "),
        (
            "sys.version_info = (3, 14); os.uname = lambda: ('Linux', '', '', '', 'armv7l')",
            "on Linux armv7l: build one",
        ),
        ("sys.version_info = (3, 14); os.uname = lambda: ('Darwin', '', '', '', 'x86_64')", "on Darwin x86_64: build"),
        ("sys.version_info = (3, 14); sys.maxsize = 2**31 - 1", "x86_64, 32 bits: build one on a machine like this"),
        ("sys.version_info = (3, 14); os.confstr = lambda name: 'glibc 2.17'", "with glibc 2.17: build one"),
        ("sys.version_info = (3, 14); os.confstr = lambda name: None", "without glibc: build one"),
    ],
)
def test_what_does_not_fit_is_told_why_and_what_to_do(tmp_path: Path, pretended: str, said: str) -> None:
    source = (ROOT / "zipapp_start.py").read_text("utf-8").partition("\nrefuse_others()\n")[0]
    facts = "\n".join(f"{name} = {fact!r}" for name, fact in FACTS.items())
    shutil.copy("/bin/sh", tmp_path / "python3.14")
    program = f"import os, sys; sys.version_info = (3, 9, 9); {HERE}{pretended}\n{source}\n{facts}\nrefuse_others()"
    variables = {"PATH": f"/nowhere:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == ((78 if said else 0), "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == bool(said)
