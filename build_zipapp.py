#!/usr/bin/env python3
"""Build alpaca-proxy.pyz: the proxy and all it needs in one file.

    python3 build_zipapp.py && python3 alpaca-proxy.pyz demo      for this Python on this kind of machine
    python3 build_zipapp.py --targets linux                       for CPython 3.10 to 3.14 on Linux, x86_64 and aarch64

Nothing need be installed beforehand but Python 3.10 or newer with its venv module. In a private environment below
`build/`, pip fetches the wheels that requirements.lock names, checked by hash, and pex packs them, unchanged, with the
sources; zipapp_start.py is what runs first. The same sources and lock give the same bytes, whichever Python builds. A
file that is there is replaced only by one that is complete. Beside it: SHA256SUMS, and an SBOM of what is inside.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - Pythons back to 3.6 can parse this file, so that they can be told
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

# Of pex's two wheels the one that brings all that older Pythons need: with the same pex, every Python builds the same.
PEX_VERSION = "2.105.2"
PEX_SHA256 = "5a4d73fbeab30ddf70e360971cb19b9fa80b2a29cfe83e786215fcdd5ef1af9d"
# Twice as quick as the pip of older Pythons with an index that lists thousands of files.
PIP_VERSION = "26.3"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
PEX_OPTIONS = (
    "--no-rc",
    "--no-emit-warnings",  # at run time; zipapp_start.py says what there is to say
    "--entry-point=proxy",  # starts in proxy/__main__.py, whose first statement is gevent's patch
    "--venv=prepend",  # unpacks once, into an environment of its own: native modules do not load from a zip
    "--python-shebang=/usr/bin/env python3",
    "--runtime-pex-root=~/.cache/alpaca-proxy",  # zipapp_start.py decides; without this, the builder's own cache
    "--no-pre-install-wheels",  # the wheels inside stay PyPI's, byte for byte: anyone can compare them with the lock
    "--no-compress",  # they are compressed already, and what zlib makes of the rest depends on the builder's
)

REASONS = {
    "DO NOT MATCH THE HASHES": "a download is not the file whose hash is on record, so it was not used",
    "Failed to establish a new connection": "no package index answers: reach pypi.org or set PIP_INDEX_URL",
    "No space left on device": "the disk is full",
}


class BuildError(Exception):
    """Why there is no new file, as one sentence for whoever builds."""


@dataclass(frozen=True)
class Target:
    """A CPython on glibc's Linux, as wheels and markers describe it. The floor is glibc 2.28, because gevent's is."""

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
        """The names under which wheels for it go: manylinux_2_28_x86_64 does not imply the older ones."""
        names = [f"manylinux_2_{minor}" for minor in range(self.GLIBC[1], 16, -1)]
        return [f"{name}_{self.machine}" for name in [*names, "manylinux2014"]]

    @property
    def tags(self) -> list[str]:
        """Every tag that a wheel for it may have, the most special first."""
        abis = [(self.tag, self.tag), *((f"cp3{minor}", "abi3") for minor in range(self.minor, 1, -1)), ("py3", "none")]
        native = [f"{python}-{abi}-{platform}" for python, abi in abis for platform in self.platforms]
        return [*native, f"{self.tag}-none-any", "py3-none-any"]

    @property
    def markers(self) -> dict[str, str]:
        """What environment markers (PEP 508) ask for."""
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
    """Build the file and say where it is. Returns 0; 1 with the reason on stderr; 130 when interrupted."""
    parser = argparse.ArgumentParser(description="Build alpaca-proxy.pyz, with SHA256SUMS and an SBOM beside it.")
    parser.add_argument(
        "--targets",
        choices=["host", "linux"],
        default="host",
        help="for whom: this Python on this kind of machine (default), or CPython 3.10 to 3.14 on Linux with glibc, "
        "x86_64 and aarch64",
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
    """The four steps; no targets: the host. Raises BuildError or OSError; the tools' words are in build/build.log."""
    BUILD.mkdir(exist_ok=True)
    LOG.write_bytes(b"")
    say(1, f"tools: pex {PEX_VERSION} and pip {PIP_VERSION} in a private environment")
    python = install_tools()
    say(2, f"dependencies: the wheels that requirements.lock names for {audience(targets)}")
    wheels = fetch_for(targets, python) if targets else fetch_for_host(python)
    stamp = commit(ROOT / "proxy")
    say(3, f"sources: proxy/ at commit {stamp}")
    sources = stage_sources(stamp)
    say(4, f"packing {OUTPUT.name}")
    file = pack(targets, python, wheels, sources)
    sbom = BUILD / SBOM.name
    sbom.write_text(json.dumps(bill_of_materials(file, wheels, stamp), indent=2) + "\n", "utf-8")
    sums = BUILD / SUMS.name
    sums.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in (file, sbom)), "ascii")
    for made, place in ((file, OUTPUT), (sbom, SBOM), (sums, SUMS)):
        made.replace(place)


