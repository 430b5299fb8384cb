# ruff: noqa: RUF005, UP031
"""First code that alpaca-proxy.pyz runs.

build_zipapp.py puts it at the top of pex's `__main__`.

On a Python or a machine that the file has no wheels for, it exits with one sentence. If an earlier start has unpacked
the file, it starts that copy and writes nothing, so the copy may be read-only. Otherwise it prints that it unpacks, and
limits what pex unpacks to the wheels of this Python on this machine, in a folder for this combination:
`$PEX_ROOT/cp312-x86_64-1a2b3c4d`, or the same below `~/.cache/alpaca-proxy`.

Pythons back to 2.7 can parse this file and reach the sentence.
"""

import os
import sys

PYTHONS = ()  # type: tuple[tuple[int, int], ...]  # build_zipapp.py fills in these four: ((3, 10), (3, 11)),
SYSTEM = ""  # "Linux",
MACHINES = ()  # type: tuple[str, ...]  # ("x86_64", "aarch64"),
GLIBC = ()  # type: tuple[int, ...]  # (2, 28), or empty if the wheels are for the C library of the build machine

CANNOT_WORK = 78  # the status of an unusable configuration; the systemd unit does not restart after it


def refuse_others():
    # type: () -> None
    """Exit with one sentence unless there are wheels for this Python and machine."""
    system, _, _, _, machine = os.uname()
    kind = getattr(getattr(sys, "implementation", None), "name", "cpython").replace("cpython", "CPython")
    kind = "free-threaded " + kind if "t" in getattr(sys, "abiflags", "") else kind
    is_64_bit = sys.maxsize > 2**32
    glibc = glibc_version()
    right_python = sys.version_info[:2] in PYTHONS and kind == "CPython"
    right_machine = system == SYSTEM and machine in MACHINES and is_64_bit
    if right_python and right_machine and glibc >= GLIBC:
        return
    pythons = [dotted(python) for python in PYTHONS]
    needed = " ".join(["CPython", either(pythons), "on", SYSTEM, either(list(MACHINES))])
    this = " ".join([kind, sys.version.split()[0], "on", system, machine]) + ("" if is_64_bit else ", 32 bits")
    if GLIBC and right_python and right_machine:
        needed += " with glibc " + dotted(GLIBC) + " or newer"
        this += " with glibc " + dotted(glibc) if glibc else " without glibc"
    if right_python or not right_machine:
        step = "build one on a machine like this, with python3 build_zipapp.py"
    else:
        step = "call it with " + (on_path() or "such a Python; none is on PATH")
    name = os.path.basename(sys.argv[0])
    sys.stderr.write(name + " is for " + needed + "; this is " + this + ": " + step + "\n")
    sys.exit(CANNOT_WORK)


def glibc_version():
    # type: () -> tuple[int, ...]
    """This machine's glibc version, as (2, 36); () with another C library."""
    try:
        return tuple(map(int, (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[1].split(".")[:2]))
    except (AttributeError, IndexError, OSError, ValueError):
        return ()


def on_path():
    # type: () -> str
    """The name of the newest suitable Python on PATH, or "".

    Shims of pyenv are skipped: they may lead to no Python.
    """
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if "shims" not in folder]
    for version in reversed(PYTHONS):
        name = "python" + dotted(version)
        if any(os.access(os.path.join(folder, name), os.X_OK) for folder in folders):
            return name
    return ""


def dotted(version):
    # type: (tuple[int, ...]) -> str
    return ".".join(map(str, version))


def either(names):
    # type: (list[str]) -> str
    return ", ".join(names[:-1]) + " or " + names[-1] if names[1:] else names[0]


def unpacked_to():
    # type: () -> str
    """The folder for this Python on this machine.

    Its name covers the Python's path, which a venv refers to.
    """
    import zlib

    path_hash = zlib.crc32(sys.base_prefix.encode("utf-8", "surrogateescape"))
    name = "cp%d%d-%s-%08x" % (sys.version_info[0], sys.version_info[1], os.uname()[4], path_hash)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.sep, os.path.expanduser("~"), ".cache")
    return os.path.join(os.path.abspath(os.environ.get("PEX_ROOT") or os.path.join(cache, "alpaca-proxy")), name)


def start_unpacked(root):
    # type: (str) -> None
    """Replace this process by the copy that an earlier start unpacked, if any.

    Does nothing if one of pex's own environment variables is set.
    """
    import glob
    import zipimport

    if any(name.startswith("PEX_") and name != "PEX_ROOT" for name in os.environ):
        return
    info = zipimport.zipimporter(sys.path[0]).get_data("PEX-INFO").decode("utf-8")
    identity = info.split('"pex_hash"')[1].split('"')[1]
    for venv in glob.glob(os.path.join(glob.escape(root), "venvs", "*", identity, "*")):
        python = os.path.join(venv, "bin", "python")
        if os.path.exists(os.path.join(venv, "pex")) and os.access(python, os.X_OK):
            options = sys.orig_argv[1 : sys.orig_argv.index(sys.argv[0])] if sys.argv[0] in sys.orig_argv else []
            os.environ["PEX"] = os.path.realpath(sys.argv[0])  # the proxy reads the name of its file there
            os.environ["_PEX_CACHE_SET_LAST_ACCESS"] = "0"  # otherwise pex writes the time of access to its cache
            try:
                os.execv(python, [python, "-I"] + options + [venv] + sys.argv[1:])
            except OSError:  # some emulators cannot exec this; pex then starts it in its own way
                return


def announce(root):
    # type: (str) -> None
    """Print that the file is being unpacked, which takes seconds, and the folder."""
    from pex.pex_root import can_write_dir  # type: ignore[import-not-found]

    where = root
    if not can_write_dir(root):
        where = "a temporary folder, because " + root + " cannot be written; set PEX_ROOT to one that can"
    sys.stderr.write("alpaca-proxy: first start of this file; unpacking to " + where + "\n")
    sys.stderr.flush()


def silence_pex_warnings():
    # type: () -> None
    """Suppress pex's two warnings of an unwritable folder: `announce` prints it."""
    import warnings

    from pex.pex_warnings import PEXWarning  # type: ignore[import-not-found]

    warnings.simplefilter("ignore", PEXWarning)


def restrict_wheels():
    # type: () -> None
    """Hide from pex the wheels of other Pythons and machines."""
    from pex.pex_info import PexInfo  # type: ignore[import-not-found]

    original = PexInfo.distributions.fget
    tag, machine = "cp%d%d" % sys.version_info[:2], os.uname()[4]

    def fits(wheel):
        # type: (str) -> bool
        abi, platform = wheel[: -len(".whl")].split("-")[-2:]
        return platform == "any" or (abi in (tag, "abi3", "none") and machine in platform)

    PexInfo.distributions = property(lambda info: {name: h for name, h in original(info).items() if fits(name)})


refuse_others()
first = "__PEX_EXE__" not in os.environ  # pex runs this same __main__ again when it starts the unpacked copy
root = unpacked_to() if first else ""
if first:
    start_unpacked(root)
sys.path.insert(0, os.path.join(sys.path[0], ".bootstrap"))  # where pex is in the file
silence_pex_warnings()
if first:
    announce(root)
    os.environ["PEX_ROOT"] = root
if PYTHONS[1:] or MACHINES[1:]:
    restrict_wheels()
del sys.path[0]
