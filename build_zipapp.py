#!/usr/bin/env python3
"""Build alpaca-proxy.pyz: the proxy and all it needs in one file.

    python3 build_zipapp.py && python3 alpaca-proxy.pyz demo      for this Python on this kind of machine
    python3 build_zipapp.py --targets linux                       for CPython 3.10 to 3.14 on Linux, x86_64 and aarch64

The only prerequisite is Python 3.10 or newer with its venv module. In a private environment below `build/`, pip
fetches the wheels that requirements.lock names, checked by hash, and pex packs them, unchanged, with the sources;
zipapp_start.py runs first in the file. The same sources and lock give the same bytes under every Python version. An
existing file is replaced only by a complete one. SHA256SUMS and an SBOM of the contents are written beside it.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - Pythons back to 3.6 can parse this file and reach this message
    sys.exit(
        f"build_zipapp.py needs Python 3.10 or newer and this is Python {sys.version_info[0]}.{sys.version_info[1]}: "
        "call it with a newer one, for example python3.12 build_zipapp.py"
    )

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from proxy.observe.version import COMMIT_FILE, __version__, commit

ROOT = Path(__file__).resolve().parent
OUTPUT = ROOT / "alpaca-proxy.pyz"
SBOM = ROOT / "alpaca-proxy.cdx.json"
SUMS = ROOT / "SHA256SUMS"
LOCK = ROOT / "requirements.lock"
START = ROOT / "zipapp_start.py"
BUILD = ROOT / "build"
LOG = BUILD / "build.log"

HERE = f"cp{sys.version_info.major}{sys.version_info.minor}-{sysconfig.get_platform()}"

# The one of pex's two wheels that bundles what older Pythons need, so that every Python builds with the same pex.
PEX_VERSION = "2.105.2"
PEX_SHA256 = "5a4d73fbeab30ddf70e360971cb19b9fa80b2a29cfe83e786215fcdd5ef1af9d"
# With an index that lists thousands of files, twice as fast as the pip that comes with older Pythons.
PIP_VERSION = "26.3"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
PEX_OPTIONS = (
    "--no-rc",
    "--no-emit-warnings",  # at run time; zipapp_start.py prints the messages that matter
    "--entry-point=proxy",  # starts in proxy/__main__.py, whose first statement is gevent's patch
    "--venv=prepend",  # unpacks once, into a virtual environment: native modules cannot be loaded from a zip
    "--python-shebang=/usr/bin/env python3",
    "--runtime-pex-root=~/.cache/alpaca-proxy",  # zipapp_start.py overrides it; the default is the builder's cache
    "--no-pre-install-wheels",  # the wheels inside stay those of PyPI byte for byte, comparable with the lock
    "--no-compress",  # wheels are compressed already, and zlib's output for the rest depends on its version
)

REASONS = {
    "DO NOT MATCH THE HASHES": "a download is not the file whose hash is on record, so it was not used",
    "Failed to establish a new connection": "no package index answers: reach pypi.org or set PIP_INDEX_URL",
    "No space left on device": "the disk is full",
}


class BuildError(Exception):
    """The build failed; the message is one sentence for the user."""


@dataclass(frozen=True)
class Target:
    """A CPython version and machine on Linux with glibc.

    Version 2.28 of glibc is the minimum because gevent's wheels need it.
    """

    minor: int
    machine: str

    GLIBC = (2, 28)

    def __str__(self) -> str:
        return f"{self.tag}-{self.machine}"

    @property
    def tag(self) -> str:
        return f"cp3{self.minor}"

    @property
    def platforms(self) -> list[str]:
        """The platform tags to request from pip; none of them implies an older one."""
        names = [f"manylinux_2_{minor}" for minor in range(self.GLIBC[1], 16, -1)]
        return [f"{name}_{self.machine}" for name in [*names, "manylinux2014"]]

    @property
    def tags(self) -> list[str]:
        """Every tag that a wheel for it may have, the most specific first."""
        abis = [(self.tag, self.tag), *((f"cp3{minor}", "abi3") for minor in range(self.minor, 1, -1)), ("py3", "none")]
        native = [f"{python}-{abi}-{platform}" for python, abi in abis for platform in self.platforms]
        return [*native, f"{self.tag}-none-any", "py3-none-any"]

    @property
    def markers(self) -> dict[str, str]:
        """The variables of environment markers (PEP 508)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"3.{self.minor}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"3.{self.minor}.0",
            "python_version": f"3.{self.minor}",
            "sys_platform": "linux",
        }


