"""The single file, from build to run.

`python3 build_zipapp.py`, then `python3 alpaca-proxy.pyz …` from any folder.

It is built once for the Python that runs the tests, and once for every Python on Linux; the second file is run with
every Python on this machine.
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
from tests.single_file import FIT, ROOT, UNFIT, Built, Machine, run, unprivileged

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
    """A machine on which the file has run before."""
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


def test_sha256sums_matches_the_files(built: Built) -> None:
    lines = (built.tree / "SHA256SUMS").read_text("ascii").splitlines()
    assert {name: digest for digest, name in (line.split("  ") for line in lines)} == {
        name: hashlib.sha256((built.tree / name).read_bytes()).hexdigest()
        for name in ("alpaca-proxy.pyz", "alpaca-proxy.cdx.json")
    }


def test_the_sbom_lists_the_contents(built: Built) -> None:
    bill = json.loads((built.tree / "alpaca-proxy.cdx.json").read_text("utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    product = bill["metadata"]["component"]
    assert (product["name"], product["version"]) == ("alpaca-proxy", __version__)
    assert product["hashes"][0]["content"] == hashlib.sha256(built.file.read_bytes()).hexdigest()
    listed = {part["purl"].partition("?file_name=")[2]: part["hashes"][0]["content"] for part in bill["components"]}
    assert listed.pop("") == build_zipapp.PEX_SHA256
    assert listed == built.wheels


def test_the_same_sources_give_the_same_bytes_in_another_folder(built: Built, tmp_path: Path) -> None:
    tree = built.clone(tmp_path / "tree", "tools-*", "wheels-*")
    done = run(sys.executable, tree / "build_zipapp.py", cwd=tmp_path, SOURCE_DATE_EPOCH="1700000000", TZ="Asia/Tokyo")
    assert done.returncode == 0, done.stderr
    assert (tree / "alpaca-proxy.pyz").read_bytes() == built.file.read_bytes()


def test_a_build_without_network_fails_with_the_reason_and_keeps_the_old_file(built: Built, tmp_path: Path) -> None:
    tree = built.clone(tmp_path / "tree", "tools-*")
    (tree / "alpaca-proxy.pyz").write_bytes(b"yesterday's")
    no_index = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    done = run(sys.executable, tree / "build_zipapp.py", cwd=tmp_path, PIP_NO_CACHE_DIR="1", **no_index)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no package index answers" in done.stderr
    assert (tree / "alpaca-proxy.pyz").read_bytes() == b"yesterday's"


def test_a_python_without_venv_gets_the_package_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_zipapp, "BUILD", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", {"venv": object()}.get)  # Debian's Python, without python3-venv
    with pytest.raises(build_zipapp.BuildError, match=r"has no venv module; .* apt install python3-venv"):
        build_zipapp.install_tools()


def test_a_python_that_is_too_old_reaches_the_version_check() -> None:
    source = (ROOT / "build_zipapp.py").read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    first = next(statement for statement in tree.body if isinstance(statement, ast.If))
    before = tree.body[: tree.body.index(first)]
    assert [ast.unparse(statement) for statement in before[1:]] == ["import sys"]
    assert "needs Python 3.10 or newer" in ast.unparse(first)


# How it runs


def test_version_prints_the_version_the_commit_and_the_python(unpacked: Machine) -> None:
    done = unpacked.run("--version")
    python = ".".join(map(str, sys.version_info[:3]))
    assert done.returncode == 0
    assert re.fullmatch(
        rf"alpaca-proxy \d+\.\d+\.\d+ \(commit {unpacked.built.commit}, CPython {python}\)\n", done.stdout
    )


def test_the_commit_of_a_checkout_is_known_and_of_a_bare_copy_unknown(built: Built, tmp_path: Path) -> None:
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


def test_check_reports_the_line_of_a_configuration_error(unpacked: Machine) -> None:
    path = unpacked.write("broken.yaml", CONFIG.replace("PORT", "8765").replace("allow:", "alow:"))
    done = unpacked.run("check", "-c", path)
    assert done.returncode == 1
    assert re.search(r'broken\.yaml:13:5: .*did you mean "allow"\?', done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


def test_the_demo_succeeds(unpacked: Machine) -> None:
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


def test_the_first_start_prints_that_it_unpacks_and_the_next_prints_nothing(machine: Machine) -> None:
    """Neither start needs the network; the first runs without one here."""
    first = machine.run("--version", within=("unshare", "--map-root-user", "--net"))
    [folder] = machine.unpacked
    assert (first.returncode, first.stdout[:13]) == (0, "alpaca-proxy "), first.stderr
    assert first.stderr == f"alpaca-proxy: first start of this file; unpacking to {folder}\n"
    assert machine.run("--version").stderr == ""


def test_three_first_starts_at_once_succeed(machine: Machine) -> None:
    starts = [machine.start("--version") for _ in range(3)]
    results = [(*start.communicate(timeout=120), start.returncode) for start in starts]
    assert [status for _, _, status in results] == [0, 0, 0], results
    assert len({stdout for stdout, _, _ in results}) == 1


def test_the_file_starts_after_a_killed_first_start(machine: Machine) -> None:
    start = machine.start("--version")
    deadline = time.monotonic() + 30
    while not any(path.is_file() for folder in machine.unpacked for path in folder.rglob("*.py")):
        assert time.monotonic() < deadline
        assert start.poll() is None
    start.send_signal(signal.SIGKILL)
    start.communicate()
    done = machine.run("--version")
    assert (done.returncode, done.stdout[:13]) == (0, "alpaca-proxy "), done.stderr


def test_the_file_runs_with_an_impossible_home(machine: Machine) -> None:
    done = machine.run("--version", HOME=str(machine.write("a-file", "") / "home"))
    assert (done.returncode, done.stdout[:13]) == (0, "alpaca-proxy "), done.stderr
    assert "Traceback" not in done.stderr


def test_pex_root_sets_the_folder(machine: Machine) -> None:
    folder = machine.folder / "a folder"
    first, second = (machine.run("--version", PEX_ROOT=str(folder)) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert (str(folder) in first.stderr, second.stderr) == (True, "")
    assert machine.unpacked == []


def test_python_options_apply_to_the_unpacked_copy(machine: Machine) -> None:
    command = [machine.python, "-X", "importtime", *machine.command("--version")[1:]]
    for _ in range(2):
        done = subprocess.run(command, env=machine.environment(), capture_output=True, text=True)
        assert "gevent.monkey" in done.stderr


# For every Python on Linux


def test_the_wheels_inside_are_those_of_the_lock(built: Built, linux: Built) -> None:
    locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", (ROOT / "requirements.lock").read_text("utf-8")))
    for wheels in (built.wheels, linux.wheels):
        assert {name for name, digest in wheels.items() if digest not in locked} == set()
    assert set(built.wheels) <= set(linux.wheels)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("tag", ["cp310", "cp311", "cp312", "cp313", "cp314"])
def test_the_file_for_linux_has_the_native_wheels_of_each_target(linux: Built, tag: str, machine: str) -> None:
    native = {name.partition("-")[0] for name in linux.wheels if f"-{tag}-" in name and machine in name}
    zstd = set() if tag == "cp314" else {"backports_zstd"}  # the standard library of 3.14 has it
    assert native == {"gevent", "greenlet", "msgspec", "pydantic_core", "pyyaml", "zope_interface"} | zstd


def test_another_python_builds_the_same_bytes_for_linux(linux: Built, tmp_path: Path) -> None:
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
    for version, (stdout, stderr, status) in run_on_all(machines, "--version").items():
        assert (status, stdout[:13]) == (0, "alpaca-proxy "), (version, stderr)
    for version, (stdout, stderr, status) in run_on_all(machines, "demo", "--seconds", "2").items():
        assert (status, stderr) == (0, ""), version
        assert stdout.splitlines()[-1].startswith("demo ok: "), version
    for version, machine in machines.items():
        [folder] = machine.unpacked
        wheels = {path.name for path in folder.glob("installed_wheels/*/*/*.whl")}
        native = {wheel for wheel in wheels if not wheel.endswith("-none-any.whl")}
        assert native, version
        assert {wheel for wheel in native if f"-{folder.name[:5]}-" not in wheel} == set(), version


def run_on_all(
    machines: dict[tuple[int, int], Machine], *arguments: str
) -> dict[tuple[int, int], tuple[str, str, int | None]]:
    """Run the same command on all machines at once.

    Return each one's stdout, stderr and status.
    """
    started = {version: machine.start(*arguments) for version, machine in machines.items()}
    return {version: (*process.communicate(timeout=120), process.returncode) for version, process in started.items()}


@pytest.mark.parametrize("home", ["nonexistent", "read-only"])
def test_a_user_without_a_writable_home_can_run_the_file(linux: Built, home: str) -> None:
    """As root, the user is nobody with the system's Python.

    Otherwise it is the current user without a home.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "read-only").mkdir(mode=0o555)
        file = Path(shutil.copy(linux.file, folder))
        folder.chmod(0o555)
        python, user = unprivileged()
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
    [message] = done.stderr.splitlines()
    assert f"unpacking to a temporary folder, because {folder / home}/.cache/alpaca-proxy/" in message
    assert message.endswith("cannot be written; set PEX_ROOT to one that can")