def audience(targets: tuple[Target, ...]) -> str:
    """For whom the file is, in words."""
    if not targets:
        return f"CPython {sys.version_info.major}.{sys.version_info.minor} on {sysconfig.get_platform()}"
    machines = " and ".join(dict.fromkeys(target.machine for target in targets))
    return f"CPython 3.{targets[0].minor} to 3.{targets[-1].minor} on Linux, {machines}"


def install_tools() -> Path:
    """The Python of the private environment that has pex; made anew when this Python or what is pinned is another."""
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
        whole = (
            "--python-version=3.11",
            "--only-binary=:all:",
            "--no-deps",
            "--upgrade",
            f"--target={modules(folder)}",
        )
        pip(python, "install", "--require-hashes", *whole, "-r", pinned, failure="cannot install the build tools")
        ready.write_text(state)
    return python


def modules(folder: Path) -> Path:
    """Where a virtual environment of this Python has its modules."""
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def fetch_for_host(python: Path) -> Path:
    """The folder of wheels for this machine; kept until the lock changes, so that the next build needs no network."""
    folder = BUILD / f"wheels-{HERE}"
    if not is_current(folder):
        pip(python, "wheel", "--require-hashes", "-r", LOCK, "-w", folder, failure="cannot fetch the dependencies")
        keep(folder)
    return folder


def fetch_for(targets: tuple[Target, ...], python: Path) -> Path:
    """The folder of wheels for all of the targets; kept likewise. No wheel is built: each is one from the index."""
    folder = BUILD / "wheels-linux"
    if not is_current(folder):
        sys.path.append(str(modules(python.parent.parent)))
        first, *others = targets  # the first brings what is for all of them
        print(f"      {download(first, folder, python)}", flush=True)
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as workers:
            for target in workers.map(lambda target: download(target, folder, python), others):
                print(f"      {target}", flush=True)
        keep(folder)
    return folder


def download(target: Target, folder: Path, python: Path) -> Target:
    """Have pip put the wheels for one target into a folder, but for those in it that are for every target."""
    lock = BUILD / f"{target}.txt"
    lock.write_text(flat_lock(target, folder))
    how = ("--no-deps", "--require-hashes", "--only-binary=:all:", "--progress-bar=off", "--implementation=cp")
    abis = [f"--abi={abi}" for abi in (target.tag, "abi3", "none")]
    platforms = [f"--platform={platform}" for platform in target.platforms]
    wanted = (f"--python-version=3.{target.minor}", *abis, *platforms)
    why = f"cannot fetch the dependencies for {target}"
    pip(python, "download", *how, *wanted, "-r", lock, "-d", folder, failure=why)
    return target


def flat_lock(target: Target, folder: Path) -> str:
    """What the lock names for one target and the folder has not, with no markers left: pip judges them by the Python
    that runs it."""
    marker = importlib.import_module("pex.third_party.packaging.markers").Marker
    return "".join(
        f"{pinned} \\\n{hashes}"
        for pinned, condition, hashes in locked()
        if not condition or marker(condition).evaluate(target.markers)
        if not any(folder.glob(f"{pinned.replace('-', '_').replace('==', '-')}-*-none-any.whl"))
    )


def locked() -> list[tuple[str, str, str]]:
    """The lock's entries: the pinned requirement, its marker or nothing, its lines of hashes."""
    entry = r"^([\w.-]+==\S+)(?: ; (.+?))? \\\n((?:    --hash=\S+(?: \\)?\n)+)"
    return re.findall(entry, LOCK.read_text("utf-8"), re.MULTILINE)


def is_current(folder: Path) -> bool:
    """Whether the folder holds all that the lock now names; if not, it is removed."""
    ready = folder.parent / f"{folder.name}.ready"
    if ready.exists() and ready.read_text() == sha256(LOCK):
        return True
    ready.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return False