LINUX = tuple(Target(minor, machine) for minor in range(10, 15) for machine in ("x86_64", "aarch64"))


def main() -> int:
    """Build the file and print its path. Returns the exit status.

    It is 0, 1 with the reason on stderr, or 130 when interrupted.
    """
    parser = argparse.ArgumentParser(description="Build alpaca-proxy.pyz, with SHA256SUMS and an SBOM beside it.")
    parser.add_argument(
        "--targets",
        choices=["host", "linux"],
        default="host",
        help="where the file can run: this Python on this kind of machine (default), or CPython 3.10 to 3.14 on Linux "
        "with glibc, x86_64 and aarch64",
    )
    targets = LINUX if parser.parse_args().targets == "linux" else ()
    os.umask(0o022)  # file modes are part of the bytes
    try:
        build(targets)
    except (BuildError, OSError) as error:
        print(f"build_zipapp.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1e6:.1f} MB, for {audience(targets)}")
    print(f"beside it: {SUMS.name}, {SBOM.name}")
    print(f"sha256 {sha256(OUTPUT)}")
    print(f"next: python3 {OUTPUT.name} demo")
    return 0


def build(targets: tuple[Target, ...]) -> None:
    """Run the four steps for the targets, or for the host if there are none.

    Raises BuildError or OSError. The output of the tools is in build/build.log.
    """
    BUILD.mkdir(exist_ok=True)
    LOG.write_bytes(b"")
    print_step(1, f"tools: pex {PEX_VERSION} and pip {PIP_VERSION} in a private environment")
    python = install_tools()
    print_step(2, f"dependencies: the wheels that requirements.lock names for {audience(targets)}")
    wheels = fetch_for(targets, python) if targets else fetch_for_host(python)
    stamp = commit(ROOT / "proxy")
    print_step(3, f"sources: proxy/ at commit {stamp}")
    sources = stage_sources(stamp)
    print_step(4, f"packing {OUTPUT.name}")
    file = pack(targets, python, wheels, sources)
    sbom = BUILD / SBOM.name
    sbom.write_text(json.dumps(bill_of_materials(file, wheels, stamp), indent=2) + "\n", "utf-8")
    sums = BUILD / SUMS.name
    sums.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in (file, sbom)), "ascii")
    for finished, destination in ((file, OUTPUT), (sbom, SBOM), (sums, SUMS)):
        finished.replace(destination)


def audience(targets: tuple[Target, ...]) -> str:
    """The Pythons and machines that the file can run on, in words."""
    if not targets:
        return f"CPython {sys.version_info.major}.{sys.version_info.minor} on {sysconfig.get_platform()}"
    machines = " and ".join(dict.fromkeys(target.machine for target in targets))
    return f"CPython 3.{targets[0].minor} to 3.{targets[-1].minor} on Linux, {machines}"


def install_tools() -> Path:
    """The Python of the private environment with pex.

    The environment is rebuilt when this Python or a pin changes.
    """
    folder = BUILD / f"tools-{HERE}"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    state = f"{sys.version}\n{PEX_SHA256}\n{PIP_SHA256}"
    if not (ready.exists() and ready.read_text() == state):
        if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
            raise BuildError("this Python has no venv module; on Debian and Ubuntu: sudo apt install python3-venv")
        run(sys.executable, "-m", "venv", "--clear", folder, failure="cannot make an environment for the build tools")
        pinned = folder / "tools.txt"
        tools = {f"pex=={PEX_VERSION}": PEX_SHA256, f"pip=={PIP_VERSION}": PIP_SHA256}
        pinned.write_text("".join(f"{tool} --hash=sha256:{digest}\n" for tool, digest in tools.items()))
        options = (
            "--python-version=3.11",
            "--only-binary=:all:",
            "--no-deps",
            "--upgrade",
            f"--target={modules(folder)}",
        )
        pip(python, "install", "--require-hashes", *options, "-r", pinned, failure="cannot install the build tools")
        ready.write_text(state)
    return python