def test_the_unpacked_copy_may_be_read_only(linux: Built) -> None:
    """As in a container: unpacked by root, run by another user, in a read-only folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        file = Path(shutil.copy(linux.file, folder))
        python, user = unprivileged()
        variables = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], "PEX_ROOT": str(folder / "unpacked")}
        subprocess.run([python, file, "--version"], env=variables, cwd="/", check=True, capture_output=True)
        subprocess.run(["chmod", "-R", "a-w", folder], check=True)
        done = subprocess.run(
            [python, file, "demo", "--seconds", "2"], env=variables, cwd="/", user=user, capture_output=True, text=True
        )
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    assert (done.returncode, done.stderr) == (0, "")


# On unsupported Pythons and machines


def test_an_unsupported_python_gets_one_sentence_and_status_78(built: Built, linux: Built, tmp_path: Path) -> None:
    newest = max(FIT)
    for version, python in UNFIT.items():
        refused = Machine(linux, tmp_path, python).run("--version", PATH=str(Path(FIT[newest]).parent))
        assert refused.returncode == 78, version
        assert refused.stderr.startswith(
            "alpaca-proxy.pyz is for CPython 3.10, 3.11, 3.12, 3.13 or 3.14 on Linux x86_64 "
        )
        assert f"; this is CPython {version[0]}.{version[1]}." in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    others = {version: python for version, python in FIT.items() if version != sys.version_info[:2]}
    for python in others.values():
        refused = Machine(built, tmp_path, python).run("--version")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (78, 1)


FACTS = {"PYTHONS": ((3, 10), (3, 14)), "SYSTEM": "Linux", "MACHINES": ("x86_64", "aarch64"), "GLIBC": (2, 28)}
HERE = "os.uname = lambda: ('Linux', '', '', '', 'x86_64'); os.confstr = lambda name: 'glibc 2.36'; "


@pytest.mark.parametrize(
    ("override", "message"),
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
def test_the_refusal_has_the_reason_and_the_next_step(tmp_path: Path, override: str, message: str) -> None:
    source = (ROOT / "zipapp_start.py").read_text("utf-8").partition("\nrefuse_others()\n")[0]
    facts = "\n".join(f"{name} = {fact!r}" for name, fact in FACTS.items())
    shutil.copy("/bin/sh", tmp_path / "python3.14")
    program = f"import os, sys; sys.version_info = (3, 9, 9); {HERE}{override}\n{source}\n{facts}\nrefuse_others()"
    variables = {"PATH": f"/nowhere:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == ((78 if message else 0), "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == bool(message)
