"""The shape of the code, held by its imports: which room of `proxy` may import which other, and who may use a library.

Imports point down only. `upstream` and `downstream` never import each other: they meet in `routing` and in the gateway.
`alpaca` and `routing` decide, and so do no I/O and have no clock and no randomness of their own.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "proxy").rglob("*.py"))

# A room is a package or a module directly below `proxy`. Each may import itself and the rooms named here, no other.
MAY_IMPORT = {
    "__init__": "observe",
    "__main__": "cli",
    "cli": "gateway cluster recording simulator upstream downstream observe config transport routing alpaca",
    "gateway": "cluster recording upstream downstream observe config transport routing alpaca",
    "cluster": "upstream downstream observe config transport routing alpaca",
    "recording": "simulator observe transport routing alpaca",
    "simulator": "observe transport alpaca",
    "upstream": "observe transport routing alpaca",
    "downstream": "observe config transport routing alpaca",
    "observe": "config transport routing alpaca",
    "config": "transport routing alpaca",
    "transport": "",
    "routing": "alpaca",
    "alpaca": "",
}

# Each library has the places that may import it. Whatever is not named here is the standard library or a mistake.
MAY_USE = {
    "gevent": (
        "proxy.observe.logs proxy.transport proxy.upstream proxy.downstream proxy.gateway proxy.recording"
        " proxy.simulator proxy.cli proxy.__main__ proxy.cluster"
    ),
    "geventwebsocket": "proxy.transport.upgrade",
    "websocket": "proxy.upstream.websocket",
    "urllib3": "proxy.upstream.trading_rest",
    "wsproto": "proxy.transport.frames",
    "msgspec": "proxy.alpaca proxy.routing proxy.simulator",
    "yaml": "proxy.config.yamlfile",
    "pydantic": "proxy.config.model",
    "pydantic_core": "proxy.config.model",
    "prometheus_client": "proxy.observe.metrics",
    "shtab": "proxy.cli.completion",
    "backports": "proxy.recording.zstd",
    "redis": "proxy.cluster.registry",
}

# Modules of the standard library that Pythons before 3.14 do not have.
NEWER = {"compression"}

# The names under which requirements.txt knows those libraries, where they differ.
PROJECT = {
    "geventwebsocket": "gevent-websocket",
    "websocket": "websocket-client",
    "yaml": "PyYAML",
    "pydantic_core": "pydantic",
    "prometheus_client": "prometheus-client",
    "backports": "backports-zstd",
}

PURE = ("alpaca", "routing")
IMPURE = {
    "asyncio", "gevent", "logging", "multiprocessing", "random", "secrets", "select", "selectors", "signal", "socket",
    "ssl", "subprocess", "threading", "time",
}  # fmt: skip


class Import(NamedTuple):
    """One import in the sources: `proxy.downstream.server` at line 12 imports `proxy.alpaca.topics`."""

    importer: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    """The dotted name of a module; a package's `__init__.py` has the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def room(module: str) -> str:
    """The room of a module: `downstream` for `proxy.downstream.server`, `__init__` for `proxy` itself."""
    return module.split(".")[1] if "." in module else "__init__"


def within(module: str, places: str) -> bool:
    """Whether the module is one of the places, or lies below one."""
    return any(module == place or module.startswith(f"{place}.") for place in places.split())


