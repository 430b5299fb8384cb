"""The single file, from build to run: `python3 build_zipapp.py`, then `python3 alpaca-proxy.pyz …` from anywhere.

It is built once for the Python that runs the tests, and once for every Python on Linux, which every Python on this
machine tries.
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
from pathlib import Path

import pytest

import build_zipapp
from proxy.observe.version import COMMIT_FILE, __version__, commit
from tests.single_file import FIT, ROOT, UNFIT, Built, Machine, of_anybody, run

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
    again = built.clone(tmp_path / "tree", "tools-*", "wheels-*")
    done = run(sys.executable, again / "build_zipapp.py", cwd=tmp_path, SOURCE_DATE_EPOCH="1700000000", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    assert (again / "alpaca-proxy.pyz").read_bytes() == built.file.read_bytes()


def test_a_build_with_no_network_says_so_and_keeps_the_old_file(built: Built, tmp_path: Path) -> None:
    tree = built.clone(tmp_path / "tree", "tools-*")
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
    done = unpacked.run("demo", "--seconds", "3")
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
    """Neither needs the network."""
    first = machine.run("--version", within=("unshare", "--map-root-user", "--net"))
    [folder] = machine.unpacked
    assert (first.returncode, first.stdout[:13]) == (0, "alpaca-proxy "), first.stderr
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


def test_a_home_that_cannot_be_is_no_obstacle(machine: Machine) -> None:
    done = machine.run("--version", HOME=str(machine.write("a-file", "") / "home"))
    assert (done.returncode, done.stdout[:13]) == (0, "alpaca-proxy "), done.stderr
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


# For every Python on Linux


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
    tree = linux.clone(tmp_path / "tree", "wheels-*")
    done = run(FIT[another], "build_zipapp.py", "--targets", "linux", cwd=tree, SOURCE_DATE_EPOCH="1700000000")
    assert done.returncode == 0, done.stderr
    for name in ("alpaca-proxy.pyz", "alpaca-proxy.cdx.json", "SHA256SUMS"):
        assert (tree / name).read_bytes() == (linux.tree / name).read_bytes(), name


def test_the_file_for_linux_runs_on_every_python_here(linux: Built, tmp_path: Path) -> None:
    machines = {version: Machine(linux, tmp_path / f"{version[0]}.{version[1]}", FIT[version]) for version in FIT}
    for machine in machines.values():
        (machine.folder / "home").mkdir(parents=True)
    for version, (said, complaints, status) in together(machines, "--version").items():
        assert (status, said[:13]) == (0, "alpaca-proxy "), (version, complaints)
    for version, (said, complaints, status) in together(machines, "demo", "--seconds", "2").items():
        assert (status, complaints) == (0, ""), version
        assert said.splitlines()[-1].startswith("demo ok: "), version
    for version, machine in machines.items():
        [folder] = machine.unpacked
        wheels = {path.name for path in folder.glob("installed_wheels/*/*/*.whl")}
        native = {wheel for wheel in wheels if not wheel.endswith("-none-any.whl")}
        assert native, version
        assert {wheel for wheel in native if f"-{folder.name[:5]}-" not in wheel} == set(), version


def together(
    machines: dict[tuple[int, int], Machine], *arguments: str
) -> dict[tuple[int, int], tuple[str, str, int | None]]:
    """The same call on all of them at once: what each said, its complaints, its status."""
    started = {version: machine.start(*arguments) for version, machine in machines.items()}
    return {version: (*one.communicate(timeout=120), one.returncode) for version, one in started.items()}


@pytest.mark.parametrize("home", ["nonexistent", "read-only"])
def test_another_user_without_a_home_of_theirs_runs_it_as_well(linux: Built, home: str) -> None:
    """As root: somebody else, with a Python that is theirs to use. Otherwise: oneself, as somebody without a home."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "read-only").mkdir(mode=0o555)
        file = Path(shutil.copy(linux.file, folder))
        folder.chmod(0o555)
        python, user = of_anybody()
        done = subprocess.run(
            [python, str(file), "--version"],
            env={"HOME": str(folder / home), "PATH": os.environ["PATH"]},
            cwd="/",
            user=user,
            capture_output=True,
            text=True,
        )
        folder.chmod(0o755)
    assert (done.returncode, done.stdout[:13]) == (0, "alpaca-proxy "), done.stderr
    [said] = done.stderr.splitlines()
    assert f"unpacking to a temporary folder, because {folder / home}/.cache/alpaca-proxy/" in said
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
