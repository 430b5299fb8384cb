#!/usr/bin/env python3
"""Build alpaca-proxy.pyz: the proxy and all it needs in one file, for the Python and the kind of machine that build it.

    python3 build_zipapp.py && python3 alpaca-proxy.pyz demo

Nothing need be installed beforehand but Python 3.10 or newer with its venv module. In a private environment below
`build/`, pip fetches the wheels that requirements.lock names, checked by hash, and pex packs them, unchanged, with the
sources. The same sources and lock give the same bytes. A file that is there is replaced only by one that is complete.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - Pythons back to 3.6 can parse this file, so that they can be told
    sys.exit(
        f"build_zipapp.py needs Python 3.10 or newer and this is Python {sys.version_info[0]}.{sys.version_info[1]}: "
        "call it with a newer one, for example python3.12 build_zipapp.py"
    )

import argparse
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from proxy.version import COMMIT_FILE, commit

ROOT = Path(__file__).resolve().parent
OUTPUT = ROOT / "alpaca-proxy.pyz"
LOCK = ROOT / "requirements.lock"
BUILD = ROOT / "build"
LOG = BUILD / "build.log"

PYTHON = f"CPython {sys.version_info.major}.{sys.version_info.minor}"
HOST = f"cp{sys.version_info.major}{sys.version_info.minor}-{sysconfig.get_platform()}"

PEX = """\
pex==2.105.2 \
--hash=sha256:5a4d73fbeab30ddf70e360971cb19b9fa80b2a29cfe83e786215fcdd5ef1af9d \
--hash=sha256:1330f9a145410ea9588703a56206638af7f376a583cdaedabf4e04e598573bc5
"""  # two wheels: for Pythons up to 3.11, and for newer ones
PEX_OPTIONS = (
    "--no-rc",
    f"--interpreter-constraint=CPython=={sys.version_info.major}.{sys.version_info.minor}.*",  # another Python is told
    "--entry-point=proxy",  # starts in proxy/__main__.py, whose first statement is gevent's patch
    "--venv=prepend",  # unpacks once, into an environment of its own: native modules do not load from a zip
    "--sh-boot",  # ./alpaca-proxy.pyz finds that environment without starting a second Python
    "--no-pre-install-wheels",  # the wheels inside stay PyPI's, byte for byte: anyone can compare them with the lock
)

REASONS = {
    "DO NOT MATCH THE HASHES": "a download is not the file whose hash is on record, so it was not used",
    "Failed to establish a new connection": "no package index answers: reach pypi.org or set PIP_INDEX_URL",
    "No space left on device": "the disk is full",
}


class BuildError(Exception):
    """Why there is no new file, as one sentence for whoever builds."""


def main() -> int:
    """Build the file and say where it is. Returns 0; 1 with the reason on stderr; 130 when interrupted."""
    parser = argparse.ArgumentParser(description="Build alpaca-proxy.pyz.")
    parser.add_argument(
        "--targets", choices=["host"], default="host", help="for whom: this Python on this kind of machine (default)"
    )
    parser.parse_args()
    os.umask(0o022)  # file modes are part of the bytes
    try:
        build()
    except (BuildError, OSError) as error:
        print(f"build_zipapp.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    digest = hashlib.sha256(OUTPUT.read_bytes()).hexdigest()
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1e6:.1f} MB, for {PYTHON} on {sysconfig.get_platform()}")
    print(f"sha256 {digest}")
    print(f"next: python3 {OUTPUT.name} demo")
    return 0


def build() -> None:
    """The four steps. Raises BuildError or OSError; what the tools had to say is then in build/build.log."""
    BUILD.mkdir(exist_ok=True)
    LOG.write_bytes(b"")
    say(1, f"tools: {PEX.split()[0]} in a private environment")
    python = install_tools()
    say(2, f"dependencies: the wheels that requirements.lock names for {HOST}")
    wheels = fetch_wheels(python)
    stamp = commit(ROOT / "proxy")
    say(3, f"sources: proxy/ at commit {stamp}")
    sources = stage_sources(stamp)
    say(4, f"packing {OUTPUT.name}")
    pack(python, wheels, sources)


def install_tools() -> Path:
    """The Python of the private environment that has pex; made anew when this Python or the pinned pex is another."""
    folder = BUILD / f"tools-{HOST}"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    state = f"{sys.version}\n{PEX}"
    if not (ready.exists() and ready.read_text() == state):
        if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
            raise BuildError("this Python has no venv module; on Debian and Ubuntu: sudo apt install python3-venv")
        run(sys.executable, "-m", "venv", "--clear", folder, failure="cannot make an environment for the build tools")
        pinned = folder / "pex.txt"
        pinned.write_text(PEX)
        pip(python, "install", "--require-hashes", "-r", pinned, failure="cannot install pex")
        ready.write_text(state)
    return python


def fetch_wheels(python: Path) -> Path:
    """The folder of wheels for this machine; kept until the lock changes, so that the next build needs no network."""
    folder = BUILD / f"wheels-{HOST}"
    ready = BUILD / f"wheels-{HOST}.ready"
    state = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not (ready.exists() and ready.read_text() == state):
        shutil.rmtree(folder, ignore_errors=True)
        pip(python, "wheel", "--require-hashes", "-r", LOCK, "-w", folder, failure="cannot fetch the dependencies")
        ready.write_text(state)
    return folder


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


def pack(python: Path, wheels: Path, sources: Path) -> None:
    """Write the file, whole or not at all."""
    unfinished = BUILD / OUTPUT.name
    pinned = ["==".join(wheel.name.split("-")[:2]) for wheel in sorted(wheels.glob("*.whl"))]
    run(
        python,
        *("-I", "-m", "pex", *PEX_OPTIONS, *pinned),
        f"--python-path={python.parent}",  # for this Python alone, whatever else is on PATH
        f"--pre-resolved-dists={wheels}",
        f"--sources-directory={sources}",
        f"--output-file={unfinished}",
        failure="cannot pack the file",
    )
    unfinished.replace(OUTPUT)


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
