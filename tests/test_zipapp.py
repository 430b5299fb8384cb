"""The single file, from build to run: `python3 build_zipapp.py`, then `python3 alpaca-proxy.pyz …` from anywhere.

It is built from a copy of this tree as git sees it, committed there, so that what the file says of itself is known.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import build_zipapp
from proxy.version import COMMIT_FILE, commit

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

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, str(self.file), *map(str, arguments)]


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that never saw the file: an empty home, no cache of unpacked files, and a working folder of its own."""

    built: Built
    folder: Path

    def run(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.built.command(*arguments),
            cwd=self.folder,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def environment(self, **variables: str) -> dict[str, str]:
        home = str(self.folder / "home")
        return {**environment(), "HOME": home, "EXAMPLE_SECRET": "an-example-only", **variables}

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
    path, digest, step = built.printed.splitlines()[-3:]
    assert re.match(rf"{re.escape(str(built.file))}: \d+\.\d MB", path)
    assert digest == f"sha256 {hashlib.sha256(built.file.read_bytes()).hexdigest()}"
    assert step == "next: python3 alpaca-proxy.pyz demo"


def test_the_same_sources_give_the_same_bytes_elsewhere(built: Built, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    again = tmp_path / "tree"
    git("clone", "--quiet", str(built.tree), str(again), cwd=tmp_path)
    done = run(sys.executable, again / "build_zipapp.py", cwd=tmp_path, SOURCE_DATE_EPOCH="1700000000", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    assert (again / "alpaca-proxy.pyz").read_bytes() == built.file.read_bytes()


def test_the_wheels_inside_are_the_ones_that_the_lock_names(built: Built) -> None:
    locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", (ROOT / "requirements.lock").read_text("utf-8")))
    with zipfile.ZipFile(built.file) as packed:
        wheels = [name for name in packed.namelist() if name.endswith(".whl")]
        sums = {name: hashlib.sha256(packed.read(name)).hexdigest() for name in wheels}
    assert wheels
    assert {name for name, digest in sums.items() if digest not in locked} == set()


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


def test_the_first_starts_may_come_at_once(machine: Machine) -> None:
    starts = [
        subprocess.Popen(
            machine.built.command("--version"),
            cwd=machine.folder,
            env=machine.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ended = [(*start.communicate(timeout=120), start.returncode) for start in starts]
    assert [status for _, _, status in ended] == [0, 0, 0], ended
    assert len({said for said, _, _ in ended}) == 1


@pytest.mark.parametrize("home", ["a-file/home", "read-only"])
def test_a_home_that_cannot_be_written_is_no_obstacle(machine: Machine, home: str) -> None:
    machine.write("a-file", "")
    (machine.folder / "read-only").mkdir(mode=0o555)
    done = machine.run("--version", HOME=str(machine.folder / home))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("alpaca-proxy ")
    assert "Traceback" not in done.stderr