def imports_of(path: Path) -> Iterator[Import]:
    """Every import in a module, those inside functions included; `from proxy.net import frames` names the submodule."""
    importer = module_name(path)
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (Import(importer, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{importer}:{node.lineno}: a relative import hides where it points"
            package = node.module or ""
            for alias in node.names:
                submodule = ROOT.joinpath(*package.split("."), alias.name)
                is_module = submodule.with_suffix(".py").exists() or submodule.is_dir()
                yield Import(importer, node.lineno, f"{package}.{alias.name}" if is_module else package)


def requirements() -> Iterator[tuple[str, str, str]]:
    """The lines of requirements.txt as (project, version, reason); the reason is the comment beside it, or empty."""
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pinned, _, reason = line.partition("#")
            project, _, version = pinned.partition(";")[0].strip().partition("==")
            yield project, version, reason.strip()


IMPORTS = [found for path in MODULES for found in imports_of(path)]
OWN = [found for found in IMPORTS if within(found.target, "proxy")]
FOREIGN = [found for found in IMPORTS if not within(found.target, "proxy __future__")]


def test_every_room_is_in_the_rule() -> None:
    """A new package or module directly below `proxy` is entered here with what it may import."""
    assert {room(module_name(path)) for path in MODULES} <= set(MAY_IMPORT)


def test_the_rule_points_down_only() -> None:
    """Each line of the rule names only rooms below it, so that no two rooms can import each other."""
    order = list(MAY_IMPORT)
    upward = [
        f"{importer} → {target}"
        for importer, targets in MAY_IMPORT.items()
        for target in targets.split()
        if order.index(target) <= order.index(importer)
    ]
    assert upward == []


def test_imports_follow_the_rule() -> None:
    strays = [
        str(found)
        for found in OWN
        if room(found.target) not in {room(found.importer), *MAY_IMPORT[room(found.importer)].split()}
    ]
    assert strays == []


def test_pure_packages_do_no_io_and_have_no_clock() -> None:
    strays = [str(found) for found in FOREIGN if room(found.importer) in PURE and found.target.split(".")[0] in IMPURE]
    assert strays == []


def test_libraries_are_imported_where_they_belong() -> None:
    strays = []
    for found in FOREIGN:
        library = found.target.split(".")[0]
        if library not in {*sys.stdlib_module_names, *NEWER} and not within(found.importer, MAY_USE.get(library, "")):
            strays.append(str(found))
    assert strays == []


def test_requirements_are_the_libraries_imported_each_with_its_reason() -> None:
    libraries = {found.target.split(".")[0] for found in FOREIGN} - sys.stdlib_module_names - NEWER
    required = list(requirements())
    assert {name for name, _, _ in required} == {PROJECT.get(library, library) for library in libraries}
    assert [name for name, _, reason in required if not reason] == []


def test_the_lock_holds_every_requirement() -> None:
    """If not: requirements.txt changed, and requirements.lock has yet to be made anew by the command at its top."""
    locked = re.findall(r"^([a-z0-9-]+)==([0-9.]+)", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    assert {(name.lower(), version) for name, version, _ in requirements()} <= set(locked)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_states_its_subject(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), "no docstring"


def test_a_package_lists_its_modules() -> None:
    for package in sorted((ROOT / "proxy").glob("*/__init__.py")):
        listed = re.findall(r"^ *(\w+) {2,}", package.read_text("utf-8"), re.MULTILINE)
        assert sorted(listed) == sorted({path.stem for path in package.parent.glob("*.py")} - {"__init__"}), package


def test_decisions_import_with_no_gevent() -> None:
    """In a Python that cannot import gevent, everything that decides still imports."""
    pure = [module_name(path) for path in MODULES if room(module_name(path)) in PURE]
    program = f"import sys; sys.modules['gevent'] = None; import {', '.join([*pure, 'proxy.config.model'])}"
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=True, timeout=30)


def test_gevent_patches_before_anything_else_is_imported() -> None:
    """`python -m proxy` runs proxy/__init__.py and then __main__.py; neither may import what gevent will patch."""
    main = ast.parse((ROOT / "proxy" / "__main__.py").read_text("utf-8"))
    first_two = [ast.unparse(statement) for statement in main.body[1:3]]  # after the docstring
    assert first_two == ["from gevent import monkey", "monkey.patch_all()"]

    patched = "{'socket', 'ssl', 'threading', 'subprocess'}"
    program = f"import sys, proxy, proxy.observe.version; print(*{patched} & set(sys.modules))"
    early = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert early.stdout.strip() == ""