def modules(folder: Path) -> Path:
    """The site-packages folder of a virtual environment of this Python."""
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def fetch_for_host(python: Path) -> Path:
    """The folder of wheels for this machine.

    It is kept until the lock changes, so that the next build needs no network.
    """
    folder = BUILD / f"wheels-{HERE}"
    if not is_current(folder):
        pip(python, "wheel", "--require-hashes", "-r", LOCK, "-w", folder, failure="cannot fetch the dependencies")
        mark_current(folder)
    return folder


def fetch_for(targets: tuple[Target, ...], python: Path) -> Path:
    """The folder of wheels for all targets, kept until the lock changes.

    Every wheel is downloaded from the index; none is built here.
    """
    folder = BUILD / "wheels-linux"
    if not is_current(folder):
        sys.path.append(str(modules(python.parent.parent)))
        first, *others = targets  # the first download also brings the wheels that suit every target
        print(f"      {download(first, folder, python)}", flush=True)
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as workers:
            for target in workers.map(lambda target: download(target, folder, python), others):
                print(f"      {target}", flush=True)
        mark_current(folder)
    return folder


def download(target: Target, folder: Path, python: Path) -> Target:
    """Download the wheels for one target into a folder. Returns the target.

    Wheels in the folder that suit every target are not downloaded again.
    """
    lock = BUILD / f"{target}.txt"
    lock.write_text(flat_lock(target, folder))
    options = ("--no-deps", "--require-hashes", "--only-binary=:all:", "--progress-bar=off", "--implementation=cp")
    abis = [f"--abi={abi}" for abi in (target.tag, "abi3", "none")]
    platforms = [f"--platform={platform}" for platform in target.platforms]
    selection = (f"--python-version=3.{target.minor}", *abis, *platforms)
    failure = f"cannot fetch the dependencies for {target}"
    pip(python, "download", *options, *selection, "-r", lock, "-d", folder, failure=failure)
    return target


def flat_lock(target: Target, folder: Path) -> str:
    """The lock's entries for one target that the folder lacks, without markers.

    pip would evaluate the markers for the Python that runs it, not for the target.
    """
    marker = importlib.import_module("pex.third_party.packaging.markers").Marker
    return "".join(
        f"{pinned} \\\n{hashes}"
        for pinned, condition, hashes in locked()
        if not condition or marker(condition).evaluate(target.markers)
        if not any(folder.glob(f"{pinned.replace('-', '_').replace('==', '-')}-*-none-any.whl"))
    )


def locked() -> list[tuple[str, str, str]]:
    """The lock's entries: pinned requirement, marker or "", lines of hashes."""
    entry = r"^([\w.-]+==\S+)(?: ; (.+?))? \\\n((?:    --hash=\S+(?: \\)?\n)+)"
    return re.findall(entry, LOCK.read_text("utf-8"), re.MULTILINE)


def is_current(folder: Path) -> bool:
    """Whether the folder holds all wheels that the lock now names.

    A folder that does not is emptied.
    """
    ready = folder.parent / f"{folder.name}.ready"
    if ready.exists() and ready.read_text() == sha256(LOCK):
        return True
    ready.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return False


def mark_current(folder: Path) -> None:
    """Record that the folder holds all wheels that the lock now names."""
    (folder.parent / f"{folder.name}.ready").write_text(sha256(LOCK))


