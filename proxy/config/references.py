"""References in a configuration's texts: `${…}` stands for what is kept elsewhere.

    ${NAME}             an environment variable; unset is an error
    ${NAME:-default}    the same, or the default when it is unset or empty
    ${file:PATH}        a file's text without the line breaks at its end; relative to the configuration's folder
    $${                 a literal ${

They do not nest. What they bring is never looked at again: neither for references, nor for YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

MAX_FILE = 64 * 1024

_REFERENCE = re.compile(r"(?P<escaped>\$\$\{)|\$\{(?P<inside>[^{}]*)(?P<closed>\})?")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?", re.DOTALL)


def resolve(text: str, environ: Mapping[str, str], folder: Path) -> tuple[str, bool, list[str]]:
    """A text with its references resolved, whether anything came from outside of the file, and what is wrong."""
    faults: list[str] = []
    foreign = False

    def value(match: re.Match[str]) -> str:
        nonlocal foreign
        if match["escaped"]:
            return "${"
        inside = match["inside"]
        if not match["closed"]:
            faults.append('"${" without its "}" (they do not nest); write "$${" for a literal "${"')
        elif inside.startswith("file:") and inside != "file:":
            foreign = True
            return _contents(inside[len("file:") :], folder, faults)
        elif (variable := _VARIABLE.fullmatch(inside)) is None:
            faults.append('"${…}" takes NAME, NAME:-default or file:PATH; write "$${" for a literal "${"')
        elif (found := environ.get(variable["name"])) or (found is not None and variable["default"] is None):
            foreign = True
            return found
        elif variable["default"] is not None:
            return variable["default"][2:]
        else:
            faults.append(f"the environment variable {variable['name']} is not set")
        return ""

    return _REFERENCE.sub(value, text), foreign, faults


def _contents(path: str, folder: Path, faults: list[str]) -> str:
    reason = "is empty"
    try:
        with (folder / path).open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            reason = f"is larger than {MAX_FILE // 1024} KiB"
        elif text := data.decode("utf-8-sig").rstrip("\r\n"):
            return text
    except UnicodeDecodeError:
        reason = "is not UTF-8"
    except (OSError, ValueError) as error:
        reason = unreadable(error)
    faults.append(f"the file {path!r} {reason}")
    return ""


def unreadable(error: Exception) -> str:
    """Why a file could not be read, as the end of a sentence."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, IsADirectoryError):
        return "is a directory, not a file"
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is not a path"