def keep(folder: Path) -> None:
    """Say that the folder holds all that the lock now names."""
    (folder.parent / f"{folder.name}.ready").write_text(sha256(LOCK))


def stage_sources(stamp: str) -> Path:
    """A folder with the `proxy` package as it goes into the file: its sources and the commit they stand for."""
    folder = BUILD / "sources"
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "proxy"
    shutil.copytree(ROOT / "proxy", package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (package / COMMIT_FILE).write_text(stamp + "\n")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def pack(targets: tuple[Target, ...], python: Path, wheels: Path, sources: Path) -> Path:
    """Write the file, whole, below `build/`."""
    unfinished = BUILD / OUTPUT.name
    if targets:
        requirements = [f"{pinned} ; {marker}" if marker else pinned for pinned, marker, _ in locked()]
        selection = described(targets)
    else:
        requirements = ["==".join(wheel.name.split("-")[:2]) for wheel in sorted(wheels.glob("*.whl"))]
        selection = [f"--python-path={python.parent}"]  # for this Python alone, whatever else is on PATH
    run(
        python,
        *("-I", "-m", "pex", *PEX_OPTIONS, *requirements),
        *selection,
        f"--pre-resolved-dists={wheels}",
        f"--sources-directory={sources}",
        f"--preamble-file={first_lines(targets)}",
        f"--output-file={unfinished}",
        failure="cannot pack the file",
    )
    return unfinished


def described(targets: Iterable[Target]) -> list[str]:
    """The targets as pex wants them, in a file each."""
    options = []
    for target in targets:
        description = BUILD / f"{target}.json"
        description.write_text(json.dumps({"marker_environment": target.markers, "compatible_tags": target.tags}))
        options.append(f"--complete-platform={description}")
    return options


def first_lines(targets: tuple[Target, ...]) -> Path:
    """zipapp_start.py, told which Pythons and machines the file is for."""
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
    told = BUILD / START.name
    told.write_text(text, "utf-8")
    return told


def bill_of_materials(file: Path, wheels: Path, stamp: str) -> dict[str, object]:
    """What is in the file, as CycloneDX has it: the proxy, its wheels as the index has them, and pex."""

    def component(kind: str, name: str, version: str, digest: str, qualifier: str) -> dict[str, object]:
        purl = f"pkg:{'generic' if kind == 'application' else 'pypi'}/{name}@{version}{qualifier}"
        hashes = [{"alg": "SHA-256", "content": digest}]
        return {"type": kind, "bom-ref": purl, "name": name, "version": version, "hashes": hashes, "purl": purl}

    inside = [component("library", "pex", PEX_VERSION, PEX_SHA256, "")]
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        name = name.replace("_", "-").lower()
        inside.append(component("library", name, version, sha256(wheel), f"?file_name={wheel.name}"))
    product = component("application", "alpaca-proxy", __version__, sha256(file), f"?commit={stamp}")
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "metadata": {"component": product}, "components": inside}


def sha256(path: Path) -> str:
    """The file's SHA-256 in lower-case hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pip(python: Path, verb: str, *arguments: "str | Path", failure: str) -> None:
    """One call of the private environment's pip, with the user's own pip configuration (index, proxy, certificates)."""
    run(python, "-m", "pip", verb, "--disable-pip-version-check", "--retries=2", *arguments, failure=failure)


def run(*command: "str | Path", failure: str) -> None:
    """Run a tool with its output in the log. Raises BuildError(`failure` and the reason) unless it succeeds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PEX_", "PYTHON"))}
    environment = {**kept, "PEX_ROOT": str(BUILD / "pex-root")}
    line = f"$ {shlex.join(map(str, command))}\n"
    finished = subprocess.run(
        command, env=environment, cwd=BUILD, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = finished.stdout.decode(errors="replace")
    with LOG.open("a") as log:
        log.write(line + said)
    if finished.returncode:
        last_words = said.strip().rpartition("\n")[2]
        reason = next((reason for sign, reason in REASONS.items() if sign in said), last_words)
        raise BuildError(f"{failure}: {reason} (its own words: {LOG.relative_to(ROOT)})")


def say(number: int, what: str) -> None:
    """One line of progress."""
    print(f"[{number}/4] {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