def stage_sources(stamp: str) -> Path:
    """A folder with the `proxy` package for the file: its sources and their commit."""
    folder = BUILD / "sources"
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "proxy"
    shutil.copytree(ROOT / "proxy", package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (package / COMMIT_FILE).write_text(stamp + "\n")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def pack(targets: tuple[Target, ...], python: Path, wheels: Path, sources: Path) -> Path:
    """Write the complete file below `build/`. Returns its path."""
    unfinished = BUILD / OUTPUT.name
    if targets:
        requirements = [f"{pinned} ; {marker}" if marker else pinned for pinned, marker, _ in locked()]
        # pex wants a wheel of each requirement for each target, whatever its marker: backports-zstd has none for 3.14.
        # tests/test_zipapp.py compares the wheels of each target with the lock.
        selection = [*platform_options(targets), "--ignore-errors"]
    else:
        requirements = ["==".join(wheel.name.split("-")[:2]) for wheel in sorted(wheels.glob("*.whl"))]
        selection = [f"--python-path={python.parent}"]  # only this Python, not the others on PATH
    run(
        python,
        *("-I", "-m", "pex", *PEX_OPTIONS, *requirements),
        *selection,
        f"--pre-resolved-dists={wheels}",
        f"--sources-directory={sources}",
        f"--preamble-file={write_preamble(targets)}",
        f"--output-file={unfinished}",
        failure="cannot pack the file",
    )
    return unfinished


def platform_options(targets: Iterable[Target]) -> list[str]:
    """pex's options for the targets, each with a file that describes it."""
    options = []
    for target in targets:
        description = BUILD / f"{target}.json"
        description.write_text(json.dumps({"marker_environment": target.markers, "compatible_tags": target.tags}))
        options.append(f"--complete-platform={description}")
    return options


def write_preamble(targets: tuple[Target, ...]) -> Path:
    """A copy of zipapp_start.py with the supported Pythons and machines filled in."""
    here = os.uname()
    facts = {
        "PYTHONS": tuple(dict.fromkeys((3, target.minor) for target in targets)) or (sys.version_info[:2],),
        "SYSTEM": "Linux" if targets else here.sysname,
        "MACHINES": tuple(dict.fromkeys(target.machine for target in targets)) or (here.machine,),
        "GLIBC": Target.GLIBC if targets else (),
    }
    text = START.read_text("utf-8")
    for name, fact in facts.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {fact!r}", text, count=1, flags=re.MULTILINE)
    preamble = BUILD / START.name
    preamble.write_text(text, "utf-8")
    return preamble


def bill_of_materials(file: Path, wheels: Path, stamp: str) -> dict[str, object]:
    """The SBOM in CycloneDX JSON: the proxy, its wheels as on the index, and pex."""

    def component(kind: str, name: str, version: str, digest: str, qualifier: str) -> dict[str, object]:
        purl = f"pkg:{'generic' if kind == 'application' else 'pypi'}/{name}@{version}{qualifier}"
        hashes = [{"alg": "SHA-256", "content": digest}]
        return {"type": kind, "bom-ref": purl, "name": name, "version": version, "hashes": hashes, "purl": purl}

    components = [component("library", "pex", PEX_VERSION, PEX_SHA256, "")]
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        name = name.replace("_", "-").lower()
        components.append(component("library", name, version, sha256(wheel), f"?file_name={wheel.name}"))
    product = component("application", "alpaca-proxy", __version__, sha256(file), f"?commit={stamp}")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {"component": product},
        "components": components,
    }


def sha256(path: Path) -> str:
    """The file's SHA-256 in lower-case hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pip(python: Path, verb: str, *arguments: "str | Path", failure: str) -> None:
    """Call the private environment's pip.

    The user's own pip configuration applies (index, proxy, certificates).
    """
    run(python, "-m", "pip", verb, "--disable-pip-version-check", "--retries=2", *arguments, failure=failure)


def run(*command: "str | Path", failure: str) -> None:
    """Run a tool and append its output to the log.

    Raises BuildError(`failure` and the reason) if it fails.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PEX_", "PYTHON"))}
    environment = {**kept, "PEX_ROOT": str(BUILD / "pex-root")}
    line = f"$ {shlex.join(map(str, command))}\n"
    finished = subprocess.run(
        command, env=environment, cwd=BUILD, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = finished.stdout.decode(errors="replace")
    with LOG.open("a") as log:
        log.write(line + output)
    if finished.returncode:
        last_line = output.strip().rpartition("\n")[2]
        reason = next((reason for pattern, reason in REASONS.items() if pattern in output), last_line)
        raise BuildError(f"{failure}: {reason} (full output: {LOG.relative_to(ROOT)})")


def print_step(number: int, description: str) -> None:
    """Print one line of progress."""
    print(f"[{number}/4] {description}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
