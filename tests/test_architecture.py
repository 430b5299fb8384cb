"""The shape of the code, held by its imports: which part of `proxy` may know which other, and who may use a library.

`cli → gateway → net → routing → protocol → errors`: imports point down only. What is said (`protocol`) and who hears it
(`routing`) is decided by pure code, with no I/O, no clock and no randomness of its own; one package travels.
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

# A part is a module or a package directly below `proxy`. Each may import itself and the parts named here, no other.
MAY_IMPORT = {
    "__init__": "version",
    "__main__": "cli",
    "cli": "demo gateway simulator config notify logs colour net routing protocol errors snapshot version",
    "demo": "gateway simulator config logs net routing protocol errors snapshot version",
    # what runs
    "gateway": "clock reload metrics web net events history config logs routing protocol errors snapshot version",
    "simulator": "net logs routing protocol errors version",
    "net": "history logs origins routing protocol errors snapshot version",
    "metrics": "snapshot version",
    "web": "history protocol snapshot version",
    "events": "logs snapshot",
    "history": "snapshot",
    # what is configured
    "reload": "config routing protocol errors",
    "config": "origins routing protocol errors",
    # what is decided
    "routing": "protocol errors",
    "protocol": "errors",
    # what everyone may know
    "errors": "",
    "notify": "",
    "logs": "colour",
    "clock": "",
    "origins": "",
    "colour": "",
    "snapshot": "",
    "version": "",
}

# Each library has the places that may import it. Whatever is not named here is the standard library or a mistake.
MAY_USE = {
    "gevent": "proxy.net proxy.gateway proxy.simulator proxy.demo proxy.cli proxy.__main__",
    "geventwebsocket": "proxy.net.websocket",
    "websocket": "proxy.net.websocket",
    "wsproto": "proxy.net.frames",
    "msgspec": "proxy.protocol proxy.routing proxy.simulator",
    "yaml": "proxy.config.yamlfile",
    "pydantic": "proxy.config.model",
    "pydantic_core": "proxy.config.model",
    "prometheus_client": "proxy.metrics",
}

# The names under which requirements.txt knows those libraries, where they differ.
PROJECT = {
    "geventwebsocket": "gevent-websocket",
    "websocket": "websocket-client",
    "yaml": "PyYAML",
    "pydantic_core": "pydantic",
    "prometheus_client": "prometheus-client",
}

PURE = ("protocol", "routing")
IMPURE = {
    "asyncio", "gevent", "logging", "multiprocessing", "random", "secrets", "select", "selectors", "signal", "socket",
    "ssl", "subprocess", "threading", "time",
}  # fmt: skip


class Import(NamedTuple):
    """One import in the sources: `proxy.net.server` at line 12 imports `proxy.protocol.topics`."""

    importer: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    """`proxy/net/server.py` is `proxy.net.server`; a package's `__init__.py` goes by the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def part(module: str) -> str:
    """The part of `proxy` that a module belongs to: `net` for `proxy.net.server`, `__init__` for `proxy` itself."""
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


def test_every_part_has_its_place_in_the_rule() -> None:
    """A new module directly below `proxy` must say here what it may import."""
    assert {part(module_name(path)) for path in MODULES} <= set(MAY_IMPORT)


def test_the_rule_points_down_only() -> None:
    """Each line of the rule names only parts that stand below it, so that no two parts can know each other."""
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
        if part(found.target) not in {part(found.importer), *MAY_IMPORT[part(found.importer)].split()}
    ]
    assert strays == []


def test_pure_packages_do_no_io_and_have_no_clock() -> None:
    strays = [str(found) for found in FOREIGN if part(found.importer) in PURE and found.target.split(".")[0] in IMPURE]
    assert strays == []


def test_libraries_are_imported_where_they_belong() -> None:
    strays = []
    for found in FOREIGN:
        library = found.target.split(".")[0]
        if library not in sys.stdlib_module_names and not within(found.importer, MAY_USE.get(library, "")):
            strays.append(str(found))
    assert strays == []


def test_requirements_are_the_libraries_imported_each_with_its_reason() -> None:
    libraries = {found.target.split(".")[0] for found in FOREIGN} - sys.stdlib_module_names
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


def test_decisions_import_with_no_gevent() -> None:
    """In a Python that cannot import gevent, everything that decides still imports."""
    pure = [module_name(path) for path in MODULES if part(module_name(path)) in PURE]
    program = f"import sys; sys.modules['gevent'] = None; import {', '.join([*pure, 'proxy.config.model'])}"
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=True, timeout=30)


def test_gevent_patches_before_anything_else_is_imported() -> None:
    """`python -m proxy` runs proxy/__init__.py and then __main__.py; neither may import what gevent will patch."""
    main = ast.parse((ROOT / "proxy" / "__main__.py").read_text("utf-8"))
    first_two = [ast.unparse(statement) for statement in main.body[1:3]]  # after the docstring
    assert first_two == ["from gevent import monkey", "monkey.patch_all()"]

    program = (
        "import sys, proxy, proxy.version; print(*{'socket', 'ssl', 'threading', 'subprocess'} & set(sys.modules))"
    )
    early = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert early.stdout.strip() == ""
